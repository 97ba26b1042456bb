"""A server on the simulated device and a client that shows every byte of its answers."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'forbidden' %}{{ raise_exception('this role is forbidden') }}{% endif %}"
    "<{{ message['role'] }}>{{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def byte_tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's text files. A token is an ASCII letter, space or line feed; <unk> is every other byte."""
    directory = tmp_path_factory.mktemp("bytes")
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)] + ["Ġ", "Ċ"]
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    files = {
        "config.json": {"model_type": "llama", "vocab_size": len(vocabulary), "eos_token_id": 2},
        "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE},
        "generation_config.json": {"eos_token_id": [2]},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    return directory


@dataclass(frozen=True)
class Answer:
    """One HTTP response. `chunks` are those of a chunked body, one for each write of the server."""

    status: int
    headers: dict[str, str]
    names: tuple[str, ...]
    body: bytes
    chunks: tuple[bytes, ...]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The JSON of each event; every one is checked to be framed as `data: ..` and two line feeds."""
        framed = [chunk for chunk in self.chunks if chunk not in (b":\n\n", b"data: [DONE]\n\n")]
        assert all(c.startswith(b"data: {") and c.endswith(b"}\n\n") and c.count(b"\n") == 2 for c in framed), framed
        return [json.loads(chunk[6:]) for chunk in framed]


class Wire:
    """A client that writes and reads bytes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.address = (parts.hostname or "", parts.port or 0)

    @contextmanager
    def connection(self, request: bytes) -> Iterator[socket.socket]:
        """A connection on which `request` was written."""
        with socket.create_connection(self.address, timeout=30) as peer:
            peer.sendall(request)
            yield peer

    def send(self, method: str, path: str, body: bytes | str | None = None, **headers: str) -> Answer:
        """One request of exactly these headers (underscores are hyphens), and Host, Connection and Content-Length."""
        with self.connection(self.request(method, path, body, **headers)) as peer, peer.makefile("rb") as answer:
            return _parse(answer.read(), head=method == "HEAD")

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        """A JSON body, given as text or as a value."""
        text = body if isinstance(body, (str, bytes)) else json.dumps(body, ensure_ascii=False)
        return self.send("POST", path, text, **{"content_type": "application/json", **headers})

    def get(self, path: str, **headers: str) -> Answer:
        return self.send("GET", path, **headers)

    def settle(self, running: int, waiting: int, seconds: float = 60) -> None:
        """Wait until so many sequences of org/model are in a slot, and so many without one."""
        deadline = time.monotonic() + seconds
        while (entry := self.get("/models/org/model").json)["running"] != running or entry["waiting"] != waiting:
            assert time.monotonic() < deadline, entry
            time.sleep(0.02)

    def answer(self, raw: bytes) -> Answer:
        """What a connection brought until its end."""
        return _parse(raw, head=False)

    def request(self, method: str, path: str, body: bytes | str | None = None, **headers: str) -> bytes:
        content = body.encode() if isinstance(body, str) else body
        lines = {"host": f"{self.address[0]}:{self.address[1]}", "connection": "close"}
        if content is not None:
            lines["content-length"] = str(len(content))
        lines.update({name.replace("_", "-"): value for name, value in headers.items()})
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + (content or b"")


@pytest.fixture(scope="session")
def wire_to() -> type[Wire]:
    """wire_to(url) -> a Wire, for servers that a test starts itself."""
    return Wire


def _parse(raw: bytes, head: bool) -> Answer:
    start, _, rest = raw.partition(b"\r\n\r\n")
    status, *lines = start.decode().split("\r\n")
    pairs = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    headers = dict(pairs)
    chunks: list[bytes] = []
    if headers.get("transfer-encoding") == "chunked" and not head:
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            if length:
                chunks.append(rest[:length])
            rest = rest[length + 2 :]
        rest = b"".join(chunks)
    return Answer(int(status.split()[1]), headers, tuple(name for name, _ in pairs), rest, tuple(chunks))


MODEL = """
[[models]]
id = "{id}"
path = "{directory}"
max_input_tokens = 100
max_total_tokens = 200
[models.device]
kind = "simulated"
slots = {slots}
n_positions = 200
vocab_size = 99
step_s = {step_s}
answer_tokens = {answer_tokens}
"""


@pytest.fixture(scope="session")
def wire(serve: Callable[..., Any], byte_tokenizer_directory: Path) -> Wire:
    """org/model, 100 tokens in and 200 in all, never ends by itself; and org/model-2, which ends after 5 tokens."""
    settings = "[server]\npayload_limit = 2000\n[swap]\nmin_resident = 0\n"
    first = MODEL.format(id="org/model", directory=byte_tokenizer_directory, slots=4, step_s=0, answer_tokens=0)
    second = MODEL.format(id="org/model-2", directory=byte_tokenizer_directory, slots=4, step_s=0, answer_tokens=5)
    server = serve(settings + first + second)
    server.wait_available()
    return Wire(server.url)


@pytest.fixture(scope="session")
def guarded(serve: Callable[..., Any], byte_tokenizer_directory: Path) -> Wire:
    """A server with an API key, an admin key and one allowed origin."""
    settings = '[server]\napi_key = "Secret"\nadmin_key = "Admin"\ncors_allow_origin = ["https://a.example"]\n'
    model = MODEL.format(id="org/model", directory=byte_tokenizer_directory, slots=2, step_s=0, answer_tokens=0)
    server = serve(settings + model)
    server.wait_available()
    return Wire(server.url)


@pytest.fixture(scope="session")
def slow(serve: Callable[..., Any], byte_tokenizer_directory: Path) -> Wire:
    """A server with two permits, one slot and 50 ms a token; a comment after 0.3 s of silence."""
    settings = "[server]\nkeepalive_interval = 0.3\n[limits]\nmax_concurrent_requests = 2\n"
    model = MODEL.format(id="org/model", directory=byte_tokenizer_directory, slots=1, step_s=0.05, answer_tokens=0)
    server = serve(settings + model)
    server.wait_available()
    return Wire(server.url)
