"""Page-Hinkley and ADWIN against river's, and what must hold of them whatever comes."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import drift as river

from edgekit.field.telemetry.detectors import Adwin, PageHinkley


def stream(seed: int, shift: float) -> list[float]:
    rng = random.Random(seed)
    means = [0.8, 0.8 - shift, 0.8]
    return [min(1.0, max(0.0, rng.gauss(mean, 0.12))) for mean in means for _ in range(700)]


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_adwin_finds_the_change_points_of_river(seed: int, shift: float) -> None:
    theirs, ours, found, expected = river.ADWIN(), Adwin(), [], []
    for place, x in enumerate(stream(seed, shift)):
        theirs.update(x)
        ago = ours.update(x)
        assert ours.width == theirs.width and math.isclose(ours.total, theirs.total)
        assert math.isclose(ours.variance, theirs.variance, abs_tol=1e-9)
        if theirs.drift_detected:
            expected.append(place)
        if ago:
            found.append(place)
            ours.reset()  # as river does at the next number
    assert found == expected and bool(found) == (shift > 0.1 or bool(expected))


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_page_hinkley_finds_the_change_points_of_river(seed: int, shift: float) -> None:
    options = {"delta": 0.02, "threshold": 4.0, "min_instances": 30}
    theirs, ours = river.PageHinkley(**options), PageHinkley(**options)
    found, expected = [], []
    for place, x in enumerate(stream(seed, shift)):
        theirs.update(x)
        began = ours.update(x)
        if theirs.drift_detected:
            expected.append(place)
        if began:
            found.append(place)
    assert found == expected
    assert shift < 0.3 or len(found) == 2


def test_a_change_is_dated_near_where_it_was() -> None:
    for detector in (PageHinkley(delta=0.1, threshold=4.0), Adwin()):
        found = [(place, ago) for place, x in enumerate(stream(1, 0.3)) if (ago := detector.update(x))]
        place, ago = found[0]
        assert abs(place + 1 - ago - 700) <= 20


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=150))
def test_adwin_s_sums_are_those_of_the_newest_numbers(numbers: list[float]) -> None:
    adwin = Adwin(clock=8)
    for x in numbers:
        adwin.update(x)
    window = numbers[len(numbers) - adwin.width :]
    mean = sum(window) / len(window)
    assert adwin.total == pytest.approx(sum(window), abs=1e-9)
    assert adwin.variance == pytest.approx(sum((y - mean) ** 2 for y in window), abs=1e-7)


def test_memory_grows_with_the_logarithm_of_the_window() -> None:
    adwin = Adwin()
    for _ in range(5_000):
        adwin.update(0.5)
    assert adwin.width == 5_000 and adwin.buckets <= 6 * 12
