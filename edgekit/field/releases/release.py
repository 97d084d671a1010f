"""The description of one version, and which of two versions is older."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Place = Literal["current", "previous", "pending", "good", "bad", "new"]


@dataclass(frozen=True)
class Release:
    """One version of a bundle on this device."""

    name: str
    """The first 12 hex digits of the SHA-256 of its manifest."""
    path: Path
    model: str
    target: str
    version: str | None
    created: str | None
    imported: float
    """Unix seconds."""
    number: int
    """Its place in the order of imports."""
    size_mib: float
    place: Place
    tries: int = 0
    """Starts that a pending version has left."""
    why: str = ""
    """Why a bad version was rejected."""


def older(one: Release, other: Release) -> bool:
    """Whether `one` is older than `other`: by semantic version, else by build time, else by order of import."""
    first, second = _semantic(one.version), _semantic(other.version)
    if first and second and first != second:
        return first < second
    if one.created and other.created and one.created != other.created:
        return str(one.created) < str(other.created)
    return (one.number, one.imported) < (other.number, other.imported)


def _semantic(version: str | None) -> tuple[int, ...] | None:
    """The numbers of a semantic version, without suffixes; None for any other text."""
    found = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", str(version or ""))
    return tuple(int(part or 0) for part in found.groups()) if found else None
