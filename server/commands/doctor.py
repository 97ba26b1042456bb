"""`neuronx-serve doctor`: examine this machine for the configuration, and say what to do."""

from __future__ import annotations

import argparse
import os

import msgspec

from server.commands import settings_of
from server.doctor.examination import examine
from server.doctor.finding import Report, as_text, fail, report
from server.doctor.probes import read_system
from server.errors import ConfigurationError

DESCRIPTION = (
    "Examine this machine: devices, driver, runtime, packages, cores, models, artifacts, memory, disk and port. Each "
    "line is ok, warn or fail, with what to do. Changes nothing; exit code 0 when nothing fails, else 1."
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """How the report is printed."""
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 1 when something fails, a configuration that cannot be read among it."""
    found = _examined(arguments)
    print(msgspec.json.encode(found).decode() if arguments.json else as_text(found))
    return 0 if found.ok else 1


def _examined(arguments: argparse.Namespace) -> Report:
    try:
        settings = settings_of(arguments)
    except ConfigurationError as error:
        return report([fail("configuration", error.text, "correct the file, the variable or the flag that it names")])
    return examine(settings, read_system(settings, os.environ))
