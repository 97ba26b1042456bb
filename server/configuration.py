"""Reads the configuration: a TOML file, overridden by the environment (TGI's names), overridden by flags.

A refusal names where the value came from (file, variable or flag), its key, the value and what is allowed; nothing is
silently corrected. Knows no model, no device and no network: a model's directory is located here, never opened.
"""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec

from models.families import FAMILIES
from models.protocol import DeviceOptions
from server.errors import ConfigurationError
from server.settings import ModelSettings, Settings
from server.variables import MODEL_ID, VARIABLES, WITHOUT_EFFECT, Variable, flag

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Section = TypeVar("Section", bound=msgspec.Struct)
_DEVICES: dict[object, type[msgspec.Struct]] = {kind.__struct_config__.tag: kind for kind in get_args(DeviceOptions)}
_NOUNS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_LEAST = {"slots": 1, "n_positions": 2, "tp_degree": 1}
_ID = re.compile(r"[^\s/?#]+(/[^\s/?#]+)*")
_ENDPOINT = re.compile(r"(https?://(\[[0-9A-Fa-f:.]+\]|[^\s/?#\[\]:@]+)(:\d{1,5})?/?)?")
_RESERVED_IDS = {"events": "GET /models/events is the stream of model states"}


class Given(NamedTuple):
    """A variable's value as the user wrote it, and where: "environment variable PORT" or "flag --port"."""

    variable: Variable
    origin: str
    value: str


