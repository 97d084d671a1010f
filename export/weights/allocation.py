"""Gives each tensor the type with which all of them together cost least, within a size and a decoding time.

A multiple-choice knapsack: one type for each tensor, the sum of the costs as small as possible. Solved exactly, to a small
gap, as an integer program (HiGHS in scipy).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from edgekit.base.errors import StageError

GAP, SECONDS = 1e-3, 20.0


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


def allocate(
    choices: Mapping[str, Mapping[str, Choice]], max_size: float = inf, max_time: float = inf
) -> Plan:
    """The types, by tensor, that cost least in at most `max_size` bytes and `max_time`.

    Raises `StageError` when even the smallest types take more bytes, or the fastest ones more time.
    """
    options = [(name, type) for name, types in choices.items() for type in types]
    sizes = np.array([choices[name][type].size for name, type in options], float)
    times = np.array([choices[name][type].time for name, type in options], float)
    costs = np.array([choices[name][type].cost for name, type in options])
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
    if not choices:
        return Plan({}, 0, 0.0)
    rows = {name: row for row, name in enumerate(choices)}
    places = ([rows[name] for name, _ in options], range(len(options)))
    one_each = csr_matrix((np.ones(len(options)), places), shape=(len(rows), len(options)))
    limits = [
        LinearConstraint(parts[None], -inf, limit)
        for parts, limit in ((sizes, np.floor(max_size)), (times, max_time))
        if limit < inf
    ]
    found = milp(
        costs,
        integrality=np.ones(len(options), int),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), *limits],
        options={"mip_rel_gap": GAP, "time_limit": SECONDS},
    )
    if found.x is None:
        raise StageError(
            f"No types are both as small and as fast ({found.message.rstrip('.')}). No file was written.",
            "Ask for a larger file or a lower speed.",
        )
    chosen = np.flatnonzero(found.x > 0.5)
    types = dict(options[place] for place in chosen)
    return Plan(types, int(sizes[chosen].sum()), float(costs[chosen].sum()))
