"""One sequence while it lives: what was emitted, how it becomes text, and the queue its client reads.

Its whole state is (prompt, emitted tokens, parameters, seed): a worker that dies takes nothing with it. Knows no
slots and no device.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from models.protocol import Drawn, Start
from server.core import Finish, FinishReason, Output, Request, Timings, Token
from server.errors import ServeError
from server.text.stopping import StopStrings
from server.text.tokenizer import Detokenizer, Tokenizer


class Generation:
    """A submitted request: an async iterator of its outputs, the last of which has `finish`.

    Ends exactly once: with a finished output, with the ServeError that `fail` was given, or by `cancel`.
    """

    def __init__(
        self,
        sequence: int,
        request: Request,
        tokenizer: Tokenizer,
        timings: Timings,
        on_cancel: Callable[[Generation], None],
    ) -> None:
        self.sequence = sequence
        self.request = request
        self.timings = timings
        self.emitted: list[int] = []
        self.replays = 0
        self.reused = 0  # tokens of the prompt that were not fed for its first token
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, request.prompt)
        self._prompt_logprobs: dict[int, float] | None = None  # by position; None while the backend has given none
        self._stops = StopStrings(request.stop)
        self._text: list[str] = []
        self._queue: asyncio.Queue[Output | ServeError] = asyncio.Queue()
        self._on_cancel = on_cancel
        self._ended = False

    @property
    def ended(self) -> bool:
        return self._ended

    def start(self) -> Start:
        """What a worker needs to begin this sequence, or to go on with it behind the tokens already emitted."""
        sampling = self.request.sampling
        penalties = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        return Start(
            sampling=sampling,
            eos=self._tokenizer.eos_ids,
            max_new_tokens=self.request.max_new_tokens,
            emitted=tuple(self.emitted),
            history=self.request.prompt if penalties != (1.0, 0.0, 0.0) else (),
            grammar=self.request.grammar,
        )

    def scored(self, start: int, stop: int) -> tuple[int, ...]:
        """The prompt's tokens whose logprobs a feed of [start, stop) shall bring: none that are known from before."""
        if not self.request.prompt_logprobs or self.emitted:
            return ()
        return self.request.prompt[start + 1 : stop + 1]

    def score(self, start: int, logprobs: Sequence[float]) -> None:
        """What `scored` asked for, if anything. A piece that is fed again is scored again, in the same place."""
        if not self.request.prompt_logprobs:
            return
        self._prompt_logprobs = {**(self._prompt_logprobs or {}), **dict(enumerate(logprobs, start + 1))}

    def deliver(self, drawn: Drawn) -> None:
        """Turn a drawn token into text and hand it to the client; may end the sequence."""
        self.emitted.append(drawn.token)
        token = self._token(drawn.token, self._detokenizer.push(drawn.token), drawn.logprob)
        if not token.special:
            self._text.append(token.text)
        top = tuple(self._token(i, self._tokenizer.decode((i,), skip_special_tokens=False), p) for i, p in drawn.top)
        stopped = self._stops.push(token.text)
        reason: FinishReason | None = None
        if drawn.finish in ("length", "eos_token"):
            reason = drawn.finish
        elif stopped:
            reason = "stop_sequence"
        finish = Finish(reason, "".join(self._text), len(self.emitted), self._prompt(), self.reused) if reason else None
        self._ended = finish is not None
        self._queue.put_nowait(Output(len(self.emitted), token, top, finish))

    def fail(self, error: ServeError) -> None:
        """End with `error`; nothing happens to a sequence that has ended."""
        if not self._ended:
            self._ended = True
            self._queue.put_nowait(error)

    def cancel(self) -> None:
        """The client is gone: free the slot. Idempotent, and harmless after the end."""
        if not self._ended:
            self._ended = True
            self._on_cancel(self)

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Output:
        if self._ended and self._queue.empty():
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, ServeError):
            raise item
        return item

    def _prompt(self) -> tuple[Token, ...]:
        prompt, known = self.request.prompt, self._prompt_logprobs
        if known is None:
            return ()
        texts = (self._tokenizer.decode((token,), skip_special_tokens=False) for token in prompt)
        return tuple(
            self._token(token, text, known.get(place, math.nan))
            for place, (token, text) in enumerate(zip(prompt, texts, strict=True))
        )

    def _token(self, token: int, text: str, logprob: float) -> Token:
        return Token(token, text, logprob, token in self._tokenizer.special_ids)
