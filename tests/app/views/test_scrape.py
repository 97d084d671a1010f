"""A page of metrics as a device: what its server counted is what is read, restarts and bad pages included."""

from __future__ import annotations

import pytest

from edgekit.app.views.scrape import Totals, added, read_page
from edgekit.base.errors import CorruptError
from edgekit.field.telemetry.metrics import Metrics, UnderWay
from edgekit.field.telemetry.observation import Observation


def seen(metrics: Metrics, count: int, ttft_s: float = 0.2, finish: str = "stop") -> None:
    for _ in range(count):
        metrics.observe(
            Observation(0.0, "abc", "gguf", "chat", 20, 11, 0.0, ttft_s, ttft_s + 0.5, 0.9, finish=finish)
        )


def test_a_window_is_the_difference_of_two_pages() -> None:
    metrics, totals = Metrics("demo"), Totals()
    seen(metrics, 40, ttft_s=8.0)
    before = totals.add(read_page(metrics.render()))
    seen(metrics, 18, ttft_s=0.09)
    seen(metrics, 2, ttft_s=0.09, finish="error")
    metrics.alarm("drift")
    window = added(before, totals.add(read_page(metrics.render())))
    assert (window.requests, window.errors, window.alarms) == (20, 2, {"drift": 1})
    assert window.ttft_p95_s == pytest.approx(
        0.099, abs=0.001
    )  # in the bucket up to 0.1, not those of before
    assert window.tokens_per_s == pytest.approx(20.0) and window.confidence == pytest.approx(0.9)
    assert window.error_rate == pytest.approx(0.1)


def test_nothing_that_happened_is_nothing_known() -> None:
    totals = Totals()
    page = read_page(Metrics("demo").render())
    window = added(totals.add(page), totals.add(page))
    assert window.requests == 0 and window.alarms == {}
    assert window.ttft_p95_s is window.tokens_per_s is window.confidence is window.error_rate is None


def test_a_counter_that_went_down_is_a_restart_and_both_lives_count() -> None:
    first, second, totals = Metrics("demo"), Metrics("demo"), Totals()
    seen(first, 10)
    before = totals.add(read_page(first.render()))
    seen(first, 5)
    totals.add(read_page(first.render()))
    seen(second, 3)
    window = added(before, totals.add(read_page(second.render())))
    assert totals.restarts == 1 and window.requests == 8


def test_gauges_tell_the_release_and_the_incidents_under_way() -> None:
    metrics = Metrics("demo")
    page = read_page(metrics.render())
    assert page.incidents is None and page.under_way == () and page.rss_mib and page.release == ""
    metrics.stand("7f3a12", [])
    assert read_page(metrics.render()).incidents == {"critical": 0, "warning": 0}
    told = [UnderWay("latency", "warning", 50.0), UnderWay("errors", "critical", 90.0, silenced=True)]
    metrics.stand("61bc34", told)
    page = read_page(metrics.render())
    assert (page.model, page.release) == ("demo", "61bc34")
    assert page.incidents == {"critical": 1, "warning": 1} and page.silenced == 1
    assert [(one.kind, one.severity, one.since) for one in page.under_way] == [
        ("errors", "critical", 90.0),
        ("latency", "warning", 50.0),
    ]
    metrics.stand("61bc34", None)  # they cannot be read: not shown, which is not the same as none
    assert read_page(metrics.render()).incidents is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>hello</html>", "not Prometheus' text"),
        (b"", "not Prometheus' text"),
        (b"\xff\xfe", "not Prometheus' text"),
        (b"# TYPE up gauge\nup 1\n", "no metrics of `edgekit serve`"),
        (b'edgekit_answers_total{finish="stop} 1\n', "not Prometheus' text"),
        (b"edgekit_resident_memory_bytes much\n", "not Prometheus' text"),
        (b'gen_ai_server_time_to_first_token_seconds_bucket{le="x"} 1\n', "not Prometheus' text"),
        (b'edgekit_alarms_total{kind="drift"} 1\n' * 6000, "not Prometheus' text"),
    ],
)
def test_what_is_no_such_page_is_said_in_words(body: bytes, words: str) -> None:
    with pytest.raises(CorruptError, match=words):
        read_page(body)


def test_what_is_reckoned_from_huge_numbers_is_a_number_or_nothing() -> None:
    page = b"""
edgekit_answers_total{finish="stop"} 1e308
edgekit_answers_total{finish="error"} 1e308
edgekit_resident_memory_bytes 1e300
edgekit_incidents_silenced 1e300
edgekit_incidents{severity="critical"} 1
edgekit_incident_since_seconds{kind="errors"} 1e300
gen_ai_server_time_per_output_token_seconds_sum 5e-324
gen_ai_server_time_per_output_token_seconds_count 9e17
gen_ai_server_time_to_first_token_seconds_bucket{le="1e308"} 5
"""
    found = read_page(page)
    window = added({}, Totals().add(found))
    assert window.tokens_per_s is None and window.requests == 0 and found.rss_mib is None
    assert window.ttft_p95_s is None and found.silenced == 0 and found.under_way == ()
    assert found.incidents == {"critical": 1}  # which is under way all the same


def test_values_that_are_no_numbers_are_left_out() -> None:
    page = read_page(b"edgekit_temperature_celsius NaN\nedgekit_resident_memory_bytes +Inf\n")
    assert page.temperature_c is None and page.rss_mib is None
