"""The command line: neuronx-serve serve | models. Reads the settings, then hands over; knows no HTTP and no model.

Exit codes: 0 stopped as asked, 1 could not run, 2 wrong usage, 78 (EX_CONFIG) the configuration cannot work.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from server.configuration import load_settings, without_effect
from server.errors import ConfigurationError
from server.observe.logs import logging_to
from server.settings import ModelSettings, Settings
from server.variables import MODEL_ID, VARIABLES, WITHOUT_EFFECT, flag

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = _parser().parse_args(argv)
    flags = {name: value for name, value in vars(arguments).items() if name.isupper() and value is not None}
    try:
        settings = load_settings(arguments.config, os.environ, flags)
        if arguments.command == "models":
            return list_models(settings)
        with logging_to(sys.stderr, settings.server.log_level, settings.server.json_output):
            for origin in without_effect(settings, os.environ, flags):
                logger.warning("%s has no effect in this configuration", origin)
            return serve(settings)
    except ConfigurationError as error:
        return _refuse(error, os.EX_CONFIG)


def serve(settings: Settings) -> int:
    """Serve until a signal. The socket listens before the app is imported: see server/listener.py."""
    from server import listener

    try:
        listening = listener.listening_socket(settings.server.host, settings.server.port)
    except listener.CannotListen as error:
        return _refuse(error, 1)
    with listening:
        from server.app import create_app
        from server.observe.metrics import Metrics
        from server.swap.registry import Registry

        metrics = Metrics()
        registry = Registry(settings, metrics)
        app = create_app(settings, registry, metrics)
        return 0 if listener.run(app, listening, registry.stop_gracefully) else 1


def list_models(settings: Settings) -> int:
    """Print each configured model with its device and what its directory lacks; 1 when one lacks something."""
    missing = {model.id: _missing(model) for model in settings.models}
    for model in settings.models:
        device = model.device.__struct_config__.tag
        state = f"lacks {', '.join(missing[model.id])}" if missing[model.id] else "complete"
        print(f"{model.id}\t{device}\t{model.path}\t{state}")
    return 1 if any(missing.values()) else 0


def _refuse(error: Exception, exit_code: int) -> int:
    print(f"neuronx-serve: {error}", file=sys.stderr)
    return exit_code


def _missing(model: ModelSettings) -> tuple[str, ...]:
    directory = Path(model.path)
    if not directory.is_dir():
        return ("the directory",)
    wanted = {name: (directory / name).is_file() for name in ("config.json", "tokenizer.json")}
    wanted["weights (*.safetensors or *.gguf)"] = any(
        any(directory.glob(f"*.{kind}")) for kind in ("safetensors", "gguf")
    )
    return tuple(name for name, there in wanted.items() if not there)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="neuronx-serve", description="An inference server for AWS Inferentia2.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serving = commands.add_parser(
        "serve",
        help="serve the configured models over HTTP",
        description="Serve the configured models over HTTP. Every flag is also an environment variable: "
        "--max-input-tokens is MAX_INPUT_TOKENS. A flag wins over the environment, the environment over the file.",
        allow_abbrev=False,
    )
    listing = commands.add_parser("models", help="list the configured models and what their directories lack")
    for command in (serving, listing):
        command.add_argument(
            "--config", type=Path, metavar="FILE", help="TOML file (default: the packaged configs/cpu.toml)"
        )
    for variable in (MODEL_ID, *VARIABLES):
        for name in variable.names:
            help_text = variable.help if name == variable.name else f"the same as {flag(variable.name)}"
            _add(serving, name, help_text)
    for name in WITHOUT_EFFECT:
        _add(serving, name, argparse.SUPPRESS)
    return parser


def _add(parser: argparse.ArgumentParser, name: str, help_text: str) -> None:
    """One flag; without a value it means true, as TGI's switches do."""
    parser.add_argument(flag(name), dest=name, nargs="?", const="true", metavar="VALUE", help=help_text)


if __name__ == "__main__":
    sys.exit(main())
