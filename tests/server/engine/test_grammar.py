"""Grammars through the engine and the real worker steps: every answer is a text of its language, replayed or not."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from models.protocol import Grammar, SamplingParams
from server.core import Finish, Output, Request
from server.engine.generation import Generation
from server.errors import GenerationError

Bench = Callable[..., Any]

END = 255
DIGITS = Grammar("regex", r"[a-f]{3}-\d{4}")
SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "green"]},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["color", "size", "tags"],
}
SAMPLED = SamplingParams(do_sample=True, temperature=2.0, seed=7)


def request(
    grammar: Grammar | None, sampling: SamplingParams = SAMPLED, prompt: tuple[int, ...] = (5, 6, 7), most: int = 100
) -> Request:
    return Request(model="m", prompt=prompt, text="", max_new_tokens=most, sampling=sampling, grammar=grammar)


def read(generation: Generation) -> list[Output]:
    async def collect() -> list[Output]:
        return [output async for output in generation]

    return asyncio.run(collect())


def finish(generation: Generation) -> Finish:
    finish = read(generation)[-1].finish
    assert finish is not None
    return finish


@pytest.mark.parametrize("sampling", [SamplingParams(), SAMPLED, SamplingParams(do_sample=True, top_p=0.5, seed=1)])
def test_an_answer_matches_its_regex_and_ends_by_itself(bench: Bench, sampling: SamplingParams) -> None:
    one = bench(eos_token=END)
    generation = one.submit(request(DIGITS, sampling))
    one.run()
    end = finish(generation)
    assert end.reason == "eos_token"
    assert re.fullmatch(DIGITS.text, end.text)


def test_an_answer_is_json_of_its_schema(bench: Bench) -> None:
    one = bench(eos_token=END)
    sampled = [SamplingParams(do_sample=True, temperature=3.0, seed=seed) for seed in range(20)]
    generations = [one.submit(request(Grammar("json", json.dumps(SCHEMA)), each)) for each in sampled]
    one.run()
    for generation in generations:
        end = finish(generation)
        answer = json.loads(end.text)
        assert end.reason == "eos_token"
        assert list(answer) == ["color", "size", "tags"]
        assert answer["color"] in ("red", "green")
        assert 0 <= answer["size"] <= 99
        assert len(answer["tags"]) <= 3


def test_a_grammar_ends_an_answer_that_the_model_would_go_on_with(bench: Bench) -> None:
    one = bench()  # it never draws the end token by itself
    generation = one.submit(request(Grammar("regex", "ab|cd"), SamplingParams()))
    one.run()
    assert finish(generation).text in ("ab", "cd")


def test_the_model_may_end_an_answer_only_where_it_is_complete(bench: Bench) -> None:
    one = bench(eos_token=END, answer_tokens=1)  # it wants to end after one token
    generation = one.submit(request(Grammar("regex", "[a-z]{5,9}"), SamplingParams()))
    one.run()
    end = finish(generation)
    assert (end.reason, len(end.text)) == ("eos_token", 5)


def test_a_grammar_constrains_its_own_sequence_alone(bench: Bench) -> None:
    free = [request(None, prompt=(n, n + 1)) for n in range(1, 4)]
    alone = bench()
    expected = [alone.submit(each) for each in free]
    alone.run()
    beside = bench()
    with_grammar = beside.submit(request(DIGITS))
    generations = [beside.submit(each) for each in free]
    beside.run()
    assert [finish(each).text for each in generations] == [finish(each).text for each in expected]
    assert re.fullmatch(DIGITS.text, finish(with_grammar).text)


def test_a_worker_that_is_replaced_at_any_step_changes_nothing(bench: Bench) -> None:
    wanted = [request(DIGITS), request(Grammar("json", json.dumps(SCHEMA))), request(None, most=9)]
    one = bench(eos_token=END)
    expected = [one.submit(each) for each in wanted]
    one.run()
    texts = [finish(each).text for each in expected]
    for cut in range(0, 40, 3):
        many = bench(eos_token=END)
        generations = [many.submit(each) for each in wanted]
        for _ in range(cut):
            many.step()
        many.engine.detach()
        many.attach()
        many.run()
        assert [finish(each).text for each in generations] == texts, cut


def test_logprobs_are_those_of_the_allowed_tokens(bench: Bench) -> None:
    one = bench()
    sampling = SamplingParams(top_n_tokens=5)
    generation = one.submit(request(Grammar("regex", "x[yz]"), sampling))
    one.run()
    first, second, last = read(generation)
    assert (first.token.text, first.token.logprob) == ("x", 0.0)
    assert [token.text for token in first.top_tokens] == ["x"]
    assert sorted(token.text for token in second.top_tokens) == ["y", "z"]
    assert last.token.id == END


@pytest.mark.parametrize("most", [1, 5])
def test_a_budget_that_is_too_small_cuts_it_off(bench: Bench, most: int) -> None:
    one = bench()
    generation = one.submit(request(DIGITS, most=most))
    one.run()
    end = finish(generation)
    assert (end.reason, len(end.text)) == ("length", most)


def test_a_grammar_that_cannot_be_followed_ends_its_request_alone(bench: Bench) -> None:
    one = bench()
    neighbour = one.submit(request(None, most=12))
    stuck = one.submit(request(Grammar("regex", "(a{1000}){1000}")))
    one.run()
    with pytest.raises(GenerationError, match="grammar cannot be followed"):
        read(stuck)
    assert finish(neighbour).generated_tokens == 12
    assert one.engine.running == 0