def default_config() -> Path:
    """configs/cpu.toml, as installed with the package or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "configs" / "cpu.toml"
    return installed if installed.is_file() else package.parent / "configs" / "cpu.toml"


def load_settings(path: Path | None, environment: Mapping[str, str], flags: Mapping[str, str]) -> Settings:
    """The settings of `path` (None: the default file) with overrides; `flags` are keyed by variable, as `environment`.

    An empty variable of the environment counts as not set. Raises ConfigurationError.
    """
    path = (path or default_config()).expanduser().absolute()
    settings = _section(Settings, _parse(path), "", str(path))
    located = tuple(_located(model, path, environment) for model in settings.models)
    settings = msgspec.structs.replace(settings, models=located)
    origins = _Origins(str(path))
    for given in _given(environment, flags):
        settings = _applied(settings, given)
        origins.overrides.update(dict.fromkeys(given.variable.keys, given.origin))
    _check(settings, origins)
    return settings


def without_effect(settings: Settings, environment: Mapping[str, str], flags: Mapping[str, str]) -> tuple[str, ...]:
    """Where the user gave something that changes nothing here: a launcher option of TGI with no counterpart, or an
    option of a device that no configured model runs on."""
    options = {option for model in settings.models for option in model.device.__struct_fields__}
    idle = [
        given.origin
        for given in _given(environment, flags)
        for key in given.variable.keys
        if key.startswith("models.device.") and key.rpartition(".")[2] not in options
    ]
    return (
        *idle,
        *(f"flag {flag(name)}" for name in WITHOUT_EFFECT if name in flags),
        *(f"environment variable {name}" for name in WITHOUT_EFFECT if environment.get(name)),
    )


# --- the file ---------------------------------------------------------------------------------------------------


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: is not a TOML file: {error}") from error


def _section(kind: type[Section], table: object, key: str, file: str) -> Section:
    if not isinstance(table, dict):
        raise _refusal(f"{file}:", key, table, "a table")
    prefix = f"{key}." if key else ""
    known = {item.name: item for item in msgspec.structs.fields(kind)}
    for name in table:
        if name not in known:
            raise ConfigurationError(f"{file}: {prefix}{name}: unknown key. Known here: {', '.join(known)}")
    for name, item in known.items():
        if item.required and name not in table:
            raise ConfigurationError(f"{file}: {prefix}{name}: missing")
    return kind(**{name: _value(known[name].type, value, prefix + name, file) for name, value in table.items()})


def _value(annotation: Any, value: object, key: str, file: str) -> object:
    if annotation == DeviceOptions:
        return _device(value, key, file)
    if annotation == tuple[ModelSettings, ...]:
        if not isinstance(value, list):
            raise _refusal(f"{file}:", key, value, "tables, each under [[models]]")
        return tuple(_section(ModelSettings, table, f"{key}[{i}]", file) for i, table in enumerate(value))
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return _section(annotation, value, key, file)
    try:
        return msgspec.convert(value, annotation)
    except msgspec.ValidationError:
        raise _refusal(f"{file}:", key, value, _allowed(annotation)) from None


def _device(table: object, key: str, file: str) -> msgspec.Struct:
    if not isinstance(table, dict):
        raise _refusal(f"{file}:", key, table, "a table")
    kind = table.get("kind")
    if kind not in _DEVICES:
        raise _refusal(f"{file}:", f"{key}.kind", kind, " or ".join(repr(name) for name in _DEVICES))
    return _section(_DEVICES[kind], {name: value for name, value in table.items() if name != "kind"}, key, file)


def _located(model: ModelSettings, file: Path, environment: Mapping[str, str]) -> ModelSettings:
    """`model` with absolute paths: relative ones start at the file, "cache:NAME" is a directory of the model cache."""
    python = model.python
    if "/" in python:
        python = str(file.parent / Path(python).expanduser())
    if not model.path.startswith("cache:"):
        path = file.parent / Path(model.path).expanduser()
    else:
        name = model.path.removeprefix("cache:")
        if not name or "/" in name or name.startswith("."):
            raise _refusal(f"{file}:", "models.path", model.path, "cache:NAME, a directory name without '/'")
        path = model_cache(environment) / name
    return msgspec.structs.replace(model, path=str(path), python=python)


def model_cache(environment: Mapping[str, str]) -> Path:
    """Prepared checkpoints: ${NEURONX_SERVE_CACHE:-${XDG_CACHE_HOME:-~/.cache}/neuronx-serve}/models."""
    own = environment.get("NEURONX_SERVE_CACHE")
    cache = Path(own) if own else Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "neuronx-serve"
    return cache.expanduser().absolute() / "models"


# --- the overrides ----------------------------------------------------------------------------------------------


def _given(environment: Mapping[str, str], flags: Mapping[str, str]) -> Iterator[Given]:
    """What the user set, one entry a variable; the flag where both are set."""
    for variable in (MODEL_ID, *VARIABLES):
        set_flags = [name for name in variable.names if name in flags]
        set_names = [name for name in variable.names if environment.get(name)]
        if variable.name == "HOSTNAME" and not _is_address(environment.get("HOSTNAME", "")):
            set_names = []  # containers set HOSTNAME to their own id
        if len({*set_flags, *set_names}) > 1:
            raise ConfigurationError(
                f"{' and '.join(variable.names)} are two names of one setting and both are given: give one"
            )
        if set_flags:
            yield Given(variable, f"flag {flag(set_flags[0])}", flags[set_flags[0]])
        elif set_names:
            yield Given(variable, f"environment variable {set_names[0]}", environment[set_names[0]])


def _applied(settings: Settings, given: Given) -> Settings:
    if given.variable is MODEL_ID:
        return _starting_with(settings, given)
    for key in given.variable.keys:
        settings = _replaced(settings, key.split("."), given)
    return settings


def _replaced(section: Section, keys: Sequence[str], given: Given) -> Section:
    """`section` with the given value at `keys`, in every model where they lead through `models`. An option that a
    model's device does not have is left out."""
    annotation = {item.name: item.type for item in msgspec.structs.fields(section)}.get(keys[0])
    if annotation is None:
        return section
    value = getattr(section, keys[0])
    if len(keys) == 1:
        value = _read(annotation, given)
    elif isinstance(value, tuple):
        value = tuple(_replaced(item, keys[1:], given) for item in value)
    else:
        value = _replaced(value, keys[1:], given)
    return msgspec.structs.replace(section, **{keys[0]: value})


def _read(annotation: Any, given: Given) -> object:
    text = given.variable.spellings.get(given.value, given.value)
    value = [part.strip() for part in text.split(",")] if get_origin(annotation) is tuple else text
    try:
        return msgspec.convert(value, annotation, strict=False)
    except msgspec.ValidationError:
        allowed = " or ".join(given.variable.spellings) or _allowed(annotation)
        raise _refusal(given.origin, "", given.value, allowed) from None


