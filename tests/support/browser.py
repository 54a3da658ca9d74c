"""Headless Chromium, driven over the Chrome DevTools protocol: enough to open ComfyUI's page and ask it something."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import requests
import websocket

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
START_SECONDS = 60


class BrowserError(RuntimeError):
    """The browser did not start, or a script in the page failed."""


class Page:
    """A tab of a browser of its own.

    Args:
        size: of the window, in pixels.
        timeout: seconds an answer may take.
    """

    def __init__(self, *, size: tuple[int, int] = (1600, 1000), timeout: float = 120) -> None:
        self._profile = Path(tempfile.mkdtemp(prefix="chromium-"))
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={self._profile}", f"--window-size={size[0]},{size[1]}"]
        environment = os.environ | {"HOME": str(self._profile)}
        self._process = subprocess.Popen(
            [*command, "about:blank"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._ids = itertools.count(1)
        try:
            address = self._debugger_address()
            self._socket = websocket.create_connection(address, timeout=timeout, suppress_origin=True)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self.close()

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited.

        Raises:
            BrowserError: the expression threw.
        """
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = 120) -> None:
        """Wait until an expression is true.

        Raises:
            BrowserError: it did not become true in time.
        """
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({script})"):
            if time.monotonic() > end:
                raise BrowserError(f"not true after {seconds} s: {script}")
            time.sleep(0.5)

    def screenshot(self, path: Path) -> None:
        """Write what the page shows as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        call_id = next(self._ids)
        self._socket.send(json.dumps({"id": call_id, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == call_id:
                break
        if "error" in message:
            raise BrowserError(f"{method}: {message['error']['message']}")
        result: dict[str, Any] = message["result"]
        return result

    def _debugger_address(self) -> str:
        """WebSocket address of the tab."""
        port_file = self._profile / "DevToolsActivePort"
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise BrowserError(f"{CHROMIUM} ended with exit code {self._process.returncode}")
            if port_file.exists() and (lines := port_file.read_text().split()):
                targets = requests.get(f"http://127.0.0.1:{lines[0]}/json", timeout=10).json()
                pages = [target for target in targets if target["type"] == "page"]
                if pages:
                    address: str = pages[0]["webSocketDebuggerUrl"]
                    return address
            time.sleep(0.2)
        raise BrowserError(f"{CHROMIUM} did not start within {START_SECONDS} s")
