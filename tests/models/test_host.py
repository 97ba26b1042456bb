"""What the machine says of its memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models import host


def test_the_kernels_estimate_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16318452 kB\nMemFree:         1024 kB\nMemAvailable:    2048 kB\n")
    monkeypatch.setattr(host, "_MEMINFO", meminfo)
    assert host.available_bytes() == 2048 * 1024


def test_without_an_estimate_it_is_all_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "_MEMINFO", tmp_path / "absent")
    assert host.available_bytes() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
