"""The admin page in a real browser: watched, clicked, typed at, and looked at in light and dark, narrow and wide."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

TWO = """
[server]
admin_key = "{key}"

[[models]]
id = "org/first"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 256
eos_token = 255
step_s = 0.02

[[models]]
id = "org/second"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 256
eos_token = 255
answer_tokens = 7
load_s = {load_s}
"""
FIRST, SECOND = ".model:nth-child(1)", ".model:nth-child(2)"
STATE = "return document.querySelector(arguments[0] + ' .badge')?.textContent === arguments[1]"
AXE = """
    const done = arguments[0];
    const told = ({ id, nodes }) => [id, ...nodes.map((node) => node.html)];
    axe.run().then(({ violations }) => done(violations.map(told)));
"""
TAB, ENTER, CONTROL = "\ue004", "\ue007", "\ue009"

Start = Callable[..., Any]


@pytest.fixture
def two(serve: Start, tiny_text_directory: Path) -> Start:
    """two(key="", load_s=1, env={}) -> Server with org/first available and org/second configured."""

    def start(key: str = "", load_s: float = 1, env: dict[str, str] | None = None) -> Any:
        server = serve(TWO.format(directory=tiny_text_directory, key=key, load_s=load_s), env=env)
        server.wait_available()
        return server

    return start


@pytest.fixture
def page(browse: Start) -> Start:
    """page(server) -> Browser on its admin page, with the models shown."""

    def start(server: Any) -> Any:
        browser = browse()
        browser.open(server.url + "/admin")
        browser.until(STATE, FIRST, "Available")
        return browser

    return start


def test_activate_watch_it_load_and_prompt_it(two: Start, page: Start, tmp_path: Path) -> None:
    browser = page(two())
    browser.click(f"{SECOND} .activate")
    browser.until(STATE, SECOND, "Loading")
    browser.until("return document.querySelector(arguments[0] + ' progress').value > 0.2", SECOND)
    browser.screenshot(tmp_path / "loading.png")
    browser.until(STATE, SECOND, "Available")
    browser.until(STATE, FIRST, "Unloaded")
    assert "org/second: Available" in browser.text("#announcement")
    assert browser.text("label[for=prompt]") == "Ask the active model: org/second"
    browser.type("#prompt", "How are you?")
    browser.click("#send")
    browser.until("return document.querySelector('#answer-note').textContent.startsWith('8 tokens, the first after')")
    browser.until("return document.querySelector('#done').textContent === '1'")
    assert browser.run("return document.querySelector('#answer').textContent.length") > 0
    browser.until("return document.querySelector('#log').textContent.includes('org/second: loading -> available')")
    for width, height in ((1200, 900), (390, 844)):
        for scheme in ("light", "dark"):
            browser.window(width, height, scheme)
            assert browser.run("return document.documentElement.scrollWidth") == width, "nothing is cut off"
            browser.screenshot(tmp_path / f"{scheme}-{width}.png")
    assert len(list(tmp_path.glob("*.png"))) == 5
    assert browser.complaints() == []


def test_a_load_can_be_cancelled(two: Start, page: Start) -> None:
    browser = page(two(load_s=60))
    browser.click(f"{SECOND} .activate")
    browser.until(STATE, SECOND, "Loading")
    browser.click(f"{SECOND} .cancel")
    browser.until(STATE, SECOND, "Unloaded")
    browser.until(STATE, FIRST, "Available")
    assert browser.complaints() == []


def test_a_running_answer_can_be_stopped(two: Start, page: Start) -> None:
    server = two()
    browser = page(server)
    browser.run("const ask = document.querySelector('#prompt'); ask.value = 'x'.repeat(100); ask.form.requestSubmit()")
    browser.click("#stop")
    browser.until("return document.querySelector('#answer-note').textContent === 'Stopped'")
    browser.until("return document.querySelector('#slots').textContent.startsWith('0 of')")


def test_unload_leaves_nothing_loaded_and_says_so(two: Start, page: Start) -> None:
    browser = page(two())
    browser.click(f"{FIRST} .unload")
    browser.until(STATE, FIRST, "Unloaded")
    assert browser.text("#health") == "Unloaded"


def test_while_a_model_ends_its_answers_the_page_says_so_and_keeps_the_focus(two: Start, page: Start) -> None:
    browser = page(two())
    browser.run("const ask = document.querySelector('#prompt'); ask.value = 'x'; ask.form.requestSubmit()")
    browser.until("return document.querySelector('#slots').textContent.startsWith('1 of')")
    browser.click(f"{SECOND} .activate")
    browser.run("document.querySelector(arguments[0] + ' .unload').focus()", FIRST)
    note = "return document.querySelector(arguments[0] + ' .loading p').textContent === arguments[1]"
    browser.until(note, SECOND, "Staged; org/first ends its answers first")
    assert browser.run("return document.activeElement.textContent") == "org/first"
    browser.click(f"{SECOND} .cancel")
    browser.until(STATE, FIRST, "Available")
    browser.click("#stop")


def test_axe_finds_no_fault_in_any_state_width_or_scheme(two: Start, page: Start) -> None:
    browser = page(two(load_s=60))
    browser.click(f"{SECOND} .activate")
    browser.until(STATE, SECOND, "Loading")
    browser.type("#prompt", "How are you?")
    browser.click("#send")
    browser.until("return document.querySelectorAll('#plots svg[aria-label]').length === 3")
    axe = resources.files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
    browser.run(axe + "; window.axe = axe")
    for width in (1200, 390):
        for scheme in ("light", "dark"):
            browser.window(width, 844, scheme)
            faults = browser.call("POST", "/execute/async", script=AXE, args=[])
            assert faults == [], (width, scheme)


def test_all_of_it_works_by_keyboard(two: Start, page: Start) -> None:
    browser = page(two())
    focus = "return document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
    browser.press(TAB)
    assert browser.run(focus) == "Skip to the models"
    browser.press(ENTER)
    seen = []
    while browser.run(focus) != "Activate org/second" and len(seen) < 10:
        browser.press(TAB)
        seen.append(browser.run(focus))
    assert seen[-1] == "Activate org/second"
    outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus can be seen"
    browser.press(ENTER)
    browser.until(STATE, SECOND, "Available")
    assert browser.run(focus) == "Unload org/second", "the focus stays with the model when its button goes"
    while browser.run("return document.activeElement.id") != "prompt":
        browser.press(TAB)
    browser.press("x")
    browser.press(CONTROL, ENTER)
    browser.until("return document.querySelector('#answer-note').textContent.startsWith('8 tokens')")


def test_a_screen_reader_is_told_every_control_and_plot_by_name(two: Start, page: Start) -> None:
    browser = page(two(load_s=3))
    browser.click(f"{SECOND} .activate")
    browser.until(STATE, SECOND, "Loading")
    browser.until("return document.querySelectorAll('#plots svg[aria-label]').length === 3")
    nodes = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in browser.accessibility()]
    named = {"button", "textbox", "progressbar", "progressIndicator", "ProgressIndicator", "image", "heading", "region"}
    assert [role for role, name in nodes if role in named and not name] == []
    names = {name for role, name in nodes if role in named}
    assert {"Models", "Load", "Prompt", "Log", "Keys", "Loading org/second", "Cancel org/second", "Admin key"} <= names
    assert any(name.startswith("Tokens per second: ") for name in names)
    assert any(word in browser.text("#announcement") for word in ("org/second: Staging", "org/second: Loading"))


def test_with_an_admin_key_it_is_asked_for_and_kept_for_the_tab(two: Start, page: Start, browse: Start) -> None:
    server = two(key="Secret")
    browser = page(server)
    browser.until("return document.querySelector('#log').textContent.includes('admin_key')")
    browser.click(f"{SECOND} .activate")
    browser.until("return document.querySelector('#problem').textContent.includes('admin_key')")
    assert browser.run("return document.activeElement.id") == "admin-key"
    browser.type("#admin-key", "Secret")
    browser.press(ENTER)
    browser.click(f"{SECOND} .activate")
    browser.until(STATE, SECOND, "Available")
    browser.until("return document.querySelector('#log').textContent.includes('org/second: loading -> available')")
    browser.open(server.url + "/admin")
    browser.until("return document.querySelector('#log').textContent.includes('available')")
    other = browse()
    other.open(server.url + "/admin")
    other.until("return document.querySelector('#log').textContent.includes('admin_key')")


def test_a_server_that_goes_away_is_noticed(two: Start, page: Start) -> None:
    server = two()
    browser = page(server)
    server.stop()
    browser.until("return document.querySelector('#health').textContent === 'No answer'")
    assert "does not answer" in browser.text("#problem")


FIGURES = """
    const items = [...document.querySelectorAll('#device-figures div')];
    return Object.fromEntries(items.map((item) => [...item.children].map((part) => part.textContent)));
