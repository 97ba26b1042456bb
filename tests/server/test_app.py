"""The app as a whole: what its routes do when a part of it breaks, and names that must be known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from models.protocol import SimulatedOptions
from server.app import create_app
from server.observe.metrics import Metrics
from server.settings import ModelSettings, Settings
from server.swap.registry import Registry


async def ask(tmp_path: Path, method: str, path: str, **kwargs: Any) -> httpx.Response:
    """One request to an app whose registry was never started and whose model directory is empty."""
    settings = Settings(models=(ModelSettings(id="org/model", path=str(tmp_path), device=SimulatedOptions()),))
    metrics = Metrics()
    app = create_app(settings, Registry(settings, metrics), metrics)
    app.router.routes.append(Route("/broken", broken))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        return await client.request(method, path, **kwargs)


async def broken(request: Request) -> Response:
    raise ZeroDivisionError("a bug")


def test_a_bug_in_a_route_is_500_with_the_two_keys(tmp_path: Path) -> None:
    answer = asyncio.run(ask(tmp_path, "GET", "/broken"))
    assert answer.status_code == 500
    assert answer.json() == {"error": "Incomplete generation", "error_type": "incomplete_generation"}


def test_the_bug_is_raised_again_for_the_log(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = Settings(models=(ModelSettings(id="org/model", path=str(tmp_path), device=SimulatedOptions()),))
        app = create_app(settings, Registry(settings, Metrics()), Metrics())
        app.router.routes.append(Route("/broken", broken))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            with pytest.raises(ZeroDivisionError):
                await client.get("/broken")

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
def test_a_model_whose_text_files_are_missing_is_503_and_says_which(tmp_path: Path, path: str) -> None:
    body = {"inputs": "x", "messages": [{"role": "user", "content": "x"}]}
    answer = asyncio.run(ask(tmp_path, "POST", path, json=body))
    assert (answer.status_code, answer.json()["error_type"]) == (503, "unavailable")
    assert "tokenizer.json" in answer.json()["error"]


def test_operations_answer_before_anything_is_started(tmp_path: Path) -> None:
    for path in ("/v1/models", "/models", "/info", "/metrics", "/livez"):
        assert asyncio.run(ask(tmp_path, "GET", path)).status_code == 200
    assert asyncio.run(ask(tmp_path, "GET", "/health")).status_code == 503


STRICT = """
[swap]
strict_names = true
[[models]]
id = "org/model"
path = "{directory}"
[models.device]
kind = "simulated"
"""


def test_strict_names_make_unknown_ones_404(serve: Callable[..., Any], tmp_path: Path) -> None:
    server = serve(STRICT.format(directory=tmp_path))
    _listening(server)
    native = {"inputs": "x", "parameters": {"model": "tgi"}}
    chat = {"messages": [{"role": "user", "content": "x"}], "model": "tgi", "stream": True}
    for path, body in (("/generate", native), ("/generate_stream?model=nope", native), ("/v1/chat/completions", chat)):
        answer = server.post(path, body)
        assert (answer.status_code, answer.json()["error_type"]) == (404, "not_found")
    server.stop()


def _listening(server: Any) -> None:
    for _ in range(200):
        try:
            server.get("/livez")
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(server.log.read_text())
