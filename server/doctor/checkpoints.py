"""The models' directories and their compiled artifacts. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from models.neuron.artifacts import Toolchain, ingredients_of
from models.planner.fit import gib
from models.protocol import NeuronOptions
from models.spec import ModelSpec
from server.doctor.capture import Checkpoint, Interpreter, Store
from server.doctor.finding import Finding, fail, ok, warn
from server.settings import ModelSettings, Settings

# The default configuration's model, which a set-up command writes into the model cache.
_EMBEDDED = "/models/SmolLM2-135M-Instruct"
_PULL = "neuronx-serve models pull {}, or put the checkpoint there"
_PACKAGES = ("transformers-neuronx", "torch-neuronx", "libneuronxla", "neuronx-cc")


def check_checkpoints(settings: Settings, checkpoints: Mapping[str, Checkpoint]) -> Iterator[Finding]:
    """Whether each model's directory is whole. The default model must be; another may come later."""
    for model in settings.models:
        found = checkpoints[model.id]
        if not found.problems:
            yield ok("model", f"{model.id}: {found.path}, {gib(found.size)} GiB")
            continue
        text = f"{model.id}: {found.path}: {'; '.join(found.problems)}"
        if model.path.endswith(_EMBEDDED):
            yield warn("model", text, "python -m models.cpu.embedded prepares it; scripts/serve does so by itself")
        elif model is settings.models[0]:
            yield fail("model", text, _PULL.format(model.id))
        else:
            yield warn("model", text, _PULL.format(model.id))


def check_artifacts(
    settings: Settings,
    checkpoints: Mapping[str, Checkpoint],
    interpreters: Mapping[str, Interpreter],
    stores: Mapping[str, Store],
) -> Iterator[Finding]:
    """Whether each Neuron model's graphs are compiled for what would load them."""
    for model in settings.models:
        spec = checkpoints[model.id].spec
        if isinstance(model.device, NeuronOptions) and spec is not None:
            interpreter = interpreters[model.python or settings.worker.python]
            yield _artifact(model, model.device, spec, interpreter, stores[model.id])


def _artifact(
    model: ModelSettings, options: NeuronOptions, spec: ModelSpec, interpreter: Interpreter, store: Store
) -> Finding:
    toolchain = Toolchain(
        versions={name: interpreter.packages.get(name, "unknown") for name in _PACKAGES},
        library_path=interpreter.library,
        variables={},
    )
    wanted = ingredients_of(spec, options, toolchain)
    differences = {
        name: [each for each in wanted.differences(manifest.made_of) if not each.startswith("environment.")]
        for name, manifest in store.manifests
    }
    fitting = next((name for name, differing in differences.items() if not differing), None)
    if fitting:
        return ok("artifacts", f"{model.id}: {store.path}/{fitting}")
    text = f"{model.id}: nothing in {store.path} is compiled for this configuration"
    if differences:
        name, nearest = min(differences.items(), key=lambda each: len(each[1]))
        text += f"; the nearest, {name}: {'; '.join(nearest)}"
    if store.broken:
        text += f"; broken: {'; '.join(store.broken)}"
    if options.compile == "if-missing":
        return warn("artifacts", text, "nothing: the first load compiles it, which takes 10 to 60 minutes")
    return fail(
        "artifacts", text, f"neuronx-serve compile {model.id} --config FILE, or neuronx-serve artifacts pull SOURCE"
    )
