"""A headless Chromium that opens files, driven through its DevTools protocol."""

import base64
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

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-default-apps", "--hide-scrollbars", "--remote-debugging-port=0"),
)
_PATIENCE = 60.0


def find_chromium() -> str | None:
    """Return the browser that $FEDPRUNE_CHROMIUM names or that is installed."""
    return os.environ.get("FEDPRUNE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab; ``events`` are what the browser has told so far, as (method, parameters)."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._last = 0
        self.events: list[tuple[str, dict[str, Any]]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            message = self._next()
            if message.get("id") == self._last:
                assert "error" not in message, message["error"]
                return message["result"]

    def open(self, path: Path) -> None:
        """Open a file and wait until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            self._next()

    def run(self, script: str) -> Any:
        """Return the JSON value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def resize(self, width: int, height: int = 800) -> None:
        """Give the window a size in CSS pixels; below 500 it is a phone's."""
        phone = width < 500
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1}
        self.call("Emulation.setDeviceMetricsOverride", mobile=phone, **metrics)

    def emulate(self, scheme: str = "light", media: str = "") -> None:
        """Show the page as with this colour scheme; ``media`` "print" shows it as on paper."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def press(self, key: str) -> None:
        """Press and release a key."""
        codes = {"Tab": 9, "Enter": 13}
        parts = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        if key == "Enter":
            parts["text"] = "\r"
        self.call("Input.dispatchKeyEvent", type="keyDown", **parts)
        self.call("Input.dispatchKeyEvent", type="keyUp", **parts)

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self, path: Path) -> None:
        """Write the page as it is printed."""
        found = self.call("Page.printToPDF", printBackground=True, paperWidth=8.27)
        path.write_bytes(base64.b64decode(found["data"]))

    def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=_PATIENCE))
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message


@contextmanager
def browse(binary: str) -> Iterator[Page]:
    """Start a browser with an empty profile and yield its tab."""
    # A short path, since sockets lie below it; its processes still write when it is told to end.
    where = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
    with where as folder, Path(folder, "log").open("w+") as log:
        command = [binary, *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            port, path = _endpoint(Path(folder), process)
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as socket:
                target = _tab(socket)
            with connect(f"ws://127.0.0.1:{port}/devtools/page/{target}", max_size=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(_PATIENCE)


def _endpoint(folder: Path, process: "subprocess.Popen[bytes]") -> tuple[str, str]:
    """Return port and path of the browser, which writes them when it listens."""
    file, deadline = folder / "DevToolsActivePort", time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        lines = file.read_text().splitlines() if file.exists() else []
        if len(lines) == 2:
            return lines[0], lines[1]
        time.sleep(0.05)
    raise RuntimeError(f"the browser did not start: {(folder / 'log').read_text()[-2000:]}")


def _tab(socket: ClientConnection) -> str:
    """Return the id of the browser's first tab."""
    while True:
        socket.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
        targets = json.loads(socket.recv(timeout=_PATIENCE))["result"]["targetInfos"]
        pages = [target["targetId"] for target in targets if target["type"] == "page"]
        if pages:
            return str(pages[0])
