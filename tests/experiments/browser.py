"""A headless Chromium, driven over a pipe by its DevTools protocol: nothing to install but the browser."""

import json
import os
import select
import shutil
import subprocess
import time

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --remote-debugging-pipe"
)
MISSING = not (shutil.which("chromium") and shutil.which("bash"))
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "ArrowRight": (39, "")}


def _pipe():
    """Both ends of a pipe, with numbers out of the way of 3 and 4, where the browser wants its own."""
    import fcntl  # the tests of pages are collected where there is none, too

    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in ends]
    for end in ends:
        os.close(end)
    return moved


class Browser:
    """One page; ``problems`` are its uncaught errors, console errors, and requests that would leave the machine."""

    def __init__(self, profile):
        asks, self.send = _pipe()
        self.receive, tells = _pipe()
        command = f'exec chromium "$@" 3<&{asks} 4>&{tells}'
        words = ["bash", "-c", command, "chromium", *FLAGS.split(), f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(words, pass_fds=(asks, tells), stderr=subprocess.DEVNULL)
        os.close(asks)
        os.close(tells)
        self.rest, self.number, self.session, self.problems = b"", 0, None, []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        self.process.kill()
        self.process.wait()
        os.close(self.send)
        os.close(self.receive)

    def ask(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.send, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda told: told.get("id") == self.number)
        assert "error" not in answer, answer
        return answer["result"]

    def _until(self, wanted):
        end = time.monotonic() + 60
        while True:
            while b"\0" not in self.rest:
                assert select.select([self.receive], [], [], max(0, end - time.monotonic()))[0], "the browser is silent"
                told = os.read(self.receive, 1 << 20)
                assert told, "the browser has ended"
                self.rest += told
            one, _, self.rest = self.rest.partition(b"\0")
            told = json.loads(one)
            self._note(told)
            if wanted(told):
                return told

    def _note(self, told):
        what, about = told.get("method"), told.get("params", {})
        logged = what == "Log.entryAdded" and about["entry"]["level"] == "error"
        said = what == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert")
        if what == "Runtime.exceptionThrown" or logged or said:
            self.problems.append(about)
        elif what == "Network.requestWillBeSent" and not about["request"]["url"].startswith(
            ("file:", "data:", "about:")
        ):
            self.problems.append(about["request"]["url"])

    def open(self, file, width, mobile=False):
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=mobile)
        self.ask("Emulation.setTouchEmulationEnabled", enabled=mobile)
        self.ask("Page.navigate", url=file.as_uri())
        self._until(lambda told: told.get("method") == "Page.loadEventFired")

    def value(self, script):
        """What an expression comes to."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key):
        """A key, as from a keyboard."""
        code, text = KEYS[key]
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.ask("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **about)

    def tap(self, script):
        """A finger on the middle of the element that an expression gives."""
        self.value(f"{script}.scrollIntoView({{block: 'center', inline: 'center', behavior: 'instant'}})")
        x, y = self.value(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({script}.getBoundingClientRect())")
        self.ask("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
