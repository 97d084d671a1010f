"""The readings of a device that rules evaluate, taken from a window of telemetry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.field.telemetry.store import Window

OF_ANSWERS = frozenset(
    {"ttft_p95_s", "tokens_per_s", "error_rate", "empty_rate", "confidence", "confidence_gap"}
)  # readings that need more than a few requests


@dataclass(frozen=True)
class Reading:
    """The readings of a release over a window of time. An unknown reading is None, and never counts as good.

    `confidence_expected` is the mean confidence that the build recorded, `alarms` are drift alarms with `signal`,
    `method`, `words` and `since`, `last_seen` is the last heartbeat in Unix seconds, `digest_ok` whether the files match
    the manifest, `trouble` why telemetry cannot be saved (empty when it can).
    """

    release: str = ""
    requests: int = 0
    errors: int = 0
    empty: int = 0
    ttft_p95_s: float | None = None
    tokens_per_s: float | None = None
    rss_mib: float | None = None
    temperature_c: float | None = None
    throttled_s: float | None = None
    confidence: float | None = None
    confidence_expected: float | None = None
    alarms: Sequence[Mapping[str, Any]] = ()
    last_seen: float | None = None
    digest_ok: bool | None = None
    trouble: str | None = None
    drift_over: bool | None = None
    """Whether every signal matches the reference again."""

    def value(self, metric: str, now: float) -> float | None:
        """The reading with the name that rules use; None when it is unknown."""
        match metric:
            case "error_rate":
                return self.errors / self.requests if self.requests else None
            case "empty_rate":
                return self.empty / self.requests if self.requests else None
            case "drift_alarms":
                # an alarm is raised once, so silence does not mean that the drift has ended
                return float(len(self.alarms)) or (0.0 if self.drift_over else None)
            case "confidence_gap":
                known = self.confidence is not None and self.confidence_expected is not None
                return abs((self.confidence or 0.0) - (self.confidence_expected or 0.0)) if known else None
            case "digest_mismatches":
                return None if self.digest_ok is None else float(not self.digest_ok)
            case "heartbeat_age_s":
                return None if self.last_seen is None else max(0.0, now - self.last_seen)
            case "store_troubles":
                return None if self.trouble is None else float(bool(self.trouble))
            case _:
                found: float | None = getattr(self, metric)
                return found


def reading_of(
    window: Window,
    *,
    digest_ok: bool | None = None,
    trouble: str | None = None,
    confidence_expected: float | None = None,
    last_seen: float | None = None,
    told_until: float = 0.0,
    drift_over: bool | None = None,
) -> Reading:
    """The readings of a telemetry window, and of what telemetry itself does not know.

    `last_seen` is used when the window has no heartbeat of its own. Drift alarms up to `told_until` were handled before.
    """
    return Reading(
        release=window.release or "",
        requests=window.requests,
        errors=window.errors,
        empty=window.empty,
        ttft_p95_s=window.ttft_p95_s,
        tokens_per_s=window.tokens_per_s,
        rss_mib=window.rss_mib,
        temperature_c=window.temperature_c,
        throttled_s=window.throttled_s,
        confidence=window.confidence,
        confidence_expected=confidence_expected,
        alarms=tuple(alarm for alarm in window.alarms if alarm.get("time", window.until) > told_until),
        last_seen=window.last_seen if window.last_seen is not None else last_seen,
        digest_ok=digest_ok,
        trouble=trouble,
        drift_over=drift_over,
    )


def expected_confidence(bundle: Path | None, format: str) -> float | None:
    """The mean confidence that the build recorded for a format; None when there is none or it cannot be read."""
    from edgekit.base.errors import CorruptError
    from edgekit.field.telemetry import reference

    try:
        signals = None if bundle is None else reference.load(bundle, format)
    except CorruptError:
        return None
    number = None if signals is None else signals.numbers.get("confidence")
    return None if number is None else number.mean
