"""Sketches: counts that add up, quantiles that are near, and bytes that come back."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.field.telemetry.sketch import DURATION_S, TOKENS, TTFT_S, Sketch, split

values = st.lists(st.floats(0, 500, allow_nan=False), max_size=200)


def counted(bounds: Sequence[float], values: Iterable[float]) -> Sketch:
    sketch = Sketch(bounds)
    for value in values:
        sketch.add(value)
    return sketch


@given(values, values)
def test_merging_is_counting_all(first: list[float], second: list[float]) -> None:
    merged = counted(TTFT_S, first)
    merged.merge(counted(TTFT_S, second))
    whole = counted(TTFT_S, first + second)
    assert merged.counts == whole.counts and merged.highest == whole.highest
    assert merged.total == pytest.approx(whole.total)


@given(values.filter(bool), st.floats(0, 1))
def test_a_quantile_is_in_the_bucket_of_the_value_of_that_rank(numbers: list[float], share: float) -> None:
    found = counted(DURATION_S, numbers).quantile(share)
    assert found is not None
    exact = sorted(numbers)[max(0, math.ceil(share * len(numbers)) - 1)]
    low = max((bound for bound in (0.0, *DURATION_S) if bound < exact), default=0.0)
    high = min((bound for bound in DURATION_S if bound >= exact), default=max(numbers))
    assert low - 1e-9 <= found <= min(high, max(numbers)) + 1e-9


@given(values)
def test_what_is_written_comes_back(numbers: list[float]) -> None:
    sketch = counted(split(TTFT_S), numbers)
    again = Sketch.from_json(split(TTFT_S), json.loads(json.dumps(sketch.to_json())))
    assert (again.counts, again.total, again.highest) == (sketch.counts, sketch.total, sketch.highest)


def test_an_empty_sketch_has_no_quantile_and_others_are_not_added() -> None:
    assert Sketch(TTFT_S).quantile(0.5) is None
    with pytest.raises(ValueError, match="different"):
        Sketch(TTFT_S).merge(Sketch(TOKENS))


@pytest.mark.parametrize("damaged", [b"{}", b"[]", b'{"counts":{"99":1},"total":0,"highest":0}', b"\xff"])
def test_damaged_bytes_are_refused(damaged: bytes) -> None:
    with pytest.raises((ValueError, KeyError, IndexError, TypeError)):
        Sketch.from_json(TTFT_S, json.loads(damaged))


def test_finer_buckets_hold_opentelemetry_s_and_tell_quantiles_better() -> None:
    assert set(TTFT_S) <= set(split(TTFT_S))
    rng = random.Random(0)
    numbers = sorted(rng.lognormvariate(-2, 0.5) for _ in range(5000))
    exact = numbers[int(0.95 * len(numbers))]
    assert counted(split(TTFT_S), numbers).quantile(0.95) == pytest.approx(exact, rel=0.05)
