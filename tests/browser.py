"""A real browser without a window: it loads a page, is used as by hand, and records the page's requests.

The Chrome DevTools protocol goes over a pipe, which needs nothing but the standard library.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--remote-debugging-pipe",
]
KEYS = {  # codes of Windows, and the text that a key types
    "Tab": (9, ""),
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    " ": (32, " "),
    "ArrowDown": (40, ""),
}
PATIENCE = 60  # seconds to wait for an answer, on a machine that is busy with other things


class Browser:
    """One page of a running browser."""

    def __init__(self, commands: int, answers: int):
        self._commands, self._answers = commands, answers
        self._number, self._pending = 0, b""
        self.requests: list[str] = []  # URLs that the page requested
        self.complaints: list[str] = []  # what it wrote to its console and log, errors among them
        self.choosers: list[int] = []  # inputs for which the page has opened a dialog to choose files
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.setInterceptFileChooserDialog", enabled=True)
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def open(self, path: Path | str, width: int = 1000, dark: bool = False) -> None:
        """Loads the file or the URL in a window of that width, and waits until its pictures are loaded."""
        self.requests.clear()
        self.complaints.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._loaded = False
        self.call("Page.navigate", url=path if isinstance(path, str) else path.absolute().as_uri())
        while not self._loaded:
            self._receive()

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression in the page. The page's own policy does not apply to it."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = PATIENCE) -> Any:
        """The value of a JavaScript expression once it is true; of an element, True."""
        script = f"(value => value instanceof Node || value)({script})"
        end = time.monotonic() + seconds
        while not (value := self.ask(script)):
            assert time.monotonic() < end, f"{script} does not become true: {self.ask('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def middle(self, selector: str) -> dict[str, float]:
        """Where an element is in the window, which is scrolled for it."""
        x, y = self.ask(
            f"""(() => {{ const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{block: "center", behavior: "instant"}});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; }})()"""
        )
        return {"x": x, "y": y}

    def click(self, selector: str) -> None:
        """Clicks on the first such element with the mouse."""
        place = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def press(self, key: str, *commands: str) -> None:
        """Presses a key of KEYS, or one for which the browser does `commands`, such as "paste"."""
        code, text = KEYS.get(key, (ord(key.upper()[0]), ""))
        what = {"key": key, "windowsVirtualKeyCode": code, "commands": list(commands)}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **what)
        self.call("Input.dispatchKeyEvent", type="keyUp", **what)

    def write(self, text: str) -> None:
        """Types text where the focus is."""
        self.call("Input.insertText", text=text)

    def drop(self, selector: str, paths: Sequence[Path]) -> None:
        """Drops files from elsewhere on an element."""
        place = self.middle(selector)
        data = {"items": [], "files": [str(path.absolute()) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, data=data, **place)

    def drag(self, selector: str, onto: str) -> None:
        """Drags an element onto another with the mouse. Both are in the window once the second one is."""
        self.middle(onto)
        boxes = [
            self.ask(
                f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
                f"(document.querySelector({json.dumps(one)}).getBoundingClientRect())"
            )
            for one in (selector, onto)
        ]
        (x, y), (to_x, to_y) = boxes
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.call("Input.dispatchMouseEvent", type="mousePressed", button="left", clickCount=1, x=x, y=y)
        for share in (0.1, 0.5, 0.9, 1, 1):
            at = {"x": x + share * (to_x - x), "y": y + share * (to_y - y)}
            self.call("Input.dispatchMouseEvent", type="mouseMoved", button="left", buttons=1, **at)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", button="left", clickCount=1, x=to_x, y=to_y)

    def choose(self, paths: Sequence[Path]) -> None:
        """Chooses files in the dialog that the page has opened."""
        while not self.choosers:
            self._receive()
        files = [str(path.absolute()) for path in paths]
        self.call("DOM.setFileInputFiles", files=files, backendNodeId=self.choosers.pop())

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG file."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command of the protocol; returns its result."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        """The next answer or event."""
        while b"\0" not in self._pending:
            assert select.select([self._answers], [], [], PATIENCE)[0], "the browser does not answer"
            received = os.read(self._answers, 1 << 20)
            assert received, "the browser has ended"
            self._pending += received
        line, _, self._pending = self._pending.partition(b"\0")
        message = json.loads(line)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Page.loadEventFired":
                self._loaded = True
            case "Page.fileChooserOpened":
                self.choosers.append(parameters["backendNodeId"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                self.complaints.append(json.dumps(parameters))
        return message


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser that runs until the block ends. `profile` is an empty folder."""
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()
    # The protocol's pipes are the file descriptors 3 and 4.
    script = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
    process = subprocess.Popen(
        ["bash", "-c", script, str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Browser(commands, answers)
    finally:
        process.terminate()
        process.wait(30)
        os.close(commands)
        os.close(answers)
