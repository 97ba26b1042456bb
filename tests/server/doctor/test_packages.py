"""The worker's interpreter, the driver, the runtime, and whether their versions belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from server.doctor.capture import Driver, Interpreter
from server.doctor.releases import RELEASES, releases_of


def changed(machine: Any, import_error: str = "", version: str = "", **packages: str | None) -> dict[str, Interpreter]:
    """The machine's interpreter with other packages; None removes one, "_" stands for "-"."""
    healthy = machine.capture.interpreters[""]
    merged = {**healthy.packages, **{name.replace("_", "-"): value for name, value in packages.items()}}
    return {
        "": dataclasses.replace(
            healthy,
            version=version or healthy.version,
            packages={name: value for name, value in merged.items() if value is not None},
            import_error=import_error,
        )
    }


def test_an_interpreter_that_does_not_start(inf2: Any) -> None:
    found = inf2.troubles(interpreters={"": Interpreter("/gone/python", error="No such file or directory")})
    assert ("fail", "worker.python") in found


@pytest.mark.parametrize(("version", "level"), [("3.9.2", "fail"), ("3.10.1", ""), ("3.11.9", ""), ("3.12.0", "fail")])
def test_the_library_exists_for_two_pythons(inf2: Any, version: str, level: str) -> None:
    found = inf2.troubles(interpreters=changed(inf2, version=version))
    assert found == ([(level, "worker.python")] if level else [])


@pytest.mark.parametrize("missing", ["msgspec", "numpy"])
def test_what_every_worker_needs(laptop: Any, missing: str) -> None:
    found = laptop.trouble(interpreters=changed(laptop, **{missing: None}))
    assert (found.level, found.check) == ("fail", "packages")
    assert f"lacks {missing}" in found.text
    assert "pip install msgspec numpy" in found.advice


def test_a_worker_without_the_grammar_library_serves_all_but_grammars(inf2: Any) -> None:
    found = inf2.trouble(interpreters=changed(inf2, llguidance=None))
    assert (found.level, found.check) == ("warn", "packages")
    assert "requests with a grammar or tools fail" in found.text
    assert "pip install 'llguidance>=1.9,<2'" in found.advice


def test_a_cpu_worker_without_torch(laptop: Any) -> None:
    found = laptop.trouble(interpreters=changed(laptop, torch=None))
    assert found.level == "fail"
    assert "neuronx-serve[cpu]" in found.advice


@pytest.mark.parametrize(
    ("package", "version"),
    [("transformers_neuronx", "0.1"), ("torch_neuronx", "1.0"), ("neuronx_cc", "1.0.post1"), ("libneuronxla", "1.0")],
)
def test_a_placeholder_from_pypi_is_recognised_by_its_version(inf2: Any, package: str, version: str) -> None:
    findings = inf2.findings(interpreters=changed(inf2, **{package: version}))
    found = next(found for found in findings if found.check == "library")
    assert found.level == "fail"
    assert f"{package.replace('_', '-')} {version}: a placeholder from PyPI" in found.text
    assert "AWS's Neuron package index" in found.advice


def test_a_placeholder_is_recognised_by_what_it_says(inf2: Any) -> None:
    said = "ImportError: WRONG PACKAGE. Please install the package from the Neuron repository"
    found = inf2.trouble(interpreters=changed(inf2, import_error=said))
    assert (found.level, found.check) == ("fail", "library")
    assert "placeholder" in found.text


def test_a_library_that_is_not_there(inf2: Any) -> None:
    said = "ModuleNotFoundError: No module named 'transformers_neuronx'"
    findings = inf2.findings(interpreters=changed(inf2, import_error=said, transformers_neuronx=None))
    found = next(found for found in findings if found.check == "library")
    assert found.level == "fail"
    assert found.text.endswith("(not installed: transformers-neuronx)")


def test_a_library_that_runs_from_its_source_needs_no_distribution(inf2: Any) -> None:
    assert inf2.troubles(
        interpreters=changed(inf2, transformers_neuronx=None, torch_neuronx=None, neuronx_cc=None, libneuronxla=None)
    ) == [("fail", "artifacts")]  # compiled with versions that this interpreter does not name


def test_a_transformers_whose_rotary_settings_the_library_misreads(inf2: Any) -> None:
    found = inf2.trouble(interpreters=changed(inf2, transformers="4.48.0"))
    assert (found.level, found.check) == ("fail", "packages")
    assert "transformers<4.48" in found.advice


