"""A page of metrics as `edgekit serve` shows it, read as a device: gauges as they are, counters as what was added.

What a window shows is the difference of two pages. A counter that went down tells of a process that began anew: what
it had counted before is kept, so that a window over a restart holds both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from edgekit.base.errors import CorruptError
from edgekit.base.events import LARGEST
from edgekit.base.numbers import MOST, finite
from edgekit.field.telemetry.metrics import UnderWay
from edgekit.field.telemetry.sketch import Sketch

ANSWERS, ALARMS = "edgekit_answers_total", "edgekit_alarms_total"
FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds_bucket"
TOKEN_SUM, TOKEN_COUNT = (f"gen_ai_server_time_per_output_token_seconds_{part}" for part in ("sum", "count"))
SURE_SUM, SURE_COUNT = (f"edgekit_answer_confidence_{part}" for part in ("sum", "count"))
INCIDENTS, SILENCED = "edgekit_incidents", "edgekit_incidents_silenced"
SINCE, RELEASE = "edgekit_incident_since_seconds", "edgekit_release_info"
MEMORY, TEMPERATURE = "edgekit_resident_memory_bytes", "edgekit_temperature_celsius"
COUNTERS = (ANSWERS, ALARMS, FIRST_TOKEN, TOKEN_SUM, TOKEN_COUNT, SURE_SUM, SURE_COUNT)
READ = tuple(
    f"{name}{end}"  # all else of the page is left unparsed: the larger part of it
    for name in (*COUNTERS, INCIDENTS, SILENCED, SINCE, RELEASE, MEMORY, TEMPERATURE)
    for end in "{ "
)
MOST_LINES = 5000
MODEL = "gen_ai_request_model"
MIB = 2**20

Key = tuple[str, str]  # a counter and the label that tells its parts apart


@dataclass(frozen=True)
class Page:
    """What one page says; `counters` are totals since the process began. What it does not tell is None or empty.

    `incidents` counts those under way by severity, None where the page does not tell (an older edgekit).
    """

    model: str = ""
    release: str = ""
    rss_mib: float | None = None
    temperature_c: float | None = None
    incidents: dict[str, int] | None = None
    silenced: int = 0
    under_way: tuple[UnderWay, ...] = ()
    counters: dict[Key, float] = field(default_factory=dict)


def read_page(body: bytes) -> Page:
    """Read a page. Raises `CorruptError` for one that is not Prometheus' text, or not of `edgekit serve`."""
    try:
        text = body.decode("utf-8")
        lines = [line for line in text.splitlines() if line.startswith(READ)]
        if len(lines) > MOST_LINES:
            raise CorruptError(
                f"The page is not Prometheus' text of one process: it has {len(lines):,} lines."
            )
        samples = [
            sample
            for family in text_string_to_metric_families("\n".join(lines) + "\n")
            for sample in family.samples
        ]
        page = _page(samples)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise CorruptError(f"The page is not Prometheus' text ({type(error).__name__}).") from error
    if not samples:
        what = "holds no metrics of `edgekit serve`" if "# TYPE " in text else "is not Prometheus' text"
        raise CorruptError(f"The page {what}.", "give the address of /metrics of `edgekit serve`")
    return page


def _page(samples: Iterable[Sample]) -> Page:
    gauges: dict[str, float] = {}
    counters: dict[Key, float] = {}
    incidents: dict[str, int] = {}
    under_way: list[UnderWay] = []
    model = release = ""
    for sample in samples:
        name, labels, value = sample.name, sample.labels, float(sample.value)
        if name == RELEASE:
            release, model = labels.get("release", ""), labels.get("model", "") or model
        if finite(value, LARGEST if name == SINCE else MOST) is None:
            continue  # such as a gauge without a sensor
        model = model or labels.get(MODEL, "")
        if name in COUNTERS:
            part = labels.get("finish") or labels.get("kind") or labels.get("le") or ""
            if name == FIRST_TOKEN:
                float(part)  # a bucket without an end is no bucket
            counters[name, part] = counters.get((name, part), 0.0) + value  # of all operations together
        elif name == INCIDENTS:
            incidents[labels.get("severity", "")] = round(value)
        elif name == SINCE:
            under_way.append(UnderWay(labels.get("kind", ""), labels.get("severity", ""), value))
        else:
            gauges[name] = value
    memory = gauges.get(MEMORY)
    return Page(
        model=model,
        release=release,
        rss_mib=None if memory is None else memory / MIB,
        temperature_c=gauges.get(TEMPERATURE),
        incidents=incidents or None,
        silenced=round(gauges.get(SILENCED, 0)),
        under_way=tuple(sorted(under_way, key=lambda one: (one.severity != "critical", one.since))),
        counters=counters,
    )


class Totals:
    """Counters of a device over restarts: each page's are added to what the processes before it had counted."""

    def __init__(self) -> None:
        self.restarts = 0
        self._before: dict[Key, float] = {}
        self._last: dict[Key, float] = {}

    def add(self, page: Page) -> dict[Key, float]:
        """The totals with this page in."""
        now = page.counters
        if any(now.get(key, 0.0) < value for key, value in self._last.items()):
            self.restarts += 1
            for key, value in self._last.items():
                self._before[key] = self._before.get(key, 0.0) + value
        self._last = now
        if not self._before:
            return now
        keys = self._before.keys() | now.keys()
        return {key: self._before.get(key, 0.0) + now.get(key, 0.0) for key in keys}


@dataclass(frozen=True)
class Added:
    """What happened between two totals. `tokens_per_s` is the mean speed of decoding, `alarms` are counted by kind."""

    requests: int = 0
    errors: int = 0
    ttft_p95_s: float | None = None
    tokens_per_s: float | None = None
    confidence: float | None = None
    alarms: dict[str, int] = field(default_factory=dict)

    @property
    def error_rate(self) -> float | None:
        """Share of the requests that failed; None without any."""
        return self.errors / self.requests if self.requests else None


def added(before: dict[Key, float], now: dict[Key, float]) -> Added:
    """What came between the totals `before` and `now`."""
    more = {key: value - before.get(key, 0.0) for key, value in now.items()}
    more = {key: value for key, value in more.items() if value > 0}
    answers = {part: count for (name, part), count in more.items() if name == ANSWERS}
    seconds, tokens = more.get((TOKEN_SUM, ""), 0.0), more.get((TOKEN_COUNT, ""), 0.0)
    sure, told = more.get((SURE_SUM, ""), 0.0), more.get((SURE_COUNT, ""), 0.0)
    return Added(
        requests=round(sum(answers.values())),
        errors=round(answers.get("error", 0.0)),
        ttft_p95_s=_quantile(
            {part: more.get((name, part), 0.0) for name, part in now if name == FIRST_TOKEN}
        ),
        tokens_per_s=finite(tokens / seconds) if seconds > 0 else None,
        confidence=finite(sure / told) if told else None,
        alarms={part: round(count) for (name, part), count in more.items() if name == ALARMS},
    )


def _quantile(counts: dict[str, float], share: float = 0.95) -> float | None:
    """A quantile of buckets as Prometheus counts them, each with all below it, by their upper ends."""
    ends = sorted((float(end), count) for end, count in counts.items())
    bounds = [end for end, _ in ends if math.isfinite(end)]
    if not bounds:
        return None
    sketch, below = Sketch(bounds), 0.0
    for place, (end, count) in enumerate(ends):
        here = max(0, round(count - below))
        below = max(below, count)
        sketch.counts[min(place, len(bounds))] += here
        if here:
            sketch.highest = min(end, bounds[-1])  # nothing is known beyond the last end
    return finite(sketch.quantile(share))
