"""Histograms with fixed buckets: a few hundred bytes that describe a distribution, and can be added."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

# OpenTelemetry's buckets for generative AI, semantic conventions 1.41
TTFT_S = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10)  # fmt: skip
DURATION_S = tuple(0.01 * 2**power for power in range(14))
TOKENS = tuple(4**power for power in range(14))
# OpenTelemetry counts seconds per token; people read this
TOKENS_PER_S = tuple(2**power for power in range(13))


def split(bounds: Sequence[float], parts: int = 4) -> tuple[float, ...]:
    """`bounds` with each bucket split into `parts` equal ones: finer quantiles, whose counts still add up."""
    fine = []
    for low, high in zip((0.0, *bounds), bounds, strict=False):
        fine += [low + (high - low) * part / parts for part in range(1, parts)] + [float(high)]
    return tuple(fine)


class Sketch:
    """A histogram: `bounds` are the upper ends of the buckets; the last bucket has no upper end."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        """Sum of the values."""
        self.highest = 0.0

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)

    def add(self, value: float) -> None:
        """Count a value, zero or more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
        self.highest = max(self.highest, value)

    def merge(self, other: Sketch) -> None:
        """Add the counts of a histogram with the same buckets; raises `ValueError` for other buckets."""
        if other.bounds != self.bounds:
            raise ValueError("histograms with different buckets cannot be added")
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total
        self.highest = max(self.highest, other.highest)

    def quantile(self, share: float) -> float | None:
        """The `share` (0 to 1) quantile, by linear interpolation within its bucket; None without values."""
        count = self.count
        if not count:
            return None
        rank, below = share * count, 0
        for index, here in enumerate(self.counts):
            if here and below + here >= rank:
                low = self.bounds[index - 1] if index else 0.0
                high = self.bounds[index] if index < len(self.bounds) else self.highest
                high = max(low, min(high, self.highest))  # nothing is above the highest value
                return low + (high - low) * (rank - below) / here
            below += here
        return self.highest

    def to_json(self) -> dict[str, Any]:
        """The non-empty buckets, the sum and the highest value."""
        return {
            "counts": {str(index): count for index, count in enumerate(self.counts) if count},
            "total": self.total,
            "highest": self.highest,
        }

    @classmethod
    def from_json(cls, bounds: Sequence[float], value: dict[str, Any]) -> Sketch:
        """Read the output of `to_json`; raises `KeyError`, `IndexError`, `TypeError` or `ValueError` for anything else."""
        sketch = cls(bounds)
        for index, count in value["counts"].items():
            if int(index) < 0 or int(count) < 0:
                raise ValueError("a count is negative")
            sketch.counts[int(index)] = int(count)
        sketch.total, sketch.highest = float(value["total"]), float(value["highest"])
        return sketch
