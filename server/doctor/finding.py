"""One line of the report. Knows no system."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Level = Literal["ok", "warn", "fail"]
_WIDTH = 14


class Finding(msgspec.Struct, frozen=True):
    """What was looked at, what was found, and what to do about it ("" when nothing is to be done)."""

    check: str
    level: Level
    text: str
    advice: str = ""


class Report(msgspec.Struct, frozen=True):
    """All findings. `ok`: nothing failed, so that the configuration can be served as far as anybody can tell."""

    ok: bool
    findings: tuple[Finding, ...]


def report(findings: Iterable[Finding]) -> Report:
    found = tuple(findings)
    return Report(all(finding.level != "fail" for finding in found), found)


def ok(check: str, text: str) -> Finding:
    return Finding(check, "ok", text)


def warn(check: str, text: str, advice: str) -> Finding:
    return Finding(check, "warn", text, advice)


def fail(check: str, text: str, advice: str) -> Finding:
    return Finding(check, "fail", text, advice)


def as_text(found: Report) -> str:
    """A line a finding, its advice below it, and a last line that sums up."""
    lines = []
    for finding in found.findings:
        lines.append(f"{finding.level:<4}  {finding.check:<{_WIDTH}}  {finding.text}")
        if finding.advice:
            lines.append(f"{'':<{_WIDTH + 8}}-> {finding.advice}")
    count = {level: sum(finding.level == level for finding in found.findings) for level in ("ok", "warn", "fail")}
    return "\n".join([*lines, f"{count['ok']} ok, {count['warn']} warn, {count['fail']} fail"])
