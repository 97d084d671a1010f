"""What each part of a recipe buys: the change in right answers without it, over several seeds.

A run leaves out some parts. The effect of a part is the mean difference between runs with it and the same runs without it, row
by row and seed by seed: one pair of runs in leave-one-out, all pairs in a grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from edgekit.base.errors import ConfigError
from edgekit.evaluation.statistics import repeated_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = "edgekit.ablation/1"
MEASURES = ("clean", "noise", "phrasings")
MOST_GRID = 6  # parts of a grid, which has 64 runs for each seed

Left = frozenset[str]
"""The names of the parts that a run leaves out."""


@dataclass(frozen=True)
class Part:
    """A part of the recipe, and the values of the target that leave it out."""

    name: str
    changes: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str]) -> tuple[Part, ...]:
        """Parts given as `NAME=KEY=VALUE` or `KEY=VALUE`; those of one name are one part. Raises `ConfigError`."""
        found: dict[str, tuple[str, ...]] = {}
        for text in texts:
            first, equals, rest = (piece.strip() for piece in text.partition("="))
            named = "." not in first and "=" in rest
            key = rest.partition("=")[0] if named else first
            if not (first and equals and "." in key):
                raise ConfigError(
                    f"--part {text} names no value of the target. Nothing was started.",
                    "Use KEY=VALUE or NAME=KEY=VALUE, such as --part noise=tune.robustness.noise=[].",
                )
            found[first] = (*found.get(first, ()), rest if named else text.strip())
        return tuple(cls(name, changes) for name, changes in found.items())


def runs(parts: Sequence[Part], *, grid: bool) -> list[Left]:
    """Which parts each run leaves out: none, then each alone, or with `grid` every combination. Raises `ConfigError`."""
    if grid and len(parts) > MOST_GRID:
        raise ConfigError(
            f"A grid of {len(parts)} parts has {2 ** len(parts):,} runs for each seed. Nothing was started.",
            f"Give at most {MOST_GRID} parts, or leave out --grid: then each part is left out alone.",
        )
    names = [part.name for part in parts]
    most = len(names) if grid else 1
    return [frozenset(chosen) for count in range(most + 1) for chosen in combinations(names, count)]


Measured = Mapping[str, "NDArray[np.float64]"]
"""For each of `MEASURES` the share of right answers `(S, N)` of N rows with S seeds."""


def summarize(measured: Mapping[Left, Measured], parts: Sequence[Part]) -> dict[str, Any]:
    """`runs`: the accuracy of each; `effects`: what each part buys, in percentage points, positive where the part helps.

    Each has the 95 % interval of `statistics.repeated_mean`, over the seeds and the rows.
    """
    found = [
        {
            "left_out": sorted(left),
            "accuracy": {name: _over_seeds(values) for name, values in by_name.items() if values.size},
        }
        for left, by_name in measured.items()
    ]
    effects = [
        {"part": part.name, "changes": list(part.changes), "points": _effect(measured, part.name)}
        for part in parts
    ]
    return {"runs": found, "effects": effects}


def _over_seeds(values: NDArray[np.float64]) -> dict[str, Any]:
    each = values.mean(axis=1)
    low, high = repeated_mean(values)
    return {"mean": float(each.mean()), "by_seed": each.tolist(), "interval_95": [max(0.0, low), high]}


def _effect(measured: Mapping[Left, Measured], name: str) -> dict[str, Any]:
    pairs = [(left, left | {name}) for left in measured if name not in left and left | {name} in measured]
    found = {}
    for measure in MEASURES:
        gains = [measured[kept][measure] - measured[without][measure] for kept, without in pairs]
        if not gains or not gains[0].size:
            continue
        mean = sum(gains[1:], gains[0]) / len(gains)  # (S, N)
        low, high = repeated_mean(mean)
        found[measure] = {
            "points": 100 * float(mean.mean()),
            "interval_95": [100 * low, 100 * high],
            "by_seed": (100 * mean.mean(axis=1)).tolist(),
        }
    return found
