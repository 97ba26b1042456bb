"""Clients that break the rules, or only half of them, over raw sockets: each gets an answer or nothing, and the server
serves on."""

from __future__ import annotations

import json
import random
import re
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from server.api.models import ModelRoutes
from server.app import routes

BODY = json.dumps({"inputs": "hi", "parameters": {"max_new_tokens": 3}})
LONG = json.dumps({"inputs": "x", "parameters": {"max_new_tokens": 190}})  # 9.5 s of the slow server at least
CHAT = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": True})
ACTIVATE = "/models/org/model/activate"
UNLOAD = "/models/org/model-2/unload"  # the first one serves on
EVENTS = "/models/events"  # never ends


def reached(given: Iterable[Any], root: str = "") -> Iterator[tuple[str, str]]:
    """Method and path of every route, those of a model at `root`."""
    for route in given:
        if isinstance(route.endpoint, ModelRoutes):
            yield from reached(route.endpoint.routes.routes, "/models/org/model")
            continue
        path = "" if root and route.path == "/" else route.path.replace("{id:path}", "org/model")
        for method in sorted(route.methods - {"HEAD"}):
            yield method, UNLOAD if (root, path) == ("/models/org/model", "/unload") else root + path


ROUTES = list(reached(routes(lambda: "")))
READERS = [path for method, path in ROUTES if method == "POST" and path not in (ACTIVATE, UNLOAD)]


@pytest.fixture(autouse=True)
def serves_on(wire: Any) -> Iterator[None]:
    yield
    answer = wire.post("/generate", BODY)
    assert (answer.status, len(answer.json["generated_text"])) == (200, 3)


def request(wire: Any, path: str, body: str | bytes = BODY, **headers: str) -> bytes:
    return bytes(wire.request("POST", path, body, content_type="application/json", **headers))


def read(peer: socket.socket) -> bytes:
    peer.settimeout(30)
    with peer.makefile("rb") as answer:
        return answer.read()


def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.02)


def running(wire: Any) -> tuple[int, int]:
    entry = wire.get("/models/org/model").json
    return entry["running"], entry["waiting"]


class TestHalfClosed:
    """A client that has sent its request and shuts its sending side still reads its answer, and it is the same one."""

    @pytest.mark.parametrize("connection", ["close", "keep-alive"])
    @pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/", "/v1/completions", "/tokenize"])
    def test_at_once(self, wire: Any, path: str, connection: str) -> None:
        body = json.dumps({"prompt": "hi", "max_tokens": 3}) if "completions" in path else BODY
        with wire.connection(request(wire, path, body, connection=connection)) as peer:
            peer.shutdown(socket.SHUT_WR)
            assert re.match(rb"HTTP/1\.1 200 OK\r\n(?!HTTP)[^\0]*[\]}]\s*(0\s*)?$", read(peer))

    @pytest.mark.parametrize(("path", "body"), [("/generate", BODY), ("/v1/chat/completions", CHAT)])
    def test_while_it_waits_for_the_answer(self, slow: Any, path: str, body: str) -> None:
        eventually(lambda: running(slow) == (0, 0))
        with slow.connection(request(slow, "/generate_stream", LONG)) as first:
            assert first.recv(12) == b"HTTP/1.1 200"
            eventually(lambda: running(slow) == (1, 0))
            with slow.connection(request(slow, path, body)) as peer:
                eventually(lambda: running(slow) == (1, 1))
                peer.shutdown(socket.SHUT_WR)
                first.close()  # only now is it the other one's turn
                answer = read(peer)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.count(b"HTTP/1.1") == 1
        assert b"generated_text" in answer or answer.count(b"data: ") == 4

    @pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
    def test_but_one_that_is_gone_frees_its_place_at_once(self, slow: Any, path: str) -> None:
        """Closing after everything was read looks like half-closing; no comment and no token is due for a while."""
        eventually(lambda: running(slow) == (0, 0))
        with slow.connection(request(slow, "/generate", LONG)) as first:
            eventually(lambda: running(slow) == (1, 0))
            with slow.connection(request(slow, path, LONG)) as peer:
                eventually(lambda: running(slow) == (1, 1))
                if "stream" in path:
                    assert peer.recv(4096).startswith(b"HTTP/1.1 200")
            eventually(lambda: running(slow) == (1, 0))
            assert not select.select([first], [], [], 0)[0], "the first one has ended, and the other got its place"
        eventually(lambda: running(slow) == (0, 0))

    def test_with_half_a_body_it_is_closed(self, wire: Any) -> None:
        with wire.connection(request(wire, "/generate")[:-5]) as peer:
            peer.shutdown(socket.SHUT_WR)
            assert read(peer) == b""


