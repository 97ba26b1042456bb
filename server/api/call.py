"""One generation from a parsed request to its outputs: row 0, a permit, the other rows, the scheduler.

The native and the chat routes differ in what they read and write; this is what they share. Knows no wire format.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import time
from collections.abc import AsyncGenerator, Awaitable, Iterable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from models.protocol import Grammar
from server import core
from server.api import validation
from server.api.body import ClientGone
from server.api.grammar import checked
from server.api.line import Line
from server.api.service import Service
from server.api.validation import Wanted
from server.errors import (
    BatchTooLarge,
    GenerationError,
    IncompleteGeneration,
    Overloaded,
    ServeError,
    TemplateError,
    ToolError,
    UnsupportedSuffix,
    ValidationError,
)
from server.observe.metrics import Failure, Metrics
from server.swap.model import Model
from server.text.inputs import encode_inputs

T = TypeVar("T")

_FAILURES: dict[type[ServeError], Failure] = {
    ValidationError: "validation",
    Overloaded: "overloaded",
    GenerationError: "generation",
    UnsupportedSuffix: "validation",
    BatchTooLarge: "validation",
    TemplateError: "template",
    ToolError: "template",
}


@dataclass(slots=True)
class Run:
    """One of the sequences of best_of."""

    request: core.Request
    timings: core.Timings
    outputs: list[core.Output] = field(default_factory=list)

    def mean_logprob(self) -> float:
        """What the best of them is highest in."""
        return sum(output.token.logprob for output in self.outputs) / len(self.outputs)


@dataclass(slots=True, kw_only=True)
class Call:
    """One sequence asked for over HTTP. `held` is released after the last byte of its answer.

    `account` is the request's: several sequences of one request share it.
    """

    service: Service
    model: Model
    wanted: Wanted
    add_special_tokens: bool
    stream: bool
    timings: core.Timings
    account: Account
    held: ExitStack = field(default_factory=ExitStack)
    request: core.Request | None = None
    others: list[Run] = field(default_factory=list)

    @property
    def admitted(self) -> core.Request:
        """The validated request; there is one from the first output on."""
        assert self.request is not None, "the request is validated before the first output"
        return self.request

    async def outputs(self) -> AsyncGenerator[core.Output, None]:
        """Every token until the finished one. ServeError when it is refused, fails or is cut off.

        Close it early and the sequence is cancelled, its slot freed.
        """
        with self.account.sequence():
            self.request = await self._admit(1)
            async with aclosing(self._run(self.request, self.timings)) as outputs:
                async for output in outputs:
                    yield output

    async def collect(self) -> list[core.Output]:
        """All outputs, for an answer that is sent in one piece; with best_of the winner's, the rest in `others`."""
        with self.account.sequence():
            self.request = await self._admit(self.runs)
            runs = [Run(self.request, self.timings)]
            for _ in range(1, self.runs):
                self.account.expect()
                runs.append(Run(validation.with_another_seed(self.request), copy.copy(self.timings)))
            await _all(self._collect(run) for run in runs)
            runs.sort(key=Run.mean_logprob, reverse=True)
            best, *self.others = runs
            self.request, self.timings = best.request, best.timings
            return best.outputs

    @property
    def runs(self) -> int:
        """How many sequences best_of asks for."""
        return max(self.wanted.parameters.best_of or 1, 1)

    async def _admit(self, runs: int) -> core.Request:
        """Row 0, a permit for each run, the other rows."""
        validation.check_route(self.wanted.parameters, self.model.limits, stream=self.stream)
        self.held.enter_context(self.service.registry.permit(runs))
        request = await self._validated()
        self.timings.validated = time.monotonic()
        return request

    async def _collect(self, run: Run) -> None:
        async with aclosing(self._run(run.request, run.timings)) as outputs:
            run.outputs = [output async for output in outputs]

    async def _run(self, request: core.Request, timings: core.Timings) -> AsyncGenerator[core.Output, None]:
        generation = await self.service.registry.submit(self.model, request, timings)
        finished = False
        try:
            async for output in generation:
                if output.finish is not None:
                    finished = True
                    self.account.finished(request, timings, output.finish)
                yield output
        finally:
            generation.cancel()
        if not finished:
            raise IncompleteGeneration()

    async def _validated(self) -> core.Request:
        """Rows 1 to 20, tokens included."""
        wanted, limits = self.wanted, self.model.limits
        validation.check_parameters(wanted, limits)
        prompt = await self._tokenised()
        most = validation.max_new_tokens(wanted.parameters, len(prompt), limits)
        grammar = await self._grammar()
        sampling = validation.sampling_params(wanted)
        return core.Request(
            model=self.model.id,
            prompt=prompt,
            text=wanted.inputs,
            max_new_tokens=most,
            sampling=sampling,
            stop=wanted.parameters.stop,
            seed=sampling.seed if sampling.do_sample and not limits.device_sampling else None,
            grammar=grammar,
            prompt_logprobs=wanted.parameters.decoder_input_details,
            scope="" if self.service.settings.scheduler.share_prefixes else self.account.caller,
        )

    async def _grammar(self) -> Grammar | None:
        given = self.wanted.parameters.grammar
        if given is None:
            return None
        validation.check_grammar(self.model.limits)
        return await asyncio.get_running_loop().run_in_executor(self.service.threads, checked, given)

    async def _tokenised(self) -> tuple[int, ...]:
        tokenizer = (await self.model.text()).tokenizer
        encode = functools.partial(
            encode_inputs,
            tokenizer,
            self.wanted.inputs,
            add_special_tokens=self.add_special_tokens,
            truncate=self.wanted.parameters.truncate,
        )
        try:
            prompt = await asyncio.get_running_loop().run_in_executor(self.service.threads, encode)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ValidationError(f"tokenizer error {error}") from error
        if not prompt:
            raise ValidationError("`inputs` cannot be empty")
        _check_vocabulary(prompt, self.model)
        return prompt


