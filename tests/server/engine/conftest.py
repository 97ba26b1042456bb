"""An engine over the simulated backend in one process: steps run when the test says so, in virtual time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from models.matcher import Vocabulary
from models.protocol import Command, Decode, Description, Feed, SimulatedOptions, decode_command, encode
from models.simulated import SimulatedBackend
from models.steps import Steps
from server.core import Request, Timings
from server.engine.generation import Generation
from server.engine.loop import Engine
from server.observe.metrics import Metrics
from server.text.tokenizer import Tokenizer


class InlineWorker:
    """Runs the commands it is sent one at a time, on the real backend, through the real messages."""

    def __init__(self, options: SimulatedOptions, directory: Path, vocabulary: Vocabulary) -> None:
        self._backend = SimulatedBackend(directory, options)
        self._backend.stage(lambda *_: None)
        self.description: Description = self._backend.load(lambda *_: None)
        self._steps = Steps(self._backend, vocabulary)
        self._queue: deque[Feed | Decode] = deque()
        self.commands: list[Feed | Decode] = []

    def send(self, command: Command) -> None:
        received = decode_command(encode(command)[4:])
        assert isinstance(received, Feed | Decode)
        self._queue.append(received)
        self.commands.append(received)

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    def step(self, engine: Engine) -> None:
        engine.stepped(self._steps.run(self._queue.popleft()))


class Bench:
    """An engine, its current worker, and everything that was submitted."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary, directory: Path, **options: object) -> None:
        self.tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._directory = directory
        self._options = SimulatedOptions(**{"vocab_size": 256, "slots": 4, **options})  # type: ignore[arg-type]
        self.metrics = Metrics()
        self.engine = Engine(decode_per_feed=1, metrics=self.metrics, on_ended=lambda: None)
        self.attach()

    def attach(self) -> None:
        self.worker = InlineWorker(self._options, self._directory, self._vocabulary)
        self.engine.attach(self.worker, self.worker.description)

    def submit(self, request: Request) -> Generation:
        return self.engine.submit(request, self.tokenizer, Timings(0.0))

    def step(self) -> bool:
        if not self.worker.busy:
            return False
        self.worker.step(self.engine)
        return True

    def run(self) -> None:
        while self.step():
            pass


@pytest.fixture(scope="session")
def byte_tokenizer(tiny_text_directory: Path) -> Tokenizer:
    """256 byte tokens, the last one (id 255) the end token."""
    return Tokenizer.load(tiny_text_directory)


@pytest.fixture(scope="session")
def byte_vocabulary(tiny_text_directory: Path) -> Vocabulary:
    """The same tokens, for grammars."""
    return Vocabulary(tiny_text_directory)


@pytest.fixture
def bench(byte_tokenizer: Tokenizer, byte_vocabulary: Vocabulary, tmp_path: Path) -> Callable[..., Bench]:
    """Bench(**simulated options)."""
    return lambda **options: Bench(byte_tokenizer, byte_vocabulary, tmp_path, **options)


@pytest.fixture
def grammarless(byte_tokenizer: Tokenizer, tmp_path: Path) -> Bench:
    """A bench that reuses prefixes, and whose worker can follow no grammar."""
    return Bench(byte_tokenizer, Vocabulary(tmp_path / "absent"), tmp_path, chunk=64, reuse=True)
