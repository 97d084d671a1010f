"""A stored tensor beside its reference: is the difference what rounding alone makes?

The permitted error follows from the type. `Grid` gives the width of the steps into which a type divides a block of the
reference's weights, and rounding to the nearest step leaves the error of a uniform distribution, step / sqrt(12)
(Widrow and Kollar 2008, Quantization Noise). An importance matrix and GPTQ accept a larger plain error for a smaller
error of the outputs; the factors below allow for that. Rows and blocks are also checked one by one, because a single
damaged block does not show in the norm of a whole tensor. An error smaller than rounding that has a direction, such as
another merge of an adapter, shows in the largest singular value, which is known for white noise (Marchenko and Pastur
1967). GPTQ's own errors have a direction, so a faint update can hide among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Factors = tuple[float, float, float]
# Largest permitted error of a whole tensor, of a row, and of a block compared with its neighbours, as multiples of the
# expected error. Largest values measured: 1.3, 1.8 and 8.8 with an importance matrix; on 650 tokens 2.0, 6.4 and 4.0 with
# GPTQ in ONNX, and 2.0, 3.5 and 7.6 in GGUF, where only few weights come near the last: `is_close` keeps them within it.
EXACT, ROUNDED, CALIBRATED = (1.0, 1.0, 1.0), (2.0, 3.5, 8.0), (3.0, 10.0, 8.0)
CLOSE = 0.95  # largest excess of what a quantizer rounds with error feedback
GIVEN_UP = 0.75  # largest error of a block, as a share of its norm, where calibration gives its columns little weight
WHITE = 1.5  # largest singular value, as a multiple of that of white noise; the largest measured is 1.22
SMALLEST_SIDE, LARGEST_MATRIX = 64, 1 << 24  # limits of the matrices whose singular values are checked
CHUNK = 1 << 21  # weights compared at a time


@dataclass(frozen=True)
class Grid:
    """The values that a type can store in a block of weights, as far as the rounding error depends on them.

    `steps` counts the steps from zero to the block's largest absolute weight (`peak`), or across its range (`range`). K
    types also round the scales of their blocks, in units of the largest scale of `superblock` weights / `scale_steps`.
    """

    block: int
    steps: float
    span: Literal["peak", "range", "float"]
    superblock: int = 0
    scale_steps: int = 0
    factors: Factors = ROUNDED

    def expected(self, rows: Array) -> tuple[Array, int]:
        """The mean squared error of rounding to the nearest, `(R, blocks)`, and the length of a block."""
        if self.span == "float":
            return np.square(np.abs(rows) / np.float32(self.steps) + np.float32(2**-25)), 1
        blocks = _blocks(rows, self.block)
        if self.span == "peak":
            width = np.abs(blocks).max(2)
        else:
            width = np.maximum(blocks.max(2), 0) - np.minimum(blocks.min(2), 0)
        squares = np.square(width / np.float32(self.steps))
        if self.superblock:
            largest = _blocks(width, self.superblock // self.block).max(2)
            share = np.repeat(largest, self.superblock // self.block, 1)[:, : width.shape[1]]
            squares += np.square(share / np.float32(self.scale_steps))
        # A scale is stored as a half, whose smallest step is 2^-24.
        return squares / np.float32(12) + np.float32((self.steps * 2**-24) ** 2), self.block


F32, F16, BF16 = (Grid(1, steps, "float", factors=EXACT) for steps in (1e6, 2**11, 2**8))


@dataclass(frozen=True)
class Reference:
    """A tensor of the model in the form that the file should hold; `(rows, columns)` when loaded."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], Array]
    variants: Callable[[Array], Iterator[tuple[str, Array]]] = lambda rows: iter(())
    """Wrong forms that exporters are known to write, each with a phrase that describes it."""


@dataclass(frozen=True)
class Stored:
    """A tensor of the file: `read(start, stop)` dequantizes rows of it to `(stop - start, columns)`."""

    name: str
    type: str
    shape: tuple[int, ...]
    grid: Grid
    read: Callable[[int, int], Array]

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns; a vector is one row."""
        return (1, self.shape[0]) if len(self.shape) == 1 else (self.shape[0], self.shape[1])

    def all(self) -> Array:
        """The whole tensor."""
        return self.read(0, self.matrix[0])


@dataclass(frozen=True)
class Comparison:
    """A stored tensor beside its reference: sums over rows `(R,)`, and each row's worst block."""

    grid: Grid
    error: NDArray[np.float64]
    """Squared error."""
    expected: NDArray[np.float64]
    """Squared error that rounding to the nearest would make."""
    energy: NDArray[np.float64]
    """Squares of the reference."""
    worst: NDArray[np.float64]
    """Largest error of a block, as a multiple of its limit."""
    place: NDArray[np.int64]
    """First column of that block."""
    bad_blocks: int
    broken: int
    """Number of weights that are not finite."""
    white: Array | None = None
    """Errors as `_whitened` returns them, columns of more than unit size scaled down; rounding alone leaves white noise."""

    @property
    def relative(self) -> float:
        """Relative error of the whole tensor."""
        return (
            float("inf") if self.broken else float(np.sqrt(self.error.sum() / max(self.energy.sum(), 1e-30)))
        )

    @property
    def limit(self) -> float:
        """Limit of the relative error."""
        return float(self.grid.factors[0] * np.sqrt(self.expected.sum() / max(self.energy.sum(), 1e-30)))

    @property
    def rows(self) -> NDArray[np.float64]:
        """Each row's error as a multiple of its limit: of the row, or of its worst block."""
        return np.maximum(np.sqrt(self.error / self.expected) / self.grid.factors[1], self.worst)

    @property
    def excess(self) -> float:
        """The largest error, as a multiple of its limit."""
        if self.broken:
            return float("inf")
        direction = 0.0 if self.white is None else largest_singular(self.white) / WHITE
        return max(self.relative / self.limit, float(self.rows.max()), direction)


