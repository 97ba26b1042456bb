"""What is installed: the dependencies resolve for Python 3.10, and the wheel carries all that the server needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# The Neuron images have Python 3.10, which is seldom what the tests run on.
OLDEST = "3.10"


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False)
    if "Failed to establish a new connection" in result.stderr:
        pytest.skip("the package index cannot be reached")
    assert result.returncode == 0, result.stderr
    return result.stdout


def wanted_by_the_oldest_python() -> list[str]:
    """The requirements of the server and its tests, with the markers decided for 3.10 (pip decides them for the
    interpreter that runs it). torch is left out: it is large, pinned, and known to support 3.10."""
    texts = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    oldest = {"python_version": OLDEST, "python_full_version": f"{OLDEST}.0"}
    requirements = map(Requirement, texts)
    return [f"{each.name}{each.specifier}" for each in requirements if not each.marker or each.marker.evaluate(oldest)]


def test_dependencies_resolve_for_python_3_10(tmp_path: Path) -> None:
    assert PROJECT["requires-python"] == f">={OLDEST}"
    wanted = wanted_by_the_oldest_python()
    assert any(each.startswith("tomli") for each in wanted)
    target = ("--python-version", OLDEST, "--only-binary=:all:", "--target", tmp_path)
    run("-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", *target, *wanted, cwd=tmp_path)


def test_the_packages_are_found_from_anywhere(tmp_path: Path) -> None:
    code = "import models.protocol, server.settings; from server.configuration import default_config as f; print(f())"
    default_config = Path(run("-c", code, cwd=tmp_path).strip())
    assert default_config.samefile(ROOT / "configs" / "cpu.toml")


def test_the_wheel_carries_packages_configurations_and_the_command(tmp_path: Path) -> None:
    run("-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("neuronx_serve-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    for folder in ("server", "models", "configs"):
        packed = installed / ("server/configs" if folder == "configs" else folder)
        sources = [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert [path for path in sources if not (packed / path.relative_to(ROOT / folder)).is_file()] == []
    code = f"import sys; sys.path.insert(0, {str(installed)!r})\n" + (
        "from server.configuration import default_config, load_settings\n"
        "load_settings(None, {}, {})\nprint(default_config())"
    )
    assert Path(run("-c", code, cwd=tmp_path).strip()) == installed / "server" / "configs" / "cpu.toml"
    assert "server.cli:main" in next(installed.glob("*.dist-info/entry_points.txt")).read_text("utf-8")
