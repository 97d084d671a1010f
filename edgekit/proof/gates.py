"""Gates: in what an opened file must agree with its reference, and the limits of its size, memory and speed.

Each gate compares a measured value with a limit. Its `stage` is the one that caused a failure, its `detail` shows the
first difference.

A value that was measured on a sample must meet two conditions:

1. the value is within the limit; and
2. the sample shows that the file is not much worse than that: with 95 % confidence (a one-sided bound) the file loses
   at most twice what the limit allows. With `stop_agreement = 0.95` the lower bound must reach 0.90.

So a worse file never passes for lack of evidence: a sample that is too small fails, and the detail says so (at least 25
answers without a fault are needed to show 0.90). A value beyond the limit fails at every sample size. Bounds are
Wilson's for shares of answers, the same with a design effect for shares of positions, a bootstrap over blocks of
positions for mean divergences, and Tango's for differences of accuracy, which inverts McNemar's test. `accuracy_gain`
is stricter: its lower bound must show that tuning helps. Checks of identity (`proof.text_path`) allow no difference, and
sizes are exact; neither has an interval, nor has the 99th percentile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.base.events import GateResult
from edgekit.evaluation.compare import Change
from edgekit.evaluation.statistics import ONE_SIDED_95, Interval, wilson
from edgekit.proof.drift import Drift, Scored
from edgekit.targets.target import Budget

LEAST_POINTS = 1.0  # percentage points that the bound of an accuracy drop may always exceed its limit by


def stop_contract(
    scored: Scored, answers: NDArray[np.bool_], stops: frozenset[int], budget: Budget, prefix: str, stage: str
) -> GateResult:
    """Share of the reference's own answers that the file ends at the same position.

    `answers (N,)` selects the positions in answers. An answer ends at another position when one side chooses a stop
    token somewhere and the other does not choose the same token.
    """
    stop_ids = list(stops)
    apart = answers & (scored.expected != scored.got)
    missed = apart & np.isin(scored.expected, stop_ids)
    early = apart & np.isin(scored.got, stop_ids) & ~missed
    count = len(np.unique(scored.sequence[answers]))
    ended = len(np.unique(scored.sequence[answers & np.isin(scored.expected, stop_ids)]))
    wrong = len(np.unique(scored.sequence[missed | early]))
    detail = f"{ended} of {count} reference answers end with a stop token"
    if wrong:
        detail += f"; missed stops: {int(missed.sum())}, early stops: {int(early.sum())}"
    measured = Measured(1 - wrong / max(count, 1), detail, wilson(count - wrong, count, ONE_SIDED_95), count)
    return _share(f"{prefix}.stop_contract", measured, budget.stop_agreement, stage)


def greedy_agreement(
    scored: Scored, answers: NDArray[np.bool_], stops: frozenset[int], budget: Budget, prefix: str, stage: str
) -> GateResult:
    """The mean share of an answer's tokens, its stop token included, before the first one that differs.

    It follows the reference's own greedy answers, so it measures what a user of both would see. `answers (N,)` selects
    the positions in answers.
    """
    shares = []
    for sequence in np.unique(scored.sequence[answers]):
        at = answers & (scored.sequence == sequence)
        expected, same = scored.expected[at], scored.expected[at] == scored.got[at]
        ends = np.flatnonzero(np.isin(expected, list(stops)))
        length = ends[0] + 1 if len(ends) else len(expected)
        apart = np.flatnonzero(~same[:length])
        shares.append(float(apart[0] / length) if len(apart) else 1.0)
    whole, count = sum(share == 1.0 for share in shares), len(shares)
    detail = f"{whole} of {count} answers are identical to the reference's"
    mean = sum(shares) / max(count, 1)
    measured = Measured(mean, detail, wilson(sum(shares), count, ONE_SIDED_95), count)
    return _share(f"{prefix}.greedy_agreement", measured, budget.greedy_agreement, stage)


def text_drift(text: Drift, budget: Budget, prefix: str, stage: str) -> GateResult:
    """The gate on the next-token distributions over plain text."""
    measured = _mean_kld(text, f"{text.n_tokens} positions of plain text")
    return _at_most(f"{prefix}.text_mean_kld_nats", measured, budget.text_mean_kld_nats, stage)


def drift(
    measured: Drift, answers: Drift, text: Drift | None, budget: Budget, prefix: str, stage: str
) -> list[GateResult]:
    """The gates on the next-token distributions: over whole conversations, their answers alone, and plain text."""
    everywhere, spoken = f"{measured.n_tokens} positions", f"{answers.n_tokens} positions of answers"
    read = [text_drift(text, budget, prefix, stage)] if text else []
    mean = _mean_kld(measured, everywhere)
    p99 = Measured(measured.p99_kld_nats, everywhere, None, measured.n_tokens)
    return [
        *read,
        _at_most(f"{prefix}.mean_kld_nats", mean, budget.mean_kld_nats, stage),
        _at_most(f"{prefix}.p99_kld_nats", p99, budget.p99_kld_nats, stage),
        _share(f"{prefix}.top1_agreement", _top1(measured, everywhere), budget.top1_agreement, stage),
        _share(
            f"{prefix}.answer_top1_agreement", _top1(answers, spoken), budget.answer_top1_agreement, stage
        ),
    ]


def size(size_bytes: int, limit_mib: float, prefix: str, stage: str) -> GateResult:
    """The file's or folder's size, MiB."""
    return _at_most(
        f"{prefix}.size_mib", Measured(size_bytes / 2**20, f"{size_bytes} bytes"), limit_mib, stage
    )


def peak_rss(peak_mib: float, limit_mib: float, prefix: str, stage: str) -> GateResult:
    """The resident memory of a fresh process that answers, MiB."""
    return _at_most(f"{prefix}.peak_rss_mib", Measured(peak_mib), limit_mib, stage)


def ttft(milliseconds: float, limit: float, prefix: str, stage: str) -> GateResult:
    """The time to the first token, ms."""
    return _at_most(f"{prefix}.ttft_ms", Measured(milliseconds), limit, stage)


def decode_speed(tokens_per_s: float, limit: float, prefix: str, stage: str) -> GateResult:
    """The decode speed, tokens/s."""
    return GateResult(f"{prefix}.decode_tokens_per_s", tokens_per_s, limit, tokens_per_s >= limit, "", stage)


def accuracy_drop(change: Change, budget: Budget, prefix: str, stage: str) -> GateResult:
    """The drop of accuracy from the tuned model to the file, percentage points.

    The upper bound may be twice the limit, and at least one point above it, because a drop of zero cannot be shown.
    """
    limit = budget.accuracy_drop_points
    return _drop(f"{prefix}.accuracy_drop_points", change, _changed(change), limit, stage)


def robust_drop(changes: Mapping[str, Change], limit: float, prefix: str, stage: str) -> GateResult:
    """The largest drop of accuracy from the tuned model to the file in any variant of the rows, percentage points.

    Each variant is judged as `accuracy_drop` is, and all must pass.
    """
    name = f"{prefix}.robust_drop_points"
    found = [
        _drop(name, change, f"{variant}: {_changed(change)}", limit, stage)
        for variant, change in changes.items()
    ]
    return max(found, key=lambda gate: (not gate.passed, gate.value, gate.high))


def drop_rate(noise: Mapping[str, Any], n: int, limit: float, prefix: str, stage: str) -> GateResult:
    """The mean performance drop rate of a file under noise: `noise` of a document of schema `edgekit.robustness/1`."""
    name, detail = f"{prefix}.robust_drop_rate", f"mean over {noise['families']} families, {n} rows"
    if noise["pdr"] is None:
        return GateResult(name, 1.0, limit, False, f"{detail}; no row is right without noise", stage, n=n)
    return _at_most(name, Measured(noise["pdr"], detail, tuple(noise["pdr_bounds"]), n), limit, stage)


def accuracy_gain(change: Change, against: str, budget: Budget, stage: str = "tune") -> GateResult:
    """The gain of accuracy from the base to the tuned model, percentage points.

    It passes when the lower bound of the gain is above the limit. `against` says how the base was prompted.
    """
    limit = budget.accuracy_gain_points
    found = change.judged(-limit)
    detail = f"compared with the base {against}: {_changed(change)}"
    if not found.shown and found.points > limit:
        detail += f"; {change.n} rows show a gain of only {found.low:+.1f} points with 95 % confidence"
    name = "tune.accuracy_gain_points"
    return GateResult(name, found.points, limit, found.shown, detail, stage, found.low, found.high, change.n)


def _drop(name: str, change: Change, detail: str, limit: float, stage: str) -> GateResult:
    """Passed when the loss is at most `limit` points, and shown to be below twice that or one point more."""
    most = limit + max(limit, LEAST_POINTS)
    found = change.judged(limit, most)
    told = f"the upper bound is {-found.low:.3g}, above {most:g}"
    measured = Measured(-found.points, detail, Interval(-found.high, -found.low), change.n)
    return _judged(name, measured, limit, found.within, found.shown, told, stage)


def _changed(change: Change) -> str:
    before, after = change.right_before / max(change.n, 1), change.right_after / max(change.n, 1)
    return (
        f"accuracy {before:.1%} to {after:.1%} on {change.n} rows, {len(change.lost)} answers lost and "
        f"{len(change.won)} won, McNemar's p {change.mcnemar_p:.2g}"
    )


@dataclass(frozen=True)
class Measured:
    """A measured value with its explanation and, if it has them, its one-sided 95 % bounds and its sample size."""

    value: float
    detail: str = ""
    bounds: Interval | tuple[float, float] | None = None
    n: int | None = None


def _mean_kld(found: Drift, detail: str) -> Measured:
    return Measured(found.mean_kld_nats, detail, found.mean_kld_bounds, found.n_tokens)


def _top1(found: Drift, detail: str) -> Measured:
    return Measured(found.top1_agreement, detail, found.top1_bounds, found.n_tokens)


def _at_most(
    name: str, measured: Measured, limit: float, stage: str, *, most: float | None = None
) -> GateResult:
    """Passed when the value is at most `limit` and its upper bound at most `most`, by default twice the limit."""
    most = 2 * limit if most is None else most
    shown = measured.bounds is None or measured.bounds[1] <= most
    told = f"the upper bound is {measured.bounds[1]:.3g}, above {most:g}" if measured.bounds else ""
    return _judged(name, measured, limit, measured.value <= limit, shown, told, stage)


def _share(name: str, measured: Measured, limit: float, stage: str) -> GateResult:
    """Passed when the share is at least `limit` and its lower bound at least `2 * limit - 1` (twice the misses)."""
    least = round(2 * limit - 1, 9)
    shown = measured.bounds is None or measured.bounds[0] >= least
    told = f"the lower bound is {measured.bounds[0]:.3g}, below {least:g}" if measured.bounds else ""
    return _judged(name, measured, limit, measured.value >= limit, shown, told, stage)


def _judged(
    name: str, measured: Measured, limit: float, within: bool, shown: bool, told: str, stage: str
) -> GateResult:
    detail = measured.detail
    if within and not shown:
        detail += f"; the value is within its limit, but the sample is too small to prove it ({told}): add held-out rows"
    low, high = measured.bounds or (None, None)
    return GateResult(name, measured.value, limit, within and shown, detail, stage, low, high, measured.n)