def compare(stored: Stored, reference: Array) -> Comparison:
    """Compare `stored` with `reference` `(rows, columns)`, a few rows at a time."""
    rows, columns = stored.matrix
    sums = np.zeros((4, rows))
    place = np.zeros(rows, np.int64)
    white = np.empty((rows, columns), np.float32) if _shows_direction(stored) else None
    bad = broken = 0
    step = max(1, CHUNK // columns)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        wanted, values = reference[part], stored.read(part.start, part.stop)
        difference = values - wanted
        broken += int(difference.size - np.count_nonzero(np.isfinite(difference)))
        expected, block = stored.grid.expected(wanted)
        square = np.square(difference)
        by_block = square if block == 1 else _blocks(square, block).mean(2)
        ratio = by_block / _allowed(stored.grid, by_block, expected, wanted)
        if white is not None:
            white[part] = _whitened(difference, expected, block)
        bad += int(np.count_nonzero(ratio > 1))
        sums[:, part] = (
            block * by_block.sum(1, dtype=np.float64),
            block * expected.sum(1, dtype=np.float64),
            np.square(wanted).sum(1, dtype=np.float64),
            np.sqrt(ratio.max(1)),
        )
        place[part] = ratio.argmax(1) * block
    if white is not None and not broken:
        white /= np.maximum(np.sqrt(np.square(white).mean(0)), 1)
    error, wanted_error, energy, worst = sums
    found = None if broken else white
    return Comparison(stored.grid, error, wanted_error, energy, worst, place, bad, broken, found)


def is_close(values: Array, weight: Array, grid: Grid) -> bool:
    """Whether `values`, which a quantizer made of `weight` with error feedback, are as close as the proof will ask.

    Both are `(rows, columns)`. The proof measures the file's rows, which may be in another order: `CLOSE` leaves a margin.
    """
    grid = replace(grid, factors=CALIBRATED)
    stored = Stored("", "", weight.shape, grid, lambda start, stop: values[start:stop])
    return compare(stored, weight).excess <= CLOSE


def _allowed(grid: Grid, error: Array, expected: Array, wanted: Array) -> Array:
    """The mean squared error that each block may have, `(R, blocks)`."""
    allowed: Array = expected * np.float32(grid.factors[2] ** 2)
    if grid.factors == EXACT:
        return allowed
    if len(error) > 1:  # calibration lets columns of little weight err more, in all rows alike
        allowed = allowed * np.maximum(np.median(error / expected, axis=0), 1)
    energy = np.square(_blocks(wanted, grid.block)).mean(2)
    return np.asarray(np.maximum(allowed, GIVEN_UP**2 * energy), np.float32)


def _whitened(difference: Array, expected: Array, block: int) -> Array:
    """Errors as multiples of the expected error, less the mean of each block.

    Weights that already lie on a grid are all rounded in one direction within a block, which would look like an update.
    """
    errors = _blocks(difference, block)
    errors = (errors - errors.mean(2, keepdims=True)) / np.sqrt(expected)[:, :, None]
    whole: Array = errors.reshape(len(errors), -1)[:, : difference.shape[1]]
    return whole


def _shows_direction(stored: Stored) -> bool:
    """Whether singular values are checked: GPTQ's errors are not white, and floats are compared one by one."""
    rows, columns = stored.matrix
    return (
        stored.grid.factors == ROUNDED
        and min(rows, columns) >= SMALLEST_SIDE
        and rows * columns <= LARGEST_MATRIX
    )


def largest_singular(white: Array) -> float:
    """The largest singular value, by power iteration, as a multiple of that of noise of unit size."""
    vector: Array = np.random.default_rng(0).standard_normal((white.shape[1],), np.float32)
    value = 0.0
    for _ in range(10):
        left = white @ vector
        vector = np.asarray(left @ white / max(float(np.linalg.norm(left)), 1e-30), np.float32)
        value = math.sqrt(float(np.vdot(vector, vector)))
    return value / (math.sqrt(white.shape[0]) + math.sqrt(white.shape[1]))


def _blocks(rows: Array, size: int) -> Array:
    """Rows cut into blocks `(R, blocks, size)`, the last one filled up with zeros."""
    if rest := -rows.shape[1] % size:
        rows = np.pad(rows, ((0, 0), (0, rest)))
    return rows.reshape(len(rows), -1, size)
