"""GET /admin, its files and GET /admin/logs, as a client without a browser sees them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

MODEL = """
[server]
admin_key = "{key}"
[[models]]
id = "org/model"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 256
"""


@pytest.fixture(scope="module")
def open_server(serve: Callable[..., Any], tiny_text_directory: Path) -> Any:
    server = serve(MODEL.format(key="", directory=tiny_text_directory))
    server.wait_available()
    return server


@pytest.fixture(scope="module")
def locked_server(serve: Callable[..., Any], tiny_text_directory: Path) -> Any:
    server = serve(MODEL.format(key="Admin", directory=tiny_text_directory))
    server.wait_available()
    return server


@pytest.mark.parametrize(
    ("path", "kind"), [("/admin", "html"), ("/admin/admin.css", "css"), ("/admin/admin.js", "javascript")]
)
def test_the_page_and_its_files_are_for_everyone_and_load_nothing_from_elsewhere(
    locked_server: Any, path: str, kind: str
) -> None:
    answer = locked_server.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == f"text/{kind}; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "access-control-allow-origin" not in answer.headers
    assert re.findall(r"(?:https?:)?//[a-z]", answer.text) == []


def test_the_page_names_only_files_that_are_there(open_server: Any) -> None:
    page = open_server.get("/admin").text
    files = re.findall(r'(?:href|src)="(admin/[^"]+)"', page)
    assert sorted(files) == ["admin/admin.css", "admin/admin.js"]
    assert [open_server.get(f"/{name}").status_code for name in files] == [200, 200]


def test_the_log_lines_tell_what_happened_without_prompts(open_server: Any) -> None:
    open_server.post("/generate", {"inputs": "my secret", "parameters": {"max_new_tokens": 2}})
    open_server.post("/generate", {"inputs": "my secret", "parameters": {"max_new_tokens": 0}})
    answer = open_server.get("/admin/logs")
    assert answer.headers["cache-control"] == "no-store"
    lines = answer.json()["lines"]
    assert any(line.endswith("org/model: loading -> available") for line in lines)
    assert "secret" not in answer.text


def test_the_log_follows_the_admin_rule(open_server: Any, locked_server: Any) -> None:
    def status(server: Any, **headers: str) -> int:
        return httpx.get(f"{server.url}/admin/logs", headers=headers).status_code

    assert status(locked_server) == 403
    assert status(locked_server, authorization="Bearer wrong") == 403
    assert status(locked_server, authorization="Bearer Admin") == 200
    assert status(open_server) == 200
    assert status(open_server, **{"x-forwarded-for": "10.0.0.1"}) == 403
    assert status(open_server, origin="https://attacker.example") == 403
