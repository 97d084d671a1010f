"""The state machine of alerts: when it opens, when it is over, and that it never flaps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgekit.base.clock import seconds
from edgekit.base.errors import ConfigError
from edgekit.base.hardware import fingerprint
from edgekit.device.manifest import SCHEMA
from edgekit.field.incidents.defaults import default_rules, rules_of
from edgekit.field.incidents.readings import Reading
from edgekit.field.incidents.rules import GAP_S, Evaluator
from edgekit.field.incidents.words import SENTENCES, sentence
from edgekit.profiles import targets
from edgekit.targets.rules import METRICS, Rule

SLOW = Rule(kind="latency", above=1.0, clear=0.8, for_s=30.0)


def reading(ttft_s: float | None, requests: int = 50, release: str = "aaa") -> Reading:
    return Reading(release=release, requests=requests, ttft_p95_s=ttft_s)


def play(
    evaluator: Evaluator, values: list[float | None], step_s: float = 10.0, begin: float = 1000.0
) -> list[tuple]:
    found = []
    for place, value in enumerate(values):
        now = begin + place * step_s
        found += [(change.kind, change.time - begin) for change in evaluator.evaluate(now, reading(value))]
    return found


def test_it_opens_only_after_it_held() -> None:
    assert play(Evaluator([SLOW]), [2, 2, 2, 2]) == [("opened", 30)]
    assert play(Evaluator([SLOW]), [2, 2, 0.5, 2, 2, 2]) == []


def test_between_the_limits_it_neither_opens_nor_ends() -> None:
    evaluator = Evaluator([SLOW])
    assert play(evaluator, [2, 2, 2, 2]) == [("opened", 30)]
    assert play(evaluator, [0.9] * 20, begin=1040.0) == []
    assert play(evaluator, [0.8, 0.7, 0.9, 0.7, 0.7, 0.7, 0.7], begin=1240.0) == [("resolved", 60)]


def test_what_is_not_known_opens_nothing_and_ends_nothing() -> None:
    assert play(Evaluator([SLOW]), [2, 2, None, 2, 2, 2]) == []
    evaluator = Evaluator([SLOW])
    play(evaluator, [2, 2, 2, 2])
    assert play(evaluator, [None] * 30, begin=1040.0) == []
    assert evaluator.states[0].opened is not None


def test_a_few_requests_say_nothing() -> None:
    evaluator = Evaluator([Rule(kind="errors", above=0.1, for_s=0.0, min_requests=10)])
    assert evaluator.evaluate(0.0, Reading(requests=2, errors=2)) == []
    assert [change.kind for change in evaluator.evaluate(1.0, Reading(requests=20, errors=20))] == ["opened"]


def test_a_time_that_nobody_looked_at_does_not_count() -> None:
    evaluator = Evaluator([SLOW])
    evaluator.evaluate(1000.0, reading(2))
    assert evaluator.evaluate(1000.0 + GAP_S + 1, reading(2)) == []
    assert evaluator.evaluate(900.0, reading(2)) == []  # the clock was set back
    assert [change.kind for change in evaluator.evaluate(930.0, reading(2))] == ["opened"]


def test_a_heartbeat_that_does_not_come_is_an_alert_of_its_own() -> None:
    rules = default_rules()
    evaluator = Evaluator(rules)
    lost = Reading(release="aaa", last_seen=1000.0)
    assert evaluator.evaluate(1020.0, lost) == []
    (change,) = evaluator.evaluate(1031.0, lost)
    assert (change.kind, change.rule.kind, change.subject) == ("opened", "heartbeat", "device")
    assert "the last one was 31 s ago" in sentence(change)
    assert evaluator.evaluate(1060.0, Reading(release="aaa", last_seen=1059.0))[0].kind == "resolved"


def test_each_release_has_alerts_of_its_own_and_they_end_with_its_use() -> None:
    evaluator = Evaluator([Rule(kind="latency", above=1.0, for_s=0.0)])
    assert evaluator.evaluate(0.0, reading(2, release="aaa"))[0].subject == "aaa"
    assert evaluator.evaluate(1.0, reading(2, release="bbb"))[0].subject == "bbb"
    (over,) = evaluator.retire(2.0, "bbb")
    assert (over.kind, over.subject, over.why) == ("resolved", "aaa", "it is no longer in use")
    assert evaluator.evaluate(3.0, reading(2, release="bbb")) == []


@pytest.mark.parametrize(("below", "values"), [(True, [4, 4, 4, 9]), (False, [9, 9, 9, 4])])
def test_limits_work_on_either_side(below: bool, values: list[float]) -> None:
    limits = {"below": 5.0, "clear": 8.0} if below else {"above": 8.0, "clear": 5.0}
    evaluator = Evaluator([Rule(kind="speed", for_s=10.0, **limits)])
    kinds = []
    for now, value in enumerate([*values, values[-1], values[-1]]):
        told = evaluator.evaluate(now * 10.0, Reading(requests=50, tokens_per_s=value))
        kinds += [(now, change.kind) for change in told]
    assert kinds == [(1, "opened"), (4, "resolved")]


@settings(max_examples=60, deadline=None)
@given(
    looks=st.lists(
        st.tuples(
            st.floats(0, 90), st.one_of(st.none(), st.floats(0, 2)), st.sampled_from("ab"), st.integers(0, 40)
        ),
        max_size=60,
    ),
    for_s=st.sampled_from([0.0, 5.0, 30.0, 120.0]),
    cut=st.integers(0, 60),
)
def test_no_reading_makes_it_flap(
    looks: list[tuple[float, float | None, str, int]], for_s: float, cut: int
) -> None:
    """At most one alert is open for a rule and subject, none ends within `for_s`, also over a restart."""
    rule = Rule(kind="latency", above=1.0, clear=0.5, for_s=for_s)
    evaluator, now, opened = Evaluator([rule]), 0.0, {}
    bad_since: dict[str, float | None] = {}
    for place, (step_s, value, release, requests) in enumerate(looks):
        if place == cut:
            evaluator = Evaluator([rule], evaluator.states)
        now += step_s
        known = value if requests >= rule.min_requests else None
        bad = known is not None and known > 1.0
        bad_since[release] = (
            (bad_since.get(release) if bad_since.get(release) is not None else now) if bad else None
        )
        for change in evaluator.evaluate(now, reading(value, requests, release)):
            if change.kind == "opened":
                assert change.subject not in opened
                since = bad_since[release]
                assert since is not None and now - since >= for_s and now - change.since >= for_s
                opened[change.subject] = now
            else:
                assert known is not None and known <= 0.5
                assert now - opened.pop(change.subject) >= for_s


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"kind": "latency"}, "give one limit"),
        ({"kind": "latency", "above": 1, "below": 2}, "give one limit"),
        ({"kind": "latency", "above": 1, "clear": 2}, "wrong side"),
        ({"kind": "speed", "below": 5, "clear": 4}, "wrong side"),
        ({"kind": "latency", "above": 1, "metric": "rss_mib"}, "reads ttft_p95_s"),
        ({"kind": "latency", "above": 1, "limit": 2}, "extra"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(values: dict[str, object], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        Rule.model_validate(values)


def test_the_default_rules_cover_every_kind_and_have_words() -> None:
    rules = default_rules(ttft_s=0.3, tokens_per_s=90.0)
    assert {rule.kind for rule in rules} == set(METRICS)
    assert len({rule.key for rule in rules}) == len(rules)
    full = Reading(
        requests=500, errors=400, empty=400, ttft_p95_s=9, tokens_per_s=1, rss_mib=1e6, temperature_c=99,
        throttled_s=250, confidence=0.3, confidence_expected=0.9, last_seen=0, digest_ok=False, trouble="disk full",
        alarms=[{"signal": "confidence", "words": "Answers are less sure."}],
    )  # fmt: skip
    evaluator = Evaluator(rules)
    told = [change for now in range(100, 400, 10) for change in evaluator.evaluate(float(now), full)]
    assert {change.rule.key for change in told} == {rule.key for rule in rules}
    for change in told:
        assert "{" not in sentence(change) and "since" in sentence(change)
    assert set(SENTENCES) | {"drift_alarms", "store_troubles"} == {
        m for found in METRICS.values() for m in found
    }


def write_bundle(folder: Path, rules: list[dict[str, object]], cpu: str) -> Path:
    """The parts of a bundle that rules are read from."""
    target = {"rule": rules, "budget": {"peak_rss_mib": 400}, "device": {"memory_mib": 2048}}
    row = {"artifact": "model.gguf", "simulated": False, "decode_tokens_per_s": {"median": 90}}
    manifest = {
        "schema": SCHEMA, "recipe": {"target": target}, "threads": 2, "formats": {"gguf": {"path": "model.gguf"}},
    }  # fmt: skip
    profile = [{**row, "threads": n, "ttft_ms": {"median": 1000 / n}} for n in (1, 2)]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "report.json").write_text(json.dumps({"machine": {"cpu": cpu}, "profile": profile}))
    return folder


def test_rules_come_from_the_bundle(tmp_path: Path) -> None:
    cpu = fingerprint()["cpu"]
    rules = {rule.kind: rule for rule in rules_of(write_bundle(tmp_path, [], cpu), "gguf")}
    assert rules["memory"].limit == 500 and rules["speed"].limit == 45
    assert rules["latency"].limit == 5.0  # three times 0.5 s is less than people wait anyway
    assert "speed" not in {rule.kind for rule in rules_of(write_bundle(tmp_path, [], "another processor"))}
    (own,) = rules_of(write_bundle(tmp_path, [{"kind": "latency", "above": 7}], cpu))
    assert own.limit == 7
    assert rules_of(tmp_path / "none") == rules_of(None) == default_rules()


def test_rules_are_read_from_a_target(tmp_path: Path) -> None:
    text = 'name = "mine"\n[[export]]\nformat = "gguf"\n[[rule]]\nkind = "latency"\nabove = 1.5\naction = "auto"\n'
    path = tmp_path / "mine.toml"
    path.write_text(text)
    (rule,) = targets.load(path).rule
    assert (rule.metric, rule.limit, rule.action) == ("ttft_p95_s", 1.5, "auto")
    path.write_text(text + '[[rule]]\nkind = "latency"\nabove = 1.5\n[[rule]]\nkind = "speed"\nbelov = 2\n')
    assert any("did you mean 'below'" in fault for fault in targets.validate(path))
    path.write_text(text + '[[rule]]\nkind = "latency"\nabove = 1.5\n')
    assert "are the same" in targets.validate(path)[0]


def test_a_stretch_of_time_is_read_as_people_write_it() -> None:
    assert [seconds(text) for text in ("90s", "5m", "1h30m", "1 d", "0.5h")] == [90, 300, 5400, 86400, 1800]
    for text in ("", "5", "h", "5 weeks", "-5m"):
        with pytest.raises(ConfigError, match="not a duration"):
            seconds(text)


def test_drift_is_over_when_every_signal_has_come_back() -> None:
    alarm = {"signal": "confidence", "words": "Answers are less sure."}
    assert Reading(alarms=[alarm]).value("drift_alarms", 0) == 1.0
    assert Reading(drift_over=False).value("drift_alarms", 0) is None is Reading().value("drift_alarms", 0)
    assert Reading(drift_over=True).value("drift_alarms", 0) == 0.0
