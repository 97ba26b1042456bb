"""`neuronx-serve plan`: what the configured models take and how fast they can be, before anything is downloaded.

Prints what models/planner/ computes, as text or JSON. Exit code 0 when every model fits, 1 when one does not.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from models.host import available_bytes
from models.planner import refusal, residents_refusal
from models.planner.hardware import DISK_BYTES_PER_S, INSTANCES, Instance, smallest_instance
from models.planner.memory import core_memory
from models.planner.shapes import published_spec
from models.planner.table import Figure, Row, Table, cpu_table, neuron_table
from models.planner.workload import Workload
from models.protocol import CpuOptions, NeuronOptions
from models.spec import ModelSpec, SpecError, read_spec
from server.commands import flags_of, settings_of
from server.commands.model import chosen_model
from server.errors import ConfigurationError
from server.settings import ModelSettings
from server.swap.windows import cut

DESCRIPTION = (
    "Say what the configured models take of the NeuronCores and of the host, how long they load, and how fast they can "
    "be. Needs no device and no checkpoint of the three models that this server is made for."
)
_MARKS = {"arithmetic": "=", "hardware": "~", "published": "P"}
_LEGEND = """\
= arithmetic: a fact, or a floor that nothing can beat
~ an estimate: only hardware can tell"""
_LEGEND_PUBLISHED = "P published: Meta-Llama-3-8B and the exchange of models on one inf2.xlarge (AWS, May 2024)"
_NAME_WIDTH, _CELL_WIDTH = 35, 27


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """One model: where its shapes come from, whether it fits (`refusal` says why not), its table, and what was `cut` of
    its options to its sliding window."""

    model: ModelSettings
    spec: ModelSpec | None
    shapes: str
    refusal: str | None
    table: Table | None
    cut: str = ""


@dataclass(frozen=True, slots=True)
class Basis:
    """What the plan assumes."""

    instance: Instance
    workload: Workload
    disk_bytes_per_s: float


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--model, --json, and what the plan assumes."""
    load = Workload()
    parser.add_argument(
        "--model", metavar="MODEL", help="plan this model alone: a configured id, or a checkpoint directory"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with the mark of each figure")
    parser.add_argument(
        "--instance",
        choices=[instance.name for instance in INSTANCES],
        help="the instance type (default: the smallest that has the NeuronCores)",
    )
    parser.add_argument(
        "--disk-rate",
        type=_positive,
        default=DISK_BYTES_PER_S / 1e6,
        metavar="MB/S",
        help="rate of the checkpoint's disk, which doctor measures (default: %(default)g, a gp3 volume as it is made)",
    )
    for name, default, text in (
        ("--prompt-tokens", load.prompt_tokens, "prompt of each request"),
        ("--new-tokens", load.new_tokens, "answer of each request"),
        ("--users", load.users, "users who each ask again when they have their answer"),
    ):
        parser.add_argument(name, type=_count, default=default, metavar="N", help=f"{text} (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; 0 when all of it fits, else 1."""
    settings = settings_of(arguments)
    chosen = settings.models
    if arguments.model:
        chosen = (chosen_model(arguments.config, arguments.model, {**os.environ, **flags_of(arguments)})[0],)
    basis = Basis(
        instance=_instance(chosen, arguments.instance),
        workload=Workload(arguments.prompt_tokens, arguments.new_tokens, arguments.users),
        disk_bytes_per_s=arguments.disk_rate * 1e6,
    )
    plans = [_plan(model, basis) for model in chosen]
    print(_json(plans, basis) if arguments.json else _text(plans, basis))
    return 1 if any(plan.refusal for plan in plans) else 0


# --- the plan ---------------------------------------------------------------------------------------------------


def _instance(models: Sequence[ModelSettings], name: str | None) -> Instance:
    cores = max((model.device.tp_degree for model in models if isinstance(model.device, NeuronOptions)), default=1)
    try:
        smallest = smallest_instance(cores)
    except ValueError as error:
        raise ConfigurationError(f"models.device.tp_degree = {cores}: {error}") from error
    return next((instance for instance in INSTANCES if instance.name == name), smallest)


def _plan(model: ModelSettings, basis: Basis) -> ModelPlan:
    if not isinstance(model.device, CpuOptions | NeuronOptions):
        return ModelPlan(model, None, "", None, None)
    spec, shapes = _spec(model)
    model, note = cut(model, spec)
    options = model.device
    if isinstance(options, CpuOptions):
        reason, table = refusal(spec, options, available_bytes()), cpu_table(spec, options)
        return ModelPlan(model, spec, shapes, reason, table, note)
    assert isinstance(options, NeuronOptions)
    instance = basis.instance
    reason = refusal(spec, options, instance.host_free_bytes)
    if options.tp_degree > instance.cores:
        reason = f"tp_degree is {options.tp_degree}, and {instance.name} has {instance.cores} NeuronCores"
    table = neuron_table(spec, options, instance, basis.workload, basis.disk_bytes_per_s)
    return ModelPlan(model, spec, shapes, reason, table, note)


def _spec(model: ModelSettings) -> tuple[ModelSpec, str]:
    """The shapes from the checkpoint, or where there is none the published ones of that id."""
    directory = Path(model.path)
    if not directory.exists() and (spec := published_spec(model.id)):
        return spec, f"as published ({directory} does not exist yet)"
    try:
        return read_spec(directory), f"{directory / 'config.json'}"
    except SpecError as error:
        raise ConfigurationError(f"{model.id}: {error}") from error


def _residents(plans: Sequence[ModelPlan], instance: Instance) -> str | None:
    """Whether the Neuron models can hold the device at once; None unless there are several, and cores for all."""
    together = [
        (plan.spec, plan.model.device)
        for plan in plans
        if plan.spec is not None and isinstance(plan.model.device, NeuronOptions)
    ]
    if len(together) < 2 or sum(options.tp_degree for _, options in together) > instance.cores:
        return None
    reason = residents_refusal(together, instance.cores, instance.host_free_bytes)
    verdict = f"cannot be resident together: {reason}" if reason else "can be resident together, each on its own cores"
    return f"These {len(together)} models {verdict}."


# --- how it is shown ----------------------------------------------------------------------------------------------


def _text(plans: Sequence[ModelPlan], basis: Basis) -> str:
    instance, workload = basis.instance, basis.workload
    lines = [_LEGEND]
    if any(isinstance(plan.model.device, NeuronOptions) for plan in plans):
        lines = [
            f"{instance.name}: {instance.cores} NeuronCores, ${instance.dollars_per_hour} an hour. The load: "
            f"{workload.users} users, {workload.prompt_tokens} + {workload.new_tokens} tokens a request",
            _LEGEND,
            _LEGEND_PUBLISHED,
        ]
    for plan in plans:
        lines += ["", *_model_lines(plan)]
    if together := _residents(plans, instance):
        lines += ["", together]
    return "\n".join(lines)


def _model_lines(plan: ModelPlan) -> list[str]:
    options = plan.model.device
    if plan.table is None:
        return [f"{plan.model.id}: a simulated device, nothing to plan"]
    lines = [f"{plan.model.id}: {_verdict(plan)}", f"  shapes: {plan.shapes}"]
    if plan.cut:
        lines.append(f"  {plan.cut.removeprefix(plan.model.id + ': ')}")
    if isinstance(options, NeuronOptions):
        lines.append(
            f"  tp_degree {options.tp_degree}, {options.slots} slots x {options.n_positions} positions, "
            f"context buckets {_listed(options.context_buckets)}, token buckets {_listed(options.token_buckets)}"
        )
    elif isinstance(options, CpuOptions):
        lines.append(f"  CPU, {options.slots} slots x {options.n_positions} positions")
    heads = (f"{name} (does not fit)" if name in plan.table.impossible else name for name in plan.table.columns)
    lines.append(" " * _NAME_WIDTH + "".join(head.ljust(_CELL_WIDTH) for head in heads).rstrip())
    return lines + [_row_line(row) for row in plan.table.rows]


def _verdict(plan: ModelPlan) -> str:
    if plan.refusal:
        return f"DOES NOT FIT: {plan.refusal}"
    options = plan.model.device
    tight = plan.spec and isinstance(options, NeuronOptions) and core_memory(plan.spec, options).tight
    return "fits, but tightly: fewer slots leave the runtime more room" if tight else "fits"


def _row_line(row: Row) -> str:
    cells = ("  ".join(_shown(figure) for figure in cell).ljust(_CELL_WIDTH) for cell in row.cells)
    return (f"  {row.name}, {row.unit}".ljust(_NAME_WIDTH) + "".join(cells)).rstrip()


def _shown(figure: Figure) -> str:
    low, high = _rounded(figure.low), _rounded(figure.high)
    return f"{_MARKS[figure.mark]} {low if low == high else f'{low} to {high}'}"


def _rounded(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _json(plans: Sequence[ModelPlan], basis: Basis) -> str:
    """The same as data: each figure as {"mark", "low", "high"}."""
    document = {
        **asdict(basis),
        "models": [
            {
                "id": plan.model.id,
                "device": plan.model.device,
                "shapes": plan.shapes,
                "refusal": plan.refusal,
                "cut": plan.cut,
                "table": plan.table,
            }
            for plan in plans
        ],
        "residents": _residents(plans, basis.instance),
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value
