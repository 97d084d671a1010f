"""Rounds a weight onto the grid of a format so that the outputs of its layer change least.

For inputs x of second moment H = E[x x^T], a rounding error D of the weight costs trace(D H D^T). Columns are rounded from the
first to the last, and the error of each is corrected in the columns that follow (GPTQ, Frantar et al. 2022,
<https://arxiv.org/abs/2210.17323>); scales are chosen when their sub-block is reached, on the corrected weights. Then each
sub-block is rounded again with all others as they are, and kept where the cost falls (coordinate descent).

Each row is rounded by itself, so the result does not depend on how many rows are taken at a time. R rows, C columns, B columns
of a sub-block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch

from edgekit.export.weights.weight_compare import Array

DAMPING = 0.01  # share of the mean diagonal that is added to the second moment
SWEEPS = 2
LARGEST_HALF = 65504.0


class Top(NamedTuple):
    """The numbers that the sub-blocks of a super-block share, `(R,)` each; `dmin` is zero for types without minima."""

    d: torch.Tensor
    dmin: torch.Tensor


class Scale(NamedTuple):
    """What a sub-block stores, `(R,)` each: scale and minimum as numbers, and as the integers that stand for them."""

    scale: torch.Tensor
    minimum: torch.Tensor
    step: torch.Tensor
    minimum_step: torch.Tensor


class Grid(Protocol):
    """The values that a weight can take: `scale * number - minimum`, with numbers that the grid names.

    `block` columns share what `top` chooses, and `sub` columns what `scale` does. Errors are weighted by `importance`, `(B,)`.
    """

    block: int
    sub: int

    def nearest(self, scaled: torch.Tensor) -> torch.Tensor:
        """The nearest number that can be multiplied by a scale, for each weight over its scale."""

    def top(self, block: torch.Tensor, importance: torch.Tensor) -> Top:
        """What the sub-blocks of the block `(R, block)` share."""

    def scale(self, weights: torch.Tensor, importance: torch.Tensor, top: Top) -> Scale:
        """The best scale and minimum of the sub-block `(R, B)` that its block can store."""

    def rounded(self, rows: Rows) -> Any:
        """What the format stores of the rows."""

    def values(self, rounded: Any) -> Array:
        """The weights `(R, C)` that this stands for."""


def divisor(scale: torch.Tensor) -> torch.Tensor:
    """`scale`, and one where it is zero."""
    return torch.where(scale == 0, 1.0, scale)


def half(values: torch.Tensor) -> torch.Tensor:
    """The nearest number that a half can store."""
    return values.clamp(-LARGEST_HALF, LARGEST_HALF).half().float()


@dataclass(frozen=True)
class Moment:
    """The damped second moment of a layer's inputs, `(columns, columns)`, and its roots, each computed once."""

    matrix: torch.Tensor
    raw: torch.Tensor
    """The moment before damping."""
    _blocks: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = field(default_factory=dict)

    @classmethod
    def of(cls, moment: torch.Tensor, damping: float = DAMPING) -> Moment:
        """`moment`, damped. A column whose input is always zero may be rounded freely."""
        matrix = moment.double().cpu()
        diagonal = matrix.diagonal()
        mean = diagonal.mean()
        return cls(
            matrix + torch.diag(damping * mean + (diagonal == 0) * torch.where(mean > 0, mean, 1.0)), moment
        )

    def damped(self, damping: float) -> Moment:
        """The same moment with another damping."""
        return Moment.of(self.raw, damping)

    @cached_property
    def root(self) -> torch.Tensor:
        """The upper Cholesky factor of the inverse: the errors that columns leave to those that follow."""
        return _inverse_root(self.matrix).float()

    @cached_property
    def single(self) -> torch.Tensor:
        """The matrix in float32."""
        return self.matrix.float()

    def prepared(self) -> Moment:
        """The same, with its root computed."""
        assert len(self.root) == len(self.single)
        return self

    def prepare(self, grid: Grid) -> None:
        """Compute what rounding to `grid` needs, once for all threads."""
        if grid.sub not in self._blocks:
            parts = [
                self.matrix[k : k + grid.sub, k : k + grid.sub] for k in range(0, len(self.matrix), grid.sub)
            ]
            self._blocks[grid.sub] = [
                (torch.linalg.inv(part).float(), _inverse_root(part).float()) for part in parts
            ]
        self.prepared()

    def block(self, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Inverse and inverse root of the part for the columns of a sub-block."""
        size = columns.stop - columns.start
        part: tuple[torch.Tensor, torch.Tensor] = self._blocks[size][columns.start // size]
        return part


def _inverse_root(matrix: torch.Tensor) -> torch.Tensor:
    root: torch.Tensor = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(matrix)), upper=True
    )
    return root


class Rows:
    """Some rows `(R, C)` while they are rounded: their numbers and scales, and the weights that these stand for."""

    def __init__(self, weight: torch.Tensor, grid: Grid) -> None:
        rows, columns = weight.shape
        self.weight, self.grid = weight, grid
        self.numbers, self.rounded = torch.zeros_like(weight), torch.zeros_like(weight)
        self.scales = [weight.new_zeros(rows, columns // grid.sub) for _ in Scale._fields]
        self.tops: list[Top] = []

    def subs(self, start: int = 0, stop: int | None = None) -> Iterator[slice]:
        """The columns of each sub-block."""
        sub = self.grid.sub
        return (slice(k, k + sub) for k in range(start, stop or self.weight.shape[1], sub))

    def scale(self, columns: slice) -> Scale:
        """What a sub-block stores now."""
        return Scale(*(part[:, columns.start // self.grid.sub] for part in self.scales))

    def store(self, columns: slice, numbers: torch.Tensor, scale: Scale) -> None:
        """Store a sub-block."""
        self.numbers[:, columns] = numbers
        self.rounded[:, columns] = _values(numbers, scale)
        for part, values in zip(self.scales, scale, strict=True):
            part[:, columns.start // self.grid.sub] = values


def round_with_feedback(
    weight: torch.Tensor, moment: Moment, grid: Grid, sweeps: int = SWEEPS
) -> tuple[Any, torch.Tensor]:
    """Round `weight` `(rows, columns)` float32 to `grid`: what the format stores, and the cost of each row, `(rows,)`.

    `sweeps` is the number of times that all sub-blocks are rounded again. Some thousand rows at a time are fastest.
    """
    moment.prepare(grid)
    rows = Rows(weight, grid)
    _first_pass(rows, moment.root)
    if sweeps:
        gradient = (rows.weight - rows.rounded) @ moment.single
        for _ in range(sweeps):
            for columns in rows.subs():
                _improve(rows, columns, gradient, moment)
    error = rows.weight - rows.rounded
    return grid.rounded(rows), ((error @ moment.single) * error).sum(1)


def _first_pass(rows: Rows, root: torch.Tensor) -> None:
    """Round column after column, each error corrected in the columns that follow."""
    rest, importance = rows.weight.clone(), root.diagonal().square().reciprocal()
    for start in range(0, rest.shape[1], rows.grid.block):
        stop = start + rows.grid.block
        top = rows.grid.top(rest[:, start:stop], importance[start:stop])
        rows.tops.append(top)
        for columns in rows.subs(start, stop):
            scale = rows.grid.scale(rest[:, columns], importance[columns], top)
            numbers, errors = _with_feedback(rest[:, columns], root[columns, columns], rows.grid, scale)
            rows.store(columns, numbers, scale)
            rest[:, columns.stop :] -= errors @ root[columns, columns.stop :]


def _improve(rows: Rows, columns: slice, gradient: torch.Tensor, moment: Moment) -> None:
    """Round one sub-block again, with a new scale and with its own, and keep what costs least.

    `gradient` `(R, C)` is the error of the rows times the moment; it follows.
    """
    inverse, root = moment.block(columns)
    matrix = moment.single[columns]
    before = rows.rounded[:, columns].clone()
    best = before + gradient[:, columns] @ inverse  # where the cost would be least without a grid
    top = rows.tops[columns.start // rows.grid.block]

    def cost(values: torch.Tensor) -> torch.Tensor:
        error = values - best
        return ((error @ matrix[:, columns]) * error).sum(1)

    least = cost(before)
    for scale in (rows.grid.scale(best, root.diagonal().square().reciprocal(), top), rows.scale(columns)):
        numbers, _ = _with_feedback(best, root, rows.grid, scale)
        found = cost(_values(numbers, scale))
        better = found < least
        least = torch.where(better, found, least)
        kept = Scale(
            *(torch.where(better, new, old) for new, old in zip(scale, rows.scale(columns), strict=True))
        )
        rows.store(columns, torch.where(better[:, None], numbers, rows.numbers[:, columns]), kept)
    gradient -= (rows.rounded[:, columns] - before) @ matrix


def _with_feedback(
    weights: torch.Tensor, root: torch.Tensor, grid: Grid, scale: Scale
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers `(R, B)` of a sub-block, each error corrected in its later columns, and the errors over the root's diagonal."""
    rest = weights.T.clone(memory_format=torch.contiguous_format)  # (B, R): a column is one piece of memory
    numbers, errors = torch.empty_like(rest), torch.empty_like(rest)
    step = divisor(scale.scale)
    for column, value in enumerate(rest):
        numbers[column] = number = grid.nearest((value + scale.minimum) / step)
        value -= number * scale.scale - scale.minimum
        torch.div(value, root[column, column], out=errors[column])
        rest[column + 1 :] -= torch.outer(root[column, column + 1 :], errors[column])
    return numbers.T, errors.T


def _values(numbers: torch.Tensor, scale: Scale) -> torch.Tensor:
    """The weights `(R, B)` that a sub-block stands for."""
    return numbers * scale.scale[:, None] - scale.minimum[:, None]
