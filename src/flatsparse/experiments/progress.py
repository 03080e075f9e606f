"""How far long work is, where there is no terminal for a bar."""

from __future__ import annotations

import threading
import time
from typing import Any

from flatsparse.experiments.terminal import Console

SECONDS = 30.0  # between two lines


class ProgressLines:
    """Prints a plain line now and then on a console that is no terminal; a context.

    Attributes:
        done: what of ``whole`` is done; set it as the work goes on.
    """

    def __init__(self, console: Console, title: str, whole: float) -> None:
        self.console, self.title, self.whole, self.done = console, title, whole, 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)  # one piece of the work may take minutes

    def __enter__(self) -> ProgressLines:
        if not self.console.is_terminal:
            self._thread.start()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _tell(self) -> None:
        began = time.monotonic()
        while not self._ended.wait(SECONDS):
            share = self.done / self.whole if self.whole else 1.0
            passed = time.monotonic() - began
            self.console.print(f"{self.title}: {share:.0%} after {passed:.0f} s", highlight=False, markup=False)
