"""The command line: neuronx-serve COMMAND. Finds the command and runs it; what it does is in server/commands/.

Exit codes: 0 done, or stopped as asked; 1 could not; 2 wrong usage; 78 (EX_CONFIG) the configuration cannot work.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from server.commands import refuse
from server.errors import ConfigurationError

COMMANDS = {
    "serve": "serve the configured models over HTTP",
    "models": "list the configured models and what their directories lack",
    "compile": "build the graphs of a Neuron model ahead of time",
    "artifacts": "list, verify, push and pull compiled graphs",
    "plan": "print what a configuration takes and gives: memory, times, tokens per second, dollars",
    "bench": "measure the engine on a simulated device, a running server, or an exchange of models",
    "doctor": "examine this machine: what is in order, what is not, and what to do",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser(words[0] if words else "").parse_args(words)
    try:
        return int(arguments.run(arguments))
    except ConfigurationError as error:
        return refuse(error, os.EX_CONFIG)


def _parser(chosen: str) -> argparse.ArgumentParser:
    """Only the chosen command's module is imported: `serve` must answer within a second."""
    parser = argparse.ArgumentParser(prog="neuronx-serve", description="An inference server for AWS Inferentia2.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        if name != chosen:
            commands.add_parser(name, help=summary)
            continue
        module = importlib.import_module(f"server.commands.{name}")
        command = commands.add_parser(name, help=summary, description=module.DESCRIPTION, allow_abbrev=False)
        command.add_argument(
            "--config", type=Path, metavar="FILE", help="TOML file (default: the packaged configs/cpu.toml)"
        )
        module.add_flags(command)
        command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