def test_a_torch_that_torch_neuronx_was_not_built_for(inf2: Any) -> None:
    found = inf2.trouble(interpreters=changed(inf2, torch="2.1.2"))
    assert found.text == "torch 2.1.2 with torch-neuronx 2.5.1.2.4.0, which was built for torch 2.5.1"


def test_packages_of_one_release_name_it(inf2: Any) -> None:
    assert "the Python packages are those of Neuron SDK 2.21.1" in [found.text for found in inf2.findings()]


def test_packages_of_two_releases_are_a_warning_that_names_both(inf2: Any) -> None:
    findings = inf2.findings(interpreters=changed(inf2, transformers_neuronx="0.13.322"))
    found = next(found for found in findings if found.check == "release")
    assert found.level == "warn"
    assert "transformers-neuronx 0.13.322 (2.21.0)" in found.text
    assert "neuronx-cc 2.16.372.0+4a9b2326 (2.21.1)" in found.text


@pytest.mark.parametrize(
    ("package", "check"), [("aws-neuronx-runtime-lib", "runtime"), ("aws-neuronx-collectives", "collectives")]
)
def test_a_missing_system_package(inf2: Any, package: str, check: str) -> None:
    packages = {name: version for name, version in inf2.capture.system_packages.items() if name != package}
    found = inf2.trouble(system_packages=packages)
    assert (found.level, found.check) == ("fail", check)
    assert package in found.advice


def test_one_core_needs_no_collectives(inf2_with: Callable[..., Any]) -> None:
    machine = inf2_with(tp_degree=1, quant="s8")
    packages = dict(machine.capture.system_packages)
    del packages["aws-neuronx-collectives"]
    assert machine.troubles(system_packages=packages) == []


def test_a_driver_older_than_the_runtime_wants(inf2: Any) -> None:
    found = inf2.trouble(driver=Driver("2.18.12.0", "2.18.12.0"))
    assert (found.level, found.check) == ("fail", "driver")
    assert "upgrade aws-neuronx-dkms to 2.19.64 or newer" in found.advice


def test_a_driver_newer_than_the_runtime_is_fine(inf2: Any) -> None:
    assert inf2.troubles(driver=Driver("2.24.7.0", "2.24.7.0")) == []


def test_a_driver_that_was_upgraded_and_not_reloaded(inf2: Any) -> None:
    """modinfo reads the file that would be loaded, not the module that is."""
    found = inf2.troubles(driver=Driver(installed="2.19.64.0", loaded="2.18.12.0"))
    assert found == [("warn", "driver"), ("fail", "driver")]


def test_a_runtime_older_than_the_compiler_refuses_its_graphs(inf2: Any) -> None:
    packages = {**inf2.capture.system_packages, "aws-neuronx-runtime-lib": "2.22.14.0"}
    found = inf2.trouble(system_packages=packages)
    assert (found.level, found.check) == ("fail", "runtime")
    assert "it refuses the compiler's NEFFs" in found.text


def test_a_container_that_cannot_see_the_driver_is_warned(inf2: Any) -> None:
    packages = {name: version for name, version in inf2.capture.system_packages.items() if name != "aws-neuronx-dkms"}
    found = inf2.trouble(driver=Driver(), system_packages=packages)
    assert (found.level, found.check) == ("warn", "driver")


@pytest.mark.parametrize(
    ("package", "version", "releases"),
    [
        ("transformers-neuronx", "0.13.380", ["2.21.1"]),
        ("torch-neuronx", "2.1.2.2.4.0", ["2.21.0", "2.21.1"]),
        ("torch-neuronx", "2.7.0.2.8.6734+ac864f72", ["2.24"]),
        ("torch-neuronx", "2.8.0.2.10.13553+1e4dd6ca", ["2.26"]),
        ("neuronx-cc", "2.21.33363.0+82129205", ["2.26"]),
        ("aws-neuronx-dkms", "2.19.64.0", ["2.21.0", "2.21.1"]),
        ("transformers-neuronx", "0.13.38", []),
        ("neuronx-cc", "nonsense", []),
    ],
)
def test_a_version_belongs_to_its_releases(package: str, version: str, releases: list[str]) -> None:
    assert [release.name for release in releases_of(package, version)] == releases


def test_the_releases_are_in_order() -> None:
    for package in RELEASES[0].versions:
        firsts = [[int(part) for part in release.versions[package][0].split(".")] for release in RELEASES]
        assert firsts == sorted(firsts)
