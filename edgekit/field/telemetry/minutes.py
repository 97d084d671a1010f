"""The telemetry of one minute of one release, and the window that several minutes add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.device.answer import WHOLE
from edgekit.field.telemetry.machine import Machine
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.sketch import DURATION_S, TOKENS, TOKENS_PER_S, TTFT_S, Sketch, split

SECONDS = 60
BOUNDS = {
    "ttft_s": split(TTFT_S),
    "duration_s": split(DURATION_S),
    "queue_s": split(TTFT_S),
    "tokens_per_s": split(TOKENS_PER_S),
    "prompt_tokens": TOKENS,
    "answer_tokens": TOKENS,
}
COUNTERS = ("counts", "finishes", "errors", "classes")
MEANS = ("confidence", "entropy", "unknown_rate")
MOST_NAMES = 128  # of classes, error kinds and finish reasons in a minute


@dataclass(frozen=True)
class Window:
    """Telemetry between two times, of one release or of all; `errors` to `cancelled` count requests.

    `duration_p95_s` to `queue_p95_s` come from histograms and are accurate to a quarter of a bucket. `tokens_per_s` is
    the median decode speed, `confidence` to `unknown_rate` are means, `rss_mib` and `temperature_c` are maxima. Values
    without measurements are None. `last_seen` is the last heartbeat of a serving process, in Unix seconds.
    """

    since: float
    until: float
    release: str | None
    requests: int = 0
    errors: int = 0
    empty: int = 0
    truncated: int = 0
    cancelled: int = 0
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    duration_p95_s: float | None = None
    queue_p95_s: float | None = None
    tokens_per_s: float | None = None
    prompt_tokens: int = 0
    answer_tokens: int = 0
    rss_mib: float | None = None
    temperature_c: float | None = None
    throttled_s: float = 0.0
    confidence: float | None = None
    entropy: float | None = None
    unknown_rate: float | None = None
    classes: dict[str, int] = field(default_factory=dict)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    last_seen: float | None = None
    error_kinds: dict[str, int] = field(default_factory=dict)


class Minute:
    """Counts, sums and histograms of a minute; two of them can be added."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.finishes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.classes: Counter[str] = Counter()
        self.sums = dict.fromkeys(MEANS, 0.0)
        self.seen = dict.fromkeys(MEANS, 0)
        self.sketches = {name: Sketch(bounds) for name, bounds in BOUNDS.items()}
        self.highest: dict[str, float] = {}
        self.throttled_s = 0.0

    def add(self, observation: Observation) -> None:
        """Count one answer."""
        self.counts["requests"] += 1
        self.finishes[observation.finish] += 1
        if observation.error:
            self.errors[observation.error] += 1
        if not observation.answer_tokens and observation.finish in WHOLE:
            self.counts["empty"] += 1
        if observation.label is not None:
            self.classes[observation.label] += 1
        for name in MEANS:
            value = getattr(observation, name)
            if value is not None:
                self.sums[name] += value
                self.seen[name] += 1
        for name in ("queue_s", "duration_s", "prompt_tokens", "answer_tokens"):
            self.sketches[name].add(getattr(observation, name))
        if observation.ttft_s is not None:
            self.sketches["ttft_s"].add(
                observation.queue_s + observation.ttft_s
            )  # the wait that the user sees
            decoding = observation.duration_s - observation.ttft_s
            if observation.answer_tokens > 1 and decoding > 0:
                self.sketches["tokens_per_s"].add((observation.answer_tokens - 1) / decoding)

    def sample(self, machine: Machine) -> None:
        """Add one reading of the machine."""
        self.throttled_s += machine.throttled_s or 0.0
        for name in ("rss_mib", "temperature_c", "load"):
            value = getattr(machine, name)
            if value is not None:
                self.highest[name] = max(value, self.highest.get(name, value))

    def merge(self, other: Minute) -> None:
        """Add the values of another minute."""
        for name in COUNTERS:
            mine: Counter[str] = getattr(self, name)
            for key, count in getattr(other, name).items():
                mine[key if key in mine or len(mine) < MOST_NAMES else "(other)"] += count
        for name in MEANS:
            self.sums[name] += other.sums[name]
            self.seen[name] += other.seen[name]
        for name, sketch in self.sketches.items():
            sketch.merge(other.sketches[name])
        for name, value in other.highest.items():
            self.highest[name] = max(value, self.highest.get(name, value))
        self.throttled_s += other.throttled_s

    def to_json(self) -> dict[str, Any]:
        """The values as JSON, without empty parts."""
        whole: dict[str, Any] = {name: dict(getattr(self, name)) for name in COUNTERS}
        whole |= {
            "sums": self.sums,
            "seen": self.seen,
            "highest": self.highest,
            "throttled_s": self.throttled_s,
        }
        whole["sketches"] = {name: sketch.to_json() for name, sketch in self.sketches.items() if sketch.count}
        return {name: part for name, part in whole.items() if part}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Minute:
        """Read the output of `to_json`; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        minute = cls()
        for name in COUNTERS:
            setattr(minute, name, Counter({key: int(count) for key, count in value.get(name, {}).items()}))
        minute.sums |= {name: float(total) for name, total in value.get("sums", {}).items()}
        minute.seen |= {name: int(count) for name, count in value.get("seen", {}).items()}
        minute.highest = {name: float(highest) for name, highest in value.get("highest", {}).items()}
        minute.throttled_s = float(value.get("throttled_s", 0.0))
        for name, sketch in value.get("sketches", {}).items():
            if name in BOUNDS:
                minute.sketches[name] = Sketch.from_json(BOUNDS[name], sketch)
        return minute


def window(
    minutes: Iterable[Minute],
    since: float,
    until: float,
    release: str | None,
    alarms: list[dict[str, Any]],
    last_seen: float | None,
) -> Window:
    """The window that `minutes` add up to."""
    whole = Minute()
    for minute in minutes:
        whole.merge(minute)
    quantile = {name: sketch.quantile for name, sketch in whole.sketches.items()}
    means = {name: whole.sums[name] / whole.seen[name] if whole.seen[name] else None for name in MEANS}
    return Window(
        since,
        until,
        release,
        requests=whole.counts["requests"],
        errors=whole.finishes["error"],
        empty=whole.counts["empty"],
        truncated=whole.finishes["length"],
        cancelled=whole.finishes["cancelled"],
        ttft_p50_s=quantile["ttft_s"](0.5),
        ttft_p95_s=quantile["ttft_s"](0.95),
        duration_p95_s=quantile["duration_s"](0.95),
        queue_p95_s=quantile["queue_s"](0.95),
        tokens_per_s=quantile["tokens_per_s"](0.5),
        prompt_tokens=round(whole.sketches["prompt_tokens"].total),
        answer_tokens=round(whole.sketches["answer_tokens"].total),
        rss_mib=whole.highest.get("rss_mib"),
        temperature_c=whole.highest.get("temperature_c"),
        throttled_s=whole.throttled_s,
        classes=dict(whole.classes),
        alarms=alarms,
        last_seen=last_seen,
        error_kinds=dict(whole.errors),
        **means,
    )
