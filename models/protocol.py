"""The typed messages between the API process and a device worker.

Both processes import this module, and the API process imports nothing else that a worker runs, so it
needs msgspec alone: no numpy, no torch. A message is one msgpack frame (`encode`, `Decoder`); the first
byte-level rule is the length prefix. Knows no HTTP, no scheduling and no device.
"""

from __future__ import annotations

import struct
from typing import Literal

import msgspec

# What may help after a fault: another worker; another configuration; a reboot of the machine (or a reload of the
# driver); another machine, or the same one stopped and started.
Remedy = Literal["restart", "configuration", "reboot", "replace"]

# What of a freed slot may serve another sequence. "tokens": all that was written, cut anywhere. "chunks": whole feeds
# of `chunk` tokens, for a backend whose numbers depend on how a prompt was cut. "none": nothing.
Reuse = Literal["none", "chunks", "tokens"]

FRAME_LIMIT = 256 * 1024 * 1024
_HEADER = struct.Struct("<I")


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn; the neutral value of a filter means that it is off.

    `seed` keys the random numbers (models/draws.py: Numbers); each of best_of has one of its own.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    top_n_tokens: int = 0


class Grammar(msgspec.Struct, frozen=True):
    """The language that an answer must belong to: a JSON schema as JSON text, or a regular expression."""

    kind: Literal["json", "regex"]
    text: str


class SlotInput(msgspec.Struct, frozen=True):
    """One row of a decode step: `token` is written at `position` of `slot`, its logits are wanted."""

    slot: int
    token: int
    position: int


# --- what a worker is told to load ------------------------------------------------------------------------------


CpuWeights = Literal["dtype", "float16"]


class CpuOptions(msgspec.Struct, frozen=True, kw_only=True, tag="cpu", tag_field="kind", forbid_unknown_fields=True):
    """The CPU backend: torch with static slots.

    `layout` "fixed" uses only row counts that were proven, at load and on this CPU, to give a row the same bits, so a
    slot's numbers never depend on its neighbours (the guaranteed mode, with float32); "packed" attends for all slots
    at once, faster with many, and leaves the proof out. `dtype` "auto" is bfloat16 where the processor multiplies it
    (AMX, AVX512-BF16), else float32.
    `weights` "float16" are multiplied with float32 activations: a step reads all of them, so it is faster, and differs
    from float32 in the last digits.
    `chunk` (tokens a feed may bring at once) is at most `n_positions`. `threads` 0: as many as there are CPUs.
    """

    slots: int = 8
    n_positions: int = 2048
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    layout: Literal["fixed", "packed"] = "fixed"
    weights: CpuWeights = "dtype"
    threads: int = 0
    chunk: int = 256


class NeuronOptions(
    msgspec.Struct, frozen=True, kw_only=True, tag="neuron", tag_field="kind", forbid_unknown_fields=True
):
    """The Neuron backend: transformers-neuronx with continuous batching over `tp_degree` NeuronCores.

    `artifacts` is a directory of compiled artifacts, or one of them; "" is the one of the model cache. What fits
    nowhere there is compiled by `neuronx-serve compile`, or while loading if `compile` says so. `sampling` "device"
    draws on the cores, faster, and without seeds, logprobs, penalties, typical_p and grammars. `cores` ("0", "0-1")
    are the cores of this model, for models that are resident side by side; "" leaves the choice to the runtime.
    """

    slots: int = 8
    n_positions: int = 4096
    tp_degree: int = 2
    amp: Literal["bf16", "f16", "f32"] = "bf16"
    quant: Literal["none", "s8"] = "none"
    context_buckets: tuple[int, ...] = (256, 1024, 2048)
    token_buckets: tuple[int, ...] = (1024, 4096)
    artifacts: str = ""
    compile: Literal["never", "if-missing"] = "never"
    sampling: Literal["host", "device"] = "host"
    cores: str = ""


