"""The differences between two models' answers to the same rows, and whether the second is as good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edgekit.base.errors import ConfigError
from edgekit.evaluation.noninferiority import MARGIN_POINTS, Judgement, judge, rows_needed, slice_is_worse
from edgekit.evaluation.samples import Scored, read_scored
from edgekit.evaluation.statistics import TWO_SIDED_95, Interval, bootstrap_mean, mcnemar, paired_difference


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


def compare(first: Path, second: Path, margin_points: float = MARGIN_POINTS) -> dict[str, Any]:
    """The changes between two sample logs of the same rows, and whether the second is as good within a margin.

    Returns `n`, the accuracies, the ids that went from right to wrong (`lost`) and from wrong to right (`won`),
    `difference_points` with its 95 % interval `difference_points_95`, `mcnemar_p`, and for the whole and for each of the
    `slices` (labels, and the variants of `eval robust`) the figures of `_held`. The `verdict` is `worse` when the measured
    loss exceeds the margin, or a slice is shown to lose more. Raises `CorruptError` for a malformed log and `ConfigError`
    when the rows differ.
    """
    before, after = read_scored(first), read_scored(second)
    keys = [{one.key: one for one in log} for log in (before, after)]
    if keys[0].keys() != keys[1].keys():
        only = sorted(keys[0].keys() ^ keys[1].keys())
        raise ConfigError(
            f"{first} and {second} are logs of different rows: {len(only)} ids are in only one of them, such as '{only[0]}'.",
            "Evaluate both models on the same rows.",
        )
    found = change(*({key: one.correct for key, one in log.items()} for log in keys))
    pairs = [Pair(one, keys[1][key].correct) for key, one in keys[0].items()]
    groups = {
        (by, value): [pair for pair in pairs if getattr(pair.before, by) == value]
        for by in ("label", "variant")
        for value in dict.fromkeys(getattr(pair.before, by) for pair in pairs)
        if value
    }
    slices = [
        {"by": by, "value": value, **_held(group, margin_points, len(groups))}
        for (by, value), group in groups.items()
    ]
    whole = _held(pairs, margin_points)
    if any(one["verdict"] == "worse" for one in slices):
        whole["verdict"] = "worse"
    return {
        "n": found.n,
        "accuracy_first": found.right_before / found.n,
        "accuracy_second": found.right_after / found.n,
        "lost": list(found.lost),
        "won": list(found.won),
        "difference_points": found.points,
        "difference_points_95": list(found.interval()),
        "mcnemar_p": found.mcnemar_p,
        "margin_points": margin_points,
        **{key: whole[key] for key in ("items", "bootstrap_95", "bound_points", "verdict")},
        "rows_needed": whole["rows_needed"] if whole["verdict"] == "unproven" else 0,
        "slices": slices,
    }


class Pair(NamedTuple):
    """A line of the first log, and whether the second log's answer is right."""

    before: Scored
    after: bool


def _held(pairs: Sequence[Pair], margin_points: float, slices: int = 0) -> dict[str, Any]:
    """The change over `pairs` held against the margin; as one of several `slices`, only a shown loss counts as worse.

    The variants of one row are not independent: their mean counts as one item. `bootstrap_95` is the percentile interval over
    items, or Tango's where that has no width; `bound_points` is the lower one-sided 95 % bound (Tango).
    """
    import numpy as np

    of: dict[str, list[int]] = {}
    for pair in pairs:
        of.setdefault(pair.before.id, []).append(pair.after - pair.before.correct)
    gains = np.array([sum(each) / len(each) for each in of.values()])
    lost, won = float(-gains[gains < 0].sum()), float(gains[gains > 0].sum())
    held = judge(lost, won, len(gains), margin_points)
    low, high = bootstrap_mean(gains, np.arange(len(gains)))
    if low == high:
        low, high = paired_difference(lost, won, len(gains))
    verdict = held.verdict
    if slices:
        fallen, risen = int((gains < 0).sum()), int((gains > 0).sum())
        worse = slice_is_worse(fallen, risen, held.points, margin_points, slices)
        verdict = "worse" if worse else "as good" if held.shown else "unproven"
    return {
        "n": len(pairs),
        "items": len(gains),
        "accuracy_first": sum(pair.before.correct for pair in pairs) / len(pairs),
        "accuracy_second": sum(pair.after for pair in pairs) / len(pairs),
        "difference_points": held.points,
        "bootstrap_95": [100 * low, 100 * high],
        "bound_points": held.low,
        "verdict": verdict,
        **(
            {} if slices else {"rows_needed": rows_needed(lost / len(gains), won / len(gains), margin_points)}
        ),
    }
