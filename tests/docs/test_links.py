"""Every page leads somewhere: links, the files that are named, and the tests that are called a proof exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_FILE = re.compile(r"`((?:configs|docs|models|scripts|server|tests|\.ci)/[\w./-]*)(?=[`:])")
_TEST = re.compile(r"`((?:[\w/]+\.py)?::\w+)`")


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text("utf-8"))


@cache
def anchors(page: Path) -> frozenset[str]:
    """The places within a page, as GitHub names them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return frozenset(re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles)


def problems_of_links(page: Path, text: str) -> list[str]:
    """The links of the text that lead nowhere; those into the web are not followed."""
    found = []
    for link in _LINK.findall(_CODE.sub("", text)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if link.startswith(("http://", "https://")):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


def missing_tests(text: str) -> list[str]:
    """Tests that are named as FILE::NAME, or as ::NAME of the file before it, and do not exist."""
    missing, file = [], ""
    for named in _TEST.findall(text):
        name, _, test = named.partition("::")
        file = name or file
        paths = [ROOT / file] if "/" in file else list((ROOT / "tests").rglob(file or "?"))
        if not any(re.search(rf"\b(?:def|class) {test}\b", path.read_text("utf-8")) for path in paths if path.exists()):
            missing.append(named)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert problems_of_links(page, prose(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = set(_FILE.findall(page.read_text("utf-8")))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_called_a_proof_exists(page: Path) -> None:
    assert missing_tests(prose(page)) == []


def test_what_leads_nowhere_is_found() -> None:
    readme = ROOT / "README.md"
    text = "[a](docs/none.md) [b](docs/systemd.md#none) [c](#none) [d](docs/systemd.md#reloading) [e](LICENSE)"
    assert problems_of_links(readme, text) == ["docs/none.md", "docs/systemd.md#none", "#none"]
    assert missing_tests("`test_links.py::test_none`, `::test_what_leads_nowhere_is_found`") == [
        "test_links.py::test_none"
    ]


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        reached.add(page)
        targets = ((page.parent / link.partition("#")[0]).resolve() for link in _LINK.findall(prose(page)))
        new |= {target for target in targets if target in PAGES} - reached
    assert reached == set(PAGES)
