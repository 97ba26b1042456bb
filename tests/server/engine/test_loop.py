"""The engine over the real worker steps and the simulated device: texts, order, faults, cancels."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.backend import Logits
from models.protocol import Decode, Feed, Grammar, SamplingParams, SimulatedOptions
from models.simulated import SimulatedBackend
from server.core import Output, Request
from server.engine.generation import Generation
from server.engine.loop import DEPTH
from server.errors import GenerationError, ServeError

Bench = Any


GREEDY = SamplingParams()


def request(
    prompt: tuple[int, ...], max_new_tokens: int = 12, sampling: SamplingParams = GREEDY, stop: tuple[str, ...] = ()
) -> Request:
    return Request(model="m", prompt=prompt, text="", max_new_tokens=max_new_tokens, sampling=sampling, stop=stop)


def read(generation: Generation) -> list[Output]:
    async def collect() -> list[Output]:
        return [output async for output in generation]

    return asyncio.run(collect())


def tokens(generation: Generation) -> list[int]:
    return [output.token.id for output in read(generation)]


def prompts(count: int, seed: int = 1) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(1, 200) for _ in range(rng.randrange(1, 20))) for _ in range(count)]


def alone(bench: Callable[..., Bench], wanted: Request, **options: Any) -> list[int]:
    one = bench(**options)
    generation = one.submit(wanted)
    one.run()
    return tokens(generation)


def test_a_request_ends_by_length_with_as_many_tokens_as_it_asked_for(bench: Callable[..., Bench]) -> None:
    one = bench()
    generation = one.submit(request((5, 6, 7), 9))
    one.run()
    outputs = read(generation)
    assert [output.index for output in outputs] == list(range(1, 10))
    assert outputs[-1].finish is not None
    assert (outputs[-1].finish.reason, outputs[-1].finish.generated_tokens) == ("length", 9)
    assert all(output.finish is None for output in outputs[:-1])
    assert one.engine.empty


def test_the_end_token_ends_it(bench: Callable[..., Bench]) -> None:
    one = bench(eos_token=255, answer_tokens=4)
    generation = one.submit(request((5, 6, 7), 50))
    one.run()
    outputs = read(generation)
    assert outputs[-1].finish is not None
    assert outputs[-1].finish.reason == "eos_token"
    assert outputs[-1].token.id == 255


def test_two_steps_are_with_the_worker_while_there_is_work(bench: Callable[..., Bench]) -> None:
    one = bench()
    one.submit(request((1, 2), 30))
    for _ in range(20):
        assert len(one.worker._queue) == DEPTH
        one.step()


def test_every_live_sequence_is_in_every_decode(bench: Callable[..., Bench]) -> None:
    one = bench()
    for prompt in prompts(4):
        one.submit(request(prompt, 20))
    one.run()
    live: set[int] = set()
    for command in one.worker.commands:
        if isinstance(command, Feed):
            live.add(command.sequence)
        else:
            assert {sequence for _, sequence in command.live} <= live
    widest = max(len(command.live) for command in one.worker.commands if isinstance(command, Decode))
    assert widest == 4


@pytest.mark.parametrize("chunk", [0, 3])
def test_texts_are_those_of_each_request_alone(bench: Callable[..., Bench], chunk: int) -> None:
    wanted = [request(prompt, 5 + i % 17) for i, prompt in enumerate(prompts(12))]
    expected = [alone(bench, each, chunk=chunk) for each in wanted]
    together = bench(chunk=chunk)
    generations = []
    for index, each in enumerate(wanted):
        generations.append(together.submit(each))
        for _ in range(index % 4):
            together.step()
    together.run()
    assert [tokens(generation) for generation in generations] == expected


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(do_sample=True, temperature=1.5, seed=11)])
def test_a_worker_that_is_replaced_at_any_step_changes_nothing(
    bench: Callable[..., Bench], sampling: SamplingParams
) -> None:
    wanted = [request(prompt, 10, sampling) for prompt in prompts(6)]
    expected = [alone(bench, each) for each in wanted]
    for cut in range(0, 60, 3):
        many = bench()
        generations = [many.submit(each) for each in wanted]
        for _ in range(cut):
            many.step()
        many.engine.detach()
        many.attach()
        many.run()
        assert [tokens(generation) for generation in generations] == expected


def test_a_cancelled_sequence_leaves_within_two_steps_and_disturbs_nobody(bench: Callable[..., Bench]) -> None:
    wanted = [request(prompt, 15) for prompt in prompts(3)]
    expected = [alone(bench, each) for each in wanted]
    many = bench()
    generations = [many.submit(each) for each in wanted]
    for _ in range(8):
        many.step()
    generations[1].cancel()
    for _ in range(DEPTH):
        many.step()
    last = many.worker.commands[-1]
    assert isinstance(last, Decode)
    assert generations[1].sequence not in {sequence for _, sequence in last.live}
    many.run()
    assert [tokens(generations[0]), tokens(generations[2])] == [expected[0], expected[2]]
    assert many.engine.dropped_tokens > 0


def test_a_stop_string_frees_the_slot(bench: Callable[..., Bench]) -> None:
    probe = bench()
    generation = probe.submit(request((9, 8, 7), 12))
    probe.run()
    texts = [output.token.text for output in read(generation)]
    index, stop = next((i, text) for i, text in enumerate(texts) if i >= 2 and text and text not in texts[:i])
    one = bench()
    stopped = one.submit(request((9, 8, 7), 12, stop=(stop,)))
    one.run()
    outputs = read(stopped)
    assert len(outputs) == index + 1
    assert outputs[-1].finish is not None
    assert outputs[-1].finish.reason == "stop_sequence"
    assert outputs[-1].finish.text.endswith(stop)
    assert one.engine.running == 0


def test_one_bad_row_is_replayed_once(bench: Callable[..., Bench]) -> None:
    expected = alone(bench, request((1, 2, 3), 12))
    one = bench(faults=("decode:5=nan",))
    generation = one.submit(request((1, 2, 3), 12))
    one.run()
    assert tokens(generation) == expected


def test_a_row_that_is_bad_twice_ends_its_sequence_alone(bench: Callable[..., Bench]) -> None:
    one = bench(faults=("feed:0=nan", "feed:1=nan"))
    generation = one.submit(request((1, 2, 3), 12))
    one.run()
    with pytest.raises(GenerationError, match="no finite numbers"):
        read(generation)
    again = one.submit(request((1, 2, 3), 12))
    one.run()
    assert len(tokens(again)) == 12


def test_a_prompt_that_the_model_cannot_be_fed_ends_alone(bench: Callable[..., Bench]) -> None:
    one = bench()
    neighbour = one.submit(request((1, 2, 3), 12))
    refused = one.submit(request((5, 100_000, 6), 12))
    one.run()
    with pytest.raises(GenerationError, match="cannot be fed"):
        read(refused)
    assert tokens(neighbour) == alone(bench, request((1, 2, 3), 12))
    assert one.engine.running == 0


def test_a_token_that_cannot_become_text_ends_its_sequence_alone(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(bench, request((1, 2, 3), 12))
    one = bench()
    neighbour, broken = one.submit(request((1, 2, 3), 12)), one.submit(request((4, 5), 12))
    for _ in range(6):
        one.step()
    monkeypatch.setattr(broken._detokenizer, "push", lambda token: bytes([token, 256]).decode())
    one.run()
    with pytest.raises(GenerationError, match="cannot become text"):
        read(broken)
    assert tokens(neighbour) == expected
    assert one.engine.empty
    assert one.engine.running == 0


def test_a_repetition_penalty_counts_the_prompt(bench: Callable[..., Bench], tmp_path: Path) -> None:
    """All the way from the request to the row that the token is drawn from."""
    backend = SimulatedBackend(tmp_path, SimulatedOptions(vocab_size=256))
    backend.load(lambda *_: None)
    for prompt in itertools.product(range(1, 200), repeat=2):
        scores = backend.feed(0, prompt)
        assert isinstance(scores, Logits)
        if scores.rows[0].argmax() in prompt:
            break
    row = scores.rows[0].astype(float)
    once = [*set(prompt)]
    row[once] = [value / 9.0 if value > 0 else value * 9.0 for value in row[once]]
    one = bench()
    generation = one.submit(request(prompt, 1, SamplingParams(repetition_penalty=9.0)))
    one.run()
    (output,) = read(generation)
    assert output.token.id == row.argmax() not in prompt
    assert output.token.logprob == pytest.approx(row.max() - math.log(sum(map(math.exp, row))), abs=1e-4)


def test_every_request_ends_exactly_once_over_random_histories(bench: Callable[..., Bench]) -> None:
    for seed in range(40):
        rng = random.Random(seed)
        wanted = [request(prompt, rng.randrange(1, 14)) for prompt in prompts(10, seed)]
        expected = [alone(bench, each, chunk=5) for each in wanted]
        many = bench(chunk=5)
        generations: list[Generation] = []
        cancelled: set[int] = set()
        while len(generations) < len(wanted) or many.worker.busy:
            event = rng.random()
            if event < 0.15 and len(generations) < len(wanted):
                generations.append(many.submit(wanted[len(generations)]))
            elif event < 0.18 and generations:
                index = rng.randrange(len(generations))
                if not generations[index].ended:
                    cancelled.add(index)
                generations[index].cancel()
            elif event < 0.20:
                many.engine.detach()
                many.attach()
            else:
                many.step()
        for index, generation in enumerate(generations):
            got = tokens(generation)
            assert generation.ended, seed
            assert got == (expected[index][: len(got)] if index in cancelled else expected[index]), (seed, index)
        assert many.engine.empty, seed


def test_500_clients_who_leave_take_no_step_from_who_stays(bench: Callable[..., Bench]) -> None:
    one = bench(slots=12, chunk=16, reuse=True, vocab_size=250)  # without the end token
    rng = random.Random(1)
    wanted = [request(prompt, 500) for prompt in prompts(4)]
    steady = [one.submit(each) for each in wanted]
    token_at: list[list[int]] = [[] for _ in steady]
    storm: list[tuple[Generation, int]] = []
    came = step = 0
    while came < 500 or storm:
        if came < 500 and rng.random() < 0.7:
            came += 1
            prompt = tuple(rng.randrange(1, 200) for _ in range(rng.randrange(1, 40)))
            storm.append((one.submit(request(prompt, 100)), rng.randrange(12)))
        one.step()
        step += 1
        for each in [each for each in storm if len(each[0].emitted) >= each[1]]:
            storm.remove(each)
            each[0].cancel()
        for generation, steps in zip(steady, token_at, strict=True):
            steps.extend([step] * (len(generation.emitted) - len(steps)))
    one.run()
    for steps in token_at:
        assert len(steps) > 100
        assert {later - earlier for earlier, later in itertools.pairwise(steps)} <= {1, 2}, "a feed between, no more"
    assert [tokens(generation) for generation in steady] == [alone(bench, each, vocab_size=250) for each in wanted]
    assert one.engine.empty
    assert (one.engine.running, one.engine.waiting) == (0, 0)


def test_fail_all_ends_each_with_its_own_error(bench: Callable[..., Bench]) -> None:
    one = bench()
    generations = [one.submit(request(prompt)) for prompt in prompts(6)]
    one.engine.fail_all(lambda: GenerationError("gone"))
    for generation in generations:
        with pytest.raises(ServeError, match="gone"):
            read(generation)
    assert one.engine.empty


# --- what a slot still holds


def fed(one: Bench) -> list[int]:
    """How many tokens each feed brought."""
    return [len(command.tokens) for command in one.worker.commands if isinstance(command, Feed)]


def test_the_next_turn_of_a_chat_costs_its_new_tokens(bench: Callable[..., Bench]) -> None:
    one = bench(chunk=16, reuse=True)
    first = one.submit(request((5, 6, 7), 9))
    one.run()
    answer = tokens(first)
    turn = request((5, 6, 7, *answer, 8, 9), 9)
    second = one.submit(turn)
    one.run()
    assert fed(one) == [3, 3]  # the last token of an answer is drawn and not written
    outputs = read(second)
    assert [output.token.id for output in outputs] == alone(bench, turn)
    assert outputs[-1].finish is not None
    assert outputs[-1].finish.reused_tokens == 11


def test_a_system_prompt_of_who_still_runs_is_copied(bench: Callable[..., Bench]) -> None:
    one = bench(chunk=16, reuse=True, slots=4)
    system = tuple(range(10, 70))
    wanted = [request((*system, 100 + number, 7), 20) for number in range(4)]
    generations = [one.submit(each) for each in wanted]
    one.run()
    assert fed(one)[:4] == [16, 16, 16, 14], "the first is fed whole"
    assert sum(fed(one)[4:]) < 3 * 16 * 2, "the others are not"
    assert [tokens(each) for each in generations] == [alone(bench, each) for each in wanted]


def test_two_chats_that_begin_alike_keep_a_slot_each(bench: Callable[..., Bench]) -> None:
    one = bench(chunk=16, reuse=True, slots=4)
    system = tuple(range(10, 40))
    chats = [(*system, 100), (*system, 101)]
    for turn in range(3):
        for number, prompt in enumerate(chats):
            before = len(fed(one))
            generation = one.submit(request(prompt, 20))
            one.run()
            answer = tokens(generation)
            assert answer == alone(bench, request(prompt, 20))
            assert turn == 0 or fed(one)[before:] == [2], "the last token drawn, and the new one"
            chats[number] = (*prompt, *answer, 60 + turn)


PROMPT = tuple(range(1, 41))


def test_what_was_refused_is_never_copied(grammarless: Bench, bench: Callable[..., Bench]) -> None:
    """Its slot was never fed: it holds what somebody else left there."""
    grammarless.submit(request((200, 201, 202), 40))
    for _ in range(4):
        grammarless.step()
    refused = grammarless.submit(dataclasses.replace(request(PROMPT), grammar=Grammar(kind="regex", text="a")))
    other = grammarless.submit(request((*PROMPT, 99)))
    grammarless.run()
    with pytest.raises(GenerationError, match="grammar"):
        read(refused)
    assert tokens(other) == alone(bench, request((*PROMPT, 99)))


def test_a_copy_that_was_never_made_is_not_relied_on(grammarless: Bench, bench: Callable[..., Bench]) -> None:
    source = grammarless.submit(request(PROMPT, 60))
    for _ in range(4):
        grammarless.step()
    copied = grammarless.submit(dataclasses.replace(request((*PROMPT, 7)), grammar=Grammar(kind="regex", text="a")))
    while not any(each.source is not None for each in grammarless.worker.commands if isinstance(each, Feed)):
        assert grammarless.step()
    source.cancel()
    copied.cancel()
    grammarless.run()
    for first in (150, 151, 152):
        grammarless.submit(request((first, first, first), 60))
    for _ in range(8):
        grammarless.step()
    other = grammarless.submit(request((*PROMPT, 99)))
    grammarless.run()
    assert tokens(other) == alone(bench, request((*PROMPT, 99)))


def test_a_bad_row_spoils_no_copy(bench: Callable[..., Bench]) -> None:
    one = bench(chunk=64, reuse=True, faults=("feed:1=nan",))
    one.submit(request((200, 201, 202), 40))
    for _ in range(4):
        one.step()
    wanted = [request(PROMPT), request((*PROMPT, 99))]
    generations = [one.submit(each) for each in wanted]
    one.run()
    feeds = [each for each in one.worker.commands if isinstance(each, Feed)]
    assert [(each.sequence, each.source) for each in feeds[1:3]] == [(generations[0].sequence, None)] * 2, "anew, first"
    assert [tokens(each) for each in generations] == [alone(bench, each) for each in wanted]


def test_what_a_bad_row_stood_on_is_not_stood_on_again(bench: Callable[..., Bench]) -> None:
    """What it was bad of may be in the tokens that were reused: the second try feeds its prompt whole."""
    one = bench(chunk=64, reuse=True, slots=2, faults=("feed:1=nan",))
    one.submit(request(PROMPT, 40))
    for _ in range(4):
        one.step()
    turn = request((*PROMPT, 99), 9)
    spoiled = one.submit(turn)
    one.run()
    feeds = [each for each in one.worker.commands if isinstance(each, Feed) and each.sequence == spoiled.sequence]
    assert [each.reused for each in feeds] == [len(PROMPT), 0]
    assert tokens(spoiled) == alone(bench, turn)


def test_a_cancelled_request_leaves_its_prompt(bench: Callable[..., Bench]) -> None:
    one = bench(chunk=4, reuse=True, slots=1)
    prompt = tuple(range(5, 25))
    first = one.submit(request(prompt, 9))
    for _ in range(3):
        one.step()
    first.cancel()
    again = one.submit(request(prompt, 9))
    one.run()
    assert tokens(again) == alone(bench, request(prompt, 9))
    assert sum(fed(one)) < 2 * len(prompt)


def test_who_leaves_in_the_middle_of_a_replay_leaves_what_was_replayed(bench: Callable[..., Bench]) -> None:
    """Of the tokens that its client has, only the first ones are in the new slot."""
    first = request((5, 6, 7), 30)
    answer = alone(bench, first)
    turn = request((5, 6, 7, *answer[:20], 8), 9)
    expected = alone(bench, turn)
    for steps in range(20):
        one = bench(chunk=16, reuse=True, slots=1)
        left = one.submit(first)
        while len(left.emitted) < 20:
            one.step()
        one.engine.detach()
        one.attach()
        for _ in range(steps):
            one.step()
        left.cancel()
        again = one.submit(turn)
        one.run()
        assert tokens(again) == expected, steps


def test_pieces_of_before_a_bad_row_leave_nothing(bench: Callable[..., Bench]) -> None:
    """The piece behind the bad one is on its way when the prompt begins again, and its client may leave right then."""
    prompt = tuple(range(5, 25))
    expected = alone(bench, request(prompt, 9))
    for steps in range(10):
        one = bench(chunk=4, reuse=True, slots=1, faults=("feed:0=nan",))
        first = one.submit(dataclasses.replace(request(prompt, 9), prompt_logprobs=True))
        for _ in range(steps):
            one.step()
        first.cancel()
        again = one.submit(request(prompt, 9))
        one.run()
        assert tokens(again) == expected, steps


def test_another_key_profits_from_nothing(bench: Callable[..., Bench]) -> None:
    one = bench(chunk=16, reuse=True, slots=1)
    for scope in ("a", "b"):
        one.submit(dataclasses.replace(request((5, 6, 7), 3), scope=scope))
        one.run()
    assert fed(one) == [3, 3]


def test_nothing_is_reused_of_a_worker_that_is_gone(bench: Callable[..., Bench]) -> None:
    one = bench(chunk=16, reuse=True, slots=1)
    one.submit(request((5, 6, 7), 3))
    one.run()
    one.engine.detach()
    one.attach()
    one.submit(request((5, 6, 7), 3))
    one.run()
    assert fed(one) == [3]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_what_is_told_of_reuse_is_that_of_the_feed_that_brought_the_first_token(
    bench: Callable[..., Bench], steps: int
) -> None:
    """A worker that was lost has reused nothing for anybody before it had drawn a token."""
    one = bench(chunk=2, reuse=True, slots=1)
    one.submit(request(PROMPT, 3))
    one.run()
    again = one.submit(request((*PROMPT, 7, 8, 9), 3))
    for _ in range(steps):
        one.step()
    assert bool(again.emitted) == (steps == 2)
    one.engine.detach()
    one.attach()
    one.run()
    finish = read(again)[-1].finish
    assert finish is not None
    assert finish.reused_tokens == (len(PROMPT) if steps == 2 else 0)


def test_a_prompt_of_4000_tokens_stalls_ten_streams_by_one_chunk(bench: Callable[..., Bench]) -> None:
    one = bench(chunk=256, slots=11, n_positions=4200, vocab_size=250)  # without the end token
    for number in range(10):
        one.submit(request((number + 1, 2, 3), 60))
    one.submit(request(tuple(index % 200 for index in range(4000)), 5))
    one.run()
    commands = one.worker.commands
    begin = next(index for index, each in enumerate(commands) if isinstance(each, Feed) and len(each.tokens) == 256)
    pieces = [index for index, each in enumerate(commands) if isinstance(each, Feed) and index >= begin]
    assert len(pieces) == 16
    assert [later - earlier for earlier, later in itertools.pairwise(pieces)] == [2] * 15, "a decode behind each piece"
    decodes = [each for each in commands[begin : pieces[-1]] if isinstance(each, Decode)]
    assert all(len(each.live) == 10 for each in decodes), "all ten go on meanwhile"


def test_where_a_step_does_both_ten_streams_get_a_token_with_each_piece_of_a_prompt(
    bench: Callable[..., Bench],
) -> None:
    one = bench(chunk=256, slots=11, n_positions=4200, vocab_size=250, mixed=True)
    streams = [one.submit(request((number + 1, 2, 3), 60)) for number in range(10)]
    one.submit(request(tuple(index % 200 for index in range(4000)), 5))
    one.run()
    pieces = [each for each in one.worker.commands if isinstance(each, Decode) and each.feed and each.feed.position]
    steps = [each.step for each in pieces]
    assert steps == list(range(steps[0], steps[0] + 15)), "the first of the 16 comes in the step before"
    assert all(len(each.live) == 10 for each in pieces)
    alone = bench(slots=1, n_positions=4200, vocab_size=250)
    for number, stream in enumerate(streams):
        expected = alone.submit(request((number + 1, 2, 3), 60))
        alone.run()
        assert stream.emitted == expected.emitted


def test_a_step_that_does_both_is_a_prefill_of_all_its_sequences(bench: Callable[..., Bench]) -> None:
    one = bench(slots=3, vocab_size=250, chunk=8, mixed=True)
    for number in range(3):
        one.submit(request((number + 1, 2, 3), 4))
    one.run()
    told = one.metrics.render().decode()
    commands = one.worker.commands
    mixed = [each for each in commands if isinstance(each, Decode) and each.feed is not None]
    assert [len(each.live) for each in mixed] == [1, 2]
    assert 'tgi_batch_inference_count{method="prefill"} 3.0' in told
    assert f'tgi_batch_inference_count{{method="decode"}} {len(commands) - 3}.0' in told
    sizes = [1, *(len(each.live) + (each.feed is not None) for each in commands if isinstance(each, Decode))]
    assert f"tgi_batch_next_size_sum {sum(sizes)}.0" in told
