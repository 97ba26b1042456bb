"""What every route works with, and how a route finds the model that a request means."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar, cast

from starlette.requests import Request

from server.api.body import check_content_type, read_body
from server.api.decode import decode
from server.errors import UnknownModel
from server.observe.logs import RecentLines
from server.observe.metrics import Metrics
from server.observe.tracing import NoTraces, Traces
from server.settings import Settings
from server.swap.model import Model
from server.swap.registry import Registry

T = TypeVar("T")

# The release of Text Generation Inference whose HTTP this server speaks; clients read it in /info.
TGI_VERSION = "3.3.6-dev0"


@dataclass(frozen=True, slots=True)
class Service:
    """The parts behind the routes. `threads` tokenise and render templates, off the event loop; `recent` is the end of
    the log; `traces` take a span a request."""

    settings: Settings
    registry: Registry
    metrics: Metrics
    threads: ThreadPoolExecutor
    recent: RecentLines = field(default_factory=RecentLines)
    traces: Traces = field(default_factory=NoTraces)

    def model_for(self, request: Request, name: object = None) -> Model:
        """The model that a request means: by path, by ?model=, by `name` in its body; else the active one.

        A name that is not configured counts as absent, as TGI's clients send "tgi", "dummy" or a URL; with
        swap.strict_names it is UnknownModel.
        """
        by_path = request.scope.get("model")
        if by_path is not None:
            return cast(Model, by_path)
        wanted = request.query_params.get("model") or name
        if not isinstance(wanted, str) or not wanted:
            return self.registry.active
        model = self.registry.find(wanted)
        if model is None and self.settings.swap.strict_names:
            raise UnknownModel(wanted, tuple(known.id for known in self.registry.models))
        return model or self.registry.active


def service_of(request: Request) -> Service:
    """The app's one Service."""
    return cast(Service, request.app.state.service)


async def read(request: Request, kind: type[T]) -> T:
    """The request's body as `kind`; BodyError when it is not."""
    return decode(await read_json(request), kind)


async def read_json(request: Request) -> bytes:
    """The bytes of a body that says it is JSON; BodyError when it does not, or is too large."""
    check_content_type(request.headers)
    return await read_body(request.headers, request.receive, service_of(request).settings.server.payload_limit)
