"""The units: systemd's own verdict on them, and that they agree with the server and with scripts/install-inf2."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from server.lifecycle import EXTENSION_S
from server.settings import ServerSettings, WorkerSettings

ROOT = Path(__file__).resolve().parents[3]
SERVICE = ROOT / "configs/systemd/neuronx-serve.service"
SOCKET = SERVICE.with_suffix(".socket")
INSTALL = (ROOT / "scripts/install-inf2").read_text("utf-8")
MOST_EXPOSURE = 20  # in tenths; a unit without any hardening has 96

analyzer = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def service() -> dict[str, str]:
    """The section [Service]; of a key that is given twice, the last value."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys as they are written
    parser.read(SERVICE)
    return dict(parser["Service"])


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a command that this machine has."""
    text, replaced = re.subn(r"^ExecStart=\S+", "ExecStart=/bin/true", SERVICE.read_text("utf-8"), flags=re.MULTILINE)
    assert replaced == 1
    path = tmp_path / SERVICE.name
    path.write_text(text)
    return path


@analyzer
def test_systemd_finds_nothing_to_say(unit: Path) -> None:
    listening = shutil.copy2(SOCKET, unit.parent)  # names its service by its own name
    verdict = analyze("verify", "--man=no", unit, listening)
    assert (verdict.returncode, verdict.stderr) == (0, "")


@analyzer
def test_systemd_notices_what_is_wrong(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("WatchdogSec=60", "WatchdogSec=soon"))
    assert "Failed to parse sec value, ignoring: soon" in analyze("verify", "--man=no", unit).stderr


@analyzer
def test_it_is_hardened(unit: Path) -> None:
    verdict = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE}", "--no-pager", unit)
    if "unrecognized option" in verdict.stderr:
        pytest.skip("this systemd-analyze (before 250) judges running units only")
    assert verdict.returncode == 0, verdict.stdout


def test_a_stop_is_not_cut_short(service: dict[str, str]) -> None:
    assert int(service["TimeoutStopSec"]) >= ServerSettings().stop_deadline + EXTENSION_S


def test_the_socket_is_that_of_the_configuration() -> None:
    server = tomllib.loads((ROOT / "configs/inf2.toml").read_text("utf-8"))["server"]
    assert f"ListenStream={server['host']}:{server['port']}" in SOCKET.read_text("utf-8").splitlines()


def test_a_device_that_hangs_is_the_servers_own_business(service: dict[str, str]) -> None:
    assert int(service["WatchdogSec"]) >= WorkerSettings().step_timeout


def test_a_configuration_that_cannot_work_is_not_tried_again(service: dict[str, str]) -> None:
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == str(os.EX_CONFIG)


def test_it_is_what_the_installation_makes_room_for(service: dict[str, str]) -> None:
    variables = dict(re.findall(r"^(\w+)=(?:\$root)?(\S+)$", INSTALL, flags=re.MULTILINE))
    assert service["User"] == service["Group"] == variables["user"]
    assert service["SupplementaryGroups"] == variables["device_group"]
    assert service["ExecStart"].split()[0] == "/opt/neuronx-serve/venv/bin/neuronx-serve"
    assert variables["home"] == "/opt/neuronx-serve"
    assert "venv=$home/venv" in INSTALL
    assert service["ExecStart"].endswith(f"serve --config {variables['configuration']}/inf2.toml")
    assert service["EnvironmentFile"] == f"-{variables['configuration']}/environment"
    assert f"/var/lib/{service['StateDirectory']}" == service["WorkingDirectory"] == variables["data"]
    assert f"/var/cache/{service['CacheDirectory']}" == variables["cache"]
