"""A curve that takes no more room however many points it gets."""

from __future__ import annotations

from dataclasses import dataclass

POINTS = 512  # that are kept: more than a terminal has columns


@dataclass(frozen=True)
class Points:
    """A curve, thinned."""

    xs: tuple[float, ...] = ()
    ys: tuple[float, ...] = ()


NO_POINTS = Points()


class Curve:
    """Points of a curve; when there are too many, every other one is left out, and the newest stays."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, float]] = []
        self._newest: tuple[float, float] | None = None
        self._stride = self._seen = 0

    def add(self, x: float, y: float) -> None:
        """Add the next point."""
        self._newest = (x, y)
        self._stride = self._stride or 1
        if self._seen % self._stride == 0:
            self._kept.append(self._newest)
            if len(self._kept) > POINTS:
                self._kept, self._stride = self._kept[::2], self._stride * 2
        self._seen += 1

    def points(self) -> Points:
        """The curve so far."""
        shown = list(self._kept)
        if self._newest is not None and shown[-1] != self._newest:
            shown.append(self._newest)
        return Points(tuple(x for x, _ in shown), tuple(y for _, y in shown))