"""


def test_what_neuron_monitor_reports_is_shown_and_the_step_beside_its_floor(
    two: Start, page: Start, neuron_monitor_path: str, tmp_path: Path
) -> None:
    browser = page(two(env={"PATH": neuron_monitor_path}))
    browser.until("return !document.querySelector('#device').hidden")
    browser.until("return document.querySelector('#device-figures').textContent.includes('Core 1 busy')")
    figures = browser.run(FIGURES)
    step = figures.pop("Decode step of org/first to 2048 positions")
    assert step.endswith(" ms, floor 20 ms")
    assert figures == {
        "Core 0 busy": "88 %",
        "Core 1 busy": "86 %",
        "Device memory": "19.9 GiB of 32.0 GiB",
        "of it constants": "15.0 GiB",
        "of it model code": "592 MiB",
        "of it model shared scratchpad": "256 MiB",
        "of it runtime memory": "100 MiB",
        "of it tensors": "4.0 GiB",
        "Execution errors": "3",
        "Memory errors corrected": "3",
        "not corrected": "0",
    }
    for scheme in ("light", "dark"):
        browser.window(390, 844, scheme)
        assert browser.run("return document.documentElement.scrollWidth") == 390, "nothing is cut off"
        browser.screenshot(tmp_path / f"{scheme}.png")
    assert browser.complaints() == []


def test_without_neuron_monitor_the_device_is_its_steps_alone(two: Start, page: Start) -> None:
    browser = page(two())
    browser.until("return !document.querySelector('#device').hidden")
    assert list(browser.run(FIGURES)) == ["Decode step of org/first to 2048 positions"]
