"""What Prometheus reads: the conventions' names and buckets, and counts that add up."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from edgekit.field.telemetry.metrics import Metrics
from edgekit.field.telemetry.observation import Observation


def observation(**changes: object) -> Observation:
    values = {
        "time": 0.0, "release": "abc", "format": "gguf", "operation": "chat", "prompt_tokens": 20,
        "answer_tokens": 5, "queue_s": 1.0, "ttft_s": 0.2, "duration_s": 1.0, "confidence": 0.93,
    }  # fmt: skip
    return Observation(**{**values, **changes})  # type: ignore[arg-type]


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_one_answer_is_counted_under_the_names_of_the_conventions() -> None:
    metrics = Metrics("demo", queue=lambda: 3, running=lambda: 1)
    metrics.observe(observation())
    found = samples(metrics)
    common = {
        "gen_ai_operation_name": "chat", "gen_ai_provider_name": "edgekit", "gen_ai_request_model": "demo",
    }  # fmt: skip

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted({**common, **labels}.items()))]

    assert value("gen_ai_client_token_usage_sum", gen_ai_token_type="input") == 20
    assert value("gen_ai_client_token_usage_sum", gen_ai_token_type="output") == 5
    assert value("gen_ai_client_operation_duration_seconds_sum", error_type="") == 1.0
    assert value("gen_ai_server_request_duration_seconds_sum", error_type="") == 2.0
    assert value("gen_ai_server_time_to_first_token_seconds_sum") == 1.2
    assert value("gen_ai_client_operation_time_to_first_chunk_seconds_sum") == 0.2
    assert value("gen_ai_server_time_per_output_token_seconds_sum") == 0.2
    assert found["edgekit_answers_total", (("finish", "stop"),)] == 1
    assert found["edgekit_queue_length", ()] == 3 and found["edgekit_requests_running", ()] == 1
    assert found["edgekit_resident_memory_bytes", ()] > 1e6


def test_buckets_are_those_of_the_conventions() -> None:
    metrics = Metrics("demo")
    metrics.observe(observation())
    text = metrics.render().decode()

    def buckets(name: str) -> list[float]:
        found = re.findall(rf'^{name}_bucket{{.*?le="([^"]+)"', text, re.MULTILINE)
        return [float(le) for le in dict.fromkeys(found) if le != "+Inf"]

    assert buckets("gen_ai_client_token_usage") == [4**n for n in range(14)]
    assert buckets("gen_ai_client_token_usage")[-1] == 67108864
    assert buckets("gen_ai_server_request_duration_seconds") == [
        0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
    ]  # fmt: skip
    assert buckets("gen_ai_server_time_per_output_token_seconds") == [
        0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    ]  # fmt: skip
    assert buckets("gen_ai_server_time_to_first_token_seconds") == [
        0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
    ]  # fmt: skip


def test_what_went_wrong_is_told_apart() -> None:
    metrics = Metrics("demo")
    metrics.observe(
        observation(ttft_s=None, answer_tokens=0, confidence=None, finish="error", error="StageError")
    )
    metrics.refused("queue_full")
    metrics.refused("queue_full")
    metrics.alarm("drift")
    found = samples(metrics)
    assert found["edgekit_answers_total", (("finish", "error"),)] == 1
    assert found["edgekit_refused_requests_total", (("reason", "queue_full"),)] == 2
    assert found["edgekit_alarms_total", (("kind", "drift"),)] == 1
    assert any("gen_ai_server_request_duration_seconds_count" == name and ("error_type", "StageError") in labels
               for name, labels in found)  # fmt: skip
    assert not any(
        name.startswith("gen_ai_server_time_to_first_token") and name.endswith("_sum") for name, _ in found
    )
