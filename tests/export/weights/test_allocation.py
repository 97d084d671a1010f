"""The types with the least cost within a number of bytes: those that trying all of them finds."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.base.errors import StageError
from edgekit.export.weights.allocation import GAP, SIZE_GAP, Choice, allocate, smallest

Choices = dict[str, dict[str, Choice]]
CHOICE = st.builds(
    Choice, size=st.integers(1, 10**6), cost=st.floats(1e-9, 10) | st.sampled_from([0.0, 1e-9, 1e-4])
)
CHOICES = st.dictionaries(
    st.sampled_from(["token_embd", "attn_q", "attn_v", "ffn_down"]),
    st.dictionaries(st.sampled_from(["Q4_K", "Q5_K", "Q6_K", "Q8_0"]), CHOICE, min_size=1),
    min_size=1,
)


def best_cost(choices: Choices, max_size: float) -> float:
    """The least cost, of all ways to choose."""
    ways = product(*(types.values() for types in choices.values()))
    return min(sum(each.cost for each in way) for way in ways if sum(each.size for each in way) <= max_size)


def bounds(choices: Choices) -> tuple[int, int]:
    """The sizes of the smallest and of the largest types."""
    sizes = [[choice.size for choice in types.values()] for types in choices.values()]
    return sum(map(min, sizes)), sum(map(max, sizes))


@settings(max_examples=60, deadline=None)
@given(choices=CHOICES, share=st.floats(0, 1))
def test_the_types_are_those_that_trying_all_of_them_finds(choices: Choices, share: float) -> None:
    least, most = bounds(choices)
    room = least + share * (most - least)
    plan = allocate(choices, room)
    assert plan.types.keys() == choices.keys()
    chosen = [choices[name][type] for name, type in plan.types.items()]
    assert plan.size == sum(choice.size for choice in chosen) <= room
    assert plan.cost == pytest.approx(sum(choice.cost for choice in chosen))
    assert plan.cost <= best_cost(choices, room) * (1 + 2 * GAP) + 1e-6


def ladder(tensors: int) -> Choices:
    """Tensors of different sizes and sensitivities, whose cost falls fourfold with each bit."""
    return {
        f"blk.{n}": {
            f"{bits} bits": Choice((n % 5 + 1) * 1000 * bits, (n * 7 % 11 + 1) * 4.0**-bits)
            for bits in (4, 5, 6, 8)
        }
        for n in range(tensors)
    }


def test_more_bytes_never_cost_more() -> None:
    choices = ladder(60)
    least, most = bounds(choices)
    plans = [allocate(choices, least + share * (most - least)) for share in (0, 0.1, 0.3, 0.6, 1)]
    costs = [plan.cost for plan in plans]
    assert costs == sorted(costs, reverse=True)
    assert {*plans[0].types.values()} == {"4 bits"} and {*plans[-1].types.values()} == {"8 bits"}
    assert len({*plans[2].types.values()}) > 1


def test_the_most_sensitive_tensor_gets_the_bits() -> None:
    choices = {
        name: {"small": Choice(100, cost), "large": Choice(200, cost / 100)}
        for name, cost in {"low": 0.1, "high": 0.5, "middle": 0.3}.items()
    }
    assert allocate(choices, 400).types == {"low": "small", "high": "large", "middle": "small"}
    assert allocate(choices, 500).types == {"low": "small", "high": "large", "middle": "large"}


def test_too_few_bytes_are_an_error() -> None:
    choices = ladder(3)
    least, _ = bounds(choices)
    assert allocate(choices, least).size == least
    with pytest.raises(StageError, match=f"smallest types take {least:,} bytes.*No file") as caught:
        allocate(choices, least - 1)
    assert "larger" in caught.value.hint
    with pytest.raises(StageError, match="more than the 0 "):
        allocate(choices, -5)


def test_the_slow_types_make_way_where_time_is_short() -> None:
    choices = {
        name: {"slow": Choice(100, cost, 3.0), "fast": Choice(150, 2 * cost, 1.0)}
        for name, cost in {"low": 0.1, "high": 0.5}.items()
    }
    assert allocate(choices, max_time=6).types == {"low": "slow", "high": "slow"}
    assert allocate(choices, max_time=4).types == {"low": "fast", "high": "slow"}
    assert allocate(choices, 300, 2).types == {"low": "fast", "high": "fast"}
    with pytest.raises(StageError, match=r"takes 2\.00 times as long as it may.*No file") as caught:
        allocate(choices, max_time=1)
    assert "lower speed" in caught.value.hint
    with pytest.raises(StageError, match="both as small and as fast"):
        allocate(choices, 200, 4)


def test_nothing_to_choose_takes_nothing() -> None:
    assert allocate({}, 0).types == smallest({}, 1.0).types == {}


def best_size(choices: Choices, max_cost: float) -> int:
    """The fewest bytes, of all ways to choose."""
    ways = product(*(types.values() for types in choices.values()))
    return min(sum(each.size for each in way) for way in ways if sum(each.cost for each in way) <= max_cost)


@settings(max_examples=60, deadline=None)
@given(choices=CHOICES, share=st.floats(0.01, 1))
def test_the_smallest_types_within_a_cost_are_those_that_trying_all_of_them_finds(
    choices: Choices, share: float
) -> None:
    costs = [[choice.cost for choice in types.values()] for types in choices.values()]
    room = sum(map(min, costs)) + share * (sum(map(max, costs)) - sum(map(min, costs))) + 1e-9
    plan = smallest(choices, room)
    chosen = [choices[name][type] for name, type in plan.types.items()]
    assert plan.types.keys() == choices.keys()
    assert plan.size == sum(choice.size for choice in chosen)
    assert plan.cost == pytest.approx(sum(choice.cost for choice in chosen))
    assert plan.cost <= room * (1 + 1e-5)
    _, most = bounds(choices)
    assert plan.size <= best_size(choices, room) + 2 * SIZE_GAP * most + 1


def test_a_lower_divergence_takes_more_bytes_as_far_as_there_are_any() -> None:
    choices = ladder(60)
    most = allocate(choices, bounds(choices)[0]).cost
    sizes = [smallest(choices, share * most).size for share in (1.0, 0.5, 0.1, 0.05)]
    assert sizes == sorted(sizes) and sizes[0] == bounds(choices)[0] < sizes[-1]
    beyond = smallest(choices, 0.0)
    assert beyond.size == bounds(choices)[1] and beyond.cost > 0


def test_the_smallest_types_within_a_cost_are_also_fast_enough() -> None:
    choices = {
        f"blk.{n}": {
            "small": Choice(100, 0.1, time=2.0), "fast": Choice(150, 0.1, time=1.0), "good": Choice(200, 0.01, time=1.5),
        }
        for n in range(4)
    }  # fmt: skip
    assert {*smallest(choices, 0.5).types.values()} == {"small"}
    plan = smallest(choices, 0.32, max_time=6.0)
    assert sorted(plan.types.values()) == ["fast", "fast", "good", "small"]
    # None is as good as that within the time, and the fastest take longer than that.
    assert smallest(choices, 0.01, max_time=5.0).cost > 0.01
    with pytest.raises(StageError, match="fastest types"):
        smallest(choices, 0.5, max_time=3.0)
