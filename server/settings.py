"""The configuration as one frozen typed tree: sections, keys, ranges, defaults. Knows no file and no environment."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from models.protocol import CpuOptions, DeviceOptions

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]
CountOrNone = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0, le=604_800)]
PositiveSeconds = Annotated[float, Meta(gt=0, le=604_800)]
Text = Annotated[str, Meta(min_length=1)]


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ServerSettings(_Section, frozen=True):
    """The listening socket and what every request meets first. Sizes in bytes, times in seconds.

    `otlp_endpoint`: http(s)://host:port of an OTLP/gRPC collector of traces; "" is none.
    """

    host: Text = "127.0.0.1"
    port: Port = 8080
    api_key: str = ""
    admin_key: str = ""
    cors_allow_origin: tuple[str, ...] = ("*",)
    payload_limit: Count = 2_000_000
    stop_deadline: Seconds = 90.0
    write_timeout: PositiveSeconds = 60.0
    keepalive_interval: PositiveSeconds = 15.0
    compute_type: str = "gpu+optimized"
    log_level: Literal["trace", "debug", "info", "warn", "error"] = "info"
    json_output: bool = False
    otlp_endpoint: str = ""
    otlp_service_name: Text = "text-generation-inference.router"


class LimitSettings(_Section, frozen=True):
    """What requests may ask for; 0 for a token limit means: as much as the model's slots hold."""

    max_concurrent_requests: Count = 128
    max_best_of: Count = 2
    max_stop_sequences: CountOrNone = 4
    max_top_n_tokens: CountOrNone = 5
    max_client_batch_size: Count = 4
    max_input_tokens: CountOrNone = 0
    max_total_tokens: CountOrNone = 0
    validation_workers: Count = 2
    grammar: bool = True


class WorkerSettings(_Section, frozen=True):
    """The device worker's interpreter ("" = this one), its deadlines in seconds, and how often it may be replaced:
    `restarts` times within `restart_window` seconds. A step's deadline follows from the warm-up (server/deadlines.py)
    and lies between `step_floor` and `step_timeout`."""

    python: str = ""
    step_floor: PositiveSeconds = 2.0
    step_timeout: PositiveSeconds = 60.0
    stage_timeout: PositiveSeconds = 600.0
    load_timeout: PositiveSeconds = 3600.0
    restarts: CountOrNone = 3
    restart_window: PositiveSeconds = 300.0


class SchedulerSettings(_Section, frozen=True):
    """`decode_per_feed`: decode steps between two feeds while other sequences are live; a step that does both is one.

    `reuse_prefixes`: a prompt that begins with what a free slot still holds goes on behind it, where the backend can;
    `share_prefixes`: also when the two came with different API keys, which lets one learn from the time to its first
    token what the other has asked.
    """

    decode_per_feed: Count = 1
    reuse_prefixes: bool = True
    share_prefixes: bool = False


class SwapSettings(_Section, frozen=True):
    """The exchange of models; times in seconds (docs/architecture.md, Exchanging models).

    `residents`: how many models may be on the device at once, each with a worker of its own.
    """

    on_request: bool = True
    strict_names: bool = False
    drain: Seconds = 30.0
    min_resident: Seconds = 10.0
    turn_after: PositiveSeconds = 60.0
    give_up: PositiveSeconds = 600.0
    residents: Count = 1


class ModelSettings(_Section, frozen=True):
    """One servable model: `path` is a checkpoint directory with config.json and tokenizer.json.

    `pinned`: no request for another model moves it off the device, only activate and unload do.
    """

    id: Text
    path: Text
    family: str = "auto"
    python: str = ""
    pinned: bool = False
    max_input_tokens: CountOrNone = 0
    max_total_tokens: CountOrNone = 0
    device: DeviceOptions = CpuOptions()


class Settings(_Section, frozen=True):
    """The whole tree. The first model is the default one and is loaded at start."""

    models: tuple[ModelSettings, ...]
    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    worker: WorkerSettings = WorkerSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    swap: SwapSettings = SwapSettings()
