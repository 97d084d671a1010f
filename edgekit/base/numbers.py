"""Numbers from other machines: only finite ones of a sensible size are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.base.events import LARGEST

MOST = 1e18  # of numbers that are no times; with more than that nothing is counted or measured here


def finite(value: Any, most: float = MOST) -> float | None:
    """`value` where it is a number that can be told and drawn, else None."""
    whole = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < most
    return float(value) if whole else None


def number(values: Mapping[str, Any], name: str, most: float = MOST) -> float:
    """A number from elsewhere. Raises `ValueError` for one that cannot be told, or for anything else."""
    if (found := finite(values[name], most)) is None:
        raise ValueError(f"'{name}' is no number that can be told")
    return found


def moment(values: Mapping[str, Any], name: str) -> float:
    """A time from elsewhere, Unix seconds, as `number`."""
    return number(values, name, LARGEST)
