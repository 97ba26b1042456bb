"""Tokens that the cores draw themselves: through the driver, and through the steps that a worker runs.

On the fake library, and on the real one in an interpreter that can import it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from models.backend import DeviceError, Logits, StepError, TokenIds
from models.neuron.tnx import NeuronBackend
from models.protocol import Decode, Drawn, Feed, NeuronOptions, SamplingParams, SlotInput, Start
from models.steps import Steps

HOST = NeuronOptions(
    slots=3, n_positions=64, amp="f32", context_buckets=(16, 32), token_buckets=(32, 64), compile="if-missing"
)
DEVICE = msgspec.structs.replace(HOST, sampling="device")
LIBRARIES = ["faked", "real"] if importlib.util.find_spec("transformers_neuronx") else ["faked"]
PROMPT, OTHER = (7, 101, 33, 250, 4), (201, 12, 5)
WILD = SamplingParams(do_sample=True, temperature=5.0, top_k=50)

pytestmark = pytest.mark.filterwarnings("ignore")  # the real library's own


@pytest.fixture(params=LIBRARIES)
def load(request: pytest.FixtureRequest, tiny_checkpoint: Callable[..., Path]) -> Callable[..., NeuronBackend]:
    """A loaded backend with these options."""
    request.getfixturevalue("faked" if request.param == "faked" else "real_neuron_library")

    def create(options: NeuronOptions = DEVICE) -> NeuronBackend:
        backend = NeuronBackend(tiny_checkpoint("llama3"), options)
        backend.stage(lambda *report: None)
        described = backend.load(lambda *report: None)
        assert described.device_sampling == (options.sampling == "device")
        return backend

    return create


@pytest.fixture
def backend(load: Callable[..., NeuronBackend]) -> Iterator[NeuronBackend]:
    loaded = load()
    yield loaded
    loaded.close()


def _ids(scores: object) -> list[int]:
    assert isinstance(scores, TokenIds)
    return [int(token) for token in scores.ids]


def _draws(backend: NeuronBackend, slot: int, count: int) -> set[int]:
    return {_ids(backend.feed(slot, PROMPT))[0] for _ in range(count)}


def _best(backend: NeuronBackend, prompt: Sequence[int], steps: int) -> list[int]:
    """The greedy answer of a backend that returns logits."""
    tokens: list[int] = []
    scores = backend.feed(0, prompt)
    for position in range(len(prompt), len(prompt) + steps):
        assert isinstance(scores, Logits)
        tokens.append(int(scores.rows[0].argmax()))
        scores = backend.decode([SlotInput(0, tokens[-1], position)])
    return tokens


def test_greedy_slots_draw_what_the_logits_say(load: Callable[..., NeuronBackend]) -> None:
    expected = _best(load(HOST), PROMPT, 8)
    backend = load()
    tokens = _ids(backend.feed(1, PROMPT))
    while len(tokens) < 8:
        tokens += _ids(backend.decode([SlotInput(1, tokens[-1], len(PROMPT) + len(tokens) - 1)]))
    assert tokens == expected


def test_each_slot_draws_by_its_own_parameters_and_by_the_latest(backend: NeuronBackend) -> None:
    backend.configure(0, WILD)
    assert len(_draws(backend, 0, 20)) > 3
    assert len(_draws(backend, 1, 5)) == 1
    backend.configure(0, SamplingParams())
    assert _draws(backend, 0, 5) == _draws(backend, 1, 1)


def test_rows_of_a_decode_come_in_the_order_of_the_call(backend: NeuronBackend) -> None:
    backend.feed(0, PROMPT)
    backend.feed(2, OTHER)
    rows = [SlotInput(0, 9, len(PROMPT)), SlotInput(2, 9, len(OTHER))]
    forwards = _ids(backend.decode(rows))
    assert _ids(backend.decode(rows[::-1])) == forwards[::-1]
    assert forwards[0] != forwards[1]


def test_logits_are_not_to_be_had(backend: NeuronBackend) -> None:
    backend.feed(0, PROMPT)
    with pytest.raises(StepError, match='sampling = "device"'):
        backend.decode([SlotInput(0, 9, len(PROMPT))], full=True)


def test_a_token_outside_the_vocabulary_ends_the_worker(
    backend: NeuronBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = NeuronBackend._forward
    monkeypatch.setattr(NeuronBackend, "_forward", lambda *arguments: original(*arguments) + 1_000)
    with pytest.raises(DeviceError, match="vocabulary of 277"):
        backend.feed(0, PROMPT)


def test_parameters_that_cannot_be_written_end_the_worker(backend: NeuronBackend) -> None:
    def fail(generation_config: Any) -> None:
        raise RuntimeError("nrt_tensor_write status=5")

    backend._model.update_generation_config = fail
    with pytest.raises(DeviceError, match="status=5"):
        backend.configure(0, WILD)


# --- through the worker's steps ---------------------------------------------------------------------------------


def _feed(step: int, slot: int, prompt: Sequence[int], sampling: SamplingParams, emitted: Sequence[int] = ()) -> Feed:
    start = Start(sampling=sampling, eos=(), max_new_tokens=50, emitted=tuple(emitted))
    return Feed(step=step, slot=slot, sequence=slot + 100, tokens=tuple(prompt), start=start)


def _tokens(drawn: Sequence[Drawn]) -> dict[int, int]:
    return {each.slot: each.token for each in drawn}


def test_a_sequence_is_drawn_by_its_parameters_from_its_first_token_on(backend: NeuronBackend) -> None:
    steps = Steps(backend)
    greedy = _tokens(steps.run(_feed(0, 0, PROMPT, SamplingParams())).drawn)[0]
    wild = {_tokens(steps.run(_feed(step, 1, PROMPT, WILD)).drawn)[1] for step in range(20)}
    assert len(wild) > 3
    assert _tokens(steps.run(_feed(30, 1, PROMPT, SamplingParams())).drawn) == {1: greedy}


def test_a_drawn_token_has_no_logprob_and_no_alternatives(backend: NeuronBackend) -> None:
    (drawn,) = Steps(backend).run(_feed(0, 0, PROMPT, WILD)).drawn
    assert (drawn.logprob, drawn.top, drawn.finish) == (0.0, (), "")


def test_a_replayed_sequence_is_fed_its_own_tokens_and_goes_on_behind_them(backend: NeuronBackend) -> None:
    """What the cores draw meanwhile is dropped: the client has other tokens already."""
    steps = Steps(backend)
    sent = [3, 88, 140]
    assert steps.run(_feed(0, 0, PROMPT, SamplingParams(), emitted=sent)).drawn == ()
    drawn: dict[int, int] = {}
    for step in range(1, 4):
        assert drawn == {}
        drawn = _tokens(steps.run(Decode(step=step, live=((0, 100),))).drawn)
    assert drawn == {0: _ids(backend.feed(1, [*PROMPT, *sent]))[0]}
