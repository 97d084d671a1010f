"""Marks, bars and sparklines, in Unicode or in ASCII alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

EIGHTHS = "▁▂▃▄▅▆▇█"
LEVELS = "_.,-=+*#"
OF_STATE = {
    "WAITING": "waiting", "IDLE": "waiting", "RUNNING": "running", "CHECKING": "running",
    "DONE": "ok", "KEPT": "ok", "OK": "ok", "PASS": "ok", "PASSED": "ok", "HEALTHY": "ok", "RESOLVED": "ok",
    "FAIL": "failed", "FAILED": "failed", "BAD": "failed", "STOPPED": "stopped", "CANCELLED": "stopped",
    "WARNING": "warning", "WARN": "warning", "ACKNOWLEDGED": "warning", "OPEN": "critical", "CRITICAL": "critical",
    "LOST": "lost", "UNKNOWN": "lost",
}  # fmt: skip


class Symbols:
    """The signs of one sitting; each stands beside a word, so none is the only bearer of its meaning."""

    def __init__(self, ascii: bool = False) -> None:
        self.ascii = ascii

        def sign(unicode: str, plain: str) -> str:
            return plain if ascii else unicode

        self.ok = sign("✓", "+")
        self.failed = sign("✗", "x")
        self.running = sign("▶", ">")
        self.waiting = sign("·", ".")
        self.stopped = sign("■", "#")
        self.warning = "!"
        self.critical = sign("▲", "A")
        self.lost = "?"
        self.here = sign("▸", ">")
        self.up = sign("↑", "^")
        self.down = sign("↓", "v")
        self.dot = sign("●", "o")
        self.ellipsis = sign("…", "...")
        self.line = sign("─", "-")
        self._full, self._empty = sign("█", "#"), sign("░", ".")

    def of(self, state: str) -> str:
        """The mark of a state word such as RUNNING or LOST; blank for a word that has none."""
        name = OF_STATE.get(state.upper())
        return " " if name is None else str(getattr(self, name))

    def bar(self, fraction: float | None, width: int) -> str:
        """A bar of `width` cells; all empty while the fraction is not known."""
        full = 0 if fraction is None else round(min(1.0, max(0.0, fraction)) * width)
        return self._full * full + self._empty * (width - full)

    def spark(self, values: Sequence[float | None], width: int) -> str:
        """The newest `width` values as heights between their least and greatest, the newest right.

        Gaps are blank, and so is what is not finite.
        """
        shown = list(values)[-width:] if width > 0 else []
        known = [value for value in shown if value is not None and math.isfinite(value)]
        low, high = min(known, default=0.0), max(known, default=0.0)
        levels = LEVELS if self.ascii else EIGHTHS

        def height(value: float | None) -> str:
            if value is None or not math.isfinite(value):
                return " "
            # of halves, whose difference cannot overflow
            share = (value / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.0
            return levels[min(len(levels) - 1, int(share * len(levels)))]

        return "".join(map(height, shown)).rjust(width)
