"""A headless Chromium for tests: pages in, what they show and do out.

It speaks the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/) through two
pipes, so no other package is needed.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support import need

_PATIENCE = 60.0  # seconds that anything may take


class Browser:
    """One page of a browser without network; `messages` are what its scripts complained about."""

    def __init__(self, width: int = 1280, height: int = 800, dark: bool = False):
        need("chromium")
        self.messages: list[str] = []
        self._home = tempfile.TemporaryDirectory()
        ours, theirs = os.pipe(), os.pipe()
        options = [
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
            *("--no-first-run", "--hide-scrollbars", "--disable-extensions"),
            *("--disable-background-networking", "--proxy-server=127.0.0.1:9"),
            *("--allow-file-access-from-files", f"--user-data-dir={self._home.name}"),
            f"--window-size={width},{height}",
        ]

        def connect() -> None:
            """Chromium reads commands from descriptor 3 and answers on 4."""
            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (ours[0], theirs[1])]
            for number, end in enumerate(ends, 3):
                os.dup2(end, number)
                os.close(end)

        self._process = subprocess.Popen(
            ["chromium", *options, "about:blank"],
            preexec_fn=connect,
            close_fds=False,  # else 3 and 4 as well; Python's others close themselves
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(ours[0])
        os.close(theirs[1])
        self._to, self._from = ours[1], theirs[0]
        self._read = b""
        self._calls = 0
        self._events: list[dict[str, Any]] = []
        self._attached: str | None = None
        targets = self.call("Target.getTargets")["targetInfos"]
        [page] = [target["targetId"] for target in targets if target["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._attached = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._attached = None
            self.call("Browser.close")  # a killed one leaves its children behind
            self._process.wait(_PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._to)
            os.close(self._from)
            self._home.cleanup()

    def open(self, address: str) -> None:
        """Go to `address` and wait until the page has loaded."""
        self._events.clear()
        self.call("Page.navigate", url=address)
        self.wait_for("Page.loadEventFired")

    def call(self, method: str, **arguments: object) -> dict[str, Any]:
        """The result of a command of the protocol; AssertionError where it fails."""
        self._calls += 1
        message: dict[str, object] = {"id": self._calls, "method": method, "params": arguments}
        if self._attached is not None:
            message["sessionId"] = self._attached
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                return dict(answer.get("result", {}))

    def wait_for(self, method: str) -> dict[str, Any]:
        """The next event of that name."""
        while not any(event["method"] == method for event in self._events):
            self._next()
        return next(event for event in self._events if event["method"] == method)

    def run(self, script: str) -> Any:
        """What a JavaScript expression comes to, as JSON has it."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script: str) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            value = self.run(script)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}; {self.messages}")

    def press(self, *keys: str) -> None:
        """Keys, by their names in the DOM."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def mouse(self, x: float, y: float, click: bool = False) -> None:
        """Move the mouse there, and click."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        """What is to be seen, as a PNG."""
        found = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))

    def requests(self) -> list[str]:
        """What the page asked for since it was opened, its own address first."""
        asked = [e for e in self._events if e["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in asked]

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + _PATIENCE
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._from], [], [], max(end - time.monotonic(), 0))
            chunk = os.read(self._from, 1 << 20) if ready else b""
            assert chunk, f"the browser says nothing; it runs: {self._process.poll() is None}"
            self._read += chunk
        line, _, self._read = self._read.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if message.get("method") == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(message["params"]["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded":
            self.messages.append(message["params"]["entry"]["text"])
        if "method" in message:
            self._events.append(message)
        return message
