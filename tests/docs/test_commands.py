"""Every shell block of README.md and docs/: it says where it can run, and what can run here is run.

The words behind ```sh, which a reader of the page does not see (docs/contributing.md tells them to writers):

    run             runs here, against a server of the session; a ```text output block that follows is its output
    run-long        the same, in the long tier
    exchange        the same, against a server of configs/cpu-three-models.toml, in the long tier
    serve           each line starts a server, which must become available and stop as asked; in the long tier
    tested=PATH     another test covers it: the file, or file::name
    aws, inf2, systemd, docker, internet
                    cannot run here, for the reason in ELSEWHERE; its command lines of neuronx-serve are still parsed

Nothing of a block is changed but the port of the loopback; files that it writes land in a directory of the test.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUNNING = ("run", "run-long", "exchange")
ELSEWHERE = {
    "aws": "needs an account of AWS, or a bucket",
    "inf2": "needs a Neuron device, or the machine that is installed for one",
    "systemd": "needs root on a machine that systemd runs",
    "docker": "needs a container engine",
    "internet": "fetches from a place that the tests must not depend on",
}
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. `line` is that of its fence, from 1."""

    page: Path
    line: int
    info: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    @property
    def word(self) -> str:
        """Where it runs."""
        return self.info.partition(" ")[2]


def blocks_of(page: Path, text: str) -> list[Block]:
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found["info"].strip(), textwrap.dedent(found["body"]))
        for found in _FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page, page.read_text("utf-8"))]
SHELL = [block for block in BLOCKS if block.language == "sh"]


def problem_of(block: Block) -> str:
    """Why the block is not classified; "" when it is."""
    if block.language in ("", "bash", "shell", "console"):
        return "what is it? ```sh and a word for commands, ```text for what a command prints"
    if block.language != "sh" or block.word in (*RUNNING, "serve", *ELSEWHERE):
        return ""
    file, _, name = block.word.removeprefix("tested=").partition("::")
    if not block.word.startswith("tested=") or not (ROOT / file).is_file():
        return f"{block.word!r}: allowed is {', '.join((*RUNNING, 'serve', *ELSEWHERE))}, or tested= and a file"
    if name and not re.search(rf"^ *(async )?def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE):
        return f"{file} has no test {name}"
    return ""


def lines_of(script: str) -> list[str]:
    """The commands of a script of simple ones: a line each, continuations joined."""
    return [line for line in script.replace("\\\n", " ").splitlines() if line.strip()]


def own_command_lines(text: str) -> list[list[str]]:
    """The arguments of every call of neuronx-serve in a text, wherever in its line it stands."""
    found = []
    for line in lines_of(text):
        without_redirections = re.sub(r"\d?>+(?:&\d| *\S+)", " ", line)
        for call in re.findall(r"(?:^|[\s;(/])neuronx-serve ((?:[^;|&#']|'[^']*')+)", without_redirections):
            words = shlex.split(call)
            if words and words[0] in cli.COMMANDS:
                found.append(words)
    return found


def refusal_of(words: list[str]) -> str:
    """The command, when its parser refuses these arguments, else "". One that is only named may lack the rest."""
    named = all(word.isalpha() for word in words)
    try:
        cli._parser(words[0]).parse_args([*words, "--help"] if named else words)
    except SystemExit as ended:
        return "" if ended.code == 0 else f"neuronx-serve {' '.join(words)}"
    return ""


def pattern_of(output: str) -> str:
    """What a page shows of an output, where `…` stands for anything."""
    return ".*".join(re.escape(part) for part in trimmed(output).split("…"))


def trimmed(output: str) -> str:
    return "\n".join(line.rstrip() for line in output.strip().splitlines())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_where_it_can_run(page: Path) -> None:
    problems = [f"{block.place}: {problem_of(block)}" for block in BLOCKS if block.page == page and problem_of(block)]
    assert problems == []


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ("", "what is it?"),
        ("bash", "what is it?"),
        ("sh", "allowed is run"),
        ("sh laptop", "allowed is run"),
        ("sh tested=tests/none.py", "allowed is run"),
        ("sh tested=tests/docs/test_commands.py::test_none", "has no test"),
        ("sh tested=tests/docs/test_commands.py::test_what_can_run_here", ""),
        ("text", ""),
    ],
)
def test_a_block_that_does_not_say_it_is_found(info: str, expected: str) -> None:
    [block] = blocks_of(ROOT / "README.md", f"Words.\n\n   ```{info}\n   ls\n   ```\n")
    assert (block.line, block.text) == (3, "ls\n")
    assert bool(problem_of(block)) == bool(expected)
    assert expected in problem_of(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_command_line_takes_what_is_shown(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page.read_text("utf-8")
    shown = [*(block.text for block in SHELL if block.page == page), *re.findall(r"`(neuronx-serve [^`\n]+)`", text)]
    calls = [words for each in shown for words in own_command_lines(each)]
    assert [refusal_of(words) for words in calls if refusal_of(words)] == [], capsys.readouterr().err


def test_a_flag_that_does_not_exist_is_found() -> None:
    script = (
        "sudo -u x env A=1 neuronx-serve models \\\n  pull ID --revisoin 3 2>&1 | tee log\nneuronx-serve plan # why"
    )
    refused, taken = own_command_lines(script)
    assert (refused, taken) == (["models", "pull", "ID", "--revisoin", "3"], ["plan"])
    assert (bool(refusal_of(refused)), bool(refusal_of(taken))) == (True, False)
    assert refusal_of(["models", "push"])
    assert not refusal_of(["artifacts", "push"])


def test_a_service_on_an_inf2_takes_fewer_than_ten_commands() -> None:
    by_hand = next(lines_of(block.text) for block in SHELL if block.page.name == "deployment.md")
    assert any("scripts/install-inf2" in line for line in by_hand)
    assert any("systemctl start neuronx-serve" in line for line in by_hand)
    assert len(by_hand) < 10


@dataclass(frozen=True)
class Shell:
    """Where blocks run: a checkout or what stands for it, and one port in the place of 8080."""

    directory: Path
    port: int
    variables: Mapping[str, str] = field(default_factory=dict)

    def start(self, script: str, **pipes: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script.replace("8080", str(self.port))],
            cwd=self.directory,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PORT": str(self.port),
                "CURL_HOME": str(self.directory),
                **self.variables,
            },
            text=True,
            start_new_session=True,
            **pipes,
        )