def test_pipelined_requests_are_answered_in_their_order(wire: Any) -> None:
    head = b"host: x\r\n"
    several = b"GET /ping HTTP/1.1\r\n" + head + b"\r\n"
    several += request(wire, "/tokenize", connection="keep-alive") + b"GET /nope HTTP/1.1\r\n" + head + b"\r\n"
    several += request(wire, "/generate")
    with wire.connection(several) as peer:
        answer = read(peer)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"200", b"404", b"200"]
    assert answer.index(b'"start":0') < answer.index(b"404") < answer.index(b"generated_text")


@pytest.mark.parametrize(("path", "body"), [("/generate_stream", BODY), ("/v1/chat/completions", CHAT)])
def test_a_client_of_http_1_0_reads_bare_events_to_the_end_of_the_connection(wire: Any, path: str, body: str) -> None:
    old = request(wire, path, body).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    with wire.connection(old) as peer:
        head, _, events = read(peer).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"transfer-encoding" not in head
    assert re.fullmatch(rb"(data: \{.*\}\n\n){3}(data: \[DONE\]\n\n)?", events)


def test_a_client_of_http_1_0_that_half_closes_and_waits(slow: Any) -> None:
    """It sees the comments that say it is not forgotten, and then the events, all of them bare."""
    eventually(lambda: running(slow) == (0, 0))
    with slow.connection(request(slow, "/generate_stream", LONG)) as first:
        eventually(lambda: running(slow) == (1, 0))
        old = request(slow, "/generate_stream").replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        with slow.connection(old) as peer:
            eventually(lambda: running(slow) == (1, 1))
            peer.shutdown(socket.SHUT_WR)
            first.close()
            _, _, events = read(peer).partition(b"\r\n\r\n")
    assert re.fullmatch(rb"(:\n\n)+(data: \{.*\}\n\n){3}", events)


@pytest.mark.parametrize("path", ["/generate", "/info"])
def test_and_its_plain_answers_are_those_of_any_client(wire: Any, path: str) -> None:
    asked = request(wire, path) if path == "/generate" else wire.request("GET", path)
    with wire.connection(asked.replace(b"HTTP/1.1", b"HTTP/1.0", 1)) as peer:
        head, _, body = read(peer).partition(b"\r\n\r\n")
    assert b"content-length: %d\r\n" % len(body) in head
    assert json.loads(body)


def test_a_request_that_comes_byte_by_byte(wire: Any) -> None:
    whole = request(wire, "/generate")
    with wire.connection(b"") as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(len(whole)):
            peer.sendall(whole[place : place + 1])
            time.sleep(0.002)
        assert read(peer).startswith(b"HTTP/1.1 200 OK\r\n")


def test_headers_that_never_end_keep_nobody_waiting(wire: Any) -> None:
    with wire.connection(b"POST /generate HTTP/1.1\r\nhost: x\r\nx-slow: ") as peer:
        for _ in range(20):
            peer.sendall(b"a")
            assert wire.get("/health").status == 200


