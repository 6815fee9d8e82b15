"""What the demo prints: on a terminal one line that is always up to date, elsewhere a plain line each second."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

REFRESH = 0.1
"""Seconds between two looks at the progress."""
BAR = 24
GREEN, RED, BOLD, DIM = "32", "31", "1", "2"


class Stuck(Exception):
    """A step took far longer than it should."""


class Screen:
    """Standard output. For the main thread only."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._live = out.isatty()
        self._colours = self._live and "NO_COLOR" not in os.environ and os.name != "nt"
        self._unicode = (out.encoding or "").lower().startswith("utf")
        self._next_line = 0.0

    def line(self, text: str = "") -> None:
        """Print a line that stays."""
        if self._live:
            self._out.write("\r" + " " * self._width() + "\r")
        print(text if self._unicode else text.encode("ascii", "replace").decode(), file=self._out, flush=True)

    def paint(self, text: str, colour: str) -> str:
        """*text* in a colour, where there are colours."""
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours else text

    def mark(self, good: bool) -> str:
        """A tick or a cross."""
        if not self._unicode:
            return "ok" if good else "FAILED"
        return self.paint("✓", GREEN) if good else self.paint("✗", RED)

    def follow(self, title: str, total: int, look: Callable[[], tuple[int, str]], *, deadline: float = 180) -> None:
        """Show how many of *total* are done, and some words, until all are. Raises Stuck after *deadline* seconds."""
        begun = time.perf_counter()
        self._next_line = begun + 1
        while True:
            done, words = look()
            seconds = time.perf_counter() - begun
            if done >= total:
                return
            if seconds > deadline:
                raise Stuck(f"{title}: {done:,} of {total:,} after {seconds:.0f} s ({words})")
            self._progress(title, done, total, f"{done / seconds if seconds else 0:,.0f}/s  {words}")
            time.sleep(REFRESH)

    def _progress(self, title: str, done: int, total: int, words: str) -> None:
        if self._live:
            text = f"  {title:<12}{self._bar(done / total)} {done:>6,}/{total:,}  {words}"
            # One column stays free: a full line would scroll.
            width = self._width()
            self._out.write("\r" + text[:width].ljust(width))
            self._out.flush()
        elif time.perf_counter() >= self._next_line:
            self._next_line += 1
            self.line(f"  {title:<12}{done:,}/{total:,} ({done / total:.0%})  {words}")

    def _bar(self, share: float) -> str:
        full, empty = ("━", "╌") if self._unicode else ("#", ".")
        filled = round(BAR * share)
        return full * filled + empty * (BAR - filled)

    @staticmethod
    def _width() -> int:
        return shutil.get_terminal_size().columns - 1
