"""The rules of models/backend.py, held by every backend.

The Neuron backend runs on a fake of its library and, in an interpreter that can import it, on the real one:
tests/models/neuron/test_emulator.py runs this file in such an interpreter.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from models.backend import Backend, ConfigurationError, FloatRows, Logits, MixedStepper, SlotCopier, StepError
from models.protocol import CpuOptions, Description, NeuronOptions, SimulatedOptions, SlotInput

SLOTS = 4
N_POSITIONS = 64
VOCAB_SIZE = 277
PROMPT = (7, 101, 33, 250, 4, 9, 88)
OTHER_PROMPT = (201, 12, 5, 40)

Create = Callable[[Path], Backend]


def _cpu(directory: Path) -> Backend:
    return _cpu_with(directory)


def _cpu_packed(directory: Path) -> Backend:
    return _cpu_with(directory, layout="packed")


def _cpu_bfloat16(directory: Path) -> Backend:
    return _cpu_with(directory, layout="packed", dtype="bfloat16")


def _cpu_with(directory: Path, **options: Any) -> Backend:
    from models.cpu.backend import CpuBackend

    return CpuBackend(directory, CpuOptions(slots=SLOTS, n_positions=N_POSITIONS, threads=1, chunk=5, **options))


def _simulated(directory: Path) -> Backend:
    from models.simulated import SimulatedBackend

    return SimulatedBackend(directory, _simulated_options(chunk=0))


def _simulated_extend(directory: Path) -> Backend:
    from models.simulated import SimulatedBackend

    return SimulatedBackend(directory, _simulated_options(chunk=5))


def _simulated_reuse(directory: Path) -> Backend:
    from models.simulated import SimulatedBackend

    return SimulatedBackend(directory, _simulated_options(chunk=5, reuse=True))


def _simulated_mixed(directory: Path) -> Backend:
    from models.simulated import SimulatedBackend

    return SimulatedBackend(directory, _simulated_options(chunk=5, mixed=True))


def _simulated_options(chunk: int, **options: bool) -> SimulatedOptions:
    return SimulatedOptions(slots=SLOTS, n_positions=N_POSITIONS, vocab_size=VOCAB_SIZE, chunk=chunk, **options)


def _neuron(directory: Path) -> Backend:
    from models.neuron.tnx import NeuronBackend

    options = NeuronOptions(
        slots=SLOTS,
        n_positions=N_POSITIONS,
        amp="f32",
        context_buckets=(16, 32),
        token_buckets=(32, N_POSITIONS),
        compile="if-missing",
    )
    return NeuronBackend(directory, options)


def _neuron_faked(directory: Path) -> Backend:
    return _neuron(directory)


@dataclass
class Loaded:
    """A loaded backend, what it says of itself, and what it reported while it loaded."""

    backend: Backend
    description: Description
    progress: list[tuple[str, int, int]] = field(default_factory=list)

    def feed(self, slot: int, prompt: Sequence[int]) -> FloatRows:
        """Put a whole prompt into a slot, in pieces where the backend takes no more at once; the last token's row."""
        piece = self.description.chunk or len(prompt)
        for start in range(0, len(prompt), piece):
            rows = _rows(self.backend.feed(slot, prompt[start : start + piece], start))
        return rows

    def decode(self, *live: tuple[int, int, int]) -> FloatRows:
        """One step of (slot, token, position) rows."""
        return _rows(self.backend.decode([SlotInput(*row) for row in live]))

    def same(self, left: FloatRows, right: FloatRows) -> bool:
        """Equal to the last bit where the backend promises that, else to rounding."""
        return np.array_equal(left, right) if self.description.exact_replay else self.near(left, right)

    def near(self, left: FloatRows, right: FloatRows) -> bool:
        """Equal to the rounding of the backend's dtype."""
        return np.allclose(left, right, atol=0.1 if self.description.dtype == "bfloat16" else 1e-4)


