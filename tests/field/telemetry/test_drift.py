"""Drift: what is told, how soon and how often wrongly, on scores recorded from the real demo bundle."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from field.telemetry.field import TURNS, alarms, answers, signals

from edgekit.field.telemetry.drift import METHODS, DriftDetector
from edgekit.field.telemetry.psi import SlidingPsi, psi, psi_limit, smoothed

SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_steady_stream_of_10_000_gives_at_most_one_false_alarm(seed: int) -> None:
    told = alarms(DriftDetector(signals()), answers("steady", 10_000, seed))
    assert len(told) <= 1, told


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_turn_is_told_within_200_requests(turn: str, seed: int) -> None:
    detector = DriftDetector(signals())
    steady = 700 + 37 * seed
    assert not alarms(detector, answers("steady", steady, seed))
    told = alarms(detector, answers(turn, 200, seed, steady))
    assert told and told[0].time < steady + 200
    first = told[0]
    assert first.method in METHODS and first.value > first.limit and first.words
    assert steady - 150 <= first.since <= first.time
    assert detector.drifting


def test_an_alarm_is_told_once_and_again_only_after_it_came_back() -> None:
    detector = DriftDetector(signals())
    alarms(detector, answers("steady", 500, 1))
    told = alarms(detector, answers("clinc", 3000, 1, 500))
    assert len({alarm.signal for alarm in told}) == len(told), "each signal once, however long it lasts"
    assert not alarms(detector, answers("steady", 1000, 2, 3500)), "coming back is no news"
    assert not detector.drifting
    again = alarms(detector, answers("clinc", 200, 2, 4500))
    assert again and again[0].time < 4700


def test_words_name_what_changed() -> None:
    detector = DriftDetector(signals())
    alarms(detector, answers("steady", 500, 3))
    told = {alarm.signal: alarm.words for alarm in alarms(detector, answers("clinc", 500, 3, 500))}
    assert "fell" in told["confidence"] and "in the reference" in told["confidence"]
    assert "rose" in told["unknown_rate"] and "%" in told["unknown_rate"]
    assert "'out_of_scope'" in told["label"] or "(other)" in told["label"]


def test_one_signal_alone_is_found_by_each_method() -> None:
    for method in METHODS:
        detector = DriftDetector(signals(), (method,))
        alarms(detector, answers("steady", 600, 4))
        longer = (
            replace(seen, prompt_tokens=seen.prompt_tokens + 12) for seen in answers("steady", 200, 5, 600)
        )
        told = alarms(detector, longer)
        assert [(alarm.signal, alarm.method) for alarm in told] == [("prompt_tokens", method)]


def test_failed_and_abandoned_answers_and_what_is_not_known_are_left_out() -> None:
    detector = DriftDetector(signals())
    for seen in answers("clinc", 400, 6):
        assert not detector.update(replace(seen, finish="error"))
        assert not detector.update(replace(seen, finish="cancelled"))
        nothing = replace(
            seen, confidence=None, entropy=None, unknown_rate=None, label=None, prompt_tokens=34
        )
        detector.update(nothing)
    assert set(detector.psi) == {"prompt_tokens"}


def test_psi_is_the_formula_over_a_window_that_slides() -> None:
    shares = smoothed([40, 30, 20, 10])
    assert psi([40, 30, 20, 10], shares) == 0.0
    assert psi([10, 20, 30, 40], shares) == pytest.approx(0.6 * math.log(4) + 0.2 * math.log(1.5))
    sliding = SlidingPsi(shares, window=40, step=1)
    for _ in range(40):
        sliding.update(3)
    for bin_, times in ((0, 16), (1, 12), (2, 8), (3, 4)):
        for _ in range(times):
            last = sliding.update(bin_)
    assert sliding.counts == [16, 12, 8, 4] and last == pytest.approx(0.0)


def test_the_limit_holds_the_false_alarms_that_it_is_chosen_for() -> None:
    """A tighter window and a rarer alarm both need a higher limit; the convention of 0.25 is neither."""
    counts = [15] * 10
    limit = psi_limit(counts, run=2000)
    assert psi_limit(counts, window=64, run=2000) > limit > 0.25
    assert psi_limit(counts, risk=0.2, run=2000) < limit < psi_limit(counts, run=8000)
