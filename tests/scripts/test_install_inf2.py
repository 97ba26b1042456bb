"""scripts/install-inf2 on a machine whose commands are stubs: what it calls, what it leaves, that it goes on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from server.doctor.releases import COLLECTIVES, DRIVER, RECOMMENDED, RUNTIME

SCRIPT = Path(__file__).parents[2] / "scripts/install-inf2"
STEPS = (
    "base_packages", "neuron_repository", "neuron_driver", "neuron_runtime", "service_user", "python_environment",
    "directories", "service_unit",
)  # fmt: skip
# A call in the middle of each step.
MIDDLES = {
    "base_packages": "env*install*ca-certificates*",
    "neuron_repository": "curl *",
    "neuron_driver": "modprobe neuron",
    "neuron_runtime": "apt-mark hold *runtime-lib*",
    "service_user": "udevadm control*",
    "python_environment": "python -m pip*neuron?hub*",
    "directories": "install -d*",
    "service_unit": "systemctl enable*",
}


def test_the_versions_are_those_of_the_recommended_release(machine: Any) -> None:
    text = machine.run("--dry-run").stdout

    for package in (DRIVER, RUNTIME, COLLECTIVES):
        assert re.search(rf"\b{package}={re.escape(RECOMMENDED.versions[package][0])}\.", text), package
    assert f"libneuronxla=={RECOMMENDED.versions['libneuronxla'][0]}" in text
    assert f"SDK {RECOMMENDED.name}" in machine.run("--help").stdout


@pytest.mark.parametrize("arguments", [(), ("--builder",), ("uninstall",), ("uninstall", "--purge")])
def test_a_dry_run_prints_every_command_and_changes_nothing(machine: Any, arguments: tuple[str, ...]) -> None:
    if "uninstall" in arguments:
        machine.run()
    before = machine.files()
    machine.forget()

    shown = machine.run(*arguments, "--dry-run")

    assert shown.returncode == 0, shown.stderr
    assert machine.files() == before
    assert all(call.startswith(("getent ", "dpkg-query ", "dpkg ")) for call in machine.calls)
    printed = [line.replace("\\", "").replace(f"{machine.root}/stubs/", "") for line in shown.stdout.splitlines()]
    printed = [" ".join(line.replace(str(machine.root), "").split()) for line in printed]
    machine.run(*arguments)
    changing = [call for call in machine.calls if not call.startswith(("getent ", "dpkg-query ", "dpkg "))]
    assert len(changing) > 3
    for call in changing:
        assert re.sub(r"^python -m", "/opt/neuronx-serve/venv/bin/python -m", call) in printed


def test_an_installation_leaves_environment_unit_rule_and_configuration(machine: Any) -> None:
    done = machine.run()

    assert done.returncode == 0, done.stderr
    files = machine.files()
    assert files["etc/systemd/system/neuronx-serve.service"] == "# configs/systemd/neuronx-serve.service\n"
    assert files["etc/udev/rules.d/60-neuronx-serve.rules"] == 'KERNEL=="neuron[0-9]*", GROUP="neuron", MODE="0660"\n'
    assert files["etc/neuronx-serve/inf2.toml"] == (SCRIPT.parents[1] / "configs/inf2.toml").read_text()
    assert "NEURONX_SERVE_CACHE=/var/cache/neuronx-serve\n" in files["etc/neuronx-serve/environment"]
    assert (machine.root / "etc/neuronx-serve/environment").stat().st_mode & 0o777 == 0o600
    assert "opt/neuronx-serve/venv/bin/python" in files
    assert files["etc/apt/sources.list.d/neuronx-serve-neuron.list"].startswith("deb [signed-by=/etc/apt/keyrings/")
    assert sorted(name.rpartition("/")[2] for name in files if "/installed/" in name) == sorted((*STEPS, "packages"))
    calls = machine.calls
    assert (
        "useradd --system --user-group --home-dir /var/lib/neuronx-serve --shell /usr/sbin/nologin neuronx-serve"
        in calls
    )
    assert calls[-1] == "systemctl enable neuronx-serve.service"


def test_a_second_run_changes_nothing(machine: Any) -> None:
    machine.run()
    before = machine.files()
    machine.forget()

    again = machine.run()

    assert again.returncode == 0
    assert again.stderr.count("done before") == len(STEPS)
    assert machine.calls == []
    assert machine.files() == before


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_step_is_repeated_and_those_before_it_are_not(machine: Any, step: str) -> None:
    machine.fail_at(MIDDLES[step])

    broken = machine.run()

    assert broken.returncode != 0
    assert broken.stderr.splitlines()[-1] == f"== {step}"
    assert (machine.root / "opt/neuronx-serve/installed" / step).exists() is False

    resumed = machine.run()

    assert resumed.returncode == 0, resumed.stderr
    assert [name for name in STEPS if f"== {name}: done before" in resumed.stderr] == list(STEPS[: STEPS.index(step)])
    assert machine.run().stderr.count("done before") == len(STEPS)


def test_a_newer_checkout_is_installed_anew_and_the_configuration_stays(machine: Any) -> None:
    machine.run()
    machine.forget()
    (machine.checkout / "server/app.py").write_text("# newer\n")
    (machine.root / "etc/neuronx-serve/inf2.toml").write_text("# the operator's\n")

    machine.run()

    assert [call.split()[0] for call in machine.calls] == ["python3.10", "python", "python"]
    assert machine.files()["etc/neuronx-serve/inf2.toml"] == "# the operator's\n"


def test_a_builder_gets_neither_driver_nor_udev_rule_nor_unit(machine: Any) -> None:
    for name in ("udevadm", "modprobe", "systemctl"):
        (machine.root / "stubs" / name).unlink()  # an image has none of them

    done = machine.run("--builder")

    assert done.returncode == 0, done.stderr
    assert not any("dkms" in call for call in machine.calls)
    assert "etc/udev/rules.d/60-neuronx-serve.rules" not in machine.files()
    assert "opt/neuronx-serve/venv/bin/python" in machine.files()
    assert "etc/systemd/system/neuronx-serve.service" not in machine.files()


def test_a_newer_driver_and_the_images_own_repository_are_kept(machine: Any) -> None:
    machine.stub("dpkg-query", "echo 2.24.7.0")
    mine = machine.root / "etc/apt/sources.list.d/neuron.list"
    mine.parent.mkdir(parents=True)
    mine.write_text("deb https://apt.repos.neuron.amazonaws.com jammy main\n")

    done = machine.run()

    assert "aws-neuronx-dkms 2.24.7.0 is there" in done.stderr
    calls = machine.calls
    assert not any("aws-neuronx-dkms=" in call or call.startswith("curl") for call in calls)
    assert "dpkg --compare-versions 2.24.7.0 ge 2.19.64.0" in calls
    assert [path.name for path in mine.parent.iterdir()] == ["neuron.list"]


def test_uninstalling_removes_what_was_installed_and_keeps_what_is_the_operators(machine: Any) -> None:
    before = set(machine.files())
    machine.run()
    machine.stub("getent")  # now there is such a user
    machine.forget()

    done = machine.run("uninstall")

    assert done.returncode == 0, done.stderr
    left = {name for name, content in machine.files().items() if content != "/"} - before
    assert left == {"etc/neuronx-serve/inf2.toml", "etc/neuronx-serve/environment"}
    calls = machine.calls
    assert calls[0] == "systemctl disable --now neuronx-serve.service"
    removed = next(call for call in calls if "apt-get" in call and "remove" in call)
    assert {"aws-neuronx-dkms", "aws-neuronx-runtime-lib", "aws-neuronx-collectives"} <= set(removed.split())
    assert "userdel neuronx-serve" in calls

    assert machine.run("uninstall", "--purge").returncode == 0
    assert not any("neuronx-serve" in name for name in machine.files())


def test_an_interrupted_removal_goes_on(machine: Any) -> None:
    machine.run()
    machine.fail_at("env*remove*")

    assert machine.run("uninstall").returncode != 0
    assert machine.run("uninstall").returncode == 0

    assert "opt/neuronx-serve" not in machine.files()


def test_packages_that_were_there_before_stay(machine: Any) -> None:
    machine.stub("dpkg-query", "echo 2.24.7.0")
    machine.run()
    machine.forget()

    machine.run("uninstall")

    assert not any("remove" in call for call in machine.calls)


def test_another_system_is_refused(machine: Any) -> None:
    (machine.root / "etc/os-release").write_text('VERSION_ID="24.04"\n')

    done = machine.run()

    assert done.returncode == 1
    assert "is not that of Ubuntu 22.04" in done.stderr
    assert machine.calls == []


def test_an_unknown_argument_is_refused(machine: Any) -> None:
    assert "--fast is unknown" in machine.run("--fast").stderr


def test_with_a_root_no_command_of_the_system_is_run(machine: Any) -> None:
    (machine.root / "stubs/apt-get").unlink()

    assert "there is no stub" in machine.run().stderr
