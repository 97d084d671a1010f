"""A day of one row's numbers in little memory: the older a point, the more of its neighbours it stands for.

A chart of the last hour wants points seconds apart, one of the last day is not finer than ten minutes; so points are
kept as densely as the narrowest window that still shows them can draw them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

KEPT_S = 86_400.0
PER_WINDOW = 120  # points that a window from a point's age until now has at least
THIN_EVERY = 64

Kept = TypeVar("Kept")


class Point(NamedTuple):
    """The numbers of a row at a time; None is a gap."""

    time: float
    tokens_per_s: float | None = None
    ttft_p95_s: float | None = None
    rss_mib: float | None = None
    confidence: float | None = None
    error_rate: float | None = None


SERIES = Point._fields[1:]
WORST = {"ttft_p95_s": max, "error_rate": max, "rss_mib": max, "tokens_per_s": min, "confidence": min}


class History:
    """Points in the order of their time, of a day at most; each stands for the `hold_s` seconds before it."""

    def __init__(self, hold_s: float = 0.0) -> None:
        self._hold_s = hold_s
        self._points: list[Point] = []
        self._added = 0

    def __len__(self) -> int:
        return len(self._points)

    def add(self, points: Iterable[Point]) -> None:
        """Take in newer points; one that is not newer than the last is left out, as after a clock was set back."""
        for point in points:
            if not self._points or point.time > self._points[-1].time:
                self._points.append(point)
                self._added += 1
        if self._points and self._added >= THIN_EVERY:
            self._added = 0
            self._points = thinned(self._points, self._points[-1].time, lambda one: one.time, _together)

    def bins(self, name: str, since: float, until: float, count: int) -> list[float | None]:
        """The number `name` in `count` equal parts of the time, the worst of each part; None where there is none."""
        found: list[float | None] = [None] * count
        width = (until - since) / count
        if width <= 0:
            return found
        place, worst = Point._fields.index(name), WORST[name]
        points = self._points  # replaced as a whole by `add`, which only appends to this one
        for index in range(len(points) - 1, -1, -1):
            point = points[index]
            if point.time < since:
                break
            value = point[place]
            if value is None:
                continue
            begin = point.time - max(self._hold_s, 2 * (until - point.time) / PER_WINDOW)
            if index:
                begin = max(begin, points[index - 1].time)
            last = min(count - 1, int((point.time - since) / width))
            for here in range(max(0, int((begin - since) / width) + 1), last) if begin < point.time else ():
                found[here] = value if found[here] is None else found[here]
            before = found[last]
            found[last] = value if before is None else worst(before, value)
        return found


def thinned(
    items: Sequence[Kept],
    now: float,
    when: Callable[[Kept], float],
    together: Callable[[Kept, Kept], Kept],
    per_window: int = PER_WINDOW,
) -> list[Kept]:
    """Items oldest first, those of a day, with neighbours put together where they lie closer than their age needs.

    The parts of time are powers of two of a second, so that the same items fall together each time.
    """
    kept: list[Kept] = []
    cell: tuple[float, int] | None = None
    for item in items:
        age = now - when(item)
        if age > KEPT_S:
            continue
        width = 2.0 ** math.floor(math.log2(age / per_window)) if age > per_window else 0.5
        here = (width, int(when(item) / width))
        if here == cell:
            kept[-1] = together(kept[-1], item)
        else:
            kept.append(item)
            cell = here
    return kept


def _together(one: Point, other: Point) -> Point:
    """Two neighbours as one, at the later's time: the worse of each number, so that no spike is lost."""
    numbers = {}
    for name in SERIES:
        known = [value for value in (getattr(one, name), getattr(other, name)) if value is not None]
        numbers[name] = WORST[name](known) if known else None
    return Point(other.time, **numbers)
