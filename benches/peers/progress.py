"""One line at the bottom of a terminal: how far, what now, and how long it will take."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

WIDTH = 24


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def time_left(elapsed: float, done: float, total: float) -> float:
    """Seconds, at the pace so far. `done` and `total` are in expected seconds, so that long runs weigh more."""
    return max(0.0, (total - done) * (elapsed / done if done > 0 else 1.0))


def bar(share: float, width: int = WIDTH) -> str:
    full = round(max(0.0, min(1.0, share)) * width)
    return "█" * full + "░" * (width - full)


class Progress:
    """Draws on a terminal; elsewhere each message is a line."""

    def __init__(self, total: float, out: TextIO = sys.stderr) -> None:
        self.total, self.done, self.out = total, 0.0, out
        self.began = time.monotonic()
        self.drawn = out.isatty()

    def now(self, what: str) -> None:
        """Says what is being done."""
        if not self.drawn:
            return
        left = clock(time_left(time.monotonic() - self.began, self.done, self.total))
        line = f"{bar(self.done / self.total)} {self.done / self.total:4.0%}  {left} left  {what}"
        self.out.write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])
        self.out.flush()

    def step(self, expected: float) -> None:
        """Something is done that was expected to take so long."""
        self.done = min(self.total, self.done + expected)

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        self.out.write(("\r\x1b[K" if self.drawn else "") + line + "\n")
        self.out.flush()

    def close(self) -> None:
        if self.drawn:
            self.out.write("\r\x1b[K")
            self.out.flush()
