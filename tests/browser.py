"""A real browser without a network: Chromium, driven by the WebDriver protocol of its own driver.

The protocol is JSON over HTTP, so that nothing has to be installed beside Debian's `chromium` and
`chromium-driver`.
"""

import base64
import io
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

# What the process that runs pytest as root in a container can't have, and a device without a GPU.
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars")
_FLAGS += ("--disable-background-networking", "--disable-component-update", "--no-first-run")
# Nothing can be looked up: a page that tries to fetch something fails, and says so.
_FLAGS += (
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--force-device-scale-factor=1",
)
WITH_WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
WITHOUT_WEBGL = ("--disable-gpu", "--disable-webgl", "--disable-3d-apis")
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One window; texts that name elements are CSS selectors."""

    def __init__(self, driver, session):
        self._base = f"{driver}/session/{session}"

    def open(self, path):
        self._send("POST", "url", url=path.as_uri())

    def run(self, script, *arguments):
        """What a script returns."""
        return self._send("POST", "execute/sync", script=script, args=list(arguments))

    def wait(self, script, seconds=120.0):
        """Until a script returns something true; that."""
        end = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"never: {script}\n{self.log()}"
            time.sleep(0.05)
        return found

    def click(self, selector):
        found = self._send("POST", "element", using="css selector", value=selector)
        self._send("POST", f"element/{found[_ELEMENT]}/click")

    def texts(self, selector):
        script = (
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent.trim())"
        )
        return self.run(script, selector)

    def seen(self, selector):
        """(H, W, 3) the pixels of an element, scrolled into view."""
        found = self._send("POST", "element", using="css selector", value=selector)
        png = base64.b64decode(self._send("GET", f"element/{found[_ELEMENT]}/screenshot"))
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)

    def screenshot(self):
        """A PNG of the window."""
        return base64.b64decode(self._send("GET", "screenshot"))

    def log(self):
        """Warnings and errors that the console has got since the last time, such as of a policy."""
        lines = self._send("POST", "se/log", type="browser")
        return [line["message"] for line in lines if line["level"] in ("WARNING", "SEVERE")]

    def media(self, **features):
        """Such as media="print", or prefers_color_scheme="dark"."""
        media = features.pop("media", "")
        listed = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        parameters = {"media": media, "features": listed}
        self._send("POST", "goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params=parameters)

    def scripts(self, allowed):
        """Whether pages that are opened from now on may run scripts."""
        command = "Emulation.setScriptExecutionDisabled"
        self._send("POST", "goog/cdp/execute", cmd=command, params={"value": not allowed})

    def _send(self, verb, what, **body):
        return send(verb, f"{self._base}/{what}", body)


def send(verb, url, body=None):
    data = json.dumps(body or {}).encode() if verb == "POST" else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=verb)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()[:2000]) from None


@contextmanager
def browser(*flags, size=(1280, 1000)):
    """A `Browser`; the test is skipped where Chromium or its driver is not installed."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no chromium and chromedriver (Debian: chromium, chromium-driver)")
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    process = subprocess.Popen(
        [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        for line in process.stdout:
            if b"started successfully on port" in line:
                address = f"http://127.0.0.1:{int(line.split()[-1].rstrip(b'.'))}"
                break
        options = {
            "binary": program,
            "args": [*_FLAGS, *flags, f"--window-size={size[0]},{size[1]}"],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        body = {"capabilities": {"alwaysMatch": wanted}}
        session = send("POST", f"{address}/session", body)["sessionId"]
        try:
            yield Browser(address, session)
        finally:
            send("DELETE", f"{address}/session/{session}")
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()
