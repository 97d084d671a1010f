"""When a version in use is taken back: rules over what it did, beside what the one before did.

Compare to the control, not to a wish (Site Reliability Workbook, chapter 16): errors and empty answers by a one-sided
binomial test, times and speeds by ratio, drift alarms where the control had none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Mode = Literal["never", "suggest", "auto"]
Action = Literal["keep", "suggest", "roll back"]

P = 0.01
ALLOWED_RISE = 0.01  # of the error rate, which no test should be spent on
SLOWER_TTFT = 1.2
SLOWER_RATE = 0.8
LEAST_REQUESTS = 20  # fewer say nothing about a 95th percentile


@dataclass(frozen=True)
class Readings:
    """What one version did in a stretch of time; None where it is not known."""

    requests: int = 0
    errors: int = 0
    empty: int = 0
    ttft_p95_s: float | None = None
    tokens_per_s: float | None = None
    alarms: int = 0
    """Drift alarms."""
    rss_mib: float | None = None


@dataclass(frozen=True)
class Decision:
    """What to do, and each rule that says so in words."""

    action: Action
    reasons: tuple[str, ...] = ()


def decide(
    current: Readings, baseline: Readings | None, mode: Mode, *, peak_rss_mib: float | None = None
) -> Decision:
    """Whether the version in use is to be rolled back; `baseline` is the version before, in its last good time.

    Without a baseline only what needs none is held: errors and empty answers against a rate of zero, and memory
    against the budget `peak_rss_mib`. With mode `never` nothing is looked at.
    """
    if mode == "never":
        return Decision("keep")
    reasons = [
        *_rates(current, baseline or Readings()),
        *(_speeds(current, baseline) if baseline else ()),
    ]
    if current.alarms and baseline is not None and not baseline.alarms:
        reasons.append(f"{current.alarms} drift alarms, and none with the version before")
    if peak_rss_mib is not None and current.rss_mib is not None and current.rss_mib > peak_rss_mib:
        reasons.append(f"{current.rss_mib:.0f} MiB of memory, over the budget of {peak_rss_mib:.0f}")
    if not reasons:
        return Decision("keep")
    return Decision("roll back" if mode == "auto" else "suggest", tuple(reasons))


def _rates(current: Readings, baseline: Readings) -> list[str]:
    found = []
    for what, bad, bad_before in (
        ("errors", current.errors, baseline.errors),
        ("empty answers", current.empty, baseline.empty),
    ):
        rate = bad_before / baseline.requests if baseline.requests else 0.0
        p = binomial_tail(bad, current.requests, min(1.0, rate + ALLOWED_RISE))
        if p < P:
            found.append(
                f"{bad} {what} in {current.requests} requests, against {rate:.1%} before (p = {p:.2g})"
            )
    return found


def _speeds(current: Readings, baseline: Readings) -> list[str]:
    if min(current.requests, baseline.requests) < LEAST_REQUESTS:
        return []
    found = []
    now, then = current.ttft_p95_s, baseline.ttft_p95_s
    if now is not None and then and now > SLOWER_TTFT * then:
        found.append(f"{now:.3f} s to the first token (p95), {now / then:.2f} times {then:.3f} s before")
    now, then = current.tokens_per_s, baseline.tokens_per_s
    if now is not None and then and now < SLOWER_RATE * then:
        found.append(f"{now:.1f} tokens/s, {now / then:.2f} times {then:.1f} before")
    return found


def binomial_tail(k: int, n: int, p: float) -> float:
    """The probability of `k` or more of `n` at rate `p`, summed from `k` on until no term counts."""
    if k <= 0:
        return 1.0
    if k > n or p <= 0:
        return 0.0
    if p >= 1:
        return 1.0
    if k < n * p:  # the shorter sum, whose terms fall from its end on
        return max(0.0, 1 - binomial_tail(n - k + 1, n, 1 - p))
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    term = math.exp(log + k * math.log(p) + (n - k) * math.log1p(-p))
    total = 0.0
    for i in range(k, n + 1):
        total += term
        term *= (n - i) / (i + 1) * p / (1 - p)
        if term < total * 1e-16:
            break
    return min(1.0, total)
