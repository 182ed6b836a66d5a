"""A headless Chromium that a test looks at a page with, by the DevTools protocol over two pipes."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Tab:
    """One page in a browser."""

    def __init__(self, writes: int, reads: int) -> None:
        self._writes, self._reads, self._left, self._number = writes, reads, b"", 0
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """What the browser answers to a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {} if self._session is None else {"sessionId": self._session}
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        while (found := self._read()).get("id") != self._number:
            self.events.append(found)
        assert "error" not in found, found
        return found["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            assert select.select([self._reads], [], [], 60)[0], "the browser says nothing"
            self._left += os.read(self._reads, 1 << 16)
        text, _, self._left = self._left.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found

    def open(self, url: str) -> None:
        """Go to an address, and wait for its script to end."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && document.getElementById('said').textContent === ''")

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript is."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait for an expression to be true."""
        for _ in range(600):
            if self.value(f"(() => {{ try {{ return {expression} }} catch {{ return false }} }})()"):
                return
            time.sleep(0.05)
        raise AssertionError(f"not in half a minute: {expression}")

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key and let it go."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code, "nativeVirtualKeyCode": code}
        kind = "keyDown" if text else "rawKeyDown"
        self.call("Input.dispatchKeyEvent", type=kind, **about, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """Be a screen of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        """Keep what is seen as a PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def asked_for(self) -> list[str]:
        """Addresses that were asked for."""
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def complaints(self) -> list[Any]:
        """Errors of scripts, and what the policy refused."""
        return [e for e in self.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]


@contextmanager
def browsing(folder: Path) -> Iterator[Tab]:
    """A browser with a profile of its own."""
    assert BROWSER is not None
    from_us, to_browser = os.pipe()
    to_us, from_browser = os.pipe()
    line = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
    line += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-proxy-server"]

    def as_third_and_fourth() -> None:
        reads, writes = fcntl.fcntl(from_us, fcntl.F_DUPFD, 10), fcntl.fcntl(from_browser, fcntl.F_DUPFD, 10)
        os.dup2(reads, 3)
        os.dup2(writes, 4)

    silent = subprocess.DEVNULL
    process = subprocess.Popen(line, close_fds=False, preexec_fn=as_third_and_fourth, stdout=silent, stderr=silent)
    os.close(from_us)
    os.close(from_browser)
    try:
        yield Tab(to_browser, to_us)
    finally:
        os.close(to_browser)
        os.close(to_us)
        process.terminate()
        process.wait(20)
