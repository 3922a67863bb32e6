"""A real browser for tests of pages: Debian's chromium, headless, driven by the DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE = 60.0  # seconds for any one answer

# The browser wants its pipes as file descriptors 3 and 4.
_LAUNCH = (
    "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 13); os.dup2(w, 14); os.dup2(13, 3); os.dup2(14, 4); \
os.execv(sys.argv[3], sys.argv[3:])"
)


def installed() -> str | None:
    """Where chromium is, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """A running chromium."""

    def __init__(self, process: subprocess.Popen[bytes], write: int, read: int) -> None:
        self.process = process
        self._write, self._read = write, read
        self._buffer = b""
        self._count = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """What a command of the protocol returns. Events that come before it are kept."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait_for_load(self, session: str, loader: str) -> None:
        """Waits until a navigation is done."""
        done = {"loaderId": loader, "name": "load"}
        while not any(
            one.get("method") == "Page.lifecycleEvent"
            and one.get("sessionId") == session
            and done.items() <= one["params"].items()
            for one in self.events
        ):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._read, 1 << 20) if ready else b""
            if not data:
                raise RuntimeError("the browser ended" if ready else f"the browser was silent for {PATIENCE:g} s")
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


class Page:
    """A tab."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)
        self.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol, for this tab."""
        return self._browser.call(method, self._session, **params)

    def open(self, path: Path, fragment: str = "") -> Page:
        """Goes to a file, anew, and waits until it is there."""
        self._go("about:blank")  # or another fragment of the same page would only move in it
        self._go(f"{path.as_uri()}{f'#{fragment}' if fragment else ''}")
        return self

    def _go(self, url: str) -> None:
        self._browser.events = [one for one in self._browser.events if one.get("sessionId") != self._session]
        self._browser.wait_for_load(self._session, self.call("Page.navigate", url=url)["loaderId"])

    def run(self, script: str) -> Any:
        """The value of an expression."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']['exception'].get('description')}")
        return found["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """The texts of what a selector finds."""
        return self.each(selector, "textContent")

    def each(self, selector: str, expression: str) -> list[Any]:
        """A property, or more of an expression, of each element that a selector finds."""
        script = f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.{expression})"
        found: list[Any] = self.run(script)
        return found

    def count(self, selector: str) -> int:
        """How many elements a selector finds."""
        return len(self.texts(selector))

    def press(self, key: str) -> None:
        """Presses a key, as a person does."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38}.get(key, ord(key[0]))
        down = {"type": "keyDown", "key": key, "text": text, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        """Types into what has the focus."""
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Clicks on what a selector finds."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def dark(self, *, is_dark: bool) -> None:
        """Prefers a dark page, or a light one."""
        wish = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[wish])

    def screenshot(self, path: Path) -> bytes:
        """A picture of what is to be seen, as PNG; kept at `path`."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        path.write_bytes(data)
        return data

    def complaints(self) -> list[str]:
        """What went wrong since the page was opened: exceptions, errors of the console, policies broken."""
        self.run("0")  # events that are on their way come first
        found = []
        for one in self._browser.events:
            if one.get("sessionId") != self._session:
                continue
            if one["method"] == "Runtime.exceptionThrown":
                found.append(one["params"]["exceptionDetails"]["exception"].get("description", "exception"))
            elif one["method"] == "Log.entryAdded" and one["params"]["entry"]["level"] in ("error", "warning"):
                found.append(one["params"]["entry"]["text"])
            elif one["method"] == "Runtime.consoleAPICalled" and one["params"]["type"] in ("error", "warning"):
                found.append(str(one["params"]["args"]))
        return found

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened."""
        self.run("0")
        return [
            one["params"]["request"]["url"]
            for one in self._browser.events
            if one.get("sessionId") == self._session and one["method"] == "Network.requestWillBeSent"
        ]


@contextlib.contextmanager
def running(profile: Path) -> Iterator[Browser]:
    """A chromium with an empty profile, which ends with this."""
    path = installed()
    assert path is not None, "ask installed() first"
    flags = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-breakpad"),
        *("--disable-background-networking", "--no-first-run", "--no-default-browser-check", "--hide-scrollbars"),
        *(f"--user-data-dir={profile}", "--remote-debugging-pipe"),
    )
    their_read, our_write = os.pipe()
    our_read, their_write = os.pipe()
    command = [sys.executable, "-c", _LAUNCH, str(their_read), str(their_write), path, *flags]
    process = subprocess.Popen(
        command,
        pass_fds=(their_read, their_write),
        env={**os.environ, "HOME": str(profile)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_read)
    os.close(their_write)
    browser = Browser(process, our_write, our_read)
    try:
        yield browser
    finally:
        with contextlib.suppress(RuntimeError, OSError):
            browser.call("Browser.close")
        os.close(our_write)  # the browser ends at the end of its pipe, whatever it does
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(our_read)
