"""The Prometheus metrics of a serving process; all their names are defined here, most buckets in `sketch`.


Names and buckets are those of OpenTelemetry's GenAI conventions 1.41 in Prometheus' spelling (dots to underscores, the
unit as suffix, none on token usage); names that the conventions lack begin with `edgekit_`.
<https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/>
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from edgekit.field.telemetry.machine import temperature
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.sketch import DURATION_S, TOKENS, TTFT_S

CONTENT_TYPE = CONTENT_TYPE_LATEST

OUTPUT_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

COMMON = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
ERROR, TOKEN_TYPE = "error_type", "gen_ai_token_type"
PROVIDER = "edgekit"
SEVERITIES = ("critical", "warning")


@dataclass(frozen=True)
class UnderWay:
    """An open incident: `since` is when it began, in Unix seconds; `silenced` says whether notifications are off."""

    kind: str
    severity: str
    since: float
    silenced: bool = False


class Metrics:
    """Counts of one serving process; `observe` and `refused` may be called from any thread.

    `model` is the name that clients use; `queue` and `running` return how many requests wait and are being answered.
    """

    def __init__(
        self, model: str, queue: Callable[[], float] = lambda: 0, running: Callable[[], float] = lambda: 0
    ) -> None:
        self.model = model
        self._registry = registry = CollectorRegistry()

        def seconds(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(
                name, text, (*COMMON, *labels), registry=registry, buckets=buckets, unit="seconds"
            )

        self._usage = Histogram(
            "gen_ai_client_token_usage",
            "Number of tokens in prompts and answers.",
            (*COMMON, TOKEN_TYPE),
            registry=registry,
            buckets=TOKENS,
        )
        self._operation = seconds(
            "gen_ai_client_operation_duration",
            "Time from prompt to complete answer, without queueing.",
            DURATION_S,
            ERROR,
        )
        self._first_chunk = seconds(
            "gen_ai_client_operation_time_to_first_chunk",
            "Time to the first token, without queueing.",
            DURATION_S,
        )
        self._output_chunk = seconds(
            "gen_ai_client_operation_time_per_output_chunk", "Time per token after the first.", DURATION_S
        )
        self._request = seconds(
            "gen_ai_server_request_duration",
            "Time from request to complete answer, with queueing.",
            DURATION_S,
            ERROR,
        )
        self._first_token = seconds(
            "gen_ai_server_time_to_first_token", "Time to the first token, with queueing.", TTFT_S
        )
        self._output_token = seconds(
            "gen_ai_server_time_per_output_token", "Time per token after the first.", OUTPUT_TOKEN_S
        )

        self._answers = Counter(
            "edgekit_answers", "Number of answers by finish reason.", ("finish",), registry=registry
        )
        self._confidence = Histogram(
            "edgekit_answer_confidence",
            "Geometric mean of the likeliest token's probability over an answer's first tokens.",
            registry=registry,
            buckets=SHARES,
        )
        self._refused = Counter(
            "edgekit_refused_requests",
            "Number of refused requests by reason.",
            ("reason",),
            registry=registry,
        )
        self._alarms = Counter(
            "edgekit_alarms", "Number of drift and rule alarms by kind.", ("kind",), registry=registry
        )
        self._release = Info("edgekit_release", "The release in use.", registry=registry)
        self._incidents = _Incidents()
        registry.register(self._incidents)
        for name, text, value in (
            ("edgekit_queue_length", "Number of requests in the queue.", queue),
            ("edgekit_requests_running", "Number of requests being answered.", running),
            ("edgekit_resident_memory_bytes", "Resident memory of this process.", _resident_bytes),
            (
                "edgekit_temperature_celsius",
                "Temperature of the hottest processor sensor, else of any sensor; NaN without one.",
                _temperature_c,
            ),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    def observe(self, observation: Observation) -> None:
        """Count one answer."""
        common = (observation.operation, PROVIDER, self.model)
        error = observation.error or ""
        self._usage.labels(*common, "input").observe(observation.prompt_tokens)
        self._usage.labels(*common, "output").observe(observation.answer_tokens)
        self._operation.labels(*common, error).observe(observation.duration_s)
        self._request.labels(*common, error).observe(observation.queue_s + observation.duration_s)
        if observation.ttft_s is not None:
            self._first_chunk.labels(*common).observe(observation.ttft_s)
            self._first_token.labels(*common).observe(observation.queue_s + observation.ttft_s)
            if observation.answer_tokens > 1:
                each = (observation.duration_s - observation.ttft_s) / (observation.answer_tokens - 1)
                self._output_chunk.labels(*common).observe(each)
                self._output_token.labels(*common).observe(each)
        self._answers.labels(observation.finish).inc()
        if observation.confidence is not None:
            self._confidence.observe(observation.confidence)

    def refused(self, reason: str) -> None:
        """Count one refused request."""
        self._refused.labels(reason).inc()

    def alarm(self, kind: str) -> None:
        """Count one alarm."""
        self._alarms.labels(kind).inc()

    def stand(self, release: str, under_way: Iterable[UnderWay] | None) -> None:
        """Set the release in use and the open incidents; None when incidents cannot be read, so none are exported."""
        self._release.info({"release": release, "model": self.model})
        self._incidents.under_way = None if under_way is None else tuple(under_way)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format, with the type `CONTENT_TYPE`."""
        return generate_latest(self._registry)


class _Incidents(Collector):
    """The open incidents at one moment; not exported while they are unknown, which differs from none."""

    def __init__(self) -> None:
        self.under_way: tuple[UnderWay, ...] | None = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = self.under_way
        if found is None:
            return
        count = GaugeMetricFamily("edgekit_incidents", "Number of open incidents.", labels=("severity",))
        for severity in SEVERITIES:
            count.add_metric((severity,), sum(one.severity == severity for one in found))
        yield count
        silenced = sum(one.silenced for one in found)
        yield GaugeMetricFamily(
            "edgekit_incidents_silenced", "Number of open incidents that are silenced.", silenced
        )
        since = GaugeMetricFamily(
            "edgekit_incident_since_seconds",
            "Unix time at which the oldest open incident of a kind began.",
            labels=("kind", "severity"),
        )
        for kind, severity in sorted({(one.kind, one.severity) for one in found}):
            began = min(one.since for one in found if (one.kind, one.severity) == (kind, severity))
            since.add_metric((kind, severity), began)
        yield since


def _resident_bytes() -> float:
    return float(psutil.Process().memory_info().rss)


def _temperature_c() -> float:
    found = temperature()
    return math.nan if found is None else found
