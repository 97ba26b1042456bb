"""The rows that no server of the wire tests reaches, their order, and what becomes of valid parameters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.protocol import SamplingParams
from server.api import validation
from server.api.schema import ABSENT_PARAMETERS, GenerateParameters
from server.api.validation import Wanted
from server.core import Limits
from server.errors import ValidationError

LIMITS = Limits(max_input_tokens=1024, max_total_tokens=2048, max_best_of=2)


def wanted(inputs: str = "x", presence_penalty: float = 0.0, **parameters: Any) -> Wanted:
    return Wanted(inputs, GenerateParameters(**parameters), presence_penalty)


def refusal(check: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ValidationError) as error:
        check(*args, **kwargs)
    assert error.value.text.startswith("Input validation error: ")
    return error.value.text.removeprefix("Input validation error: ")


class TestRowsWithBestOf:
    def test_0b(self) -> None:
        given = GenerateParameters(best_of=3)
        text = "`best_of` must be > 0 and <= 2. Given: 3"
        assert refusal(validation.check_route, given, LIMITS, stream=False) == text

    def test_0c_before_0d(self) -> None:
        given = GenerateParameters(best_of=2, decoder_input_details=True)
        text = "`best_of` != 1 is not supported when streaming tokens"
        assert refusal(validation.check_route, given, LIMITS, stream=True) == text

    def test_best_of_1_streams(self) -> None:
        validation.check_route(GenerateParameters(best_of=1), LIMITS, stream=True)

    def test_1(self) -> None:
        text = "you must use sampling when `best_of` is > 1"
        assert refusal(validation.check_parameters, wanted(best_of=2, seed=1), LIMITS) == text

    @pytest.mark.parametrize("sampling", [{"do_sample": True}, {"temperature": 1.0}, {"top_k": 1}, {"typical_p": 0.5}])
    def test_1_any_mention_of_sampling_will_do(self, sampling: dict[str, Any]) -> None:
        validation.check_parameters(wanted(best_of=2, **sampling), LIMITS)

    def test_10_after_9(self) -> None:
        text = "`seed` must not be set when `best_of` > 1"
        assert refusal(validation.check_parameters, wanted(best_of=2, top_k=1, seed=1, top_n_tokens=9), LIMITS) == text
        nine = wanted(best_of=2, top_k=1, seed=1, stop=("a",) * 5)
        assert refusal(validation.check_parameters, nine, LIMITS).startswith("`stop` supports up to 4")


class TestLengths:
    """Section 5."""

    @pytest.mark.parametrize(
        ("prompt", "asked", "allowed"),
        [
            (1, 1, 1),
            (1000, 1048, 1048),
            (1000, 100_000, 1048),
            (1024, 1024, 1024),
            (10, None, 2038),
            (1024, None, 1024),
        ],
    )
    def test_what_fits(self, prompt: int, asked: int | None, allowed: int) -> None:
        assert validation.max_new_tokens(GenerateParameters(max_new_tokens=asked), prompt, LIMITS) == allowed

    @pytest.mark.parametrize(
        ("prompt", "asked", "text"),
        [
            (1500, 1024, "<= 2048. Given: 1500 `inputs` tokens and 1024 `max_new_tokens`"),
            (1500, 5000, "<= 2048. Given: 1500 `inputs` tokens and 1024 `max_new_tokens`"),
            (2049, None, "<= 2048. Given: 2049 `inputs` tokens and 0 `max_new_tokens`"),
            (1025, None, "`inputs` must have less than 1024 tokens. Given: 1025"),
            (1500, None, "`inputs` must have less than 1024 tokens. Given: 1500"),
        ],
    )
    def test_what_does_not(self, prompt: int, asked: int | None, text: str) -> None:
        parameters = GenerateParameters(max_new_tokens=asked)
        assert refusal(validation.max_new_tokens, parameters, prompt, LIMITS).endswith(text)

    @given(st.integers(1, 3000), st.none() | st.integers(1, 2**32 - 1))
    def test_an_accepted_request_fits_the_context_and_generates(self, prompt: int, asked: int | None) -> None:
        try:
            allowed = validation.max_new_tokens(GenerateParameters(max_new_tokens=asked), prompt, LIMITS)
        except ValidationError:
            assert prompt > 1024 or asked is not None
        else:
            assert 1 <= allowed <= 2048 - prompt
            assert asked is None or allowed <= asked


class TestSampling:
    def test_greedy_has_no_seed_and_neutral_filters(self) -> None:
        assert validation.sampling_params(wanted()) == SamplingParams()
        assert validation.sampling_params(wanted(seed=7, temperature=1.0)) == SamplingParams()

    def test_penalties_do_not_turn_sampling_on(self) -> None:
        params = validation.sampling_params(wanted(repetition_penalty=1.2, frequency_penalty=0.5, presence_penalty=-1))
        expected = SamplingParams(repetition_penalty=1.2, frequency_penalty=0.5, presence_penalty=-1)
        assert params == expected

    def test_absent_parameters_sample_with_a_seed_of_our_own(self) -> None:
        seeds = {validation.sampling_params(Wanted("x", ABSENT_PARAMETERS)).seed for _ in range(20)}
        assert len(seeds) == 20
        assert all(0 <= seed < 2**64 for seed in seeds)

    def test_everything_given_is_passed_on(self) -> None:
        given = wanted(temperature=0.5, top_k=3, top_p=0.9, typical_p=0.8, seed=2**64 - 1, top_n_tokens=2)
        assert validation.sampling_params(given) == SamplingParams(
            do_sample=True, temperature=0.5, top_k=3, top_p=0.9, typical_p=0.8, seed=2**64 - 1, top_n_tokens=2
        )


class TestDeviceSampling:
    """A model whose device draws the tokens itself."""

    DRAWING = Limits(max_input_tokens=1024, max_total_tokens=2048, device_sampling=True)

    @pytest.mark.parametrize(
        "parameters",
        [
            {"seed": 0},
            {"best_of": 2, "do_sample": True},
            {"top_n_tokens": 2},
            {"repetition_penalty": 1.2},
            {"frequency_penalty": 0.5},
            {"presence_penalty": 0.5},
            {"typical_p": 0.9},
            {"grammar": {"type": "json", "value": {}}},
        ],
    )
    def test_what_needs_the_scores_or_a_seed_is_refused_by_name(self, parameters: dict[str, Any]) -> None:
        name = next(iter(parameters))
        text = refusal(validation.check_parameters, wanted(**parameters), self.DRAWING)
        assert text.startswith(f"`{name}` cannot be used with this model: its device draws the tokens itself")

    def test_logprobs_of_a_chat_are_refused(self) -> None:
        asked = Wanted("x", GenerateParameters(), logprobs=True)
        assert refusal(validation.check_parameters, asked, self.DRAWING).startswith("`logprobs` cannot be used")
        validation.check_parameters(asked, LIMITS)

    def test_a_refusal_names_everything(self) -> None:
        text = refusal(validation.check_parameters, wanted(seed=1, typical_p=0.9), self.DRAWING)
        assert text.startswith("`seed`, `typical_p` cannot be used")

    def test_the_rest_and_neutral_values_are_served(self) -> None:
        neutral = {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "best_of": 1, "top_n_tokens": 0}
        served = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "do_sample": True, "details": True, "stop": ("x",)}
        validation.check_parameters(wanted(**neutral, **served), self.DRAWING)
