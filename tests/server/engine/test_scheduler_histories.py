"""All rules of the scheduler at once, over random histories against a model of the worker and of what its slots hold.

The worker is as far behind as the engine lets it be: two plans. What is fed behind reused tokens must be what the slot
holds when the worker comes to it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from server.engine.loop import DEPTH
from server.engine.scheduler import DecodePlan, FeedPlan, Plan, Scheduler, feed_of
from server.engine.slots import Prompt

GARBAGE = -1  # of a bad row, or of a worker that is new
TOKENS = st.integers(0, 1)
# A feed may be refused, as one whose grammar cannot be followed; a row may hold no number.
Outcome = Literal["good", "bad", "refused"]
OUTCOMES: st.SearchStrategy[Outcome] = st.sampled_from((*["good"] * 17, "bad", "bad", "refused"))


@dataclass
class Sequence:
    """What a client asked for, and the tokens that it has; `planned` tokens of its prompt are fed or on their way."""

    prompt: Prompt
    most: int
    emitted: list[int] = field(default_factory=list)
    slot: int | None = None
    planned: int = 0

    @property
    def whole(self) -> bool:
        return self.slot is not None and self.planned == len(self.prompt.tokens)

    def give_up(self) -> None:
        """It is fed anew. A replay is no matter of the scheduler's: the model draws its tokens anew, too."""
        self.slot, self.planned = None, 0
        self.emitted.clear()


@dataclass
class Slot:
    """What a slot of the worker holds, who sits in it, and which token the next step writes."""

    tokens: list[int] = field(default_factory=list)
    owner: int | None = None
    last: int | None = None
    scope: str = ""
    scored: bool = False