def shell_at(directory: Path, port: int) -> Shell:
    """In the place of a checkout, so that what a block writes lands there; but no environment for scripts to change."""
    for entry in ROOT.iterdir():
        if not entry.name.startswith("."):
            (directory / entry.name).symlink_to(entry)
    (directory / ".curlrc").write_text("fail-with-body\n")  # an error of the server is one of the command
    return Shell(directory, port)


def long(word: str) -> list[Any]:
    return [] if word == "run" else [pytest.mark.long]


@pytest.fixture(scope="session")
def three_models(serve: Any, embedded_set_up: None) -> Any:
    subprocess.run([sys.executable, "-m", "models.cpu.tiny"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    server = serve((ROOT / "configs/cpu-three-models.toml").read_text("utf-8"))
    server.wait_available()
    return server


def cases(*words: str) -> list[Any]:
    return [pytest.param(each, id=each.place, marks=long(each.word)) for each in SHELL if each.word in words]


@pytest.mark.parametrize("block", cases("run", "run-long"))
def test_what_can_run_here(block: Block, smollm2: Any, tmp_path: Path) -> None:
    run_it(block, shell_at(tmp_path, httpx.URL(smollm2.url).port))


@pytest.mark.parametrize("block", cases("exchange"))
def test_what_exchanges_models_runs_here(block: Block, three_models: Any, tmp_path: Path) -> None:
    run_it(block, shell_at(tmp_path, httpx.URL(three_models.url).port))


def run_it(block: Block, shell: Shell) -> None:
    process = shell.start(block.text, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        output, errors = process.communicate(timeout=900)
    finally:
        end(process)
    assert process.returncode == 0, output + errors
    following = BLOCKS[BLOCKS.index(block) + 1 :][:1]
    if following and following[0].info == "text output":
        assert re.fullmatch(pattern_of(following[0].text), trimmed(output), re.DOTALL), output


def test_every_output_follows_the_commands_that_print_it() -> None:
    before = [BLOCKS[i - 1].word for i, block in enumerate(BLOCKS) if block.info == "text output"]
    assert before
    assert set(before) <= set(RUNNING)


# Each command once, however many pages begin with it.
PLACES = {line: block.place for block in reversed(SHELL) if block.word == "serve" for line in lines_of(block.text)}
SERVING = [pytest.param(line, id=f"{place}-{line}", marks=long("serve")) for line, place in PLACES.items()]


@pytest.mark.parametrize("line", SERVING)
def test_what_serves_comes_up_and_stops_as_asked(line: str) -> None:
    with serving(line, Shell(ROOT, free_port())):
        pass


@pytest.mark.long
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a checkout without its history cannot be cloned")
def test_the_first_two_commands_of_the_readme_are_enough_in_a_fresh_clone(tmp_path: Path) -> None:
    clone, cache = tmp_path / "clone", tmp_path / "cache"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    first, second = (block for block in SHELL[:2] if block.page.name == "README.md")
    shell = Shell(clone, free_port(), {"NEURONX_SERVE_CACHE": str(cache)})
    with serving(first.text, shell):
        answer = shell.start(second.text, stdout=subprocess.PIPE)
        assert "data: {" in answer.communicate(timeout=300)[0]
        assert answer.returncode == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(line: str, shell: Shell) -> Iterator[None]:
    """The server that a line starts, available; it must end well at SIGTERM."""
    process = shell.start(line)
    try:
        wait_until_available(f"http://127.0.0.1:{shell.port}/health", process)
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """The shell and whatever of it is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def wait_until_available(health: str, process: subprocess.Popen[str], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ended with {process.returncode}"
        try:
            if httpx.get(health, timeout=30).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not available after {seconds} s")
