"""The population stability index (PSI) of a sliding window, and the limit that a stable stream stays below.

PSI = sum((window - reference) * ln(window / reference)) over the bins. The usual limits (0.1 and 0.25) ignore the size
of the window: with ten bins and a hundred requests, a stable stream exceeds them by chance alone. The limit here comes
from a parametric bootstrap of the reference at the window's size, over runs of `RUN` requests.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

WINDOW = 128  # requests
STEP = 8  # requests between two readings
RUN = 10_000  # requests of one run
RISK = 0.02  # of a false alarm of one signal in a run
RUNS = 200
RELATED = 2  # design effect: related rows are worth half as many independent ones
FLOOR = 0.5  # rows: an empty bin of the reference or the window counts as half a row


def smoothed(counts: Sequence[float]) -> list[float]:
    """Shares of `counts`, each at least the share of half a row."""
    raised = [max(count, FLOOR) for count in counts]
    total = sum(raised)
    return [count / total for count in raised]


def psi(counts: Sequence[float], shares: Sequence[float]) -> float:
    """The terms of the PSI of a window's counts against the reference's smoothed shares, for each bin."""
    return sum(
        (here - there) * math.log(here / there) for here, there in zip(smoothed(counts), shares, strict=True)
    )


class SlidingPsi:
    """PSI of the last `window` requests; each request is given as its bin number."""

    def __init__(self, shares: Sequence[float], window: int = WINDOW, step: int = STEP) -> None:
        self.shares = tuple(shares)
        self.window = window
        self.step = step
        self.counts = [0] * len(shares)
        self._bins: deque[int] = deque()
        self._seen = 0

    def update(self, bin: int) -> float | None:
        """Add one request. Returns the PSI every `step` requests once the window is full, else None."""
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
    """The PSI that a stable stream of `run` requests exceeds with probability `risk` at most.

    `counts` are the rows of the reference in each bin. Each run draws its own reference of as many rows and its own
    stream, both from the same shares, because the reference is a sample too and small samples are uncertain. Rows count
    as related (design effect: Kish, Survey Sampling, 1965), because they come from few authors or patterns and vary
    less than users do.
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
