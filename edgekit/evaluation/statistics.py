"""Intervals and tests for measured shares, means and differences; no other module of edgekit computes them.

Every interval is given by the normal quantile `z` of its ends. `TWO_SIDED_95` gives the usual 95 % interval, which
reports show. With `ONE_SIDED_95` each end is a one-sided 95 % bound, which gates and promotions use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TWO_SIDED_95 = 1.959964
ONE_SIDED_95 = 1.644854
RESAMPLES = 2000


class Interval(NamedTuple):
    """The ends of an interval."""

    low: float
    high: float


def wilson(correct: float, n: float, z: float = TWO_SIDED_95) -> Interval:
    """The score interval of a proportion of `n` trials (Wilson 1927, J. Am. Stat. Assoc. 22, 209).

    `correct` and `n` need not be integers: the mean of values between 0 and 1 varies no more than a proportion, and
    dependent trials count as fewer (`clustered_share`). Without trials the interval is 0 to 1.
    """
    if n <= 0:
        return Interval(0.0, 1.0)
    share, spread = correct / n, z * z / n
    middle = share + spread / 2
    half = z * math.sqrt(max(0.0, share * (1 - share) / n + spread / n / 4))
    return Interval(max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread)))


def clustered_share(hits: Sequence[float], sizes: Sequence[float], z: float = TWO_SIDED_95) -> Interval:
    """The interval of a share over clusters of trials that are not independent, such as the tokens of one answer.

    `hits[i]` of `sizes[i]` trials of cluster `i` succeeded. This is Wilson's interval for the effective number of trials:
    their number divided by the design effect (Korn and Graubard 1998, Survey Methodology 24, 193).
    """
    total = sum(sizes)
    if total <= 0:
        return Interval(0.0, 1.0)
    share, count = sum(hits) / total, len(sizes)
    independent = share * (1 - share) / total
    effect = 1.0
    if independent > 0 and count > 1:
        residuals = sum((hit - share * size) ** 2 for hit, size in zip(hits, sizes, strict=True))
        effect = max(1.0, count / (count - 1) * residuals / total**2 / independent)
    effective = total / effect
    return wilson(share * effective, effective, z)


def mcnemar(lost: int, won: int) -> float:
    """Two-sided exact p of McNemar's test (1947): `lost` against `won`, binomial with probability 0.5."""
    n = lost + won
    tail = sum(math.comb(n, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / (1 << n))


def mcnemar_worse(lost: int, won: int) -> float:
    """One-sided exact p of McNemar's test: the probability of at least `lost` losses if both are equally good."""
    n = lost + won
    return sum(math.comb(n, k) for k in range(lost, n + 1)) / (1 << n)


def paired_difference(lost: float, won: float, n: int, z: float = TWO_SIDED_95) -> Interval:
    """The score interval of the difference of two accuracies on the same `n` rows, after minus before.

    `lost` rows went from right to wrong and `won` from wrong to right; they need not be integers. Source: Tango 1998,
    Statistics in Medicine 17, 891. Without any change it extends `z² / (n + z²)` to either side, where Wald's interval
    has no width. Without rows it is -1 to 1.
    """
    if n <= 0:
        return Interval(-1.0, 1.0)
    high = _score_bound(won, lost, n, z)
    return Interval(-_score_bound(lost, won, n, z), high)


def _score_bound(up: float, down: float, n: int, z: float) -> float:
    """The upper bound of `(up - down) / n`: the largest difference whose score statistic is not below `-z`."""
    low, high = (up - down) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _score(up, down, n, middle) >= -z:
            low = middle
        else:
            high = middle
    return low


def _score(up: float, down: float, n: int, difference: float) -> float:
    """Tango's statistic: the observed difference minus `difference`, divided by its standard error."""
    linear = -up - down + (2 * n - up + down) * difference
    constant = -down * difference * (1 - difference)
    chance_down = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
    variance = n * (2 * chance_down + difference * (1 - difference))
    distance = up - down - n * difference
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def bootstrap_mean(
    values: NDArray[np.floating],
    clusters: NDArray[np.integer],
    z: float = TWO_SIDED_95,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean of `values (N,)`, the same on every call.

    Whole `clusters (N,)` are drawn, because values within one are not independent (Efron and Tibshirani 1993).
    """
    import numpy as np

    index = np.unique(clusters, return_inverse=True)[1]
    columns = np.stack([np.bincount(index, values), np.bincount(index).astype(float)], axis=1)
    drawn = resampled_sums(columns, resamples=resamples, seed=seed)
    return percentile_interval(drawn[:, 0] / drawn[:, 1], z)


def resampled_sums(
    values: NDArray[np.floating], *, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """The sums of the columns of `values (N, K)` over rows drawn with replacement, `(resamples, K)`.

    All columns of a row are drawn together, so that their sums in one resample can be compared: a statistic of them has
    the paired bootstrap interval `percentile_interval(statistic)`. The same on every call.
    """
    import numpy as np

    rng, count = np.random.default_rng(seed), len(values)
    return np.stack([values[rng.integers(count, size=count)].sum(axis=0) for _ in range(resamples)])


def repeated_mean(values: NDArray[np.floating], z: float = TWO_SIDED_95) -> Interval:
    """The interval of the mean of `values (S, N)` in [-1, 1]: differences, or shares, on the same N rows with each of S seeds.

    Both the seeds and the rows are a sample: the half width is the root of the sum of squares of Student's interval of the S
    means and of the normal one of the N row means. Where the rows have no width, theirs is that of `paired_difference`. With
    one seed only the rows count, and the interval says nothing about other seeds.
    """
    seeds, rows = values.shape
    mean = float(values.mean())
    by_row = values.mean(axis=0)
    half = z * float(by_row.std(ddof=1)) / math.sqrt(rows) if rows > 1 else 0.0
    if half == 0.0:
        lost, won = float(-by_row[by_row < 0].sum()), float(by_row[by_row > 0].sum())
        low, high = paired_difference(lost, won, rows, z)
        half = max(mean - low, high - mean)
    if seeds > 1:
        half = math.hypot(
            half, student(seeds - 1, z) * float(values.mean(axis=1).std(ddof=1)) / math.sqrt(seeds)
        )
    return Interval(max(-1.0, mean - half), min(1.0, mean + half))


def student(degrees: int, z: float = TWO_SIDED_95) -> float:
    """The quantile of Student's t with `degrees` of freedom that belongs to the normal quantile `z`.

    Exact for one and two degrees, else the expansion of Cornish and Fisher (Abramowitz and Stegun 1964, 26.7.5), which is 0.1 %
    too small at three.
    """
    if degrees <= 2:
        tail = math.erf(z / math.sqrt(2))  # the probability within both ends
        if degrees == 1:
            return math.tan(math.pi * tail / 2)
        return tail * math.sqrt(2 / (1 - tail * tail))
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, 1))


def percentile_interval(drawn: NDArray[np.floating], z: float = TWO_SIDED_95) -> Interval:
    """The percentile interval of a statistic from its values on resamples; those that are not finite are left out."""
    import numpy as np

    finite = drawn[np.isfinite(drawn)]
    if not len(finite):
        return Interval(-math.inf, math.inf)
    outside = 0.5 * math.erfc(z / math.sqrt(2))
    low, high = np.quantile(finite, [outside, 1 - outside])
    return Interval(float(low), float(high))


def drop_rate(
    clean: NDArray[np.floating], noisy: NDArray[np.floating], z: float = TWO_SIDED_95
) -> tuple[float | None, Interval]:
    """The performance drop rate `1 - noisy / clean` of accuracies on the same items, and its paired bootstrap interval.

    `clean (N,)` and `noisy (N,)` are 1 where an item is answered rightly, or a mean over several noises. Without any right
    clean answer there is no rate (None). Where the bootstrap has no width, as without any change, the interval is that of
    `paired_difference`, divided by the clean accuracy. Source: PromptRobust, Zhu et al. 2023, arXiv 2306.04528.
    """
    import numpy as np

    right, count = float(clean.sum()), len(clean)
    if not right:
        return None, Interval(-math.inf, 1.0)
    rate = 1 - float(noisy.sum()) / right
    drawn = resampled_sums(np.stack([clean, noisy], axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        interval = percentile_interval(1 - drawn[:, 1] / drawn[:, 0], z)
    if interval.low < interval.high:
        return rate, interval
    change = noisy - clean
    lost, won = float(-change[change < 0].sum()), float(change[change > 0].sum())
    low, high = paired_difference(lost, won, count, z)
    return rate, Interval(-high * count / right, min(1.0, -low * count / right))


def auroc(
    positive: NDArray[np.floating], negative: NDArray[np.floating], z: float = TWO_SIDED_95
) -> tuple[float, Interval]:
    """The area under the ROC curve and its interval: how often a positive scores higher than a negative, ties counted as half.

    The variance is DeLong's (1988, Biometrics 44, 837). The interval is Wilson's for the number of trials that would have that
    variance, so that it stays within 0 and 1 and has a width even where no pair is ordered wrongly.
    """
    import numpy as np

    def above(one: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
        ordered = np.sort(others)
        low, high = (np.searchsorted(ordered, one, side) for side in ("left", "right"))
        return (low + high) / 2 / len(others)

    wins, losses = above(positive, negative), 1 - above(negative, positive)
    area, least = float(wins.mean()), min(len(wins), len(losses))
    variance = sum(float(part.var(ddof=1)) / len(part) if len(part) > 1 else 0.0 for part in (wins, losses))
    trials = area * (1 - area) / variance if variance > 0 else least
    return area, wilson(area * trials, trials, z)
