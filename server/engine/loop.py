"""The engine of one model: plan, run, deliver.

Driven by events on the asyncio loop (a request comes, a step is done, a client leaves), with no task of its own: each
event may send plans, so that one step is always queued behind the one that runs and the device never waits for
Python. A worker that is lost or exchanged is detached; the sequences stay and are replayed on the next one.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from models.protocol import Command, Decode, Description, Drawn, Feed, Stepped
from server.core import Request, Timings
from server.engine.generation import Generation
from server.engine.scheduler import DecodePlan, FeedPlan, Plan, Scheduler, feed_of
from server.engine.slots import Prompt
from server.errors import GenerationError, ServeError
from server.observe.metrics import Method, Metrics
from server.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

DEPTH = 2
REPLAYS_OF_A_BAD_ROW = 1
_REFUSALS = {
    "refused": "the model cannot be fed this prompt: see the server's log",
    "grammar": "the grammar cannot be followed by this model: see the server's log",
}


class StepRunner(Protocol):
    """What the engine needs of a worker."""

    def send(self, command: Command) -> None: ...


class Engine:
    """All sequences of one model, in the order they came; with or without a worker to run them."""

    def __init__(
        self,
        *,
        decode_per_feed: int,
        metrics: Metrics,
        on_ended: Callable[[], None],
        reuse_prefixes: bool = True,
    ) -> None:
        self._decode_per_feed = decode_per_feed
        self._reuse_prefixes = reuse_prefixes
        self._metrics = metrics
        self._on_ended = on_ended
        self._ids = itertools.count(1)
        self._generations: dict[int, Generation] = {}
        self._worker: StepRunner | None = None
        self._scheduler: Scheduler | None = None
        self._in_flight: deque[Plan] = deque()
        self._scores_prompts = False
        self._detached_at = 0.0
        self._replaying: set[int] = set()
        self.caught_up_at = 0.0
        self.turns = 0
        self.dropped_tokens = 0

    # --- what it holds

    @property
    def waiting(self) -> int:
        """Sequences without a slot: all of them while no worker is attached."""
        return self._scheduler.waiting if self._scheduler else 0

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return self._scheduler.running if self._scheduler else 0

    @property
    def parked(self) -> int:
        """Sequences without a worker: they wait for the model, or for its return."""
        return 0 if self._scheduler else len(self._generations)

    @property
    def tokens_held(self) -> int:
        """Tokens that the running sequences may come to hold."""
        running = self._scheduler.running_sequences if self._scheduler else ()
        requests = [self._generations[sequence].request for sequence in running]
        return sum(len(request.prompt) + request.max_new_tokens for request in requests)

    @property
    def empty(self) -> bool:
        return not self._generations

    @property
    def waiting_since(self) -> float | None:
        """Since when the one that waits longest is without a worker (monotonic clock); None when there is none."""
        return min(map(self._waits_since, self._generations.values()), default=None)

    @property
    def replaying(self) -> bool:
        """Whether a sequence that was parked, or lost its worker or its slot, has not yet got its next token since.

        `caught_up_at` is when that was last over.
        """
        return bool(self._replaying)

    @property
    def in_flight(self) -> Plan | None:
        """The step the worker is busy with; None when it has none."""
        return self._in_flight[0] if self._in_flight else None

    @property
    def stalled(self) -> bool:
        """Whether sequences hold slots and no step is with the worker, so that no event will bring them on: a bug."""
        return self.running > 0 and not self._in_flight

    # --- events

    def submit(self, request: Request, tokenizer: Tokenizer, timings: Timings) -> Generation:
        """A new sequence, behind all others."""
        generation = Generation(next(self._ids), request, tokenizer, timings, self._cancelled)
        self._generations[generation.sequence] = generation
        if self._scheduler:
            self._scheduler.add(generation.sequence, _prompt(request))
            self._pump()
        return generation

    def attach(self, worker: StepRunner, description: Description) -> None:
        """A loaded worker: everything that waits, or was cut off, runs on it from now on, oldest first."""
        self._worker = worker
        self._scores_prompts = description.prefill_logprobs
        self._scheduler = Scheduler(
            slots=description.slots,
            chunk=description.chunk,
            decode_per_feed=self._decode_per_feed,
            reuse=description.reuse if self._reuse_prefixes else "none",
            copies=description.copies,
            mixed=description.mixed,
        )
        self._in_flight.clear()
        for generation in self._generations.values():
            self._scheduler.add(generation.sequence, _prompt(generation.request))
            if generation.timings.started:
                self._metrics.sequence_replayed()
            if generation.emitted:
                self._replaying.add(generation.sequence)
        self._pump()

    def detach(self) -> None:
        """The worker is gone: its sequences wait, with the tokens they have, for the next one."""
        if self._worker is not None:
            self._detached_at = time.monotonic()
        self._worker = self._scheduler = None
        for plan in self._in_flight:
            self._metrics.step_failed(_method(plan))
        self._in_flight.clear()

    def stop_admitting(self) -> None:
        """Give no more slots; what runs goes on."""
        if self._scheduler:
            self._scheduler.admitting = False

    def admit_again(self) -> None:
        """The exchange that was coming does not come."""
        if self._scheduler:
            self._scheduler.admitting = True
            self._pump()

    def stepped(self, report: Stepped) -> None:
        """A step is done: plan the next one first, then make text of the tokens while the device is busy."""
        scheduler = self._scheduler
        if scheduler is None or not self._in_flight or self._in_flight[0].step != report.step:
            return  # of a worker that was detached
        plan = self._in_flight.popleft()
        self.turns += 1
        fed = feed_of(plan)
        if fed is not None:
            scheduler.fed(fed)
        for drawn in report.drawn:
            self._settle(scheduler, drawn)
        self._pump()
        if self._scores_prompts and fed is not None and fed.sequence in self._generations:
            self._generations[fed.sequence].score(fed.start, report.prompt_logprobs)
        delivered = sum([self._deliver(drawn) for drawn in report.drawn])
        self._metrics.tokens_generated(delivered)
        self._pump()
        self._metrics.observe_step(
            _method(plan),
            report.device_s,
            (len(plan.live) if isinstance(plan, DecodePlan) else 0) + (fed is not None),
            drawn=len(report.drawn),
            sampling_s=report.sampling_s,
            idle_s=report.idle_s,
        )

    def fail_all(self, error: Callable[[], ServeError]) -> None:
        """End every sequence with an error of its own."""
        for generation in list(self._generations.values()):
            self._forget(generation)
            generation.fail(error())

    def fail_waiting_since(self, moment: float, error: Callable[[], ServeError]) -> None:
        """End the sequences that have been without a worker since before `moment` (monotonic clock)."""
        for generation in list(self._generations.values()):
            if self._waits_since(generation) < moment:
                self._forget(generation)
                generation.fail(error())

    # --- inside

    def _waits_since(self, generation: Generation) -> float:
        """A sequence that never ran waits since it came, a parked one since it lost its worker."""
        return self._detached_at if generation.timings.started else generation.timings.arrived

    def _settle(self, scheduler: Scheduler, drawn: Drawn) -> None:
        """Free the slots of sequences that the worker has ended, or whose content is worthless: before the next plan,
        which might copy it."""
        generation = self._generations.get(drawn.sequence)
        if drawn.finish in ("length", "eos_token"):
            # The token that is drawn now was not written, all those before it were.
            scheduler.remove(drawn.sequence, generation.emitted if generation else ())
        elif drawn.finish == "non_finite" and generation and generation.replays < REPLAYS_OF_A_BAD_ROW:
            scheduler.requeue(generation.sequence, _prompt(generation.request))
        elif drawn.finish in ("non_finite", "refused", "grammar"):
            scheduler.remove(drawn.sequence, None)

    def _deliver(self, drawn: Drawn) -> bool:
        """Whether it is a token that its sequence wants."""
        generation = self._generations.get(drawn.sequence)
        if generation is None:
            self.dropped_tokens += 1  # it ended, or its client left, while this step was queued
            self._metrics.tokens_dropped()
        elif drawn.finish == "non_finite":
            self._replay_bad_row(generation)
        elif drawn.finish in ("refused", "grammar"):
            self._forget(generation)
            generation.fail(GenerationError(_REFUSALS[drawn.finish]))
        else:
            if not generation.emitted:
                generation.timings.first_token = time.monotonic()
            _deliver_text(generation, drawn)
            self._caught_up(generation)
            if generation.ended:
                generation.timings.ended = time.monotonic()
                self._forget(generation)
            return True
        return False

    def _replay_bad_row(self, generation: Generation) -> None:
        generation.replays += 1
        if generation.replays > REPLAYS_OF_A_BAD_ROW:
            self._forget(generation)
            generation.fail(GenerationError("the device returned no finite numbers for this sequence, twice"))
        else:
            self._metrics.sequence_replayed()
            if generation.emitted:
                self._replaying.add(generation.sequence)

    def _cancelled(self, generation: Generation) -> None:
        self._forget(generation)
        self._pump()

    def _forget(self, generation: Generation) -> None:
        self._generations.pop(generation.sequence, None)
        if self._scheduler:
            # The last token was not written yet; while a replay goes on it is unknown how many were.
            replays = generation.sequence in self._replaying
            self._scheduler.remove(generation.sequence, () if replays else generation.emitted[:-1])
        self._caught_up(generation)
        self._on_ended()

    def _caught_up(self, generation: Generation) -> None:
        if generation.sequence in self._replaying:
            self._replaying.remove(generation.sequence)
            self.caught_up_at = time.monotonic()

    def _pump(self) -> None:
        """Keep DEPTH steps with the worker."""
        while self._worker and self._scheduler and len(self._in_flight) < DEPTH:
            plan = self._scheduler.plan()
            if plan is None:
                break
            self._in_flight.append(plan)
            self._worker.send(self._command(plan))

    def _command(self, plan: Plan) -> Command:
        if isinstance(plan, FeedPlan):
            return self._feed(plan)
        feed = self._feed(plan.feed) if plan.feed is not None else None
        return Decode(step=plan.step, live=plan.live, held=plan.held, feed=feed)

    def _feed(self, plan: FeedPlan) -> Feed:
        generation = self._generations[plan.sequence]
        if not generation.timings.started:
            generation.timings.started = time.monotonic()
        if not generation.emitted:
            generation.reused = plan.reused
        if plan.start == plan.reused:
            self._metrics.prompt_fed(len(generation.request.prompt), plan.reused)
        return Feed(
            step=plan.step,
            slot=plan.slot,
            sequence=plan.sequence,
            tokens=generation.request.prompt[plan.start : plan.stop],
            position=plan.start,
            reused=plan.reused,
            source=plan.source,
            start=generation.start() if plan.last else None,
            scored=generation.scored(plan.start, plan.stop) if self._scores_prompts else (),
        )


def _deliver_text(generation: Generation, drawn: Drawn) -> None:
    """A token that cannot become text ends its own sequence, not the connection to the worker of all."""
    try:
        generation.deliver(drawn)
    except Exception:
        _log.exception("token %d of sequence %d cannot become text", drawn.token, drawn.sequence)
        generation.fail(GenerationError("a token of the answer cannot become text: see the server's log"))


def _prompt(request: Request) -> Prompt:
    return Prompt(request.prompt, request.scope, fresh=request.prompt_logprobs)


def _method(plan: Plan) -> Method:
    """A step that does both is a prefill, as it is for TGI."""
    return "decode" if feed_of(plan) is None else "prefill"