@dataclass
class Greedy:
    """A greedy continuation of a prompt in one slot."""

    loaded: Loaded
    slot: int
    prompt: Sequence[int]
    tokens: list[int] = field(default_factory=list)
    scores: list[FloatRows] = field(default_factory=list)

    def start(self) -> None:
        self.take(self.loaded.feed(self.slot, self.prompt)[0])

    def take(self, row: FloatRows) -> None:
        self.scores.append(row)
        self.tokens.append(int(row.argmax()))

    @property
    def next(self) -> tuple[int, int, int]:
        return self.slot, self.tokens[-1], len(self.prompt) + len(self.tokens) - 1

    @property
    def held(self) -> tuple[int, int, int]:
        """The row that changes nothing: the last token that was written, where it was written."""
        written = [*self.prompt, *self.tokens[:-1]]
        return self.slot, written[-1], len(written) - 1


def _fake_library() -> ModuleType:
    path = Path(__file__).parent / "neuron" / "fake" / "transformers_neuronx.py"
    spec = importlib.util.spec_from_file_location("fake_transformers_neuronx", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rows(scores: object) -> FloatRows:
    assert isinstance(scores, Logits)
    return scores.rows


def _step(*sequences: Greedy) -> None:
    rows = sequences[0].loaded.decode(*[each.next for each in sequences])
    for sequence, row in zip(sequences, rows, strict=True):
        sequence.take(row)


def _alone(loaded: Loaded, prompt: Sequence[int], steps: int, slot: int = 0) -> Greedy:
    sequence = Greedy(loaded, slot, prompt)
    sequence.start()
    for _ in range(steps):
        _step(sequence)
    return sequence


BACKENDS = [
    pytest.param(_cpu, id="cpu"),
    pytest.param(_cpu_packed, id="cpu-packed"),
    pytest.param(_cpu_bfloat16, id="cpu-bfloat16"),
    pytest.param(_simulated, id="simulated"),
    pytest.param(_simulated_extend, id="simulated-extend"),
    pytest.param(_simulated_reuse, id="simulated-reuse"),
    pytest.param(_simulated_mixed, id="simulated-mixed"),
    pytest.param(_neuron_faked, id="neuron-faked"),
]
if importlib.util.find_spec("transformers_neuronx"):
    BACKENDS.append(pytest.param(_neuron, id="neuron", marks=pytest.mark.filterwarnings("ignore")))  # its own warnings


@pytest.fixture(scope="module", params=BACKENDS)
def create(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Create]:
    """Makes a backend for a directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURON_RT_NUM_CORES", "2")
        patch.setenv("NEURON_RT_EXEC_TIMEOUT", "60")
        patch.setenv("NEURON_COMPILE_CACHE_URL", str(tmp_path_factory.mktemp("compile-cache")))
        patch.setenv("NEURONX_SERVE_CACHE", str(tmp_path_factory.mktemp("model-cache")))
        if request.param is _neuron_faked:
            patch.setitem(sys.modules, "transformers_neuronx", _fake_library())
            patch.setattr("models.neuron.graphs.ProcessPoolExecutor", ThreadPoolExecutor)
        yield request.param


@pytest.fixture(scope="module")
def loaded(create: Create, tiny_checkpoint: Callable[..., Path]) -> Iterator[Loaded]:
    """A loaded backend for the whole file: releasing slots is free, so no test needs a fresh one."""
    backend = create(tiny_checkpoint("llama3"))
    progress: list[tuple[str, int, int]] = []
    backend.stage(lambda *report: progress.append(report))
    description = backend.load(lambda *report: progress.append(report))
    yield Loaded(backend, description, progress)
    backend.close()


# --- what a backend says of itself ------------------------------------------------------------------------------


def test_describes_what_it_was_asked_for(loaded: Loaded) -> None:
    described = loaded.description
    assert (described.slots, described.n_positions, described.vocab_size) == (SLOTS, N_POSITIONS, VOCAB_SIZE)
    assert described.dtype
    assert described.device


def test_a_measured_time_belongs_to_each_bucket(loaded: Loaded) -> None:
    described = loaded.description
    assert len(described.feed_s) == len(described.context_buckets)
    assert len(described.step_s) == len(described.token_buckets)
    assert min(described.load_s, *described.feed_s, *described.step_s, 0.0) == 0.0


def test_progress_rises_to_its_end_in_each_phase(loaded: Loaded) -> None:
    phases = [phase for phase, _, _ in loaded.progress]
    order = ["staging", "weights", "compile", "graphs", "warm-up"]
    assert phases == sorted(phases, key=order.index)
    assert phases[0] == "staging"
    for phase in set(phases):
        done = [(done, total) for each, done, total in loaded.progress if each == phase]
        assert done == sorted(done)
        assert {total for _, total in done} == {done[-1][0]}


def test_refuses_a_checkpoint_or_options_that_cannot_work_while_staging(
    create: Create, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint("llama3"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").unlink()
    backend = create(tmp_path)
    if type(backend).__name__ == "SimulatedBackend":
        backend = type(backend)(tmp_path, SimulatedOptions(faults=("decode",)))  # it reads no checkpoint
    with pytest.raises(ConfigurationError):
        backend.stage(lambda *report: None)


# --- scores -----------------------------------------------------------------------------------------------------


def test_a_feed_scores_the_last_token(loaded: Loaded) -> None:
    row = loaded.feed(0, PROMPT)
    assert row.shape == (1, VOCAB_SIZE)
    assert row.dtype == np.float32
    assert np.isfinite(row).all()


def test_a_decode_answers_its_rows_in_the_order_of_the_call(loaded: Loaded) -> None:
    prompts = [PROMPT, OTHER_PROMPT, PROMPT[::-1], PROMPT[2:]]
    for slot, prompt in enumerate(prompts):
        loaded.feed(slot, prompt)
    live = [(slot, 50 + slot, len(prompt)) for slot, prompt in enumerate(prompts)]
    ordered = loaded.decode(*live)
    assert ordered.shape == (SLOTS, VOCAB_SIZE)
    assert len({row.tobytes() for row in ordered}) == SLOTS
    shuffled = loaded.decode(*[live[slot] for slot in (2, 0, 3, 1)])
    assert loaded.same(shuffled, ordered[[2, 0, 3, 1]])


def test_rows_belong_to_the_caller(loaded: Loaded) -> None:
    fed = loaded.feed(0, PROMPT)
    kept = fed.copy()
    decoded = loaded.decode((0, 1, len(PROMPT)))
    decoded_kept = decoded.copy()
    loaded.decode((0, 2, len(PROMPT) + 1))
    loaded.feed(1, OTHER_PROMPT)
    assert np.array_equal(fed, kept)
    assert np.array_equal(decoded, decoded_kept)


def test_feeding_a_token_and_decoding_it_score_the_same(loaded: Loaded) -> None:
    whole = loaded.feed(0, PROMPT)
    loaded.feed(1, PROMPT[:-1])
    stepped = loaded.decode((1, PROMPT[-1], len(PROMPT) - 1))
    assert loaded.near(whole, stepped)


def test_scores_depend_on_every_token_that_was_written(loaded: Loaded) -> None:
    rows = [loaded.feed(0, PROMPT)]
    for changed in range(len(PROMPT)):
        rows.append(loaded.feed(0, [token + (index == changed) for index, token in enumerate(PROMPT)]))
    assert len({row.tobytes() for row in rows}) == len(rows)


# --- slots are independent --------------------------------------------------------------------------------------


def test_tokens_do_not_depend_on_neighbours_that_join_and_leave(loaded: Loaded) -> None:
    expected = _alone(loaded, PROMPT, steps=12)
    sequence, first, second = (Greedy(loaded, slot, PROMPT) for slot in (2, 0, 3))
    first.prompt, second.prompt = OTHER_PROMPT, PROMPT[1:]
    sequence.start()
    _step(sequence)
    first.start()
    for _ in range(3):
        _step(first, sequence)
    second.start()
    for _ in range(3):
        _step(second, sequence, first)
    for _ in range(3):
        _step(sequence, second)  # the first one left
    newcomer = Greedy(loaded, 0, PROMPT[2:])
    newcomer.start()
    _step(newcomer, second, sequence)
    _step(sequence)
    assert sequence.tokens == expected.tokens
    assert loaded.same(np.stack(sequence.scores), np.stack(expected.scores))


def test_a_released_slot_leaves_nothing_to_the_next_sequence(loaded: Loaded) -> None:
    expected = _alone(loaded, OTHER_PROMPT, steps=6)
    _alone(loaded, [9] * 15, steps=20, slot=3)
    assert _alone(loaded, OTHER_PROMPT, steps=6, slot=3).tokens == expected.tokens


def test_a_held_slot_goes_on_as_if_it_had_not_waited(loaded: Loaded) -> None:
    expected = _alone(loaded, PROMPT, steps=8)
    waiting = _alone(loaded, PROMPT, steps=3, slot=1)
    running = Greedy(loaded, 2, OTHER_PROMPT)
    running.start()
    for _ in range(4):
        rows = loaded.decode(running.next, waiting.held)
        running.take(rows[0])
    for _ in range(5):
        _step(running, waiting)
    assert waiting.tokens == expected.tokens


def test_repeating_a_step_changes_nothing(loaded: Loaded) -> None:
    loaded.feed(0, PROMPT)
    loaded.feed(1, OTHER_PROMPT)
    live = [(0, 3, len(PROMPT)), (1, 8, len(OTHER_PROMPT))]
    first = loaded.decode(*live)
    assert loaded.same(loaded.decode(*live), first)


def test_going_back_to_an_earlier_position_forgets_what_came_after(loaded: Loaded) -> None:
    loaded.feed(0, PROMPT)
    first = loaded.decode((0, 3, len(PROMPT)))
    loaded.decode((0, 4, len(PROMPT) + 1))
    assert loaded.same(loaded.decode((0, 3, len(PROMPT))), first)


def test_a_prompt_of_one_token_is_legal_and_harms_no_neighbour(loaded: Loaded) -> None:
    expected, expected_one = _alone(loaded, PROMPT, steps=4), _alone(loaded, PROMPT[:1], steps=4)
    sequence, one = Greedy(loaded, 1, PROMPT), Greedy(loaded, 2, PROMPT[:1])
    sequence.start()
    one.start()
    for _ in range(4):
        _step(sequence, one)
    assert sequence.tokens == expected.tokens
    assert one.tokens == expected_one.tokens


# --- capabilities -----------------------------------------------------------------------------------------------


def test_a_prompt_in_pieces_scores_as_the_whole(loaded: Loaded) -> None:
    chunk = loaded.description.chunk
    if not chunk:
        with pytest.raises(StepError, match="position 2"):
            loaded.backend.feed(0, PROMPT[2:], 2)
        return
    whole = loaded.feed(0, PROMPT)
    for start in range(0, len(PROMPT), 2):
        rows = _rows(loaded.backend.feed(1, PROMPT[start : start + 2], start))
    assert np.allclose(rows, whole, atol=1e-4)


def test_a_freed_slot_keeps_what_it_holds_for_a_prompt_that_begins_alike(loaded: Loaded) -> None:
    reuse, chunk = loaded.description.reuse, loaded.description.chunk
    if reuse == "none":
        return  # nobody goes on behind what a freed slot holds: the scheduler feeds every prompt whole
    first = _alone(loaded, PROMPT, steps=6, slot=3)
    _alone(loaded, OTHER_PROMPT, steps=5)  # decodes that leave slot 3 out
    prompt = (*PROMPT, *first.tokens[:6], 61, 62)
    held = len(prompt) - 2 if reuse == "tokens" else len(PROMPT) - len(PROMPT) % chunk
    for start in range(held, len(prompt), chunk):
        rows = _rows(loaded.backend.feed(3, prompt[start : start + chunk], start))
    assert loaded.same(rows, loaded.feed(1, prompt))


def test_a_copy_holds_what_its_source_holds_and_takes_nothing_from_it(loaded: Loaded) -> None:
    chunk = loaded.description.chunk
    if not loaded.description.copies:
        return
    assert isinstance(loaded.backend, SlotCopier)
    loaded.feed(1, OTHER_PROMPT)  # longer or shorter, what the copy replaces is gone
    source = Greedy(loaded, 3, PROMPT)
    source.start()
    length = len(PROMPT) - 2 if loaded.description.reuse == "tokens" else len(PROMPT) - len(PROMPT) % chunk
    loaded.backend.copy(3, 1, length)
    prompt = (*PROMPT[:length], 61, 62)
    for start in range(length, len(prompt), chunk):
        rows = _rows(loaded.backend.feed(1, prompt[start : start + chunk], start))
    for _ in range(3):
        _step(source)
    assert source.tokens == _alone(loaded, PROMPT, steps=3, slot=0).tokens
    assert loaded.same(rows, loaded.feed(2, prompt))


@pytest.mark.parametrize(("source", "slot", "length"), [(0, 0, 1), (0, SLOTS, 1), (-1, 0, 1), (0, 1, 0)])
def test_a_copy_out_of_range_is_refused(loaded: Loaded, source: int, slot: int, length: int) -> None:
    if loaded.description.copies:
        assert isinstance(loaded.backend, SlotCopier)
        loaded.feed(0, PROMPT)
        with pytest.raises(StepError):
            loaded.backend.copy(source, slot, length)


def test_a_mixed_step_does_what_a_decode_and_a_feed_would(loaded: Loaded) -> None:
    backend, prompt = loaded.backend, [*OTHER_PROMPT, 61, 62, 63]
    if not loaded.description.mixed:
        return
    assert isinstance(backend, MixedStepper)
    expected, expected_fed = _alone(loaded, PROMPT, steps=6), _alone(loaded, prompt, steps=3, slot=2)
    first, fed = Greedy(loaded, 1, PROMPT), Greedy(loaded, 3, prompt)
    second = _alone(loaded, PROMPT, steps=1, slot=2)  # a decode that leaves the others out: before they begin
    first.start()
    for piece, start in ((prompt[:1], 0), (prompt[1:5], 1), (prompt[5:], 5)):  # from one token on, to the last one
        live = [SlotInput(*each.next) for each in (second, first)]
        rows = _rows(backend.decode_and_feed(live, 3, piece, start))
        assert rows.shape == (3, VOCAB_SIZE)
        assert rows.dtype == np.float32
        assert loaded.near(rows[:1], loaded.feed(0, prompt[: start + len(piece)]))
        second.take(rows[1])
        first.take(rows[2])
    fed.take(rows[0])
    for _ in range(3):
        _step(fed, first, second)
    for sequence, alone in ((first, expected), (fed, expected_fed)):
        assert sequence.tokens == alone.tokens
        assert loaded.near(np.stack(sequence.scores), np.stack(alone.scores))
    assert second.tokens[:7] == expected.tokens


@pytest.mark.parametrize(
    ("row", "slot", "tokens", "position"),
    [
        ((0, 3, len(PROMPT)), 0, [5], 0),
        ((0, 3, len(PROMPT)), SLOTS, [5], 0),
        ((0, 3, len(PROMPT)), 1, [5, VOCAB_SIZE], 0),
        ((0, 3, len(PROMPT)), 1, [], 0),
        ((0, 3, len(PROMPT)), 1, [5] * 6, 0),
        ((0, 3, len(PROMPT)), 1, [5], N_POSITIONS),
        ((0, 3, N_POSITIONS), 1, [5], 0),
        ((0, VOCAB_SIZE, len(PROMPT)), 1, [5], 0),
    ],
)
def test_a_mixed_step_out_of_range_is_refused_and_does_neither(
    loaded: Loaded, row: tuple[int, int, int], slot: int, tokens: list[int], position: int
) -> None:
    backend = loaded.backend
    if not loaded.description.mixed:
        return
    assert isinstance(backend, MixedStepper)
    other = (1, 8, len(OTHER_PROMPT))
    loaded.feed(1, OTHER_PROMPT)
    expected = loaded.decode((0, 3, _fed(loaded)), other)
    with pytest.raises(StepError):
        backend.decode_and_feed([SlotInput(*row)], slot, tokens, position)
    assert loaded.same(loaded.decode((0, 3, len(PROMPT)), other), expected)


def test_all_logits_score_every_token_of_a_feed(loaded: Loaded) -> None:
    if not loaded.description.prefill_logprobs:
        with pytest.raises(StepError):
            loaded.backend.feed(0, PROMPT, all_logits=True)
        return
    rows = _rows(loaded.backend.feed(0, PROMPT[:4], all_logits=True))
    assert rows.shape == (4, VOCAB_SIZE)
    for length in range(1, 5):
        assert np.allclose(rows[length - 1], loaded.feed(1, PROMPT[:length])[0], atol=1e-4)


# --- limits -----------------------------------------------------------------------------------------------------


def test_the_last_position_works_and_the_next_is_refused(loaded: Loaded) -> None:
    sequence = _alone(loaded, PROMPT, steps=N_POSITIONS - len(PROMPT))
    assert sequence.next[2] == N_POSITIONS
    with pytest.raises(StepError, match=f"position {N_POSITIONS}"):
        loaded.decode(sequence.next)
    assert loaded.same(loaded.decode(sequence.held)[0], sequence.scores[-1])


@pytest.mark.parametrize(
    "row", [(-1, 1, 3), (SLOTS, 1, 3), (1, -1, 3), (1, VOCAB_SIZE, 3), (1, 1, -1), (1, 1, N_POSITIONS), (0, 1, 3)]
)
def test_a_decode_out_of_range_is_refused_and_harms_nothing(loaded: Loaded, row: tuple[int, int, int]) -> None:
    expected = loaded.decode((0, 3, _fed(loaded)))
    with pytest.raises(StepError):
        loaded.decode((0, 5, len(PROMPT)), row)
    assert loaded.same(loaded.decode((0, 3, len(PROMPT))), expected)


def test_a_decode_of_nothing_is_refused_and_harms_nothing(loaded: Loaded) -> None:
    expected = loaded.decode((0, 3, _fed(loaded)))
    with pytest.raises(StepError):
        loaded.decode()
    assert loaded.same(loaded.decode((0, 3, len(PROMPT))), expected)


@pytest.mark.parametrize(
    ("slot", "tokens"),
    [(-1, [1]), (SLOTS, [1]), (0, []), (0, [1, -1]), (0, [VOCAB_SIZE, 1]), (0, [1] * (N_POSITIONS + 1))],
    ids=["slot below", "slot above", "no tokens", "token below", "token above", "too long"],
)
def test_a_feed_out_of_range_is_refused_and_harms_nothing(loaded: Loaded, slot: int, tokens: list[int]) -> None:
    expected = loaded.decode((0, 3, _fed(loaded)))
    with pytest.raises(StepError):
        loaded.backend.feed(slot, tokens)
    assert loaded.same(loaded.decode((0, 3, len(PROMPT))), expected)


def test_a_feed_longer_than_the_backend_takes_at_once_is_refused(loaded: Loaded) -> None:
    longest = loaded.description.chunk or loaded.description.context_buckets[-1]
    with pytest.raises(StepError):
        loaded.backend.feed(0, [1] * (longest + 1))


def _fed(loaded: Loaded) -> int:
    """Feeds slot 0; the position behind the prompt."""
    loaded.feed(0, PROMPT)
    return len(PROMPT)
