"""Headless Chromium, driven over the Chrome DevTools protocol: enough to open ComfyUI's page and ask it something."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


class Browser:
    """A browser with a profile of its own.

    Args:
        size: of its windows, in pixels.
    """

    def __init__(self, *, size: tuple[int, int] = (1600, 1000)) -> None:
        self._profile = Path(tempfile.mkdtemp(prefix="chromium-"))
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={self._profile}", f"--window-size={size[0]},{size[1]}"]
        environment = os.environ | {"HOME": str(self._profile)}
        self._process = subprocess.Popen(
            [*command, "about:blank"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._url = self._debugger_url()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    @contextmanager
    def page(self, *, timeout: float = 600) -> Iterator["Page"]:
        """A tab that knows nothing of the others: ComfyUI's page would open what an earlier one had open.

        Args:
            timeout: seconds an answer may take.
        """
        version = requests.get(f"{self._url}/json/version", timeout=timeout).json()
        with Page(version["webSocketDebuggerUrl"], timeout) as whole:
            context = whole.call("Target.createBrowserContext")["browserContextId"]
            target = whole.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
            try:
                with Page(f"{self._url.replace('http', 'ws', 1)}/devtools/page/{target}", timeout) as tab:
                    yield tab
            finally:
                whole.call("Target.disposeBrowserContext", browserContextId=context)

    def _debugger_url(self) -> str:
        port_file = self._profile / "DevToolsActivePort"
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise BrowserError(f"{CHROMIUM} ended with exit code {self._process.returncode}")
            if port_file.exists() and (lines := port_file.read_text().split()):
                return f"http://127.0.0.1:{lines[0]}"
            time.sleep(0.1)
        raise BrowserError(f"{CHROMIUM} did not start within {START_SECONDS} s")


class Page:
    """A tab, or the browser itself: what answers at an address of the DevTools protocol."""

    def __init__(self, address: str, timeout: float) -> None:
        self._socket = websocket.create_connection(address, timeout=timeout, suppress_origin=True)
        self._ids = itertools.count(1)

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited.

        Raises:
            BrowserError: the expression threw.
        """
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = 600) -> None:
        """Wait until an expression is true.

        Raises:
            BrowserError: it did not become true in time.
        """
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({script})"):
            if time.monotonic() > end:
                raise BrowserError(f"not true after {seconds} s: {script}")
            time.sleep(0.1)

    def screenshot(self, path: Path) -> None:
        """Write what the page shows as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A method of the protocol.

        Raises:
            BrowserError: it failed.
        """
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
