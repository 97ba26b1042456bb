"""docs/deployment.md and docs/container.md against the templates, the image and the entry script that they speak of."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cfnlint.decode.cfn_yaml import loads

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENT = (ROOT / "docs/deployment.md").read_text("utf-8")
CONTAINER = (ROOT / "docs/container.md").read_text("utf-8")
TEMPLATES = {
    name: json.loads(json.dumps(loads((ROOT / f"configs/cloudformation/{name}.yaml").read_text("utf-8"))))
    for name in ("existing-vpc", "new-vpc")
}


def section(text: str, title: str) -> str:
    """What stands under the heading `title`."""
    return re.split(r"^#+ ", text.split(f"# {title}\n")[1], flags=re.MULTILINE)[0]


def test_every_parameter_and_its_default_is_in_the_table() -> None:
    for name, template in TEMPLATES.items():
        for parameter in template["Parameters"]:
            assert f"`{parameter}`" in DEPLOYMENT, (name, parameter)
    table = section(DEPLOYMENT, "Launch")
    for parameter, properties in TEMPLATES["new-vpc"]["Parameters"].items():
        if isinstance(default := properties.get("Default"), str) and default:
            assert re.search(rf"`{parameter}`.*\| {default} \|", table), parameter


def test_the_command_gives_what_has_no_default() -> None:
    launch = section(DEPLOYMENT, "Launch")
    given = set(re.findall(r"\b([A-Z]\w+)=\S", launch.split("```")[1]))
    parameters = TEMPLATES["new-vpc"]["Parameters"]
    assert {name for name, each in parameters.items() if "Default" not in each} <= given <= parameters.keys()


def test_every_output_is_told() -> None:
    outputs = TEMPLATES["new-vpc"]["Outputs"]
    assert outputs.keys() == {"ChatUi", "Api", "Admin", "Shell", "Artifacts"}
    assert "`Admin`" in DEPLOYMENT
    assert "`Artifacts`" in DEPLOYMENT


def test_the_variables_of_the_image_are_those_of_its_entry_script() -> None:
    script = (ROOT / "configs/container/entrypoint.sh").read_text("utf-8")
    told = set(re.findall(r"`((?:HF|SM|NEURONX)_\w+)`", section(CONTAINER, "SageMaker")))
    read = set(re.findall(r"\b(?:HF|SM|NEURONX_SERVE)_[A-Z_]+\b", script)) - {"NEURONX_SERVE_CACHE"}
    assert told - {"HF_TOKEN"} == read
