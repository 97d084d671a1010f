"""The sentence that describes an incident, for a person who did not build the model."""

from __future__ import annotations

from edgekit.base.clock import clock, span
from edgekit.field.incidents.rules import Change

SENTENCES = {
    "ttft_p95_s": "Time to first token is {value:.1f} s at the 95th percentile, limit {limit:.1f} s",
    "tokens_per_s": "Decode speed is {value:.1f} tokens/s, limit {limit:.1f} tokens/s",
    "rss_mib": "The process uses {value:.0f} MiB of memory, limit {limit:.0f} MiB",
    "temperature_c": "The device temperature is {value:.0f} °C, limit {limit:.0f} °C",
    "throttled_s": "The processor was throttled for {value:.0f} s of the last {window}, limit {limit:.0f} s",
    "error_rate": "{value:.1%} of the requests failed, limit {limit:.1%}",
    "empty_rate": "{value:.1%} of the answers were empty, limit {limit:.1%}",
    "confidence": "The mean confidence of answers is {value:.0%}, limit {limit:.0%}",
    "confidence_gap": "The mean confidence of answers is {confidence:.0%}; it was {expected:.0%} when the model was built",
    "digest_mismatches": "A file of the release differs from its manifest",
    "heartbeat_age_s": "The device has stopped sending heartbeats: the last one was {age} ago, limit {limit:.0f} s",
}
LABELS = {
    "latency": "Slow first token", "speed": "Slow answers", "memory": "Too much memory", "temperature": "Too hot",
    "errors": "Failing requests", "empty": "Empty answers", "drift": "Drift", "calibration": "Unusual confidence",
    "integrity": "Changed files", "heartbeat": "Device lost", "store": "Telemetry not kept",
}  # fmt: skip


def sentence(change: Change) -> str:
    """The sentence for an opened alert: the reading, its limit, and the local time at which it began."""
    rule, reading, value = change.rule, change.reading, change.value or 0.0
    since = f", since {clock(change.since, change.time)}."
    if rule.metric == "drift_alarms" and reading is not None:
        told = [str(alarm.get("words") or alarm.get("signal", "")).rstrip(".") for alarm in reading.alarms]
        return "; ".join(dict.fromkeys(told[-3:])) + since
    if rule.metric == "store_troubles" and reading is not None:
        return f"Telemetry is not being saved: {(reading.trouble or '').rstrip('.')}{since}"
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