class Histories(RuleBasedStateMachine):
    """Arrivals, ends, cancels, bad rows, drains and new workers, in any order."""

    reused = copied = mixes = 0  # in all histories together

    @initialize(
        slots=st.integers(1, 3),
        chunk=st.integers(1, 5),
        decode_per_feed=st.integers(1, 3),
        copies=st.booleans(),
        mixed=st.booleans(),
    )
    def begin(self, slots: int, chunk: int, decode_per_feed: int, copies: bool, mixed: bool) -> None:
        self.chunk, self.decode_per_feed, self.count = chunk, decode_per_feed, slots
        self.copies, self.mixed = copies, mixed
        self.sequences: dict[int, Sequence] = {}
        self.said: list[tuple[int, ...]] = [()]  # prompts with their answers
        self.next_sequence = 0
        self.new_worker()

    @rule(chance=st.integers(0, 9))
    def lose(self, chance: int) -> None:
        if chance == 9:
            self.new_worker()

    def new_worker(self) -> None:
        """The last one is lost, with whatever it was doing: everybody begins again, in the order in which they came."""
        self.scheduler = Scheduler(
            slots=self.count,
            chunk=self.chunk,
            decode_per_feed=self.decode_per_feed,
            reuse="tokens",
            copies=self.copies,
            mixed=self.mixed,
        )
        self.slots = [Slot([GARBAGE] * 99) for _ in range(self.count)]
        self.plans: deque[Plan] = deque()
        self.again: list[int] = []
        self.decodes = 0
        for number, sequence in self.sequences.items():
            sequence.give_up()
            self.scheduler.add(number, sequence.prompt)

    @rule(
        data=st.data(),
        new=st.lists(TOKENS, min_size=1, max_size=6),
        most=st.integers(1, 20),
        scope=st.sampled_from(("", "", "another key")),
        fresh=st.sampled_from((False, False, False, True)),
    )
    def arrive(self, data: st.DataObject, new: list[int], most: int, scope: str, fresh: bool) -> None:
        """Somebody new, or the next turn of a chat."""
        before = data.draw(st.sampled_from(self.said))
        self.next_sequence += 1
        prompt = Prompt((*before, *new)[:40], scope, fresh)
        self.sequences[self.next_sequence] = Sequence(prompt, most)
        self.scheduler.add(self.next_sequence, prompt)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """A client hangs up, or a stop string ends it: of what it has, the last token was not written yet."""
        number = data.draw(st.sampled_from(sorted(self.sequences)))
        self.end(number, self.sequences[number].emitted[:-1])

    @rule(admitting=st.sampled_from((True, True, False)))
    def drain_or_not(self, admitting: bool) -> None:
        self.scheduler.admitting = admitting

    @rule(turns=st.lists(st.tuples(OUTCOMES, TOKENS), max_size=12))
    def run(self, turns: list[tuple[Outcome, int]]) -> None:
        """The engine keeps its plans with the worker, which does the next one."""
        for outcome, token in turns:
            while len(self.plans) < DEPTH and self.plan():
                pass
            if self.plans:
                self.done(outcome, token)

    def plan(self) -> bool:
        """Ask for one; whether there is one."""
        plan = self.scheduler.plan()
        live = {(each.slot, number) for number, each in self.sequences.items() if each.whole}
        half = {(each.slot, n) for n, each in self.sequences.items() if each.slot is not None and not each.whole}
        if plan is None:
            assert not live | half
            assert not (self.sequences and self.scheduler.admitting)
            return False
        feed = feed_of(plan)
        if isinstance(plan, DecodePlan):
            fed = {(feed.slot, feed.sequence)} if feed is not None else set()
            assert (set(plan.live), set(plan.held)) == (live, half - fed)
            assert len(plan.live) == len(live) > 0
            free_and_wanted = self.waiting() and len(live | half) < self.count and self.scheduler.admitting
            self.decodes += 1
            if feed is None and (free_and_wanted or half):
                assert self.decodes <= self.decode_per_feed - self.mixed, "who can be fed is fed"
        if feed is not None:
            assert not live or self.decodes >= self.decode_per_feed, "one feed does not follow another"
            assert (plan is feed) == (not live or not self.mixed)
            assert feed.step == plan.step
            self.check_feed(feed)
            Histories.mixes += plan is not feed
        self.plans.append(plan)
        return True

    def check_feed(self, plan: FeedPlan) -> None:
        sequence = self.sequences[plan.sequence]
        assert 0 < plan.stop - plan.start <= self.chunk, "the stall of a feed is one chunk"
        if sequence.slot is None:
            assert self.scheduler.admitting
            assert plan.sequence == (self.again or self.waiting())[0], "first come, first served"
            assert plan.slot not in {each.slot for each in self.sequences.values()}, "a slot is never owned twice"
            assert plan.start == plan.reused
            assert not plan.reused or (plan.sequence not in self.again and not sequence.prompt.fresh)
            self.again = [each for each in self.again if each != plan.sequence]
            sequence.slot, sequence.planned = plan.slot, plan.reused
            Histories.reused += plan.reused
            Histories.copied += plan.source is not None
        else:
            assert plan.source is None
        assert (sequence.slot, sequence.planned) == (plan.slot, plan.start)
        sequence.planned = plan.stop
        assert plan.last == sequence.whole
        self.decodes = 0

    def done(self, outcome: Outcome, token: int) -> None:
        """The worker does the plan that it has had for longest, as models/steps.py does, and the engine hears of it."""
        plan = self.plans.popleft()
        feed = feed_of(plan)
        stepped: list[tuple[int, int]] = []
        if isinstance(plan, DecodePlan):
            named = {*plan.live, *plan.held} | ({(feed.slot, feed.sequence)} if feed is not None else set())
            for number, slot in enumerate(self.slots):
                if (number, slot.owner) not in named:
                    slot.owner = None
            stepped = [(number, owner) for number, owner in plan.live if self.slots[number].owner == owner]
            for number, _ in stepped:
                last = self.slots[number].last
                assert last is not None
                self.slots[number].tokens.append(last)
        if feed is not None:
            self.done_feed(feed, outcome, token)
        for place, (number, owner) in enumerate(stepped):
            bad = place == 0 and outcome == "bad" and feed is None
            self.drawn(owner, self.slots[number], "bad" if bad else "good", token)

    def done_feed(self, plan: FeedPlan, outcome: Outcome, token: int) -> None:
        slot = self.slots[plan.slot]
        skipped = plan.start > plan.reused and slot.owner != plan.sequence
        if not skipped and outcome != "refused":
            self.feed(plan, slot)
        self.scheduler.fed(plan)
        if skipped:
            return
        if outcome == "refused":
            slot.owner = None
            if plan.sequence in self.sequences:
                self.end(plan.sequence, None)
        elif plan.last or (outcome == "bad" and slot.scored):
            self.drawn(plan.sequence, slot, outcome, token)

    def feed(self, plan: FeedPlan, slot: Slot) -> None:
        sequence = self.sequences.get(plan.sequence)
        source = self.slots[plan.source] if plan.source is not None else slot
        slot.tokens = source.tokens[: plan.start]
        if sequence is not None:
            prompt = sequence.prompt
            assert slot.tokens == list(prompt.tokens[: plan.start]), "what is not fed is there"
            assert not plan.start or source.scope == prompt.scope, "keys share no prefixes"
            slot.tokens += prompt.tokens[plan.start : plan.stop]
            slot.scope, slot.scored = prompt.scope, prompt.fresh
        else:  # its client has left; what is written is of no use to anybody
            slot.tokens += [GARBAGE] * (plan.stop - plan.start)
        slot.owner, slot.last = plan.sequence, None

    def drawn(self, owner: int, slot: Slot, outcome: Outcome, token: int) -> None:
        sequence = self.sequences.get(owner)
        if outcome == "bad":
            slot.owner = None
            if sequence is not None:
                # What has given a good row is good; a copy of it may be on its way.
                proven = len(sequence.prompt.tokens) if sequence.emitted else 0
                slot.tokens[proven:] = [GARBAGE] * 99
                sequence.give_up()
                self.scheduler.requeue(owner, sequence.prompt)
                self.again.insert(0, owner)
            return
        slot.last = token
        if sequence is None:
            return
        sequence.emitted.append(token)
        if len(sequence.emitted) == sequence.most:
            slot.owner = None
            self.end(owner, sequence.emitted[:-1])

    def end(self, number: int, answer: list[int] | None) -> None:
        sequence = self.sequences.pop(number)
        self.again = [each for each in self.again if each != number]
        self.said.append((*sequence.prompt.tokens, *sequence.emitted))
        self.scheduler.remove(number, answer)

    def waiting(self) -> list[int]:
        return [number for number, each in self.sequences.items() if each.slot is None]

    @invariant()
    def counts_agree(self) -> None:
        assert self.scheduler.waiting == len(self.waiting())
        assert self.scheduler.running == len(self.sequences) - len(self.waiting()) <= self.count


@pytest.mark.parametrize("histories", [300, pytest.param(5000, marks=pytest.mark.long)])
def test_random_histories(histories: int) -> None:
    run_state_machine_as_test(Histories, settings=settings(max_examples=histories, stateful_step_count=60))
    assert Histories.reused, "the histories must show reuse, or they prove nothing of it"
    assert Histories.copied, "and copies"
    assert Histories.mixes, "and steps that do both"
