"""Change detectors on one stream of numbers: Page-Hinkley and ADWIN, in plain Python and of bounded memory."""

from __future__ import annotations

import math
from collections import deque


class PageHinkley:
    """Page-Hinkley's test in both directions: the sum of deviations from the running mean, against its extreme so far.

    A deviation below `delta` is tolerated, a sum beyond `threshold` is a change, and `alpha` discounts the past. After
    a change the test restarts. Source: E. S. Page, Continuous Inspection Schemes, Biometrika 41 (1954).
    """

    def __init__(
        self,
        *,
        min_instances: int = 30,
        delta: float = 0.005,
        threshold: float = 50.0,
        alpha: float = 0.9999,
    ) -> None:
        self.min_instances = min_instances
        self.delta = delta
        self.threshold = threshold
        self.alpha = alpha
        self.reached = 0.0
        """The test statistic at the last change."""
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        self.n = 0
        self.mean = 0.0
        self._up = self._down = 0.0
        self._lowest, self._highest = math.inf, -math.inf
        self._since_low = self._since_high = 0

    @property
    def value(self) -> float:
        """The test statistic: the distance of the sums from their extremes, the larger of the two directions."""
        return max(self._up - self._lowest, self._highest - self._down) if self.n else 0.0

    def update(self, x: float) -> int:
        """Add `x`. Returns 0, or, at a change, how many numbers ago it began."""
        self.n += 1
        self.mean += (x - self.mean) / self.n
        deviation = x - self.mean
        self._up = self.alpha * self._up + deviation - self.delta
        self._down = self.alpha * self._down + deviation + self.delta
        self._since_low += 1
        self._since_high += 1
        if self._up < self._lowest:
            self._lowest, self._since_low = self._up, 0
        if self._down > self._highest:
            self._highest, self._since_high = self._down, 0
        if self.n < self.min_instances or self.value <= self.threshold:
            return 0
        rose = self._up - self._lowest >= self._highest - self._down
        began = max(1, self._since_low if rose else self._since_high)
        self.reached = self.value
        self.reset()
        return began


class Adwin:
    """Adaptive windowing: a window of the newest numbers with one mean; older numbers with another mean are dropped.

    Numbers are kept as sums and variances of buckets of 1, 2, 4, ... numbers, at most `max_buckets` of a size, so
    memory grows with the logarithm of the window. Numbers must lie between 0 and 1. `delta` is the confidence of one
    comparison. Source: A. Bifet, R. Gavalda, Learning from Time-Changing Data with Adaptive Windowing, SDM 2007.
    """

    def __init__(
        self,
        *,
        delta: float = 0.002,
        clock: int = 32,
        max_buckets: int = 5,
        min_window: int = 5,
        grace: int = 10,
    ) -> None:
        self.delta = delta
        self.clock = clock
        self.max_buckets = max_buckets
        self.min_window = min_window
        self.grace = grace
        self.shift = 0.0
        """The difference of the means of the two parts at the last change, newer minus older."""
        self.allowed = 0.0
        """The difference that was allowed."""
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        self._sizes: list[deque[tuple[float, float]]] = [deque()]  # (sum, variance), oldest first, by size
        self._tick = 0
        self.width = 0
        self.total = 0.0
        self.variance = 0.0
        """Sum of squared deviations in the window."""

    @property
    def mean(self) -> float:
        """The mean of the window, 0 when it is empty."""
        return self.total / self.width if self.width else 0.0

    @property
    def buckets(self) -> int:
        """The number of buckets in the window."""
        return sum(map(len, self._sizes))

    def update(self, x: float) -> int:
        """Add `x`. Returns 0, or, at a change, how many numbers ago it was: where the means differed most."""
        if self.width:
            self.variance += self.width * (x - self.mean) ** 2 / (self.width + 1)
        self.width += 1
        self.total += x
        self._sizes[0].append((x, 0.0))
        self._merge()
        self._tick += 1
        if self._tick % self.clock or self.width <= self.grace:
            return 0
        ago = self._cut()
        if ago:
            shift, allowed = self.shift, self.allowed
            while self._cut():
                pass
            self.shift, self.allowed = shift, allowed
        return ago

    def _merge(self) -> None:
        """Merge the two oldest buckets of a size into one of twice the size when there are too many."""
        for level, row in enumerate(self._sizes):
            if len(row) <= self.max_buckets:
                return
            if level + 1 == len(self._sizes):
                self._sizes.append(deque())
            size = 1 << level
            (first, spread), (second, other) = row.popleft(), row.popleft()
            between = size * (first / size - second / size) ** 2 / 2
            self._sizes[level + 1].append((first + second, spread + other + between))

    def _cut(self) -> int:
        """Drop the oldest bucket when a split of the window has two different means; returns the count after the split."""
        if self.width <= 1:
            return 0
        n0, total0, furthest, ago = 0, 0.0, 1.0, 0
        log_term = math.log(2 * math.log(self.width) / self.delta)
        spread = self.variance / self.width
        for level in range(len(self._sizes) - 1, -1, -1):
            size = 1 << level
            for total, _ in self._sizes[level]:
                n0 += size
                total0 += total
                n1 = self.width - n0
                if n1 < self.min_window:
                    break
                if n0 < self.min_window:
                    continue
                weight = 1 / (n0 - self.min_window + 1) + 1 / (n1 - self.min_window + 1)
                allowed = math.sqrt(2 * weight * spread * log_term) + 2 / 3 * log_term * weight
                shift = (self.total - total0) / n1 - total0 / n0
                if abs(shift) > furthest * allowed:
                    furthest, ago = abs(shift) / allowed, n1
                    self.shift, self.allowed = shift, allowed
        if ago:
            self._drop_oldest()
        return ago

    def _drop_oldest(self) -> None:
        total, variance = self._sizes[-1].popleft()
        size = 1 << (len(self._sizes) - 1)
        if not self._sizes[-1] and len(self._sizes) > 1:
            self._sizes.pop()
        self.width -= size
        self.total -= total
        mean = self.total / self.width
        self.variance -= variance + size * self.width * (total / size - mean) ** 2 / (size + self.width)
        self.variance = max(self.variance, 0.0)