class SimulatedOptions(
    msgspec.Struct, frozen=True, kw_only=True, tag="simulated", tag_field="kind", forbid_unknown_fields=True
):
    """A device with set times and a schedule of faults; its tokens are a function of the slot's own history.

    Times are seconds. `reuse`: a slot that a decode leaves out keeps what it holds (needs `chunk`). `mixed`: a feed may
    come with a decode; the longer of the two is what both take. `faults` names what goes wrong at which call
    ("decode:12=exit", "load:0=configuration"): see models/simulated.py.
    """

    slots: int = 8
    n_positions: int = 2048
    vocab_size: int = 512
    step_s: float = 0.0
    prefill_token_s: float = 0.0
    load_s: float = 0.0
    chunk: int = 0
    reuse: bool = False
    mixed: bool = False
    answer_tokens: int = 0
    eos_token: int = 2
    faults: tuple[str, ...] = ()


DeviceOptions = CpuOptions | NeuronOptions | SimulatedOptions


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded backend is and can do.

    `chunk` > 0: a feed may start at any position, in pieces of at most `chunk` tokens ("extend"); 0: only whole
    prompts from position 0, up to the largest of `context_buckets`. `candidates` > 0: decode may answer with that
    many candidates a row. `step_s` and `feed_s` are measured seconds by bucket, in the order of the buckets.
    `reuse`: a slot keeps what was written, also while decodes leave it out, for a feed behind it; needs `chunk`.
    `copies`: what one slot holds can be copied to another, of as much as `reuse` allows.
    `mixed`: a decode and a feed of another slot can be one pass, which takes less than the two.
    `runtime_timeout_s` > 0: the device's own runtime gives a step up after that many seconds, and says why.
    """

    slots: int
    n_positions: int
    vocab_size: int
    context_buckets: tuple[int, ...] = ()
    token_buckets: tuple[int, ...] = ()
    chunk: int = 0
    reuse: Reuse = "none"
    copies: bool = False
    mixed: bool = False
    candidates: int = 0
    prefill_logprobs: bool = False
    device_sampling: bool = False
    exact_replay: bool = False
    dtype: str
    device: str
    load_s: float = 0.0
    step_s: tuple[float, ...] = ()
    feed_s: tuple[float, ...] = ()
    runtime_timeout_s: float = 0.0


# --- commands: API process -> worker ----------------------------------------------------------------------------


class Stage(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """First command of a worker that serves: do the host's share of loading `directory`, touching no device."""

    model: str
    directory: str
    options: DeviceOptions


class Load(msgspec.Struct, frozen=True, tag=True):
    """The device is free now: load the weights and graphs, warm up, answer Ready."""


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker keeps of a sequence from its last feed on.

    `emitted` are tokens that were delivered before a replay: they are fed again, with nothing sampled, and the
    sequence goes on behind them. `max_new_tokens` counts them too. `history` is the prompt, for the penalties;
    empty when no penalty needs it. `grammar` constrains what is drawn; an end token only where the text is complete.
    """

    sampling: SamplingParams
    eos: tuple[int, ...]
    max_new_tokens: int
    emitted: tuple[int, ...] = ()
    history: tuple[int, ...] = ()
    grammar: Grammar | None = None


class Feed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Step: put `tokens` into `slot` from `position` on. `start` comes with the last piece of the prompt only.

    The slot holds the first `reused` tokens of the prompt already: the piece at that position is the first. With
    `source` they are copied from that slot before; needs a backend with the capability `copies`.

    `scored` asks for logprobs of the prompt: token i of it is the one that follows `tokens[i]`. Needs a backend with
    the capability `prefill_logprobs`.
    """

    step: int
    slot: int
    sequence: int
    tokens: tuple[int, ...]
    position: int = 0
    reused: int = 0
    source: int | None = None
    start: Start | None = None
    scored: tuple[int, ...] = ()


