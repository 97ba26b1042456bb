"""A real browser for the tests: Debian's headless Chromium, driven through chromedriver's W3C WebDriver protocol."""

from __future__ import annotations

import base64
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key under which WebDriver sends elements


@dataclass
class Browser:
    """One WebDriver session."""

    session: str

    def call(self, method: str, path: str, **body: Any) -> Any:
        """A command of the protocol; its value."""
        answer = httpx.request(method, self.session + path, json=body if method == "POST" else None, timeout=60)
        value = answer.json()["value"]
        assert answer.status_code == 200, value
        return value

    def open(self, url: str) -> None:
        self.call("POST", "/url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a script returns."""
        return self.call("POST", "/execute/sync", script=script, args=list(arguments))

    def element(self, selector: str) -> str:
        found = self.call("POST", "/element", using="css selector", value=selector)
        return f"/element/{found[_ELEMENT]}"

    def text(self, selector: str) -> str:
        return str(self.call("GET", self.element(selector) + "/text"))

    def click(self, selector: str) -> None:
        self.call("POST", self.element(selector) + "/click")

    def type(self, selector: str, text: str) -> None:
        self.call("POST", self.element(selector) + "/value", text=text)

    def press(self, *keys: str) -> None:
        """Keys for whatever has the focus; all of them are held until the last is down."""
        actions = [{"type": "keyDown", "value": key} for key in keys]
        actions += [{"type": "keyUp", "value": key} for key in reversed(keys)]
        self.call("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def until(self, script: str, *arguments: Any, seconds: float = 60) -> None:
        """Wait until the script returns true."""
        deadline = time.monotonic() + seconds
        while not self.run(script, *arguments):
            assert time.monotonic() < deadline, f"never true: {script}\n{self.run('return document.body.innerText')}"
            time.sleep(0.05)

    def window(self, width: int, height: int, scheme: str) -> None:
        """A screen of that size whose user prefers "light" or "dark"."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._devtools("Emulation.setDeviceMetricsOverride", **screen)
        self._devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path) -> None:
        """The whole page, as PNG."""
        shot = self._devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """What the console holds since the last call: errors of scripts, of loading, of the content security policy."""
        return [entry["message"] for entry in self.call("POST", "/se/log", type="browser")]

    def accessibility(self) -> list[dict[str, Any]]:
        """The page as a screen reader is told it: nodes with role and name."""
        nodes = self._devtools("Accessibility.getFullAXTree")["nodes"]
        return [node for node in nodes if not node["ignored"]]

    def _devtools(self, command: str, **params: Any) -> Any:
        return self.call("POST", "/goog/cdp/execute", cmd=command, params=params)


@pytest.fixture(scope="session")
def chromedriver() -> Iterator[str]:
    """The URL of a running chromedriver."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found: apt-get install chromium chromium-driver (Debian)")
    command = ["chromedriver", "--port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    with process.stdout:
        line = next(line for line in process.stdout if "successfully" in line)
        yield f"http://127.0.0.1:{line.rstrip().rstrip('.').rpartition(' ')[2]}"
        process.terminate()
        process.wait(10)


@pytest.fixture
def browse(chromedriver: str, tmp_path: Path) -> Iterator[Callable[[], Browser]]:
    """browse() -> a browser of its own; all are closed at the end."""
    sessions: list[Browser] = []

    def start() -> Browser:
        profile = tmp_path / f"profile-{len(sessions)}"
        options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = httpx.post(
            f"{chromedriver}/session", json={"capabilities": {"alwaysMatch": wanted}}, timeout=60
        ).json()["value"]
        assert "sessionId" in answer, answer
        sessions.append(Browser(f"{chromedriver}/session/{answer['sessionId']}"))
        return sessions[-1]

    yield start
    for browser in sessions:
        browser.call("DELETE", "")
