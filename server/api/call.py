"""One generation from a parsed request to its outputs: row 0, a permit, the other rows, the scheduler.

The native and the chat routes differ in what they read and write; this is what they share. Knows no wire format.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server import core
from server.api import validation
from server.api.body import ClientGone
from server.api.service import Service
from server.api.validation import Wanted
from server.errors import (
    GenerationError,
    IncompleteGeneration,
    Overloaded,
    ServeError,
    TemplateError,
    ToolError,
    ValidationError,
)
from server.observe.metrics import Failure, Metrics
from server.swap.model import Model

T = TypeVar("T")

_FAILURES: dict[type[ServeError], Failure] = {
    ValidationError: "validation",
    Overloaded: "overloaded",
    GenerationError: "generation",
    TemplateError: "template",
    ToolError: "template",
}


@dataclass(slots=True, kw_only=True)
class Call:
    """A generation asked for over HTTP. `held` is released after the last byte of its answer."""

    service: Service
    model: Model
    wanted: Wanted
    add_special_tokens: bool
    stream: bool
    timings: core.Timings
    held: ExitStack = field(default_factory=ExitStack)
    request: core.Request | None = None

    @property
    def admitted(self) -> core.Request:
        """The validated request; there is one from the first output on."""
        assert self.request is not None, "the request is validated before the first output"
        return self.request

    async def outputs(self) -> AsyncGenerator[core.Output, None]:
        """Every token until the finished one. ServeError when it is refused, fails or is cut off.

        Close it early and the sequence is cancelled, its slot freed.
        """
        registry = self.service.registry
        with Account(self.service.metrics) as account:
            validation.check_route(self.wanted.parameters, self.model.limits, stream=self.stream)
            self.held.enter_context(registry.permit())
            self.request = await self._validated()
            self.timings.validated = time.monotonic()
            generation = await registry.submit(self.model, self.request, self.timings)
            try:
                async for output in generation:
                    if output.finish is not None:
                        account.succeeded(self.request, self.timings, output.finish.generated_tokens)
                    yield output
            finally:
                generation.cancel()
            if not account.settled:
                raise IncompleteGeneration()

    async def collect(self) -> list[core.Output]:
        """All outputs, for an answer that is sent in one piece."""
        async with aclosing(self.outputs()) as outputs:
            return [output async for output in outputs]

    async def _validated(self) -> core.Request:
        """Rows 1 to 17, tokens included."""
        wanted, limits = self.wanted, self.model.limits
        validation.check_parameters(wanted, limits)
        prompt = await self._tokenised()
        most = validation.max_new_tokens(wanted.parameters, len(prompt), limits)
        validation.check_grammar(wanted.parameters, limits)
        sampling = validation.sampling_params(wanted)
        return core.Request(
            model=self.model.id,
            prompt=prompt,
            text=wanted.inputs,
            max_new_tokens=most,
            sampling=sampling,
            stop=wanted.parameters.stop,
            seed=sampling.seed if sampling.do_sample else None,
        )

    async def _tokenised(self) -> tuple[int, ...]:
        tokenizer = (await self.model.text()).tokenizer
        inputs = self.wanted.inputs
        has_bos = bool(tokenizer.bos_token) and inputs.startswith(tokenizer.bos_token)  # Chat UI 0.8 writes it out
        encode = functools.partial(
            tokenizer.encode,
            inputs,
            add_special_tokens=self.add_special_tokens and not has_bos,
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


def _check_vocabulary(prompt: tuple[int, ...], model: Model) -> None:
    """Tokenizers of fine-tuned checkpoints can know tokens that their weights have no row for."""
    if model.description is not None and max(prompt) >= model.description.vocab_size:
        size = model.description.vocab_size
        raise ValidationError(f"tokenizer error token {max(prompt)} is outside the model's vocabulary of {size}")


@contextmanager
def refusals_counted(metrics: Metrics) -> Iterator[None]:
    """Counts a request that is refused inside, before its Call runs."""
    try:
        yield
    except ServeError as error:
        metrics.request_started()
        metrics.request_failed(_failure(error))
        raise


class Account:
    """Counts a request once as started and once by how it ended."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.settled = False

    def __enter__(self) -> Account:
        self._metrics.request_started()
        return self

    def succeeded(self, request: core.Request, timings: core.Timings, generated_tokens: int) -> None:
        """The last token is here; what happens to the connection afterwards is no failure."""
        self.settled = True
        self._metrics.request_succeeded(request, timings, generated_tokens)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not self.settled:
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