class Decode(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Step: one token for each live (slot, sequence); a sequence that ended in the step before is skipped.

    `held` are the (slot, sequence) whose prompt is half fed: they wait, with nothing drawn. A slot in neither is
    released. `feed`, of the same step, is done as well, in one pass where the backend can (Description.mixed): its
    slot is in neither.
    """

    step: int
    live: tuple[tuple[int, int], ...]
    held: tuple[tuple[int, int], ...] = ()
    feed: Feed | None = None


class Compile(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """First and only command: make the graphs of the model an artifact in the directory `store`, answer Compiled.

    `place` is where the weights go meanwhile: the cores, where the graphs are tried as well, or the host's memory.
    """

    model: str
    directory: str
    options: NeuronOptions
    store: str
    place: Literal["device", "host"] = "device"


Command = Stage | Load | Feed | Decode | Compile


# --- reports: worker -> API process -----------------------------------------------------------------------------


class Progress(msgspec.Struct, frozen=True, tag=True):
    """`done` of `total` units of `phase` (bytes while staging and loading weights, graphs, warm-up steps)."""

    phase: Literal["staging", "weights", "compile", "graphs", "warm-up"]
    done: int
    total: int


class Staged(msgspec.Struct, frozen=True, tag=True):
    """The host's share is done; the worker waits for Load."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Loaded and verified: steps may come."""

    description: Description


class Drawn(msgspec.Struct, frozen=True, array_like=True):
    """One new token of one sequence. `top` is empty or (id, logprob) rows, best first.

    `finish` is "" while the sequence goes on; "non_finite" means that the row held no usable number: no token was
    drawn (`token` is -1) and the sequence must be replayed. "refused": its prompt cannot be fed to this model (a token
    outside the vocabulary, too long); the device was not touched, and a replay would be refused again. "grammar": its
    grammar cannot be followed here, and no token was drawn.
    """

    slot: int
    sequence: int
    token: int
    logprob: float
    finish: Literal["", "length", "eos_token", "non_finite", "refused", "grammar"] = ""
    top: tuple[tuple[int, float], ...] = ()


class Stepped(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A step is done. A replaying or skipped sequence has no entry in `drawn`. `prompt_logprobs`: of Feed.scored.

    `device_s` and `sampling_s` are the seconds the backend and the sampler took, `idle_s` those between the end of
    the previous step and the start of this one.
    """

    step: int
    drawn: tuple[Drawn, ...] = ()
    prompt_logprobs: tuple[float, ...] = ()
    device_s: float = 0.0
    sampling_s: float = 0.0
    idle_s: float = 0.0


class Fault(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The worker cannot go on and exits after this.

    configuration: the model or its options cannot work here. memory: an allocation failed. device: the device or its
    runtime failed. internal: a bug. `remedy` says whether another worker would fare better.
    """

    kind: Literal["configuration", "memory", "device", "internal"]
    message: str
    remedy: Remedy = "restart"


class Compiled(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The artifact `directory` is whole: `graphs` of `size` bytes, of which `compiled` were not there before."""

    directory: str
    graphs: int
    compiled: int
    size: int
    seconds: float


Report = Progress | Staged | Ready | Stepped | Fault | Compiled

_encoder = msgspec.msgpack.Encoder()
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def encode(message: Command | Report) -> bytes:
    """One frame: a little-endian u32 length, then msgpack."""
    body = _encoder.encode(message)
    return _HEADER.pack(len(body)) + body


def frame_length(header: bytes) -> int:
    """Length of the body that follows a 4-byte header; ValueError when no peer of ours could have sent it."""
    (length,) = _HEADER.unpack(header)
    if length > FRAME_LIMIT:
        raise ValueError(f"a frame of {length} bytes is over the limit of {FRAME_LIMIT}: the stream is out of step")
    return int(length)


HEADER_BYTES = _HEADER.size


def decode_command(body: bytes) -> Command:
    """The command of a frame's body; msgspec.DecodeError when it is none."""
    return _command_decoder.decode(body)


def decode_report(body: bytes) -> Report:
    """The report of a frame's body; msgspec.DecodeError when it is none."""
    return _report_decoder.decode(body)
