"""The units of Chat UI and its database: systemd's verdict, and that they leave the memory to the model."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "configs/chat-ui"
UNITS = sorted(FOLDER.glob("*.service"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_to_say(tmp_path: Path) -> None:
    (tmp_path / "docker.service").write_text("[Service]\nExecStart=/bin/true\n")
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/bin/docker", "/bin/true"))

    command = ["systemd-analyze", "verify", "--man=no", *(tmp_path / unit.name for unit in UNITS)]
    verdict = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (verdict.returncode, verdict.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_memory_is_capped_and_the_image_pinned(unit: Path) -> None:
    text = unit.read_text()
    caps = re.findall(r"--memory(?:-swap)? (\d+)m\b", text)
    assert len(caps) == 2
    assert caps[0] == caps[1]  # no swap beside it
    assert int(caps[0]) <= 1024
    (image,) = re.findall(r"^Environment=IMAGE=(\S+)$", text, re.MULTILINE)
    assert re.search(r":\d+\.\d+\.\d+$", image)


def test_the_databases_cache_is_small() -> None:
    assert "--wiredTigerCacheSizeGB 0.25\n" in (FOLDER / "chat-ui-db.service").read_text()


def test_the_database_is_reached_from_chat_ui_alone() -> None:
    assert "--publish" not in (FOLDER / "chat-ui-db.service").read_text()
    assert len({re.search(r"--network (\S+)", unit.read_text())[1] for unit in UNITS}) == 1  # type: ignore[index]


def test_the_documentation_points_chat_ui_at_the_names_in_the_containers(tmp_path: Path) -> None:
    documentation = (FOLDER.parents[1] / "docs/chat-ui.md").read_text("utf-8")
    (command,) = re.findall(r"^sudo (sed .*) /etc/chat-ui/environment$", documentation, re.MULTILINE)
    environment = tmp_path / "environment"
    shutil.copy2(FOLDER / "openai.env", environment)

    subprocess.run(["bash", "-c", f"{command} {environment}"], check=True)

    settings = dict(
        line.split("=", 1) for line in environment.read_text().splitlines() if not line.startswith("#") and line
    )
    assert settings["OPENAI_BASE_URL"] == "http://server:8080/v1"
    assert settings["MONGODB_URL"] == "mongodb://chat-ui-db:27017"
    text = (FOLDER / "chat-ui.service").read_text()
    assert "--add-host server:${SERVER} " in text
    assert "--name chat-ui-db " in (FOLDER / "chat-ui-db.service").read_text()
