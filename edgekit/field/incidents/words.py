"""What happened, in one sentence for a person who did not build the model."""

from __future__ import annotations

from edgekit.base.clock import clock, span
from edgekit.field.incidents.rules import Change

SENTENCES = {
    "ttft_p95_s": "Time to first token is {value:.1f} s at the 95th percentile, limit {limit:.1f} s",
    "tokens_per_s": "Answers come at {value:.1f} tokens/s, at least {limit:.1f} are expected",
    "rss_mib": "The process takes {value:.0f} MiB of memory, limit {limit:.0f} MiB",
    "temperature_c": "The device is at {value:.0f} °C, limit {limit:.0f} °C",
    "throttled_s": "The processor was throttled for {value:.0f} s of the last {window}, limit {limit:.0f} s",
    "error_rate": "{value:.1%} of the requests fail, limit {limit:.1%}",
    "empty_rate": "{value:.1%} of the answers are empty, limit {limit:.1%}",
    "confidence": "The model is {value:.0%} sure of its words on average, limit {limit:.0%}",
    "confidence_gap": "The model is {confidence:.0%} sure of its words on average, against {expected:.0%} when it was built",
    "digest_mismatches": "A file of the release is not the one in its manifest",
    "heartbeat_age_s": "Nothing is heard of the device: its last heartbeat is {age} ago, limit {limit:.0f} s",
}
LABELS = {
    "latency": "Slow first token", "speed": "Slow answers", "memory": "Too much memory", "temperature": "Too hot",
    "errors": "Failing requests", "empty": "Empty answers", "drift": "Drift", "calibration": "Unusual confidence",
    "integrity": "Changed files", "heartbeat": "Device lost", "store": "Telemetry not kept",
}  # fmt: skip


def sentence(change: Change) -> str:
    """What an opened alert says: the reading, its limit, and since when (local time)."""
    rule, reading, value = change.rule, change.reading, change.value or 0.0
    since = f", since {clock(change.since, change.time)}."
    if rule.metric == "drift_alarms" and reading is not None:
        told = [str(alarm.get("words") or alarm.get("signal", "")).rstrip(".") for alarm in reading.alarms]
        return "; ".join(dict.fromkeys(told[-3:])) + since
    if rule.metric == "store_troubles" and reading is not None:
        return f"Telemetry is not being kept: {(reading.trouble or '').rstrip('.')}{since}"
    return (
        SENTENCES[rule.metric].format(
            value=value,
            limit=rule.limit,
            window=span(rule.window_s),
            age=span(value),
            confidence=(reading.confidence if reading else None) or 0.0,
            expected=(reading.confidence_expected if reading else None) or 0.0,
        )
        + since
    )
