"""Gives each tensor the type with which all of them together cost least, within a size and a decoding time; or take the fewest
bytes, within a cost and a decoding time.

A multiple-choice knapsack: one type for each tensor, the sum of the one as small as possible. Solved exactly, to a small
gap, as an integer program (HiGHS in scipy).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from edgekit.base import native_output
from edgekit.base.errors import StageError

GAP, SECONDS = 1e-3, 20.0
SIZE_GAP = 1e-4  # of the bytes: 1e-3 would be a good part of what a bit costs


@dataclass(frozen=True)
class Choice:
    """One type of one tensor."""

    size: int
    """Bytes."""
    cost: float
    """Estimated KL divergence, nats."""
    time: float = 0.0
    """What it adds to the decoding of a token, in a unit of the caller's choice."""


@dataclass(frozen=True)
class Plan:
    """The type of each tensor."""

    types: dict[str, str]
    size: int
    """Bytes of these tensors."""
    cost: float
    """Estimated KL divergence, nats."""
    decode_tokens_per_s: float | None = None
    """Measured decoding speed, where one was asked for."""


Amount = Callable[[Choice], float]
Limits = Sequence[tuple[Amount, float]]


def allocate(
    choices: Mapping[str, Mapping[str, Choice]], max_size: float = inf, max_time: float = inf
) -> Plan:
    """The types, by tensor, that cost least in at most `max_size` bytes and `max_time`.

    Raises `StageError` when even the smallest types take more bytes, or the fastest ones more time.
    """
    least = sum(min(choice.size for choice in types.values()) for types in choices.values())
    fastest = sum(min(choice.time for choice in types.values()) for types in choices.values())
    if least > max_size:
        raise StageError(
            f"The smallest types take {least:,} bytes, more than the {max(max_size, 0):,.0f} that are left for them. "
            "No file was written.",
            "Ask for a larger file.",
        )
    if fastest > max_time:
        raise StageError(
            f"With the fastest types a token takes {fastest / max_time:.2f} times as long as it may. No file was written.",
            "Ask for a lower speed.",
        )
    limits: Limits = [(lambda each: each.size, np.floor(max_size)), (lambda each: each.time, max_time)]
    return _solve(choices, lambda each: each.cost, limits, GAP)


def smallest(choices: Mapping[str, Mapping[str, Choice]], max_cost: float, max_time: float = inf) -> Plan:
    """The types, by tensor, that take the fewest bytes, cost at most `max_cost` nats and take at most `max_time`.

    Where even those that cost least cost more, it is those. Raises `StageError` when even the fastest types take more time.
    """
    least = allocate(choices, max_time=max_time)
    if least.cost >= max_cost:
        return least
    choices = {
        name: {type: choice for type, choice in types.items() if choice.cost <= max_cost}
        for name, types in choices.items()
    }
    # Both are shares of what is given, because the solver's tolerances are absolute.
    total = sum(max(choice.size for choice in types.values()) for types in choices.values())
    limits: Limits = [(lambda each: each.cost / max_cost, 1.0), (lambda each: each.time, max_time)]
    return _solve(choices, lambda each: each.size / total, limits, SIZE_GAP)


def _solve(
    choices: Mapping[str, Mapping[str, Choice]],
    minimised: Amount,
    limited: Limits,
    gap: float,
) -> Plan:
    """The types with the least sum of `minimised` with which the sums of other amounts are at most their limits."""
    if not choices:
        return Plan({}, 0, 0.0)
    options = [(name, type) for name, types in choices.items() for type in types]
    given = [choices[name][type] for name, type in options]
    rows = {name: row for row, name in enumerate(choices)}
    places = ([rows[name] for name, _ in options], range(len(options)))
    one_each = csr_matrix((np.ones(len(options)), places), shape=(len(rows), len(options)))
    limits = [
        LinearConstraint(np.array([amount(each) for each in given], float)[None], -inf, limit)
        for amount, limit in limited
        if limit < inf
    ]
    with native_output.to_stderr():  # HiGHS prints a line of its own now and then
        found = milp(
            np.array([minimised(each) for each in given], float),
            integrality=np.ones(len(options), int),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), *limits],
            options={"mip_rel_gap": gap, "time_limit": SECONDS},
        )
    if found.x is None:
        raise StageError(
            f"No types are both as small and as fast ({found.message.rstrip('.')}). No file was written.",
            "Ask for a larger file or a lower speed.",
        )
    chosen = np.flatnonzero(found.x > 0.5)
    types = dict(options[place] for place in chosen)
    each = [given[place] for place in chosen]
    return Plan(types, sum(one.size for one in each), float(np.sum([one.cost for one in each])))
