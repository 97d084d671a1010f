"""Identifies what a faulty tensor holds: another tensor, a transposed one, rows in another order, another merge."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from edgekit.export.weights.weight_compare import (
    LARGEST_MATRIX,
    WHITE,
    Array,
    Comparison,
    Reference,
    Stored,
    compare,
)

LAYER = re.compile(r"(.*?\D)(\d+)(\..*)")
LOOSEST = 0.5  # relative distance above which two tensors never count as the same
TIGHTEST = 1e-3
MATCHED_ROWS = 64  # rows that are searched for elsewhere in the tensor
SAME_ROW = 0.9  # cosine


def explain(stored: Stored, reference: Reference, references: Mapping[str, Reference]) -> str:
    """What is wrong with `stored`, as a phrase that follows its name."""
    if stored.shape != reference.shape:
        return _misshapen(stored, reference, references)
    values, wanted = stored.all(), reference.load()
    found = compare(stored, wanted)
    if found.broken:
        return f"holds {found.broken} weights that are not finite numbers"
    near = min(max(found.limit, TIGHTEST), LOOSEST)
    bad = np.flatnonzero(found.rows > 1)
    if 0 < len(bad) <= len(wanted) // 2:
        named = _some_rows(values, wanted, bad, found, near)
    else:
        others = (other for other in references.values() if other.name != reference.name)
        named = next(_whole(values, wanted, reference, others, near), "")
    return named or _difference(values, wanted, bad, found)


def _misshapen(stored: Stored, reference: Reference, references: Mapping[str, Reference]) -> str:
    values, words = stored.all(), f"has the shape {_shape(stored.shape)} instead of {_shape(reference.shape)}"
    if stored.shape == reference.shape[::-1] and _apart(values, reference.load().T) < LOOSEST:
        return f"{words}: it is the reference transposed"
    for other in references.values():
        if other.shape == stored.shape and _apart(values, other.load()) < LOOSEST:
            return f"{words}: it holds {other.name}"
    return words


def _whole(
    values: Array, wanted: Array, reference: Reference, others: Iterator[Reference], near: float
) -> Iterator[str]:
    """Phrases for what the tensor may hold instead, the most likely first."""
    scale = _scale(values, wanted)
    if _scaled(scale) and _apart(values / np.float32(scale), wanted) <= near:
        yield f"is {scale:.2f} times the reference"
    for words, variant in reference.variants(wanted):
        if _apart(values, variant) <= near:
            yield words
    if wanted.shape[0] == wanted.shape[1] and _apart(values, wanted.T) <= near:
        yield "is the reference transposed"
    for other in others:
        if other.shape == reference.shape and _apart(values, other.load()) <= near:
            yield f"holds {other.name}"
    if len(wanted) > 1:
        sample = np.linspace(0, len(wanted) - 1, min(MATCHED_ROWS, len(wanted))).astype(np.int64)
        places = _places(values[sample], wanted)
        if places is not None and (places != sample).mean() > 0.5:
            first = int(np.flatnonzero(places != sample)[0])
            yield f"has its rows in another order (row {sample[first]} holds row {places[first]})"


def _some_rows(values: Array, wanted: Array, bad: NDArray[np.int64], found: Comparison, near: float) -> str:
    """What is wrong in a tensor whose rows are mostly right."""
    scale = _scale(values[bad], wanted[bad])
    rows = f"{len(bad)} of {len(wanted)} rows, the first of them row {bad[0]},"
    if _scaled(scale) and _apart(values[bad] / np.float32(scale), wanted[bad]) <= near:
        return (
            f"has the wrong sign in {rows[:-1]}"
            if abs(scale + 1) < 0.1
            else f"is {scale:.2f} times the reference in {rows[:-1]}"
        )
    some = bad[:MATCHED_ROWS]
    places = _places(values[some], wanted)
    if places is not None and (places != some).all():
        if len(bad) == 2 and (places == bad[::-1]).all():
            return f"has its rows {bad[0]} and {bad[1]} swapped"
        return f"holds other rows of it in {rows[:-1]} (row {places[0]})"
    if 0 < found.bad_blocks * found.grid.block <= len(bad) * wanted.shape[1] / 2:
        row = int(found.worst.argmax())
        start = int(found.place[row])
        if found.grid.block == 1:
            return f"has {found.bad_blocks} wrong weights, the worst in row {row}, column {start}"
        blocks = (
            "1 damaged block" if found.bad_blocks == 1 else f"{found.bad_blocks} damaged blocks, the worst"
        )
        return f"has {blocks} in row {row}, columns {start} to {start + found.grid.block - 1}"
    return ""


def _difference(values: Array, wanted: Array, bad: NDArray[np.int64], found: Comparison) -> str:
    """A description of the difference, for a tensor that resembles no other."""
    if found.bad_blocks == 1 and found.grid.block == 1:
        return f"has a wrong weight in column {int(found.place[found.worst.argmax()])}"
    words = f"differs by {found.relative:.3g} of its norm, and rounding explains at most {found.limit:.3g}"
    if len(wanted) > 1 and wanted.size <= LARGEST_MATRIX:
        matrices = (values - wanted, found.white)
        low = next((low for matrix in matrices if matrix is not None and (low := low_rank(matrix))), None)
        if low is not None and found.relative <= found.limit:
            return (
                f"hides a low-rank update in its rounding (of rank {low[0]} at least): another merge, or a type that "
                "rounds the adapter's update away"
            )
        if low is not None:
            share = f"rank {low[0]} holds {low[1]:.0%} of the difference"
            return f"{words}, by a low-rank update ({share}): another merge"
    if 0 < len(bad) <= len(wanted) // 2:
        error = float(np.sqrt(found.error[bad].sum() / max(found.energy[bad].sum(), 1e-30)))
        rows = f"{len(bad)} of {len(wanted)} rows, the first of them row {bad[0]},"
        return f"differs in {rows} by {error:.3g} of their norm"
    return f"{words}: noise, or another model's tensor"


def low_rank(difference: Array) -> tuple[int, float] | None:
    """The rank of the update in `difference` and its share of the energy, when the remainder is white noise; else None."""
    values = np.linalg.svd(difference, compute_uv=False).astype(np.float64)
    tails = np.cumsum(np.square(values)[::-1])[::-1]
    edge = difference.shape[0] ** 0.5 + difference.shape[1] ** 0.5
    for rank in range(len(values) // 8):
        if values[rank] <= WHITE * edge * (tails[rank] / difference.size) ** 0.5:
            return (rank, 1 - float(tails[rank] / tails[0])) if rank else None
    return None


def sum_up(notes: Mapping[str, str]) -> list[str]:
    """Sentences on the faulty tensors; several tensors that a layer took from one other layer become one sentence."""
    copies: dict[tuple[str, str], list[str]] = {}
    for name, note in notes.items():
        mine, other = LAYER.fullmatch(name), LAYER.fullmatch(note.removeprefix("holds "))
        if mine and other and note.startswith("holds ") and mine[1] == other[1] and mine[3] == other[3]:
            copies.setdefault((mine[1] + mine[2], other[1] + other[2]), []).append(name)
    repeated = {pair: names for pair, names in copies.items() if len(names) > 1}
    told = {name for names in repeated.values() for name in names}
    sentences = [
        f"{layer} repeats {other} ({len(names)} tensors)" for (layer, other), names in repeated.items()
    ]
    return sentences + [f"{name} {note}" for name, note in notes.items() if name not in told]


def _scaled(scale: float) -> bool:
    return abs(scale) > 1e-3 and abs(scale - 1) > 0.01


def _scale(values: Array, wanted: Array) -> float:
    """The factor that brings the reference closest to the values."""
    return float(np.vdot(wanted, values)) / max(float(np.vdot(wanted, wanted)), 1e-30)


def _apart(values: Array, candidate: Array) -> float:
    """The distance from the candidate, relative to its norm."""
    return float(np.linalg.norm(values - candidate) / max(float(np.linalg.norm(candidate)), 1e-30))


def _places(rows: Array, wanted: Array) -> NDArray[np.int64] | None:
    """The reference row that each of `rows` matches; None when one of them matches none."""
    cosines = _unit(rows) @ _unit(wanted).T
    return None if (cosines.max(1) < SAME_ROW).any() else cosines.argmax(1)


def _unit(rows: Array) -> Array:
    units: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-30))
    return units


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
