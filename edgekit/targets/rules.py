"""Alert rules: which reading of a deployed model alerts an operator, at which limit, and for how long."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from edgekit.targets.table import Table

RuleKind = Literal[
    "latency", "speed", "memory", "temperature", "errors", "empty", "drift", "calibration", "integrity", "heartbeat",
    "store",
]  # fmt: skip
Metric = Literal[
    "ttft_p95_s", "tokens_per_s", "rss_mib", "temperature_c", "throttled_s", "error_rate", "empty_rate", "drift_alarms",
    "confidence", "confidence_gap", "digest_mismatches", "heartbeat_age_s", "store_troubles",
]  # fmt: skip
METRICS: dict[str, tuple[Metric, ...]] = {
    "latency": ("ttft_p95_s",),
    "speed": ("tokens_per_s",),
    "memory": ("rss_mib",),
    "temperature": ("temperature_c", "throttled_s"),
    "errors": ("error_rate",),
    "empty": ("empty_rate",),
    "drift": ("drift_alarms",),
    "calibration": ("confidence_gap", "confidence"),
    "integrity": ("digest_mismatches",),
    "heartbeat": ("heartbeat_age_s",),
    "store": ("store_troubles",),
}


class Rule(Table):
    """Alerts the operator of a deployed model when a reading stays beyond a limit, and says what is then done."""

    kind: RuleKind
    """What the rule watches; each kind has a runbook."""
    metric: Metric = "ttft_p95_s"
    """The reading; its name carries the unit, and rates are shares of requests. Default: the first reading of the kind."""
    above: float | None = None
    """The limit, when high readings are bad."""
    below: float | None = None
    """The limit, when low readings are bad; give either this or `above`."""
    clear: float | None = None
    """The value at which the reading counts as good again (hysteresis); default: the limit itself."""
    for_s: Annotated[float, Field(ge=0)] = 30.0
    """How long the reading must be bad before an incident opens, and good before it closes, seconds. Memory and
    temperature are the highest value of the window, so this has an effect only when it exceeds the window by a minute."""
    window_s: Annotated[float, Field(gt=0)] = 300.0
    """Length of the time window that is read, seconds."""
    min_requests: Annotated[int, Field(ge=0)] = 10
    """The fewest requests in the window for which a reading of answers is used."""
    action: Literal["never", "suggest", "auto"] = "suggest"
    """Roll back to the previous release: never, as the suggested first step, or automatically."""
    severity: Literal["warning", "critical"] = "warning"
    """How urgent the incident is."""

    @model_validator(mode="before")
    @classmethod
    def _metric_of_kind(cls, values: Any) -> Any:
        if isinstance(values, dict) and "metric" not in values and values.get("kind") in METRICS:
            return {**values, "metric": METRICS[values["kind"]][0]}
        return values

    @model_validator(mode="after")
    def _limits_agree(self) -> Rule:
        if self.metric not in METRICS[self.kind]:
            raise ValueError(
                f"a rule of kind '{self.kind}' reads {' or '.join(METRICS[self.kind])}, not '{self.metric}'"
            )
        if (self.above is None) == (self.below is None):
            raise ValueError("give one limit: above or below")
        if self.clear is not None and (
            self.clear > self.limit if self.above is not None else self.clear < self.limit
        ):
            raise ValueError(f"clear = {self.clear:g} is on the wrong side of the limit {self.limit:g}")
        return self

    @property
    def limit(self) -> float:
        """The limit: `above` or `below`, whichever is set."""
        return self.above if self.above is not None else self.below if self.below is not None else 0.0

    @property
    def key(self) -> str:
        """The rule as text, such as `ttft_p95_s > 1`; unique in a target."""
        return f"{self.metric} {'>' if self.above is not None else '<'} {self.limit:g}"
