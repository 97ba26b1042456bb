"""Make configs/cloudformation/{existing,new}-vpc.yaml out of their one source: python scripts/make_templates.py

In configs/cloudformation/source/template.yaml a line `#> NAME` begins lines that go into that template only, `#> end`
ends them, and `#> include FILE` stands for the lines of FILE, indented as a block of YAML. Each template has to be one
file, since it is launched alone; nothing is copied between the two by hand.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "configs/cloudformation"
NAMES = ("existing-vpc", "new-vpc")
HEADER = "# Made by scripts/make_templates.py: change configs/cloudformation/source. See docs/deployment.md.\n"
INDENT = " " * 8


def render(name: str) -> str:
    """The text of the template `name`."""
    lines = [HEADER]
    only = ""
    for line in (FOLDER / "source/template.yaml").read_text("utf-8").splitlines(keepends=True):
        word, _, rest = line.rstrip().removeprefix("#> ").partition(" ")
        if not line.startswith("#> "):
            lines += [line] if only in ("", name) else []
        elif word == "include":
            lines += _indented((FOLDER / "source" / rest).read_text("utf-8"))
        elif word in (*NAMES, "end"):
            only = "" if word == "end" else word
        else:
            raise ValueError(f"template.yaml: {line.rstrip()!r}: known are {', '.join(NAMES)}, include and end")
    return "".join(lines)


def _indented(text: str) -> list[str]:
    return [f"{INDENT}{line}" if line.strip() else line for line in text.splitlines(keepends=True)]


if __name__ == "__main__":
    for each in NAMES:
        (FOLDER / f"{each}.yaml").write_text(render(each), "utf-8")