@pytest.mark.parametrize(
    "chunks",
    [b"zz\r\nx\r\n0\r\n\r\n", b"-1\r\nx\r\n0\r\n\r\n", b"5\r\nhello-and-more\r\n0\r\n\r\n", b"fffffffffffffffff\r\n"],
    ids=["no-number", "negative", "longer-than-said", "beyond-64-bits"],
)
def test_chunks_that_are_none_are_400(wire: Any, chunks: bytes) -> None:
    head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    with wire.connection(head + chunks) as peer:
        assert read(peer).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", READERS)
def test_a_body_that_is_no_utf_8_is_400(wire: Any, path: str) -> None:
    answer = wire.post(path, b'{"inputs":"\xff\xfe"}')
    assert (answer.status, answer.headers["content-type"]) == (400, "text/plain; charset=utf-8")


@pytest.mark.parametrize("path", ["/%ff%fe", "/models/%ff", "/v1/models/%00", "/models/../..", "/generate?model=%ff"])
def test_paths_that_are_no_utf_8(wire: Any, path: str) -> None:
    assert wire.get(path).status in (404, 405)


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/invocations"])
def test_64_megabytes_are_413_and_are_not_kept(wire: Any, path: str, declared: bool) -> None:
    length = "content-length: 67108864" if declared else "transfer-encoding: chunked"
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{length}\r\n\r\n".encode()
    block = b" " * 65536
    piece = block if declared else b"10000\r\n" + block + b"\r\n"
    with wire.connection(head) as peer:
        try:
            for _ in range(1024):
                peer.sendall(piece)
            peer.sendall(b"" if declared else b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may hang up on us before we are done
        else:
            assert peer.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("size", [2_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_random_bytes_instead_of_http(wire: Any, size: int) -> None:
    source = random.Random(size)
    for _ in range(5):
        with wire.connection(b"") as peer:
            try:
                peer.sendall(source.randbytes(size))
                peer.shutdown(socket.SHUT_WR)
                assert not read(peer).startswith(b"HTTP/1.1 5")
            except OSError:
                pass  # it hung up on us


@pytest.mark.parametrize("size", [1_000, pytest.param(1_000_000, marks=pytest.mark.long)])
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_random_bytes_as_a_body(wire: Any, method: str, path: str, size: int) -> None:
    if path == UNLOAD:
        assert wire.post(ACTIVATE + "?wait=true", "").json["state"] == "available"
    noise = random.Random(path).randbytes(size)
    with wire.connection(b"") as peer, peer.makefile("rb") as answer:
        try:
            peer.sendall(wire.request(method, path, noise, content_type="application/json"))
            status = int(answer.readline()[9:12])
            if path != EVENTS:
                answer.read()
        except ConnectionError:
            return  # it hung up on us before we were done
    assert status in expected(method, path)


def expected(method: str, path: str) -> tuple[int, ...]:
    """The statuses of a route whose body is noise: refused by who reads one, unread by all others."""
    if path in READERS and method == "POST":
        return (400, 413)
    return {"/docs": (303,), ACTIVATE: (200, 202), UNLOAD: (202,)}.get(path, (200,))


def mutated(source: random.Random, body: bytes) -> bytes:
    """A body with a few bytes changed, doubled or left out."""
    content = bytearray(body)
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(content))
        change = source.randrange(3)
        content[place : place + (change != 1)] = b"" if change == 0 else bytes([source.choice(b'{}[]",:0-9eE.\\utnx ')])
    return bytes(content)


@pytest.mark.parametrize("times", [60, pytest.param(1500, marks=pytest.mark.long)])
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/v1/completions", "/tokenize"])
def test_bodies_with_a_few_wrong_bytes_are_the_clients_mistake(wire: Any, path: str, times: int) -> None:
    source = random.Random(path)
    whole = {
        "inputs": "hi",
        "messages": [{"role": "user", "content": "hi"}],
        "prompt": ["hi"],
        "max_tokens": 2,
        "stop": ["a"],
        "temperature": 0.5,
        "parameters": {"max_new_tokens": 2, "top_k": 3, "seed": 7, "details": True},
    }
    for _ in range(times):
        body = mutated(source, json.dumps(whole).encode())
        assert wire.post(path, body).status in (200, 400, 422), body
