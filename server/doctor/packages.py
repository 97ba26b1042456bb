"""The workers' interpreters, the driver and the runtime: what is installed, and whether it belongs together. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from models.protocol import CpuOptions, NeuronOptions
from server.doctor.capture import Driver, Interpreter
from server.doctor.devices import cores_wanted
from server.doctor.finding import Finding, fail, ok, warn
from server.doctor.releases import (
    COLLECTIVES,
    DRIVER,
    PLACEHOLDERS,
    RECOMMENDED,
    RELEASES,
    RUNTIME,
    Release,
    numbers,
    releases_of,
)
from server.settings import Settings

_EVERY_WORKER = ("msgspec", "numpy")
# models/matcher.py asks for it when the first grammar comes.
_GRAMMARS = "llguidance"
_CPU_WORKER = ("torch", "safetensors")
_NEURON_PACKAGES = tuple(PLACEHOLDERS)
_INSTALL = (
    "install the exact versions of pyproject.toml's extra `neuron` from AWS's Neuron package index (pip's "
    "--extra-index-url): the packages of these names on PyPI are placeholders"
)
_RELOAD = "sudo rmmod neuron; sudo modprobe neuron (nothing may hold a core), or reboot"
_OLDEST_PYTHON, _NEWEST_NEURON_PYTHON = (3, 10), (3, 11)
_TRANSFORMERS_BELOW = (4, 48)


def interpreters_wanted(settings: Settings) -> dict[str, set[str]]:
    """The interpreters that the configuration names ("" is this one), with the kinds of device each is for."""
    wanted: dict[str, set[str]] = {}
    for model in settings.models:
        kind = str(model.device.__struct_config__.tag)
        wanted.setdefault(model.python or settings.worker.python, set()).add(kind)
    return wanted


def check_interpreters(settings: Settings, interpreters: Mapping[str, Interpreter]) -> Iterator[Finding]:
    """Findings on each interpreter that a worker will run in."""
    for name, kinds in interpreters_wanted(settings).items():
        interpreter = interpreters[name]
        if interpreter.error:
            yield fail(
                "worker.python",
                f"{interpreter.python} cannot be asked for its packages: {interpreter.error}",
                "set worker.python to an interpreter that works",
            )
            continue
        yield from _every_worker(interpreter)
        if CpuOptions.__struct_config__.tag in kinds:
            yield from _missing(interpreter, _CPU_WORKER, f"{interpreter.python} -m pip install 'neuronx-serve[cpu]'")
        if NeuronOptions.__struct_config__.tag in kinds:
            yield from _neuron_worker(interpreter)


def check_system(settings: Settings, driver: Driver, packages: Mapping[str, str]) -> Iterator[Finding]:
    """Findings on the driver, the runtime and the collectives, where the configuration needs them."""
    if not cores_wanted(settings):
        return
    yield _driver(driver, packages)
    if RUNTIME not in packages:
        yield fail(
            "runtime", f"{RUNTIME} is not installed: there is no libnrt.so", f"install {RUNTIME} from AWS's repository"
        )
    else:
        yield ok("runtime", f"{RUNTIME} {packages[RUNTIME]}")
    sharded = any(isinstance(model.device, NeuronOptions) and model.device.tp_degree > 1 for model in settings.models)
    if COLLECTIVES in packages:
        yield ok("collectives", f"{COLLECTIVES} {packages[COLLECTIVES]}")
    elif sharded:
        yield fail(
            "collectives", f"{COLLECTIVES} is not installed, and tp_degree above 1 needs it", f"install {COLLECTIVES}"
        )


def check_agreement(
    settings: Settings, interpreters: Mapping[str, Interpreter], driver: Driver, packages: Mapping[str, str]
) -> Iterator[Finding]:
    """Findings on versions of different releases, by what they break: the driver may be newer than the runtime, and the
    runtime newer than the compiler; never older."""
    for name, kinds in interpreters_wanted(settings).items():
        if NeuronOptions.__struct_config__.tag not in kinds or interpreters[name].error:
            continue
        python = {
            each: interpreters[name].packages[each] for each in _NEURON_PACKAGES if each in interpreters[name].packages
        }
        system = {each: packages[each] for each in (RUNTIME, COLLECTIVES) if each in packages}
        if loaded := driver.loaded or driver.installed or packages.get(DRIVER, ""):
            system[DRIVER] = loaded
        if python:
            yield _one_release(python)
            yield from _not_older("runtime", RUNTIME, system, "neuronx-cc", python, "it refuses the compiler's NEFFs")
        yield from _not_older("driver", DRIVER, system, RUNTIME, system, "the runtime refuses to start")


def _every_worker(interpreter: Interpreter) -> Iterator[Finding]:
    if numbers(interpreter.version) < _OLDEST_PYTHON:
        yield fail(
            "worker.python",
            f"{interpreter.python} is Python {interpreter.version}",
            "use Python 3.10 or newer (3.10 or 3.11 for Neuron)",
        )
    else:
        yield ok("worker.python", f"{interpreter.python}, Python {interpreter.version}")
    install = f"{interpreter.python} -m pip install {' '.join(_EVERY_WORKER)}"
    yield from _missing(interpreter, _EVERY_WORKER, install)
    if _GRAMMARS not in interpreter.packages:
        yield warn(
            "packages",
            f"{interpreter.python} lacks {_GRAMMARS}: requests with a grammar or tools fail",
            f"{interpreter.python} -m pip install '{_GRAMMARS}>=1.9,<2'",
        )


def _missing(interpreter: Interpreter, wanted: tuple[str, ...], advice: str) -> Iterator[Finding]:
    missing = [name for name in wanted if name not in interpreter.packages]
    if missing:
        yield fail("packages", f"{interpreter.python} lacks {', '.join(missing)}", advice)
    else:
        versions = ", ".join(f"{name} {interpreter.packages[name]}" for name in wanted)
        yield ok("packages", versions)


def _neuron_worker(interpreter: Interpreter) -> Iterator[Finding]:
    packages = interpreter.packages
    if numbers(interpreter.version)[:2] > _NEWEST_NEURON_PYTHON:
        yield fail(
            "worker.python",
            f"Python {interpreter.version} is newer than any that transformers-neuronx was built for",
            "use Python 3.10 or 3.11",
        )
    yield _library(interpreter)
    transformers = packages.get("transformers", "")
    if numbers(transformers)[:2] >= _TRANSFORMERS_BELOW:
        yield fail(
            "packages",
            f"transformers {transformers}: transformers-neuronx reads its rotary settings wrongly from 4.48 on",
            f'{interpreter.python} -m pip install "transformers<4.48"',
        )
    torch, torch_neuronx = packages.get("torch", ""), packages.get("torch-neuronx", "")
    if torch and torch_neuronx and numbers(torch)[:2] != numbers(torch_neuronx)[:2]:
        yield fail(
            "packages",
            f"torch {torch} with torch-neuronx {torch_neuronx}, which was built for torch "
            f"{'.'.join(map(str, numbers(torch_neuronx)[:3]))}",
            "install the torch that torch-neuronx was built for",
        )


def _library(interpreter: Interpreter) -> Finding:
    packages = interpreter.packages
    placeholders = [name for name, versions in PLACEHOLDERS.items() if packages.get(name) in versions]
    if placeholders or "WRONG PACKAGE" in interpreter.import_error:
        named = ", ".join(f"{name} {packages[name]}" for name in placeholders) or "transformers-neuronx"
        return fail(
            "library", f"{named}: a placeholder from PyPI, which only says that it is the wrong package", _INSTALL
        )
    if interpreter.import_error:
        missing = [name for name in _NEURON_PACKAGES if name not in packages]
        lacks = f" (not installed: {', '.join(missing)})" if missing else ""
        return fail("library", f"transformers_neuronx cannot be imported: {interpreter.import_error}{lacks}", _INSTALL)
    version = packages.get("transformers-neuronx", "of no installed version")
    return ok("library", f"transformers-neuronx {version} in {interpreter.library}")


def _driver(driver: Driver, packages: Mapping[str, str]) -> Finding:
    installed = driver.installed or packages.get(DRIVER, "")
    if driver.loaded and driver.installed and numbers(driver.loaded) != numbers(driver.installed):
        return warn(
            "driver", f"{driver.loaded} is loaded, {driver.installed} is installed: it was not reloaded", _RELOAD
        )
    if driver.loaded or installed:
        state = "loaded" if driver.loaded else "installed"
        return ok("driver", f"{DRIVER} {driver.loaded or installed}, {state}")
    return warn(
        "driver",
        "its version cannot be read",
        "in a container that is so: look at `modinfo neuron` on the host; else install aws-neuronx-dkms",
    )


def _one_release(python: Mapping[str, str]) -> Finding:
    belongs = {name: releases_of(name, version) for name, version in python.items()}
    common = [release for release in RELEASES if all(release in releases for releases in belongs.values())]
    if common:
        return ok("release", f"the Python packages are those of Neuron SDK {common[-1].name}")
    named = "; ".join(
        f"{name} {version} ({', '.join(release.name for release in belongs[name]) or 'no known release'})"
        for name, version in python.items()
    )
    recommended = ", ".join(
        f"{name} {RECOMMENDED.versions[name][0]}" for name in ("transformers-neuronx", "neuronx-cc")
    )
    return warn(
        "release",
        f"the Python packages are of different releases: {named}",
        f"install those of one release, best {RECOMMENDED.name} ({recommended}, ...): other mixtures are untested",
    )


def _not_older(
    check: str, package: str, at: Mapping[str, str], than: str, of: Mapping[str, str], consequence: str
) -> Iterator[Finding]:
    """A failure when the `package` in `at` is of an older release than the package `than` in `of`."""
    if package not in at or than not in of:
        return
    wanted = releases_of(than, of[than])
    if not wanted:
        return
    least = min(wanted, key=RELEASES.index)
    if numbers(at[package]) < numbers(_version(least, package)):
        yield fail(
            check,
            f"{package} {at[package]} is older than {than} {of[than]} (Neuron SDK {least.name}) wants: {consequence}",
            f"upgrade {package} to {_version(least, package)} or newer"
            + (f", then {_RELOAD}" if check == "driver" else ""),
        )


def _version(release: Release, package: str) -> str:
    return release.versions[package][0]
