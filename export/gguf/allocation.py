"""Gives each tensor the type with which all of them together cost least, within a number of bytes.

A multiple-choice knapsack: one type for each tensor, the sum of the costs as small as possible. Solved exactly, to a small
gap, as an integer program (HiGHS in scipy).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Plan:
    """The type of each tensor."""

    types: dict[str, str]
    size: int
    """Bytes of these tensors."""
    cost: float
    """Estimated KL divergence, nats."""


def allocate(choices: Mapping[str, Mapping[str, Choice]], max_size: float) -> Plan:
    """The types, by tensor, that cost least in at most `max_size` bytes.

    Raises `StageError` when even the smallest types take more.
    """
    options = [(name, type) for name, types in choices.items() for type in types]
    sizes = np.array([choices[name][type].size for name, type in options], float)
    costs = np.array([choices[name][type].cost for name, type in options])
    least = sum(min(choice.size for choice in types.values()) for types in choices.values())
    if least > max_size:
        raise StageError(
            f"The smallest types take {least:,} bytes, more than the {max(max_size, 0):,.0f} that are left for them. "
            "No file was written.",
            "Ask for a larger file.",
        )
    if not choices:
        return Plan({}, 0, 0.0)
    rows = {name: row for row, name in enumerate(choices)}
    places = ([rows[name] for name, _ in options], range(len(options)))
    one_each = csr_matrix((np.ones(len(options)), places), shape=(len(rows), len(options)))
    found = milp(
        costs,
        integrality=np.ones(len(options), int),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(sizes[None], -np.inf, np.floor(max_size)),
        ],
        options={"mip_rel_gap": GAP, "time_limit": SECONDS},
    )
    if found.x is None:
        raise StageError(
            f"No types could be chosen: {found.message}. No file was written.", "Ask for a larger file."
        )
    chosen = np.flatnonzero(found.x > 0.5)
    types = dict(options[place] for place in chosen)
    return Plan(types, int(sizes[chosen].sum()), float(costs[chosen].sum()))
