"""Random histories of the engine under a virtual clock: arrivals, cancels, faults, restarts, parking, the end.

The engine, the scheduler, the messages, the worker's steps, the sampler, the grammars and the simulated device are the
real ones; time is a heap of events, so a history runs in milliseconds and a seed gives the same one again:

    scripts/test tests/simulation/test_engine_histories.py --seed N
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest

from models.backend import DeviceError, Logits, ProgressCallback, Scores
from models.matcher import Vocabulary
from models.protocol import (
    Command,
    Decode,
    Description,
    Feed,
    Grammar,
    SamplingParams,
    SimulatedOptions,
    SlotInput,
    Stepped,
    decode_command,
    decode_report,
    encode,
)
from models.simulated import SimulatedBackend
from models.steps import Steps
from server.core import Output, Request, Timings
from server.engine.generation import Generation
from server.engine.loop import DEPTH, Engine
from server.errors import GenerationError, IncompleteGeneration, ServeError
from server.observe.metrics import Metrics
from server.text.tokenizer import Tokenizer

N_POSITIONS = 64
VOCAB = 256
END = 255
HISTORIES, MANY_HISTORIES = 100, 3000
DECODE_S, FEED_TOKEN_S, LOAD_S, HASTE_S = 0.02, 0.001, 0.5, 0.1

SAMPLINGS = (
    SamplingParams(),
    SamplingParams(top_n_tokens=2),
    SamplingParams(do_sample=True, temperature=1.3, seed=3),
    SamplingParams(do_sample=True, top_k=5, seed=11, repetition_penalty=1.3),
    SamplingParams(do_sample=True, top_p=0.7, seed=12, frequency_penalty=0.5),
    SamplingParams(do_sample=True, typical_p=0.6, seed=13, presence_penalty=1.5, top_n_tokens=3),
    SamplingParams(do_sample=True, temperature=0.8, seed=13),
)
GRAMMARS = (
    None,
    None,
    None,
    Grammar("regex", "[a-f]{2,6}(x|yy)"),
    Grammar("json", '{"type":"object","properties":{"a":{"type":"boolean"}},"required":["a"]}'),
)
REFUSED = tuple((5,) * before + (VOCAB + 1000,) + (6,) * behind for before, behind in ((0, 0), (1, 1), (2, 9), (9, 2)))


def make_requests(count: int) -> tuple[Request, ...]:
    """The requests that histories are made of."""
    rng = random.Random(0)
    requests = []
    for _ in range(count):
        prompt = tuple(rng.randrange(1, 200) for _ in range(rng.choice((1, 1, 2, 5, 9, 17, 30))))
        requests.append(
            Request(
                model="m",
                prompt=prompt,
                text="",
                max_new_tokens=rng.choice((1, 2, 5, 8, 13, 20, N_POSITIONS - len(prompt))),
                sampling=rng.choice(SAMPLINGS),
                stop=rng.choice(((), (), ("e",), ("ab", "t"))),
                grammar=rng.choice(GRAMMARS),
                prompt_logprobs=rng.random() < 0.2,
                scope=rng.choice(("", "", "another key")),
            )
        )
    return (*requests, *(replace(requests[0], prompt=prompt) for prompt in REFUSED))


def next_turn(rng: random.Random, before: Request, answer: Sequence[int]) -> Request:
    """A request that goes on behind an earlier one: its prompt, some or all of its answer, and something new."""
    said = answer[: rng.randrange(len(answer) + 1)]
    prompt = (*before.prompt, *said, *(rng.randrange(1, 200) for _ in range(rng.randrange(1, 6))))
    prompt = prompt[: N_POSITIONS - 2]
    most = min(before.max_new_tokens, N_POSITIONS - len(prompt))
    return replace(before, prompt=prompt, max_new_tokens=most, prompt_logprobs=rng.random() < 0.1)


class CheckedBackend:
    """The simulated device, with a watch on what is written where; a bad row or an end comes when it is told to."""

    def __init__(self, directory: Path, options: SimulatedOptions, loss_at: int) -> None:
        self._backend = SimulatedBackend(directory, options)
        self._last: dict[int, int] = {}  # the last position written of each slot
        self._calls_left = loss_at
        self.live: frozenset[int] = frozenset()  # slots of the decode that is run; the others of its rows are held

    def stage(self, progress: ProgressCallback) -> None:
        self._backend.stage(progress)

    def load(self, progress: ProgressCallback) -> Description:
        return self._backend.load(progress)

    def feed(self, slot: int, tokens: Sequence[int], position: int = 0, all_logits: bool = False) -> Scores:
        scores = self._backend.feed(slot, tokens, position, all_logits)
        assert position <= self._last.get(slot, -1) + 1, "a feed leaves no gap behind what the slot holds"
        self._last[slot] = position + len(tokens) - 1
        assert self._last[slot] < N_POSITIONS
        self._count()
        return scores

    def copy(self, source: int, slot: int, length: int) -> None:
        assert self._last[source] >= length - 1, "what is copied was written"
        self._last[slot] = length - 1
        self._backend.copy(source, slot, length)

    def decode_and_feed(self, live: Sequence[SlotInput], slot: int, tokens: Sequence[int], position: int = 0) -> Logits:
        scores = self._backend.decode_and_feed(live, slot, tokens, position)
        self._step(live)
        assert slot not in self.live
        assert position <= self._last.get(slot, -1) + 1, "a feed leaves no gap behind what the slot holds"
        self._last[slot] = position + len(tokens) - 1
        assert self._last[slot] < N_POSITIONS
        self._count()
        return scores

    def decode(self, live: Sequence[SlotInput], full: bool = False) -> Scores:
        self._step(live)
        self._count()
        return self._backend.decode(live, full)

    def _step(self, live: Sequence[SlotInput]) -> None:
        assert len({row.slot for row in live}) == len(live)
        for row in live:
            grown = row.slot in self.live
            assert row.position == self._last[row.slot] + grown, "positions grow by one, or repeat while a slot is held"
            assert row.position < N_POSITIONS
            self._last[row.slot] = row.position

    def close(self) -> None:
        self._backend.close()

    def _count(self) -> None:
        self._calls_left -= 1
        if self._calls_left == 0:
            raise DeviceError("the history ends this device here")


@dataclass
class Seat:
    """What is known of an owner of a slot, from the commands alone."""

    sequence: int
    fed: int
    whole: bool = False


class Commands:
    """Checks every command as it is issued: who owns which slot, what each decode must hold, who is next."""

    def __init__(self, history: History, slots: int) -> None:
        self._history = history
        self._slots = slots
        self.queue: deque[Feed | Decode] = deque()
        self.seats: dict[int, Seat] = {}
        self.over: set[int] = set()  # sequences that the worker has ended; their clients hear of it a moment later
        self.again: set[int] = set()  # sequences that were sent back by a bad row: they go first
        self.free_and_wanted = 0  # decodes in a row that were issued while a slot was free and somebody waited
        self.since_feed = math.inf
        self.scopes: dict[int, str] = {}  # of each slot's last owner
        self.reused = self.copied = self.mixed = 0

    def send(self, command: Command) -> None:
        received = decode_command(encode(command)[4:])
        assert isinstance(received, Feed | Decode)
        self._vacate()
        decoding = any(seat.whole for seat in self.seats.values())
        if isinstance(received, Decode):
            self._check_decode(received)
        feed = received if isinstance(received, Feed) else received.feed
        if feed is not None:
            self._check_feed(feed)
            assert feed.step == received.step
            assert (feed is received) == (not self._history.mixed or not decoding)
            self.mixed += feed is not received
        self.queue.append(received)
        assert len(self.queue) <= DEPTH
        self._history.wake()

    def ended(self, sequence: int) -> None:
        """Its slot is free."""
        for slot, seat in list(self.seats.items()):
            if seat.sequence == sequence:
                del self.seats[slot]

    def _vacate(self) -> None:
        for seat in list(self.seats.values()):
            if self._history.generations[seat.sequence].ended:
                self.ended(seat.sequence)

    def _check_feed(self, feed: Feed) -> None:
        history = self._history
        assert not history.generations[feed.sequence].ended, "nothing is fed for who has ended"
        if feed.position == feed.reused:
            assert feed.slot not in self.seats, "a slot is never owned twice"
            assert feed.sequence not in {seat.sequence for seat in self.seats.values()}
            assert history.admitting, "a draining engine admits nobody"
            generation = history.generations[feed.sequence]
            self._check_reuse(feed, generation.request)
            self._check_turn(feed.sequence)
            self.seats[feed.slot] = Seat(feed.sequence, feed.reused)
        seat = self.seats[feed.slot]
        assert (seat.sequence, seat.fed) == (feed.sequence, feed.position)
        assert not history.chunk or len(feed.tokens) <= history.chunk, "the stall of a feed is one chunk"
        if any(other.whole for other in self.seats.values()):
            assert self.since_feed >= history.decode_per_feed, "decodes come between two feeds while others are live"
        seat.fed += len(feed.tokens)
        seat.whole = feed.start is not None
        assert seat.whole == (seat.fed == len(history.generations[feed.sequence].request.prompt))
        self.since_feed = 0
        self.free_and_wanted = 0

    def _check_reuse(self, feed: Feed, request: Request) -> None:
        """That the tokens are the right ones is seen in the texts."""
        if feed.reused:
            assert self._history.reuse
            assert not request.prompt_logprobs, "scores that are wanted need a feed"
            assert feed.sequence not in self.again, "what a bad row stood on is not stood on again"
            source = feed.slot if feed.source is None else feed.source
            assert self.scopes[source] == request.scope, "keys share no prefixes"
            self.reused += feed.reused
            self.copied += feed.source is not None
        self.scopes[feed.slot] = request.scope

    def _check_turn(self, sequence: int) -> None:
        """First come, first served; a sequence that a bad row sent back goes before all others."""
        seated = {seat.sequence for seat in self.seats.values()}
        gone = seated | self.over
        waiting = [s for s, g in self._history.generations.items() if not g.ended and s not in gone]
        back = [s for s in waiting if s in self.again]
        assert sequence in back if back else sequence == min(waiting), (sequence, waiting, back)
        self.again.discard(sequence)

    def _check_decode(self, decode: Decode) -> None:
        whole = {(slot, seat.sequence) for slot, seat in self.seats.items() if seat.whole}
        half = {(slot, seat.sequence) for slot, seat in self.seats.items() if not seat.whole}
        fed = {(decode.feed.slot, decode.feed.sequence)} if decode.feed is not None else set()
        assert set(decode.live) == whole, "every live slot is in every decode, and no other"
        assert set(decode.held) == half - fed
        self.since_feed += 1
        engine = self._history.engine
        wanted = engine.waiting > 0 and len(self.seats) < self._slots and self._history.admitting
        self.free_and_wanted = self.free_and_wanted + 1 if wanted else 0
        assert self.free_and_wanted <= self._history.decode_per_feed, "a free slot does not stay free"


@dataclass
class Watched:
    """A request of the history and what happened to it."""

    request: int  # index
    generation: Generation
    cancelled_at: int | None = None  # tokens that it had
    bad_rows: int = 0


class History:
    """One random history. `check` runs it to its end and says what is wrong with it."""

    def __init__(self, seed: int, requests: Sequence[Request], tools: Tools) -> None:
        self.rng = random.Random(seed)
        self._requests = requests
        self._asked = self._chosen()
        self._hasty = self.rng.choice((0.0, 0.1, 0.5))  # how many clients leave while they are fed, or soon after
        self._tools = tools
        self.chunk = self.rng.choice((0, 0, 1, 4, 9))
        self.reuse = self.chunk > 0 and self.rng.random() < 0.8
        self.mixed = self.rng.random() < 0.5
        self.decode_per_feed = self.rng.choice((1, 1, 2, 4))
        self.slots = self.rng.randrange(1, 6)
        self.engine = Engine(decode_per_feed=self.decode_per_feed, metrics=Metrics(), on_ended=lambda: None)
        self.generations: dict[int, Generation] = {}
        self.watched: list[Watched] = []
        self.admitting = True
        self.now = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._commands: Commands | None = None
        self._steps: Steps | None = None
        self._backend: CheckedBackend
        self._busy = False
        self._closed = False
        self.reused = 0  # tokens that were not fed again
        self.copied = 0  # prompts that began with a copy
        self.mixes = 0  # steps that decoded and fed
        self._troubles: set[str] = set()

    def _chosen(self) -> list[int]:
        """Which requests this history is made of: any, or such as begin alike, so that slots are worth keeping."""
        if self.rng.random() < 0.5:
            return list(range(len(self._requests)))
        first = self.rng.choice(self._requests).prompt[0]
        return [index for index, request in enumerate(self._requests) if request.prompt[0] == first]

    # --- time

    def at(self, delay: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), event))

    def run(self) -> None:
        rng = self.rng
        self.attach()
        length = rng.uniform(0.1, 3.0)
        for _ in range(rng.randrange(1, 25)):
            self.at(rng.uniform(0, length), self.arrive)
        for _ in range(rng.choice((0, 0, 1, 3, 8))):
            self.at(rng.uniform(0, length), self.leave)
        for _ in range(rng.choice((0, 0, 0, 1, 2))):
            self.at(rng.uniform(0, length), self.lose)
        for _ in range(rng.choice((0, 0, 1))):
            self.at(rng.uniform(0, length), self.park)
        if rng.random() < 0.1:
            self.at(rng.uniform(0, length), self.close)
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()
            assert not self.engine.stalled, "what holds a slot has a step coming"
        self._detach()

    # --- clients

    def arrive(self) -> None:
        if self._closed:
            return
        index = self.rng.choice(self._asked)
        # The number is taken before the engine may feed it.
        generation = self.engine.submit(self._requests[index], self._tools.tokenizer, Timings(self.now))
        assert generation.sequence in self.generations
        if self.rng.random() < self._hasty:
            watched = self.watched[-1]
            self.at(self.rng.uniform(0, HASTE_S), lambda: self.cancel(watched))

    def known(self, generation: Generation) -> None:
        """A generation that the engine has just made, before it is scheduled."""
        self.generations[generation.sequence] = generation
        self.watched.append(Watched(self._requests.index(generation.request), generation))

    def leave(self) -> None:
        """A client cancels or is cut off: the same to the engine, at any time, even when it has ended."""
        if self.watched:
            self.cancel(self.rng.choice(self.watched))

    @staticmethod
    def cancel(watched: Watched) -> None:
        if not watched.generation.ended:
            watched.cancelled_at = len(watched.generation.emitted)
        watched.generation.cancel()
        watched.generation.cancel()

    @property
    def troubles(self) -> set[str]:
        """What has disturbed it."""
        left = {"leave"} if any(each.cancelled_at is not None for each in self.watched) else set()
        bad = {"bad row"} if any(each.bad_rows for each in self.watched) else set()
        return self._troubles | left | bad

    # --- the device

    def attach(self) -> None:
        if self._commands is not None:
            return
        rng = self.rng
        faults = tuple(
            f"{rng.choice(('feed', 'decode', 'decode'))}:{rng.randrange(0, 40)}={rng.choice(('nan', 'nan', 'nan_all'))}"
            for _ in range(rng.choice((0, 0, 1, 3)))
        )
        options = SimulatedOptions(
            slots=self.slots,
            n_positions=N_POSITIONS,
            vocab_size=VOCAB,
            chunk=self.chunk,
            reuse=self.reuse,
            mixed=self.mixed,
            eos_token=END,
            answer_tokens=0,
            faults=faults,
        )
        loss_at = rng.randrange(1, 80) if rng.random() < 0.2 else 0
        backend = CheckedBackend(self._tools.directory, options, loss_at)
        backend.stage(lambda *_: None)
        description = backend.load(lambda *_: None)
        self._backend = backend
        self._steps = Steps(backend, self._tools.vocabulary)
        self._commands = Commands(self, self.slots)
        self.admitting = True
        self.engine.attach(self._commands, description)

    def lose(self) -> None:
        """The worker is gone, whatever it was doing; another is loaded later."""
        if self.engine.running:
            self._troubles.add("lose")
        self._detach()
        self.at(LOAD_S * self.rng.random(), self.attach)

    def park(self) -> None:
        """Another model takes the device: drain for a while, park the rest, come back; or it does not come at all."""
        if self.engine.running:
            self._troubles.add("park")
        self.admitting = False
        self.engine.stop_admitting()
        if self.rng.random() < 0.3:
            self.at(self.rng.uniform(0, 0.3), self.stay)
            return
        self.at(self.rng.uniform(0, 0.3), self._detach)
        self.at(1.0, self.attach)

    def stay(self) -> None:
        self.admitting = True
        self.engine.admit_again()

    def close(self) -> None:
        """The server stops: whatever has not ended ends with an error of its own."""
        self._closed = True
        self.engine.fail_all(IncompleteGeneration)

    def _detach(self) -> None:
        if self._commands:
            self.reused += self._commands.reused
            self.copied += self._commands.copied
            self.mixes += self._commands.mixed
        self.engine.detach()
        self._commands = self._steps = None

    def wake(self) -> None:
        """Begin with the next command, unless one is running."""
        commands = self._commands
        if commands is not None and commands.queue and not self._busy:
            self._busy = True
            command = commands.queue[0]
            feed = command if isinstance(command, Feed) else command.feed
            cost = max(DECODE_S * isinstance(command, Decode), FEED_TOKEN_S * len(feed.tokens) if feed else 0)
            self.at(cost, lambda: self._done(commands))

    def _done(self, commands: Commands) -> None:
        self._busy = False
        if commands is self._commands and self._steps is not None:
            command = commands.queue.popleft()
            if isinstance(command, Decode):
                self._backend.live = frozenset(slot for slot, _ in command.live)
            try:
                report = decode_report(encode(self._steps.run(command))[4:])
            except DeviceError:
                self.lose()
                return
            assert isinstance(report, Stepped)
            self._note(commands, report)
            self.engine.stepped(report)
        self.wake()

    def _note(self, commands: Commands, report: Stepped) -> None:
        for drawn in report.drawn:
            if drawn.finish == "":
                continue
            commands.ended(drawn.sequence)
            (watched,) = (each for each in self.watched if each.generation.sequence == drawn.sequence)
            watched.bad_rows += drawn.finish == "non_finite"
            goes_on = drawn.finish == "non_finite" and watched.bad_rows == 1
            (commands.again if goes_on else commands.over).add(drawn.sequence)

    # --- what must hold at the end

    def check(self) -> None:
        assert self.engine.empty, "every request ends"
        assert self.engine.running == self.engine.waiting == 0
        for watched in self.watched:
            self._check_end(watched)

    def _check_end(self, watched: Watched) -> None:
        generation = watched.generation
        assert generation.ended
        outputs, error = everything(generation)
        assert [output.index for output in outputs] == list(range(1, len(outputs) + 1))
        assert len(outputs) <= generation.request.max_new_tokens
        assert all(output.finish is None for output in outputs[:-1]), "it ends once"
        finished = bool(outputs) and outputs[-1].finish is not None
        assert finished + (error is not None) + (watched.cancelled_at is not None) == 1, "and in one way"
        if watched.cancelled_at is not None:
            assert len(outputs) == watched.cancelled_at, "nothing comes after a cancel"
        expected = self._tools.alone(watched.request)
        assert same(outputs, expected[: len(outputs)]), "tokens are a function of the request alone"
        if finished:
            assert len(outputs) == len(expected)
        if error is not None:
            refused = generation.request.prompt in REFUSED
            assert refused or self._closed or watched.bad_rows > 1, error
            assert isinstance(error, GenerationError | IncompleteGeneration)


def everything(generation: Generation) -> tuple[list[Output], ServeError | None]:
    """All that the client of an ended sequence can read, without an event loop: nothing of it has to be waited for."""
    outputs: list[Output] = []
    while True:
        try:
            next(generation.__anext__().__await__())
        except StopIteration as read:
            outputs.append(read.value)
        except StopAsyncIteration:
            return outputs, None
        except ServeError as error:
            with pytest.raises(StopAsyncIteration):
                next(generation.__anext__().__await__())
            return outputs, error
        else:
            raise AssertionError("an ended sequence keeps its client waiting")


def same(outputs: Sequence[Output], expected: Sequence[Output]) -> bool:
    # repr: the first prompt token's logprob is NaN, which equals nothing.
    return repr([_fed_anew(each) for each in outputs]) == repr([_fed_anew(each) for each in expected])


def _fed_anew(output: Output) -> Output:
    """How much was reused is the only thing that may differ."""
    finish = output.finish and replace(output.finish, reused_tokens=0)
    return msgspec.structs.replace(output, finish=finish)


@dataclass
class Tools:
    """What all histories share: the tokens, and what each request gives when it is alone."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    directory: Path
    requests: tuple[Request, ...]
    known: dict[int, list[Output]] = field(default_factory=dict)

    def alone(self, index: int) -> list[Output]:
        """The outputs of a request on a device of its own, in whole feeds; none for one that is refused."""
        if index not in self.known:
            options = SimulatedOptions(slots=1, n_positions=N_POSITIONS, vocab_size=VOCAB, eos_token=END)
            backend = SimulatedBackend(self.directory, options)
            backend.stage(lambda *_: None)
            engine = Engine(decode_per_feed=1, metrics=Metrics(), on_ended=lambda: None)
            worker = Straight()
            engine.attach(worker, backend.load(lambda *_: None))
            generation = engine.submit(self.requests[index], self.tokenizer, Timings(0.0))
            steps = Steps(backend, self.vocabulary)
            while worker.queue:
                engine.stepped(steps.run(worker.queue.popleft()))
            self.known[index] = everything(generation)[0]
        return self.known[index]


