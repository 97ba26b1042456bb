"""What TGI's router checks, in its order and with its words (wire contract, section 4: the row numbers below).

Pure: limits and parameters in, ValidationError or the pieces of a core.Request out. Knows no HTTP and no tokenizer.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

import msgspec

from models.protocol import SamplingParams
from server.api.schema import GenerateParameters
from server.core import Limits, Request
from server.errors import ValidationError

# What TGI's own slices are long: `max_new_tokens` counts as at most this when the length is checked (section 5).
SLICE = 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """A native or a chat request in one shape. `presence_penalty` and `logprobs` exist on chat alone."""

    inputs: str
    parameters: GenerateParameters
    presence_penalty: float = 0.0
    logprobs: bool = False


def check_route(parameters: GenerateParameters, limits: Limits, *, stream: bool) -> None:
    """Rows 0a to 0d: what this route cannot do at all. Checked before admission."""
    best_of = parameters.best_of
    if stream:
        if best_of is not None and best_of != 1:
            raise ValidationError("`best_of` != 1 is not supported when streaming tokens")
        if parameters.decoder_input_details:
            raise ValidationError("`decoder_input_details` == true is not supported when streaming tokens")
    elif best_of is not None and best_of > 1:
        if limits.max_best_of == 1:
            raise ValidationError("`best_of` != 1 is not allowed for this endpoint")
        if best_of > limits.max_best_of:
            raise ValidationError(f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {best_of}")


def check_parameters(wanted: Wanted, limits: Limits) -> None:
    """Rows 1 to 13: everything that needs no token."""
    if limits.device_sampling:
        _check_device_sampling(wanted)
    _check_sampling(wanted.parameters, wanted.presence_penalty)
    _check_limits(wanted.parameters, limits)
    if not wanted.inputs:
        raise ValidationError("`inputs` cannot be empty")
    truncate = wanted.parameters.truncate
    if truncate is not None and not 0 < truncate <= limits.max_input_tokens:
        raise ValidationError(
            f"`truncate` must be strictly positive and less than {limits.max_input_tokens}. Given: {truncate}"
        )


def max_new_tokens(parameters: GenerateParameters, prompt_tokens: int, limits: Limits) -> int:
    """Rows 15 and 16, then the number of tokens to generate at most: what fits behind the prompt, if not less."""
    total = limits.max_total_tokens
    room = max(0, total - prompt_tokens)
    asked = room if parameters.max_new_tokens is None else parameters.max_new_tokens
    counted = min(asked, SLICE)
    if prompt_tokens + counted > total:
        raise ValidationError(
            f"`inputs` tokens + `max_new_tokens` must be <= {total}. "
            f"Given: {prompt_tokens} `inputs` tokens and {counted} `max_new_tokens`"
        )
    if prompt_tokens > limits.max_input_tokens:
        raise ValidationError(f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {prompt_tokens}")
    return min(asked, room)


def check_grammar(limits: Limits) -> None:
    """Row 17, of a request with a grammar; for the rows after it see grammar.py."""
    if not limits.grammar:
        raise ValidationError("grammar is not supported")


def with_another_seed(request: Request) -> Request:
    """Another run of best_of; its seed is its own, so that it reproduces that run alone. A greedy one has none."""
    if not request.sampling.do_sample:
        return request
    seed = secrets.randbits(64)
    return replace(request, seed=seed, sampling=msgspec.structs.replace(request.sampling, seed=seed))


def sampling_params(wanted: Wanted) -> SamplingParams:
    """How to draw. A filter or another temperature turns sampling on; a seed is chosen when the client gave none."""
    given = wanted.parameters
    temperature = 1.0 if given.temperature is None else given.temperature
    filtered = (given.top_k, given.top_p, given.typical_p) != (None, None, None)
    do_sample = given.do_sample or temperature != 1.0 or filtered
    seed = secrets.randbits(64) if given.seed is None else given.seed
    return SamplingParams(
        do_sample=do_sample,
        temperature=temperature,
        top_k=given.top_k or 0,
        top_p=1.0 if given.top_p is None else given.top_p,
        typical_p=1.0 if given.typical_p is None else given.typical_p,
        repetition_penalty=1.0 if given.repetition_penalty is None else given.repetition_penalty,
        frequency_penalty=given.frequency_penalty or 0.0,
        presence_penalty=wanted.presence_penalty,
        seed=seed if do_sample else 0,
        top_n_tokens=given.top_n_tokens or 0,
    )


def _check_device_sampling(wanted: Wanted) -> None:
    """No row of TGI's: a device that draws the tokens keeps their scores, and its random numbers have no seed."""
    given = wanted.parameters
    asked = {
        "seed": given.seed is not None,
        "best_of": given.best_of is not None and given.best_of > 1,
        "top_n_tokens": bool(given.top_n_tokens),
        "logprobs": wanted.logprobs,
        "repetition_penalty": given.repetition_penalty not in (None, 1.0),
        "frequency_penalty": bool(given.frequency_penalty),
        "presence_penalty": bool(wanted.presence_penalty),
        "typical_p": given.typical_p is not None,
        "grammar": given.grammar is not None,
    }
    names = [f"`{name}`" for name, is_asked in asked.items() if is_asked]
    if names:
        raise ValidationError(
            f"{', '.join(names)} cannot be used with this model: its device draws the tokens itself "
            '(sampling = "device" in the server\'s configuration)'
        )


def _check_sampling(given: GenerateParameters, presence_penalty: float) -> None:
    sampling = given.do_sample or any(
        value is not None for value in (given.temperature, given.top_k, given.top_p, given.typical_p)
    )
    best_of = 1 if given.best_of is None else given.best_of
    if best_of > 1 and not sampling:
        raise ValidationError("you must use sampling when `best_of` is > 1")
    if given.temperature is not None and given.temperature <= 0:
        raise ValidationError("`temperature` must be strictly positive")
    if given.repetition_penalty is not None and given.repetition_penalty <= 0:
        raise ValidationError("`repetition_penalty` must be strictly positive")
    if given.frequency_penalty is not None and not -2 <= given.frequency_penalty <= 2:
        raise ValidationError("`frequency_penalty` must be >= -2.0 and <= 2.0")
    if not -2 <= presence_penalty <= 2:
        raise ValidationError("`presence_penalty` must be >= -2.0 and <= 2.0")
    if given.top_p is not None and not 0 < given.top_p < 1:
        raise ValidationError("`top_p` must be > 0.0 and < 1.0")
    if given.typical_p is not None and not 0 < given.typical_p < 1:
        raise ValidationError("`typical_p` must be > 0.0 and < 1.0")
    if given.top_k is not None and given.top_k <= 0:
        raise ValidationError("`top_k` must be strictly positive")


def _check_limits(given: GenerateParameters, limits: Limits) -> None:
    if given.max_new_tokens == 0:
        raise ValidationError("`max_new_tokens` must be strictly positive")
    if len(given.stop) > limits.max_stop_sequences:
        raise ValidationError(
            f"`stop` supports up to {limits.max_stop_sequences} stop sequences. Given: {len(given.stop)}"
        )
    if given.seed is not None and given.best_of is not None and given.best_of > 1:
        raise ValidationError("`seed` must not be set when `best_of` > 1")
    if given.top_n_tokens is not None and given.top_n_tokens > limits.max_top_n_tokens:
        raise ValidationError(
            f"`top_n_tokens` must be >= 0 and <= {limits.max_top_n_tokens}. Given: {given.top_n_tokens}"
        )
