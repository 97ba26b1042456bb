"""`neuronx-serve models`: the configured models and what their directories lack; `models pull` fetches one."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from server.commands import refuse, settings_of
from server.commands.terminal import ProgressLine, bytes_of, size
from server.configuration import model_cache
from server.settings import ModelSettings
from server.transfer.checkpoint import pull, read_snapshot
from server.transfer.hub import TransferError, hub_client

DESCRIPTION = "List the configured models and what their directories lack, or fetch one from the Hugging Face Hub."
PULL = (
    "Fetch a model from the Hugging Face Hub into the model cache: safetensors, configuration and tokenizer, each "
    "verified. An interrupted pull goes on where it was. HF_TOKEN is the token of gated and private models."
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The actions; none is `list`."""
    parser.set_defaults(action="list")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="the configured models and what their directories lack (default)")
    listing.add_argument("--config", type=Path, default=argparse.SUPPRESS, metavar="FILE", help="TOML file")
    pulling = actions.add_parser("pull", help="fetch one from the hub", description=PULL, allow_abbrev=False)
    pulling.add_argument("model", metavar="ID", help="OWNER/NAME on the hub")
    pulling.add_argument("--revision", metavar="REV", help="branch, tag or commit (default: main)")
    pulling.add_argument("--name", metavar="NAME", help="its name in the model cache (default: the id's last part)")


def run(arguments: argparse.Namespace) -> int:
    """0 when the models are complete; 1 when one lacks something or could not be fetched."""
    return pull_model(arguments) if arguments.action == "pull" else list_models(arguments)


def list_models(arguments: argparse.Namespace) -> int:
    """Print each model with its device and what its directory lacks."""
    settings = settings_of(arguments)
    missing = {model.id: _missing(model) for model in settings.models}
    for model in settings.models:
        device = model.device.__struct_config__.tag
        state = f"lacks {', '.join(missing[model.id])}" if missing[model.id] else "complete"
        print(f"{model.id}\t{device}\t{model.path}\t{state}")
    return 1 if any(missing.values()) else 0


def pull_model(arguments: argparse.Namespace) -> int:
    """Fetch and verify; the directory and its line for the configuration on stdout."""
    name = arguments.name or arguments.model.rpartition("/")[2]
    if arguments.model.count("/") != 1 or "/" in name or name.startswith("."):
        reason = f"ID = {arguments.model!r}, NAME = {name!r}: allowed are OWNER/NAME and a directory's name"
        return refuse(TransferError(reason), 2)
    line = ProgressLine(sys.stderr, bytes_of)
    try:
        client = hub_client()
        snapshot = read_snapshot(client, arguments.model, arguments.revision)
        pulled = pull(client, snapshot, model_cache(os.environ) / name, line.update)
    except TransferError as error:
        line.close()
        return refuse(error, 1)
    except KeyboardInterrupt:
        line.close()
        print("interrupted: the same command goes on from there", file=sys.stderr)
        return 128 + signal.SIGINT
    line.close()
    how = "fetched" if pulled.fetched else "was there"
    print(f"{pulled.directory}: {how}, {len(snapshot.files)} files, {size(snapshot.size)}, every hash verified")
    print(f'In the configuration it is path = "cache:{name}"')
    return 0


def _missing(model: ModelSettings) -> tuple[str, ...]:
    directory = Path(model.path)
    if not directory.is_dir():
        return ("the directory",)
    wanted = {name: (directory / name).is_file() for name in ("config.json", "tokenizer.json")}
    wanted["weights (*.safetensors or *.gguf)"] = any(
        any(directory.glob(f"*.{kind}")) for kind in ("safetensors", "gguf")
    )
    return tuple(name for name, there in wanted.items() if not there)
