"""Numbers from other machines: only finite ones within limits are accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.base.events import LARGEST

MOST = 1e18  # limit for numbers other than times; no count or measurement exceeds it


def finite(value: Any, most: float = MOST) -> float | None:
    """`value` as a float if it is a finite number below `most`, else None."""
    whole = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < most
    return float(value) if whole else None


def number(values: Mapping[str, Any], name: str, most: float = MOST) -> float:
    """The number `name` of a document. Raises `ValueError` unless it is a finite number below `most`."""
    if (found := finite(values[name], most)) is None:
        raise ValueError(f"'{name}' is not a finite number below {most:g}")
    return found


def moment(values: Mapping[str, Any], name: str) -> float:
    """The time `name` of a document, in Unix seconds; raises as `number` does."""
    return number(values, name, LARGEST)
