"""The differences between two models' answers to the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.evaluation.noninferiority import Judgement, judge
from edgekit.evaluation.samples import read_log
from edgekit.evaluation.statistics import TWO_SIDED_95, Interval, mcnemar, paired_difference


@dataclass(frozen=True)
class Change:
    """The ids of rows that changed: `lost` from right to wrong, `won` from wrong to right."""

    n: int
    right_before: int
    right_after: int
    lost: tuple[str, ...]
    won: tuple[str, ...]

    @property
    def points(self) -> float:
        """Accuracy after minus accuracy before, percentage points."""
        return 100 * (len(self.won) - len(self.lost)) / max(self.n, 1)

    def interval(self, z: float = TWO_SIDED_95) -> Interval:
        """The interval of `points` (Tango's score interval for paired rows)."""
        low, high = paired_difference(len(self.lost), len(self.won), self.n, z)
        return Interval(100 * low, 100 * high)

    def judged(self, margin_points: float, bound_points: float | None = None) -> Judgement:
        """The change held against a margin: `noninferiority.judge`."""
        return judge(len(self.lost), len(self.won), self.n, margin_points, bound_points)

    @property
    def mcnemar_p(self) -> float:
        """The two-sided exact p of McNemar's test: the chance of so uneven a split of equally good models."""
        return mcnemar(len(self.lost), len(self.won))


def change(before: Mapping[str, bool], after: Mapping[str, bool]) -> Change:
    """The change between two results by row id, over the rows in both."""
    shared = [id_ for id_ in before if id_ in after]
    return Change(
        n=len(shared),
        right_before=sum(before[id_] for id_ in shared),
        right_after=sum(after[id_] for id_ in shared),
        lost=tuple(id_ for id_ in shared if before[id_] and not after[id_]),
        won=tuple(id_ for id_ in shared if after[id_] and not before[id_]),
    )


def compare(first: Path, second: Path) -> dict[str, Any]:
    """The changes between two sample logs of the same rows.

    Returns `n`, the accuracies, the ids that went from right to wrong (`lost`) and from wrong to right (`won`),
    `difference_points` with its 95 % interval `difference_points_95`, and `mcnemar_p`. Raises `CorruptError` for a
    malformed log and `ConfigError` when the rows differ.
    """
    before, after = read_log(first), read_log(second)
    if before.keys() != after.keys():
        only = sorted(before.keys() ^ after.keys())
        raise ConfigError(
            f"{first} and {second} are logs of different rows: {len(only)} ids are in only one of them, such as '{only[0]}'.",
            "Evaluate both models on the same rows.",
        )
    found = change(before, after)
    return {
        "n": found.n,
        "accuracy_first": found.right_before / found.n,
        "accuracy_second": found.right_after / found.n,
        "lost": list(found.lost),
        "won": list(found.won),
        "difference_points": found.points,
        "difference_points_95": list(found.interval()),
        "mcnemar_p": found.mcnemar_p,
    }
