"""The simulated device: texts that only a right history gives, a device's damage, ends and scheduled faults.

What it shares with every backend is in test_backend_contract.py.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.backend import BackendError, ConfigurationError, DeviceError, FloatRows, Logits, OutOfMemoryError
from models.protocol import SimulatedOptions, SlotInput
from models.simulated import ScheduledFault, SimulatedBackend, parse_fault

PROMPT = [5, 6, 7]
EOS = 2


def _loaded(directory: Path, **options: Any) -> SimulatedBackend:
    defaults: dict[str, Any] = {"slots": 4, "n_positions": 64, "vocab_size": 300, "eos_token": EOS}
    backend = SimulatedBackend(directory, SimulatedOptions(**{**defaults, **options}))
    backend.stage(_silent)
    backend.load(_silent)
    return backend


def _silent(*report: object) -> None:
    pass


def _rows(scores: object) -> FloatRows:
    assert isinstance(scores, Logits)
    return scores.rows


def _greedy(backend: SimulatedBackend, prompt: list[int], steps: int) -> list[int]:
    tokens = [int(_rows(backend.feed(0, prompt)).argmax())]
    for position in range(len(prompt), len(prompt) + steps - 1):
        tokens.append(int(_rows(backend.decode([SlotInput(0, tokens[-1], position)])).argmax()))
    return tokens


# --- tokens -----------------------------------------------------------------------------------------------------


def test_two_processes_answer_the_same(tmp_path: Path) -> None:
    assert _greedy(_loaded(tmp_path), PROMPT, 20) == _greedy(_loaded(tmp_path), PROMPT, 20)


def test_greedy_tokens_vary(tmp_path: Path) -> None:
    backend = _loaded(tmp_path)
    assert len(set(_greedy(backend, PROMPT, 40))) > 30
    assert _greedy(backend, PROMPT, 5) != _greedy(backend, [5, 7, 6], 5)


def test_a_step_that_was_left_out_changes_what_follows(tmp_path: Path) -> None:
    backend = _loaded(tmp_path)
    backend.feed(0, PROMPT)
    backend.decode([SlotInput(0, 9, 3)])
    right = _rows(backend.decode([SlotInput(0, 8, 4)]))
    backend.feed(0, [1, 1, 1, 1])
    backend.feed(0, PROMPT)
    assert not np.array_equal(_rows(backend.decode([SlotInput(0, 8, 4)])), right)


def test_a_slot_left_out_of_a_decode_loses_its_first_token(tmp_path: Path) -> None:
    backend = _loaded(tmp_path)
    backend.feed(0, PROMPT)
    undamaged = _rows(backend.decode([SlotInput(0, 9, 3)]))
    backend.decode([SlotInput(1, 9, 3)])
    damaged = _rows(backend.decode([SlotInput(0, 9, 3)]))
    assert not np.array_equal(damaged, undamaged)
    backend.feed(0, [0, *PROMPT[1:]])
    assert np.array_equal(_rows(backend.decode([SlotInput(0, 9, 3)])), damaged)


def test_sampling_has_a_choice_and_greedy_is_clear(tmp_path: Path) -> None:
    row = np.sort(_rows(_loaded(tmp_path).feed(0, PROMPT))[0])[::-1]
    assert row[0] - row[1] >= 0.4
    assert row[0] - row[5] < 4.0


# --- ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [[5], PROMPT])
def test_the_end_token_comes_after_the_set_number_of_tokens(tmp_path: Path, prompt: list[int]) -> None:
    tokens = _greedy(_loaded(tmp_path, answer_tokens=4), prompt, 6)
    assert EOS not in tokens[:4]
    assert tokens[4] == EOS


def test_the_end_token_counts_from_the_last_piece_of_the_prompt(tmp_path: Path) -> None:
    backend = _loaded(tmp_path, answer_tokens=1, chunk=2)
    backend.feed(0, PROMPT[:2])
    assert _rows(backend.feed(0, PROMPT[2:], 2)).argmax() != EOS
    assert _rows(backend.decode([SlotInput(0, 9, 3)])).argmax() == EOS


def test_without_a_set_number_an_answer_never_ends(tmp_path: Path) -> None:
    assert EOS not in _greedy(_loaded(tmp_path, vocab_size=8), PROMPT, 60)


# --- time -------------------------------------------------------------------------------------------------------


def test_set_times_pass_and_are_described(tmp_path: Path) -> None:
    options = SimulatedOptions(n_positions=100, step_s=0.02, prefill_token_s=0.01, load_s=0.05)
    backend = SimulatedBackend(tmp_path, options)
    backend.stage(_silent)
    moments = [time.monotonic()]
    description = backend.load(_silent)
    for call in (lambda: backend.feed(0, PROMPT), lambda: backend.decode([SlotInput(0, 9, 3)])):
        moments.append(time.monotonic())
        call()
    moments.append(time.monotonic())
    assert np.all(np.diff(moments) >= (0.05, 0.03, 0.02))  # never less: how much more is the machine's affair
    assert (description.load_s, description.step_s, description.feed_s) == (0.05, (0.02,), (1.0,))


# --- faults -----------------------------------------------------------------------------------------------------


def test_a_fault_is_a_method_a_call_and_a_kind() -> None:
    assert parse_fault("decode:12=exit") == ScheduledFault("decode", 12, "exit", once=False)
    assert parse_fault("feed:0=nan:once") == ScheduledFault("feed", 0, "nan", once=True)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("decode", "METHOD:CALL=KIND"),
        ("decode:-1=exit", "METHOD:CALL=KIND"),
        ("decode:1=exit:twice", "METHOD:CALL=KIND"),
        ("sample:1=exit", "none of stage, load, feed, decode"),
        ("decode:1=explode", "none of exit, hang, configuration, memory, device, nan, nan_all"),
        ("load:0=nan", "load has no rows"),
    ],
)
def test_a_fault_that_cannot_be_scheduled_says_what_can(tmp_path: Path, fault: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text) as refused:
        _loaded(tmp_path, faults=(fault,))
    assert repr(fault) in str(refused.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"slots": 0}, "slots is 0"),
        ({"n_positions": 0}, "n_positions is 0"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"step_s": -1.0}, "step_s is -1.0"),
        ({"chunk": -1}, "chunk is -1"),
        ({"eos_token": 300}, "eos_token 300"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        _loaded(tmp_path, **change)


@pytest.mark.parametrize(
    ("kind", "error"),
    [("configuration", ConfigurationError), ("memory", OutOfMemoryError), ("device", DeviceError)],
)
@pytest.mark.parametrize("method", ["stage", "load", "feed", "decode"])
def test_a_fault_strikes_at_its_call_only(tmp_path: Path, method: str, kind: str, error: type[BackendError]) -> None:
    backend = SimulatedBackend(tmp_path, SimulatedOptions(faults=(f"{method}:1={kind}",)))
    backend.stage(_silent)
    backend.load(_silent)
    calls = {
        "stage": lambda: backend.stage(_silent),
        "load": lambda: backend.load(_silent),
        "feed": lambda: backend.feed(0, PROMPT),
        "decode": lambda: backend.decode([SlotInput(0, 9, 3)]),
    }
    for each in ("feed", "decode"):
        calls[each]()
    with pytest.raises(error, match=f"{method} call 1"):
        calls[method]()
    calls[method]()


def test_nan_spoils_the_first_row_and_nan_all_every_row(tmp_path: Path) -> None:
    backend = _loaded(tmp_path, faults=("decode:0=nan", "decode:1=nan_all", "feed:2=nan"))
    live = [SlotInput(slot, 9, 3) for slot in range(3)]
    for slot in range(2):
        assert np.isfinite(_rows(backend.feed(slot, PROMPT))).all()
    assert np.isnan(_rows(backend.feed(2, PROMPT))).all()
    assert np.isnan(_rows(backend.decode(live))).all(axis=1).tolist() == [True, False, False]
    assert np.isnan(_rows(backend.decode(live))).all()
    assert np.isfinite(_rows(backend.decode(live))).all()


def test_a_fault_of_once_is_not_met_by_the_next_process(tmp_path: Path) -> None:
    faults = ("feed:0=device:once", "feed:1=memory")
    with pytest.raises(DeviceError):
        _loaded(tmp_path, faults=faults).feed(0, PROMPT)
    backend = _loaded(tmp_path, faults=faults)
    backend.feed(0, PROMPT)
    with pytest.raises(OutOfMemoryError):
        backend.feed(0, PROMPT)


PROGRAM = """
import sys
from pathlib import Path
from models.protocol import SimulatedOptions
from models.simulated import SimulatedBackend

backend = SimulatedBackend(Path(sys.argv[1]), SimulatedOptions(faults=(sys.argv[2],)))
backend.stage(lambda *report: None)
backend.load(lambda *report: None)
print("loaded", flush=True)
backend.feed(0, [1])
print("fed", flush=True)
"""


def _process(tmp_path: Path, fault: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), fault]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[2])


def test_exit_ends_the_process_in_the_middle_of_the_call(tmp_path: Path) -> None:
    with _process(tmp_path, "feed:0=exit") as process:
        output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "loaded\n")


def test_hang_never_returns(tmp_path: Path) -> None:
    with _process(tmp_path, "feed:0=hang") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loaded\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.kill()
        assert process.stdout.readline() == ""
