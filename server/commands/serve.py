"""`neuronx-serve serve`: serve the configured models over HTTP."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from server.commands import flags_of, refuse, settings_of
from server.configuration import without_effect
from server.observe.logs import logging_to
from server.observe.systemd import Notifier
from server.settings import Settings
from server.swap.windows import within_windows
from server.variables import MODEL_ID, VARIABLES, WITHOUT_EFFECT, flag

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Serve the configured models over HTTP. Every flag is also an environment variable: --max-input-tokens is "
    "MAX_INPUT_TOKENS. A flag wins over the environment, the environment over the file."
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Every variable of server/variables.py as a flag."""
    for variable in (MODEL_ID, *VARIABLES):
        for name in variable.names:
            _add(parser, name, variable.help if name == variable.name else f"the same as {flag(variable.name)}")
    for name in WITHOUT_EFFECT:
        _add(parser, name, argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal. 0: it stopped as asked; 1: it could not run; under a service manager also
    server/lifecycle.py's code of a start that failed."""
    settings, cuts = within_windows(settings_of(arguments))
    with logging_to(sys.stderr, settings.server.log_level, settings.server.json_output):
        _warn(arguments, settings, cuts)
        return _serve(settings, Notifier.of(os.environ, os.getpid()), lambda: _read_again(arguments))


def _read_again(arguments: argparse.Namespace) -> Settings:
    """The settings as they are now: the file may have changed since."""
    settings, cuts = within_windows(settings_of(arguments))
    _warn(arguments, settings, cuts)
    return settings


def _warn(arguments: argparse.Namespace, settings: Settings, cuts: Sequence[str]) -> None:
    for origin in without_effect(settings, os.environ, flags_of(arguments)):
        logger.warning("%s has no effect in this configuration", origin)
    for note in cuts:
        logger.warning("%s", note)


def _serve(settings: Settings, notifier: Notifier, read_again: Callable[[], Settings]) -> int:
    """The socket listens before the app is imported: see server/listener.py."""
    from server import listener

    try:
        listening = listener.passed_socket(os.environ, os.getpid()) or listener.listening_socket(
            settings.server.host, settings.server.port
        )
    except listener.CannotListen as error:
        return refuse(error, 1)
    with listening:
        from server.app import create_app
        from server.lifecycle import Lifecycle
        from server.observe.metrics import Metrics
        from server.reload import reload
        from server.swap.registry import Registry

        metrics = Metrics()
        registry = Registry(settings, metrics)
        app = create_app(settings, registry, metrics)
        lifecycle = Lifecycle(registry, notifier, lambda: reload(app, read_again))
        return lifecycle.exit_code if listener.run(app, listening, lifecycle) else 1


def _add(parser: argparse.ArgumentParser, name: str, help_text: str) -> None:
    """One flag; without a value it means true, as TGI's switches do."""
    parser.add_argument(flag(name), dest=name, nargs="?", const="true", metavar="VALUE", help=help_text)
