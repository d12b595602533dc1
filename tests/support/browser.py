"""Drives Chromium over its DevTools protocol, through a pipe: nothing but the standard library and Debian's
chromium-headless-shell (scripts/test-browser)."""

import base64
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

PATIENCE_S = 60  # a bound on hanging, not a measure: the machine may be busy


class BrowserMissing(Exception):
    pass


class Browser:
    """One browser process; pages are tabs of it."""

    def __init__(self):
        program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
        if program is None:
            raise BrowserMissing("no Chromium here; run scripts/test-browser")
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self.out = os.pipe()
        self.incoming, to_write = os.pipe()
        # The browser reads commands from descriptor 3 and writes to 4, each message ended by a NUL.
        self.process = subprocess.Popen(
            ["sh", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "sh", program, "--headless",
             "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--disable-background-networking", "--hide-scrollbars", "--force-color-profile=srgb",
             f"--user-data-dir={self.folder.name}"],
            pass_fds=(to_read, to_write), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        os.set_blocking(self.incoming, False)
        self.buffer = b""
        self.number = 0
        self.events: list[dict] = []

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)
        for descriptor in (self.out, self.incoming):
            os.close(descriptor)
        self.folder.cleanup()

    def _receive(self) -> dict | None:
        """The next message, if one is there."""
        while b"\0" not in self.buffer:
            try:
                piece = os.read(self.incoming, 1 << 20)
            except BlockingIOError:
                return None
            if not piece:
                raise AssertionError("the browser has ended")
            self.buffer += piece
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def pump(self):
        while (message := self._receive()) is not None:
            self.events.append(message)

    def call(self, method: str, session: str | None = None, **parameters) -> dict:
        self.number += 1
        number = self.number
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            answer = self._receive()
            if answer is None:
                time.sleep(0.005)
            elif answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            else:
                self.events.append(answer)
        raise AssertionError(f"{method}: no answer in {PATIENCE_S} s")


class Page:
    """A tab with a size and a colour scheme."""

    def __init__(self, browser: Browser, width: int, height: int, phone: bool = False, dark: bool = False,
                 scale: float = 1):
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.target = target
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone)
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)

    def call(self, method: str, **parameters) -> dict:
        return self.browser.call(method, self.session, **parameters)

    def open(self, url: str):
        self.call("Page.navigate", url=url)

    def run(self, expression: str):
        """The value of a JavaScript expression, promises awaited."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, what: str, expression: str):
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            value = self.run(expression)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"{what}: not within {PATIENCE_S} s; the page says:\n{self.text('body')}")

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def click(self, selector: str):
        """A real click in the middle of the element."""
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        x, y = self.run(f"""(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();
                                      return [r.x + r.width / 2, r.y + r.height / 2]; }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, text: str):
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, text: str = ""):
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def told(self, method: str) -> list[dict]:
        """The parameters of this page's events so far."""
        self.browser.pump()
        return [e["params"] for e in self.browser.events
                if e.get("method") == method and e.get("sessionId") == self.session]

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, and exceptions."""
        return ([e["exceptionDetails"].get("exception", {}).get("description", e["exceptionDetails"]["text"])
                 for e in self.told("Runtime.exceptionThrown")]
                + [json.dumps(e["args"]) for e in self.told("Runtime.consoleAPICalled") if e["type"] in ("error", "warning")]
                + [f"{e['entry']['text']} {e['entry'].get('url', '')}" for e in self.told("Log.entryAdded")
                   if e["entry"]["level"] in ("error", "warning")])

    def requests(self) -> list[str]:
        return [e["request"]["url"] for e in self.told("Network.requestWillBeSent")]

    def screenshot(self, path: pathlib.Path, whole: bool = True):
        clip = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1},
                    "captureBeyondViewport": True}
        data = self.call("Page.captureScreenshot", format="png", **clip)["data"]
        path.write_bytes(base64.b64decode(data))