class Straight:
    """A worker's inbox."""

    def __init__(self) -> None:
        self.queue: deque[Feed | Decode] = deque()

    def send(self, command: Command) -> None:
        assert isinstance(command, Feed | Decode)
        self.queue.append(command)


@pytest.fixture(scope="module")
def tools(tiny_text_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Tools:
    tokenizer = Tokenizer.load(tiny_text_directory)
    vocabulary = Vocabulary(tiny_text_directory)
    made = Tools(tokenizer, vocabulary, tmp_path_factory.mktemp("device"), make_requests(90))
    rng = random.Random(1)
    for _ in range(180):
        index = rng.randrange(len(made.requests))
        if made.requests[index].prompt not in REFUSED:
            answer = [output.token.id for output in made.alone(index)]
            made.requests += (next_turn(rng, made.requests[index], answer),)
    return made


def run(seed: int, tools: Tools, monkeypatch: pytest.MonkeyPatch) -> History:
    history = History(seed, tools.requests, tools)
    made = Generation.__init__

    def noted(self: Generation, *arguments: object) -> None:
        made(self, *arguments)  # type: ignore[arg-type]
        history.known(self)

    with monkeypatch.context() as patch:
        patch.setattr(Generation, "__init__", noted)
        try:
            history.run()
        except Exception as error:
            raise AssertionError(f"seed {seed} at {history.now:.3f} s: {error!r}; {again(seed)}") from error
    try:
        history.check()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}; {again(seed)}") from error
    return history


def again(seed: int) -> str:
    return f"again: scripts/test tests/simulation/test_engine_histories.py --seed {seed}"


def seeds(config: pytest.Config, start: int, count: int) -> range:
    chosen = config.getoption("--seed")
    return range(start, start + count) if chosen is None else range(chosen, chosen + 1)


def test_random_histories(tools: Tools, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = seeds(pytestconfig, 0, HISTORIES)
    histories = [run(seed, tools, monkeypatch) for seed in chosen]
    if len(chosen) > 1:
        assert any(each.reused for each in histories), "the histories must show reuse, or they prove nothing of it"
        assert any(each.copied for each in histories), "and copies"
        assert any(each.mixes for each in histories), "and steps that decode and feed"
        assert any(each.troubles == {"leave", "bad row", "lose", "park"} for each in histories), "and all at once"


@pytest.mark.long
def test_thousands_of_random_histories(
    tools: Tools, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in seeds(pytestconfig, HISTORIES, MANY_HISTORIES):
        run(seed, tools, monkeypatch)


def test_a_seed_gives_the_same_history_again(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (run(7, tools, monkeypatch) for _ in range(2))
    assert first.now == second.now
    assert [each.generation.emitted for each in first.watched] == [each.generation.emitted for each in second.watched]
