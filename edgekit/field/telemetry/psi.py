"""The population stability index of a sliding window, and the limit that a steady stream stays below.

PSI = sum((window - reference) * ln(window / reference)) over the bins. Its usual limits (0.1 and 0.25) know nothing of
the window's size: with ten bins and a hundred requests a steady stream passes them by chance alone. The limit here is
found by a parametric bootstrap of the reference at the window's size, on runs as long as a false alarm may be rare.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

WINDOW = 128  # requests
STEP = 8  # requests between two readings
RUN = 10_000  # requests in which a signal's false alarm is to be unlikely
RISK = 0.02  # of a false alarm of one signal in such a run
RUNS = 200
RELATED = 2  # rows tell as much as half as many independent ones: they come in kinds (the design effect)
FLOOR = 0.5  # rows: a bin that no row fell into counts as half a row, as an empty one of the window does


def smoothed(counts: Sequence[float]) -> list[float]:
    """Shares of `counts`, each at least that of half a row."""
    raised = [max(count, FLOOR) for count in counts]
    total = sum(raised)
    return [count / total for count in raised]


def psi(counts: Sequence[float], shares: Sequence[float]) -> float:
    """The index of a window's counts against the reference's smoothed shares, bin by bin."""
    return sum(
        (here - there) * math.log(here / there) for here, there in zip(smoothed(counts), shares, strict=True)
    )


class SlidingPsi:
    """PSI of the last `window` requests; each request is the number of the bin that it fell into."""

    def __init__(self, shares: Sequence[float], window: int = WINDOW, step: int = STEP) -> None:
        self.shares = tuple(shares)
        self.window = window
        self.step = step
        self.counts = [0] * len(shares)
        self._bins: deque[int] = deque()
        self._seen = 0

    def update(self, bin: int) -> float | None:
        """Take one request in; the index every `step` requests once the window is full, else None."""
        self._bins.append(bin)
        self.counts[bin] += 1
        if len(self._bins) > self.window:
            self.counts[self._bins.popleft()] -= 1
        self._seen += 1
        if self._seen < self.window or self._seen % self.step:
            return None
        return psi(self.counts, self.shares)


def psi_limit(
    counts: Sequence[float],
    *,
    window: int = WINDOW,
    step: int = STEP,
    risk: float = RISK,
    run: int = RUN,
    seed: int = 0,
) -> float:
    """The index that a steady stream of `run` requests passes at most with probability `risk`.

    `counts` are the rows of the reference in each bin. Each of the runs draws its own reference of as many rows and
    its own stream, both from the same shares: the reference is a sample too, and small ones are uncertain. Rows are
    taken for related (Kish, Survey Sampling, 1965): as drawn from few authors or patterns, they vary less than users.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    shares = np.array(smoothed(counts))
    rows = max(1, round(sum(counts) / RELATED))
    blocks, kept = run // step, window // step
    highest = np.empty(RUNS)
    for index in range(RUNS):
        drawn = np.maximum(rng.multinomial(rows, shares), FLOOR)
        reference = drawn / drawn.sum()
        total = np.zeros((blocks + 1, len(shares)))
        total[1:] = rng.multinomial(step, shares, size=blocks).cumsum(axis=0)
        here = np.maximum(total[kept:] - total[:-kept], FLOOR)
        here /= here.sum(axis=1, keepdims=True)
        highest[index] = ((here - reference) * np.log(here / reference)).sum(axis=1).max()
    return float(np.quantile(highest, 1 - risk))
