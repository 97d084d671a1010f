"""Whether one model answers as well as another on the same rows.

The gates of a build, the promotion of a release and `edgekit eval compare` all decide with these functions. A model is as
good when the lower one-sided 95 % bound of its gain (Tango's score interval of paired rows) shows that it loses less than a
margin, so a few rows never prove anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekit.evaluation.statistics import ONE_SIDED_95, mcnemar_worse, paired_difference

MARGIN_POINTS = 2.0  # percentage points that a model may lose, unless a caller says otherwise
SLICE_P = 0.05  # divided among all slices (Bonferroni)
MOST_ROWS = 1_000_000

Verdict = Literal["as good", "unproven", "worse"]


@dataclass(frozen=True)
class Judgement:
    """A change of accuracy in percentage points, with its one-sided 95 % bounds, held against a margin."""

    points: float
    low: float
    high: float
    within: bool
    """Whether the measured loss is at most the margin."""
    shown: bool
    """Whether the rows show that the true loss is smaller than its bound."""

    @property
    def verdict(self) -> Verdict:
        """`as good` when shown; `worse` when the measured loss exceeds the margin; else `unproven`: too few rows to tell."""
        if not self.within:
            return "worse"
        return "as good" if self.shown else "unproven"


def judge(
    lost: float, won: float, n: int, margin_points: float, bound_points: float | None = None
) -> Judgement:
    """Hold the change of `n` rows, `lost` from right to wrong and `won` from wrong to right, against a margin.

    `lost` and `won` need not be integers. The loss must be shown to be smaller than `bound_points`, by default the margin.
    """
    low, high = paired_difference(lost, won, n, ONE_SIDED_95)
    points = round(
        100 * (won - lost) / max(n, 1), 6
    )  # in binary, 0.95 - 0.93 is slightly more than two points
    bound = margin_points if bound_points is None else bound_points
    return Judgement(points, 100 * low, 100 * high, points >= -margin_points, 100 * low > -bound)


def slice_is_worse(lost: int, won: int, points: float, margin_points: float, slices: int) -> bool:
    """Whether one of several slices of the rows is shown to be worse by more than the margin.

    Its change `points` is a larger loss than the margin, and the p of a one-sided McNemar test of its `lost` and `won` rows is
    below 0.05 divided by the number of `slices`.
    """
    return points < -margin_points and mcnemar_worse(lost, won) < SLICE_P / slices


def rows_needed(lost: float, won: float, margin_points: float = MARGIN_POINTS) -> int:
    """The smallest number of rows that shows it to be as good at these shares of lost and won answers.

    It is 133 for a margin of 2 points and no changed answer, and 0 when no number up to a million suffices.
    """

    def proves(n: int) -> bool:
        return judge(lost * n, won * n, n, margin_points).shown

    high = 1
    while not proves(high):
        high *= 2
        if high > MOST_ROWS:
            return 0
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if proves(middle) else (middle, high)
    return high
