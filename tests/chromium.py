"""Headless Chromium through its debugging pipe: open a page, look at it, hear what it complains of.

Nothing is installed for it: commands and events are JSON, each ended by a zero byte, on the file
descriptors 3 and 4 (the Chrome DevTools Protocol with `--remote-debugging-pipe`).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60.0  # seconds for one answer on a busy machine
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def found() -> str | None:
    """The browser's program, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Page:
    """An open page.

    Attributes:
        requests: the addresses that it asked for.
        complaints: errors and warnings of its console, and exceptions.
    """

    pipe: Pipe
    session: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command, and its answer."""
        return self.pipe.ask(method, parameters, self)

    def show(self, file: Path, width: int, scheme: str, height: int = 800) -> None:
        """Opens a file at a width, in a colour scheme, and waits until it is there."""
        self.requests.clear(), self.complaints.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", features=wanted)
        self.ask("Page.navigate", url=file.resolve().as_uri())
        while self.value("document.readyState") != "complete":
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """What an expression comes to in the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, clip: tuple[float, float, float, float] | None = None) -> bytes:
        """A PNG of the whole page, or of (x, y, width, height) of it."""
        more: dict[str, Any] = {"captureBeyondViewport": True}
        if clip is not None:
            names = ("x", "y", "width", "height")
            more["clip"] = {**dict(zip(names, clip, strict=True)), "scale": 1}
        return base64.b64decode(self.ask("Page.captureScreenshot", **more)["data"])

    def hear(self, event: dict[str, Any]) -> None:
        """Notes an event."""
        method, content = event["method"], event["params"]
        if method == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(content["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning"):
            self.complaints.append(str(content["args"]))
        elif method == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            self.complaints.append(content["entry"]["text"])


@dataclass
class Pipe:
    """The two ends that commands go into and answers come out of."""

    into: int
    out: int
    number: int = 0
    rest: bytes = b""

    def ask(self, method: str, parameters: dict[str, Any], page: Page | None) -> dict[str, Any]:
        """Sends a command and waits for its answer; what the page says in between is heard."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters}
        if page is not None:
            command["sessionId"] = page.session
        os.write(self.into, json.dumps(command).encode() + b"\0")
        for message in self.messages():
            if message.get("id") == self.number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            if page is not None and message.get("sessionId") == page.session:
                page.hear(message)
        raise AssertionError(f"Chromium did not answer {method}")

    def messages(self) -> Iterator[dict[str, Any]]:
        """What Chromium says, until it is silent for too long."""
        while True:
            while b"\0" in self.rest:
                text, _, self.rest = self.rest.partition(b"\0")
                yield json.loads(text)
            ready, _, _ = select.select([self.out], [], [], PATIENCE)
            part = os.read(self.out, 2**16) if ready else b""
            if not part:
                return
            self.rest += part


@contextmanager
def opened(program: str) -> Iterator[Page]:
    """An empty page of a browser of its own, which is closed afterwards."""
    theirs_in, into = os.pipe()
    out, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        # the shell puts the pipe's ends where Chromium looks for them
        line = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        words = ["bash", "-c", line, "bash", program, *FLAGS, f"--user-data-dir={home}"]
        process = subprocess.Popen(
            [*words, "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in), os.close(theirs_out)
        pipe = Pipe(into, out)
        try:
            target = pipe.ask("Target.createTarget", {"url": "about:blank"}, None)["targetId"]
            ways = {"targetId": target, "flatten": True}
            page = Page(pipe, pipe.ask("Target.attachToTarget", ways, None)["sessionId"])
            for domain in ("Page", "Network", "Runtime", "Log"):
                page.ask(f"{domain}.enable")
            yield page
        finally:
            with suppress(AssertionError, OSError):
                pipe.ask("Browser.close", {}, None)
            process.terminate()
            process.wait(timeout=PATIENCE)
            os.close(into), os.close(out)