async def _all(work: Iterable[Awaitable[None]]) -> None:
    """Wait for all of `work`; when one fails, or this is cancelled, the others are cancelled and have ended."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _check_vocabulary(prompt: tuple[int, ...], model: Model) -> None:
    """Tokenizers of fine-tuned checkpoints can know tokens that their weights have no row for."""
    if model.description is not None and max(prompt) >= model.description.vocab_size:
        size = model.description.vocab_size
        raise ValidationError(f"tokenizer error token {max(prompt)} is outside the model's vocabulary of {size}")


class Account:
    """Counts a request once as started and once by how it ended, whatever its number of sequences; fills its log line.

    The first sequence that fails decides for all of them. What happens to the connection after the last token of the
    last sequence is no failure. `caller` tells the keys apart that requests come with.
    """

    def __init__(self, metrics: Metrics, line: Line, model: Model, sequences: int = 1, caller: str = "") -> None:
        self.caller = caller
        self._metrics = metrics
        self._line = line
        self._missing = sequences
        self._started = False
        self._settled = False
        line.model = model.id

    @contextmanager
    def sequence(self) -> Iterator[None]:
        """Covers one sequence, or the part of a request that comes before its sequences: counts what fails inside."""
        self._start()
        try:
            yield
        except BaseException as error:
            self._failed(error)
            raise

    def finished(self, request: core.Request, timings: core.Timings, finish: core.Finish) -> None:
        """A sequence has its last token."""
        self._line.finished(finish.reason, request, timings, finish.generated_tokens)
        self._metrics.sequence_finished(request, timings, finish.generated_tokens)
        self._missing -= 1
        self._settle()

    def expect(self) -> None:
        """One sequence more may be needed than was thought."""
        self._missing += 1

    def waive(self) -> None:
        """One sequence less is needed than was thought."""
        self._missing -= 1
        self._settle()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._metrics.request_started()

    def _settle(self) -> None:
        if self._missing == 0 and not self._settled:
            self._settled = True
            self._metrics.request_succeeded()

    def _failed(self, error: BaseException) -> None:
        if not self._settled:
            self._settled = True
            self._line.finish = error.error_type if isinstance(error, ServeError) else _failure(error)
            self._metrics.request_failed(_failure(error))


def _failure(error: BaseException) -> Failure:
    if isinstance(error, (ClientGone, asyncio.CancelledError, GeneratorExit)):
        return "dropped"
    return next((name for kind, name in _FAILURES.items() if isinstance(error, kind)), "incomplete")


class Held(Response):
    """A response that keeps what `held` holds, the permit, until its last byte is written or its client is gone."""

    def __init__(self, response: Response, held: ExitStack) -> None:
        super().__init__()
        self._response = response
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await self._response(scope, receive, send)


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`; ClientGone, with `work` cancelled, when the client disconnects first.

    The body must have been read: what `receive` says next can only be the disconnect.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
