"""The forms in which `MatMulNBits` stores a weight, and the grid of each for rounding with error feedback.

A weight is `scale * (code - zero)`: a code of 4 or 8 bits for each, and for each block of a row's columns a scale, stored as a
half, and a zero point of as many bits as a code. Source: onnxruntime's `ContribOperators.md`.

R rows, B columns of a block, N candidates. Errors are weighted by `importance`, `(B,)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import torch

from edgekit.export.weights import weight_compare
from edgekit.export.weights.feedback import Rows, Scale, Top, half
from edgekit.export.weights.weight_compare import Array

SCALE_BITS = 16
SHRINKS = torch.linspace(0.75, 1.0, 6)  # ranges tried for a block, as shares of its full range


@dataclass(frozen=True)
class Rounded:
    """A weight `(rows, columns)` as integers: `scales * (codes - zeros)` in blocks of columns."""

    codes: torch.Tensor
    """`(rows, columns)`, uint8."""
    scales: torch.Tensor
    """`(rows, blocks)`, float32; numbers that a half can store."""
    zeros: torch.Tensor
    """`(rows, blocks)`, uint8."""
    bits: int

    @cached_property
    def weight(self) -> torch.Tensor:
        """The weight `(rows, columns)` that the integers represent, float32; computed once."""
        block = self.codes.shape[1] // self.scales.shape[1]
        zeros, scales = (part.repeat_interleave(block, 1) for part in (self.zeros, self.scales))
        return (self.codes.float() - zeros) * scales

    def packed(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes, scales and zero points as the operator `MatMulNBits` takes them.

        Codes are bytes `(rows, blocks, bytes of a block)`, scales `(rows, blocks)`, and a row of zero points ends with its
        byte, `(rows, bytes)`.
        """
        rows, blocks = self.scales.shape
        codes = _pack(self.codes, self.bits).reshape(rows, blocks, -1)
        return codes, self.scales.half(), _pack(self.zeros, self.bits)


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack two 4-bit integers into a byte, the first in the low half; rows of odd length end in a zero."""
    if bits == 8:
        return codes.contiguous()
    even = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))
    return even[:, ::2] | even[:, 1::2] << 4


class Form(NamedTuple):
    """Bits of a code, and columns of a block (a group of weights): `int4 g32` in words."""

    bits: int
    block: int

    def __str__(self) -> str:
        return f"int{self.bits} g{self.block}"

    def size(self, rows: int, columns: int) -> int:
        """Bytes of a weight `(rows, columns)`."""
        blocks = columns // self.block
        return rows * (columns * self.bits // 8 + blocks * SCALE_BITS // 8 + -(-blocks * self.bits // 8))

    @property
    def proof(self) -> weight_compare.Grid:
        """The grid by which the proof of the weights measures such a weight."""
        return weight_compare.Grid(self.block, 2**self.bits - 1, "range")


class Grid:
    """The grid of a form: numbers are codes, and a minimum is a zero point times the scale."""

    def __init__(self, form: Form) -> None:
        self.bits, self.top_code = form.bits, 2**form.bits - 1
        self.block = self.sub = form.block

    def nearest(self, scaled: torch.Tensor) -> torch.Tensor:
        """The nearest codes, as floats."""
        return scaled.round().clamp_(0, self.top_code)

    def top(self, block: torch.Tensor, importance: torch.Tensor) -> Top:
        """Nothing: each block stores its own scale."""
        nothing = block.new_zeros(len(block))
        return Top(nothing, nothing)

    def scale(self, weights: torch.Tensor, importance: torch.Tensor, top: Top) -> Scale:
        """The scale and zero point with the least error: of several ranges around zero, each with its scale by least squares."""
        low, high = weights.amin(1).clamp(max=0), weights.amax(1).clamp(min=0)
        shrinks = (
            SHRINKS[:, None] if self.bits < 8 else SHRINKS[-1:, None]
        )  # the full range is best for 8 bits
        scales = shrinks * (high - low) / self.top_code  # (N, R)
        scales = half(torch.where(scales > 0, scales, 1.0))
        scales = torch.where(scales > 0, scales, 2.0**-24)
        zeros = (-shrinks * low / scales).round().clamp_(0, self.top_code)
        if self.bits < 8:
            moved = (zeros + torch.tensor([[[-1.0]], [[0.0]], [[1.0]]])).clamp_(0, self.top_code)
            scales, zeros = scales.repeat(3, 1), moved.flatten(0, 1)
        steps = self.nearest(weights / scales[..., None] + zeros[..., None]) - zeros[..., None]  # (N, R, B)
        weighted = steps * importance
        product, square = (weighted * weights).sum(-1), (weighted * steps).sum(-1)
        fitted = half((product / square.clamp(min=1e-30)).nan_to_num(0.0, 0.0, 0.0))
        scales = torch.where(fitted > 0, fitted, scales)
        error = scales * (scales * square - 2 * product)  # less the weights' own size
        best = error.nan_to_num(torch.inf, torch.inf).argmin(0), torch.arange(len(weights))
        scale, zero = scales[best], zeros[best]
        return Scale(scale, zero * scale, scale, zero)

    def rounded(self, rows: Rows) -> Rounded:
        """The integers and scales of the rows."""
        scale, _, _, zeros = rows.scales
        return Rounded(rows.numbers.byte(), scale, zeros.byte(), self.bits)

    def values(self, rounded: Rounded) -> Array:
        """The weights that they stand for."""
        found: Array = rounded.weight.numpy()
        return found


@cache
def grid_of(form: Form) -> Grid:
    """The grid of `form`."""
    return Grid(form)
