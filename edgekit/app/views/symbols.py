"""Marks, bars and sparklines. Each stands beside a word, so none is the only bearer of its meaning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

STYLES = {  # of a state; its word and its sign tell it too
    "OK": "green", "DONE": "green", "KEPT": "green", "PASSED": "green", "FAILED": "bold red", "ERROR": "bold red",
    "STOPPED": "bold yellow", "UNKNOWN": "bold yellow", "WARNING": "yellow", "WAITING": "dim", "CHECKING": "dim",
    "NONE": "dim",
}  # fmt: skip
EIGHTHS = "▁▂▃▄▅▆▇█"


class Symbols:
    """The signs of all screens; `screens/ascii.py` replaces them on a terminal that has only ASCII."""

    ok = "✓"
    failed = "✗"
    running = "▶"
    waiting = "·"
    stopped = "■"
    warning = "!"
    critical = "▲"
    lost = "?"
    here = "▸"
    dot = "●"
    ellipsis = "…"
    line = "─"
    states: ClassVar[dict[str, str]] = {
        "WAITING": waiting, "IDLE": waiting, "RUNNING": running, "CHECKING": running,
        "DONE": ok, "KEPT": ok, "OK": ok, "PASS": ok, "PASSED": ok, "HEALTHY": ok, "RESOLVED": ok,
        "FAIL": failed, "FAILED": failed, "BAD": failed, "STOPPED": stopped, "CANCELLED": stopped,
        "WARNING": warning, "WARN": warning, "ACKNOWLEDGED": warning, "OPEN": critical, "CRITICAL": critical,
        "LOST": lost, "UNKNOWN": lost,
    }  # fmt: skip

    @classmethod
    def of(cls, state: str) -> str:
        """The mark of a state word such as RUNNING or LOST; blank for a word that has none."""
        return cls.states.get(state.upper(), " ")

    @staticmethod
    def bar(fraction: float | None, width: int) -> str:
        """A bar of `width` cells; all empty while the fraction is not known."""
        full = 0 if fraction is None else round(min(1.0, max(0.0, fraction)) * width)
        return "█" * full + "░" * (width - full)

    @staticmethod
    def spark(values: Sequence[float | None], width: int) -> str:
        """The newest `width` values as heights between their least and greatest, the newest right.

        Gaps are blank, and so is what is not finite.
        """
        shown = list(values)[-width:] if width > 0 else []
        known = [value for value in shown if value is not None and math.isfinite(value)]
        low, high = min(known, default=0.0), max(known, default=0.0)

        def height(value: float | None) -> str:
            if value is None or not math.isfinite(value):
                return " "
            # of halves, whose difference cannot overflow
            share = (value / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.0
            return EIGHTHS[min(len(EIGHTHS) - 1, int(share * len(EIGHTHS)))]

        return "".join(map(height, shown)).rjust(width)
