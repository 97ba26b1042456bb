"""A step that decodes and feeds: one pass of the backend, or two where one cannot be, with the tokens of two steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from models.backend import DeviceError, Logits, MixedStepper, Scores, StepError
from models.protocol import Decode, Drawn, Feed, Grammar, SamplingParams, SimulatedOptions, SlotInput, Start
from models.simulated import SimulatedBackend
from models.steps import Steps

VOCAB = 300
DRAWS = SamplingParams(do_sample=True, top_p=0.9, seed=5, top_n_tokens=2)


class Recorded(SimulatedBackend):
    """The simulated device, and which calls it had."""

    def __init__(self, faults: tuple[str, ...] = (), reuse: bool = False) -> None:
        """Without `reuse` it writes into each slot that a call leaves out."""
        sizes = {"slots": 4, "vocab_size": VOCAB, "n_positions": 64, "chunk": 8}
        super().__init__(Path(), SimulatedOptions(mixed=True, reuse=reuse, faults=faults, **sizes))  # type: ignore[arg-type]
        self.calls: list[str] = []
        self.stage(lambda *_: None)
        self.load(lambda *_: None)

    def feed(self, slot: int, tokens: Sequence[int], position: int = 0, all_logits: bool = False) -> Scores:
        self.calls.append("feed")
        return super().feed(slot, tokens, position, all_logits)

    def decode(self, live: Sequence[SlotInput], full: bool = False) -> Scores:
        self.calls.append("decode")
        return super().decode(live, full)

    def decode_and_feed(self, live: Sequence[SlotInput], slot: int, tokens: Sequence[int], position: int = 0) -> Logits:
        self.calls.append("both")
        return super().decode_and_feed(live, slot, tokens, position)


class Unmixed(Recorded):
    """One that refuses to do both, whatever it is asked."""

    def decode_and_feed(self, live: Sequence[SlotInput], slot: int, tokens: Sequence[int], position: int = 0) -> Logits:
        raise StepError("not in one pass")


def feed(slot: int, sequence: int, tokens: Sequence[int], *, last: bool = True, position: int = 0) -> Feed:
    start = Start(sampling=DRAWS, eos=(), max_new_tokens=20) if last else None
    return Feed(step=0, slot=slot, sequence=sequence, tokens=tuple(tokens), position=position, start=start)


def decode(*live: tuple[int, int], held: tuple[tuple[int, int], ...] = (), feed: Feed | None = None) -> Decode:
    return Decode(step=0, live=live, held=held, feed=feed)


def run(steps: Steps, *commands: Feed | Decode) -> dict[int, list[Drawn]]:
    """What each sequence got."""
    drawn: dict[int, list[Drawn]] = {}
    for command in commands:
        for each in steps.run(command).drawn:
            drawn.setdefault(each.sequence, []).append(each)
    return drawn


FIRST, SECOND = feed(0, 1, (5, 6, 7)), feed(2, 2, (9, 8, 7, 6))
APART = (FIRST, decode((0, 1)), SECOND, decode((0, 1), (2, 2)), decode((0, 1), (2, 2)))
MIXED = (FIRST, decode((0, 1), feed=SECOND), decode((0, 1), (2, 2)), decode((0, 1), (2, 2)))


@pytest.fixture
def mixed() -> Recorded:
    return Recorded()


def test_it_is_one_pass_and_draws_what_two_steps_would(mixed: Recorded) -> None:
    assert run(Steps(mixed), *MIXED) == run(Steps(Recorded()), *APART)
    assert mixed.calls == ["feed", "both", "decode", "decode"]


def test_a_backend_that_cannot_do_both_at_once_does_one_after_the_other(caplog: pytest.LogCaptureFixture) -> None:
    backend = Unmixed()
    assert run(Steps(backend), *MIXED) == run(Steps(Recorded()), *APART)
    assert backend.calls == ["feed", "decode", "feed", "decode", "decode"]
    assert "in two passes: not in one pass" in caplog.text


def test_a_prompt_in_pieces_may_come_with_decodes(mixed: Recorded) -> None:
    tokens = (9, 8, 7, 6, 5, 4)
    pieces = [feed(2, 2, tokens[at : at + 2], last=at == 4, position=at) for at in (0, 2, 4)]
    together = run(
        Steps(mixed),
        FIRST,
        decode((0, 1), feed=pieces[0]),
        decode((0, 1), held=((2, 2),)),
        decode((0, 1), feed=pieces[1]),
        decode((0, 1), feed=pieces[2]),
        decode((0, 1), (2, 2)),
    )
    alone = run(Steps(Recorded()), feed(2, 2, tokens), decode((2, 2)))
    assert together[2] == alone[2]
    assert [each.token for each in together[1]] == [
        each.token for each in run(Steps(Recorded()), FIRST, *[decode((0, 1))] * 5)[1]
    ]
    assert mixed.calls == ["feed", "both", "decode", "both", "both", "decode"]


def test_another_prompt_that_is_half_fed_is_held_in_it(mixed: Recorded) -> None:
    """No scheduler of ours feeds two at a time; the contract has a row for each."""
    pieces = [feed(3, 3, (4, 5), last=False), feed(3, 3, (6, 7), position=2)]
    drawn = run(Steps(mixed), FIRST, pieces[0], decode((0, 1), held=((3, 3),), feed=SECOND), pieces[1])
    assert drawn[3] == run(Steps(Recorded()), feed(3, 3, (4, 5, 6, 7)))[3]
    assert drawn[1] == run(Steps(Recorded()), FIRST, decode((0, 1)))[1]
    assert drawn[2] == run(Steps(Recorded()), SECOND)[2]
    assert mixed.calls == ["feed", "feed", "both", "feed"]


def test_what_was_emitted_before_a_replay_is_not_drawn_again(mixed: Recorded) -> None:
    commands = (SECOND, *[decode((2, 2))] * 5)
    whole = run(Steps(Recorded()), *commands)[2]
    assert SECOND.start is not None
    emitted = tuple(each.token for each in whole[:3])
    again = msgspec.structs.replace(SECOND, start=msgspec.structs.replace(SECOND.start, emitted=emitted))
    drawn = run(Steps(mixed), FIRST, decode((0, 1), feed=again), *[decode((0, 1), (2, 2))] * 5)
    assert drawn[2] == whole[3:]


def test_a_prompt_may_go_on_behind_a_copy_of_what_a_decoded_slot_holds() -> None:
    backend = Recorded(reuse=True)
    copied = Feed(step=0, slot=2, sequence=2, tokens=(9,), position=2, reused=2, source=0, start=SECOND.start)
    drawn = run(Steps(backend), FIRST, decode((0, 1), feed=copied), decode((0, 1), (2, 2)))
    assert drawn[2] == run(Steps(Recorded()), feed(2, 2, (*FIRST.tokens[:2], 9)), decode((2, 2)))[2]
    assert drawn[1] == run(Steps(Recorded()), FIRST, *[decode((0, 1))] * 2)[1]
    assert backend.calls == ["feed", "both", "decode"]


def test_pieces_hold_their_slot_where_they_are_fed_apart() -> None:
    pieces = [feed(2, 2, (9, 8), last=False), feed(2, 2, (7, 6), position=2)]
    apart = run(Steps(Unmixed()), FIRST, *(decode((0, 1), feed=piece) for piece in pieces))
    assert apart[2] == run(Steps(Recorded()), feed(2, 2, (9, 8, 7, 6)))[2]


@pytest.mark.parametrize("tokens", [(5, VOCAB + 7), (), (5,) * 9], ids=["unknown token", "no tokens", "too long"])
def test_a_prompt_that_is_refused_costs_the_others_nothing(mixed: Recorded, tokens: tuple[int, ...]) -> None:
    drawn = run(Steps(mixed), FIRST, decode((0, 1), feed=feed(2, 2, tokens)), decode((0, 1)))
    assert [each.finish for each in drawn[2]] == ["refused"]
    assert drawn[1] == run(Steps(Recorded()), FIRST, decode((0, 1)), decode((0, 1)))[1]


def test_a_grammar_that_cannot_be_followed_costs_the_others_nothing(mixed: Recorded) -> None:
    start = Start(sampling=DRAWS, eos=(), max_new_tokens=20, grammar=Grammar("regex", "a"))
    constrained = Feed(step=0, slot=2, sequence=2, tokens=(5,), start=start)
    drawn = run(Steps(mixed), FIRST, decode((0, 1), feed=constrained), decode((0, 1)))
    assert [each.finish for each in drawn[2]] == ["grammar"]
    assert drawn[1] == run(Steps(Recorded()), FIRST, decode((0, 1)), decode((0, 1)))[1]


def test_the_rest_of_a_prompt_that_was_refused_is_not_fed(mixed: Recorded) -> None:
    pieces = [feed(2, 2, (9, VOCAB), last=False), feed(2, 2, (7, 6), position=2)]
    drawn = run(Steps(mixed), FIRST, *(decode((0, 1), feed=piece) for piece in pieces))
    assert [each.finish for each in drawn[2]] == ["refused"]
    assert [each.token for each in drawn[1]] == [
        each.token for each in run(Steps(Recorded()), FIRST, decode((0, 1)), decode((0, 1)))[1]
    ]


def test_a_prompt_whose_scores_are_wanted_is_fed_apart(mixed: Recorded) -> None:
    scored = Feed(step=0, slot=2, sequence=2, tokens=SECOND.tokens, start=SECOND.start, scored=(8, 7, 6))
    steps, alone = Steps(mixed), Steps(Recorded())
    steps.run(FIRST)
    report = steps.run(decode((0, 1), feed=scored))
    assert report.prompt_logprobs == alone.run(scored).prompt_logprobs != ()
    assert [each.sequence for each in report.drawn] == [1, 2]
    assert mixed.calls == ["feed", "decode", "feed"]


def test_when_all_others_have_ended_it_is_a_feed(mixed: Recorded) -> None:
    steps = Steps(mixed)
    once = Start(sampling=DRAWS, eos=(), max_new_tokens=1)
    steps.run(Feed(step=0, slot=0, sequence=1, tokens=(5, 6, 7), start=once))
    assert [each.sequence for each in steps.run(decode((0, 1), feed=SECOND)).drawn] == [2]
    assert mixed.calls == ["feed", "feed"]


@pytest.mark.parametrize(("fault", "bad"), [("feed:1=nan", 2), ("decode:0=nan", 1)])
def test_a_bad_row_is_its_own_sequences_alone(fault: str, bad: int) -> None:
    drawn = run(Steps(Recorded(faults=(fault,))), FIRST, decode((0, 1), feed=SECOND))
    assert {number: each[-1].finish for number, each in drawn.items()} == {bad: "non_finite", 3 - bad: ""}


def test_several_bad_rows_are_the_devices_fault() -> None:
    steps = Steps(Recorded(faults=("feed:1=nan", "decode:0=nan")))
    steps.run(FIRST)
    with pytest.raises(DeviceError, match="2 of 2 rows"):
        steps.run(decode((0, 1), feed=SECOND))


def test_only_what_can_do_both_is_a_mixed_stepper(tiny_checkpoint: Callable[..., Path]) -> None:
    from models.neuron.tnx import NeuronBackend
    from models.protocol import NeuronOptions

    assert isinstance(Recorded(), MixedStepper)
    assert not isinstance(NeuronBackend(tiny_checkpoint("llama3"), NeuronOptions()), MixedStepper)
