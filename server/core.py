"""The nouns of the server: a request, its tokens, why it finished, what it used. Imports no other part of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from models.protocol import Grammar, SamplingParams

FinishReason = Literal["length", "eos_token", "stop_sequence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One validated generation, ready for the scheduler.

    `prompt` are the token ids after truncation; `text` is what was tokenised. `seed` is None when greedy.
    `prompt_logprobs` asks for Finish.prompt. `scope` names whose it is: only requests of one scope profit from what
    a slot still holds of each other's prompts.
    """

    model: str
    prompt: tuple[int, ...]
    text: str
    max_new_tokens: int
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    seed: int | None = None
    grammar: Grammar | None = None
    prompt_logprobs: bool = False
    scope: str = ""


class Token(msgspec.Struct, frozen=True, gc=False):
    """A token as the wire shows it: `text` is the text it completes, "" inside a split character."""

    id: int
    text: str
    logprob: float
    special: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a sequence. `text` is the whole answer without special tokens, stop string kept.

    `prompt` are the prompt's tokens, the first with the logprob NaN; empty unless they were asked for and the backend
    scores prompts. `reused_tokens` of the prompt were in the slot already, and not fed for the first token.
    """

    reason: FinishReason
    text: str
    generated_tokens: int
    prompt: tuple[Token, ...] = ()
    reused_tokens: int = 0


class Output(msgspec.Struct, frozen=True):
    """One step of a sequence as delivered to its client; `finish` is set on the last one."""

    index: int
    token: Token
    top_tokens: tuple[Token, ...] = ()
    finish: Finish | None = None


@dataclass(slots=True)
class Timings:
    """Seconds on the monotonic clock: when the request arrived, was validated, first fed, and ended."""

    arrived: float
    validated: float = 0.0
    started: float = 0.0
    first_token: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of an answer, EOS included; `cached_tokens` of the prompt's were not fed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a model's requests are validated against (wire contract, sections 4 and 8).

    `device_sampling`: the device draws the tokens, which rules out whatever needs their scores on the host.
    """

    max_input_tokens: int
    max_total_tokens: int
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_client_batch_size: int = 4
    max_concurrent_requests: int = 128
    grammar: bool = True
    device_sampling: bool = False