def _starting_with(settings: Settings, given: Given) -> Settings:
    """`settings` with the given model first. A directory becomes a model of its own name, on the first one's device."""
    first = next((model for model in settings.models if model.id == given.value), None)
    if first is None:
        directory = Path(given.value).expanduser().absolute()
        if not given.value or not directory.is_dir():
            known = ", ".join(model.id for model in settings.models)
            raise ConfigurationError(
                f"{given.origin} = {given.value!r}: neither a configured model ({known}) nor a directory. "
                "Nothing is downloaded from a hub: give a checkpoint directory with config.json and tokenizer.json"
            )
        first = ModelSettings(
            id=directory.resolve().name,
            path=str(directory),
            python=settings.models[0].python,
            device=settings.models[0].device,
        )
    others = tuple(model for model in settings.models if model is not first)
    return msgspec.structs.replace(settings, models=(first, *others))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# --- what must hold between the values --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Origins:
    """Where values came from: the file, but for the keys that a variable or flag has overridden."""

    file: str
    overrides: dict[str, str] = field(default_factory=dict)

    def refusal(self, key: str, value: object, allowed: str) -> ConfigurationError:
        override = self.overrides.get(re.sub(r"\[\d+\]", "", key))
        return _refusal(f"{override}:" if override else f"{self.file}:", key, value, allowed)


def _check(settings: Settings, origins: _Origins) -> None:
    if not settings.models:
        raise origins.refusal("models", [], "at least one [[models]] table")
    endpoint = settings.server.otlp_endpoint
    if not _ENDPOINT.fullmatch(endpoint):
        allowed = "http://HOST:PORT or https://HOST:PORT of an OTLP/gRPC collector, as http://127.0.0.1:4317"
        raise origins.refusal("server.otlp_endpoint", endpoint, allowed)
    seen: set[str] = set()
    for i, model in enumerate(settings.models):
        key = f"models[{i}]"
        if not _ID.fullmatch(model.id):
            raise origins.refusal(f"{key}.id", model.id, "names joined by '/', without spaces, '?' and '#'")
        if model.id in _RESERVED_IDS:
            raise origins.refusal(f"{key}.id", model.id, f"another id: {_RESERVED_IDS[model.id]}")
        if model.id in seen:
            raise origins.refusal(f"{key}.id", model.id, "an id that no other model has")
        seen.add(model.id)
        if model.family != "auto" and model.family not in FAMILIES:
            raise origins.refusal(f"{key}.family", model.family, " or ".join(map(repr, ("auto", *FAMILIES))))
        _check_device(model.device, key, origins)
        _check_lengths(settings, model, key, origins)


def _check_device(device: DeviceOptions, key: str, origins: _Origins) -> None:
    for name in device.__struct_fields__:
        value = getattr(device, name)
        least = _LEAST.get(name, 0)
        if isinstance(value, int | float) and not value >= least:
            raise origins.refusal(f"{key}.device.{name}", value, f"a number from {least}")


def _check_lengths(settings: Settings, model: ModelSettings, key: str, origins: _Origins) -> None:
    """TGI's rule: a prompt must be shorter than the total; and the total must fit a slot."""
    positions = model.device.n_positions
    total = model.max_total_tokens or settings.limits.max_total_tokens
    longest = model.max_input_tokens or settings.limits.max_input_tokens
    total_key = f"{key}.max_total_tokens" if model.max_total_tokens else "limits.max_total_tokens"
    longest_key = f"{key}.max_input_tokens" if model.max_input_tokens else "limits.max_input_tokens"
    if total > positions:
        allowed = f"at most the n_positions of the slots of {model.id} ({key}.device), {positions}"
        raise origins.refusal(total_key, total, allowed)
    if longest >= (total or positions):
        bound = f"{total_key}, {total}" if total else f"{key}.device.n_positions, {positions}"
        raise origins.refusal(longest_key, longest, f"less than {bound}")


# --- refusals ---------------------------------------------------------------------------------------------------


def _refusal(origin: str, key: str, value: object, allowed: str) -> ConfigurationError:
    shown = "(not shown)" if key.endswith("_key") else repr(value)
    subject = " ".join(part for part in (origin, key) if part)
    return ConfigurationError(f"{subject} = {shown}: allowed is {allowed}")


def _allowed(annotation: Any) -> str:
    """An annotation in words: "a whole number from 0 to 65535"."""
    if get_origin(annotation) is Annotated:
        base, meta = get_args(annotation)
        return _allowed(base) + _range(meta)
    if get_origin(annotation) is Literal:
        return " or ".join(repr(choice) for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"a list, each {_allowed(get_args(annotation)[0])}"
    return _NOUNS[annotation]


def _range(meta: msgspec.Meta) -> str:
    if meta.min_length is not None:
        return " that is not empty"
    low = f" above {meta.gt}" if meta.gt is not None else f" from {meta.ge}"
    return low if meta.le is None else f"{low} to {meta.le}"
