"""The grids of GGUF types: the values that a block of weights can take, and the scales with which they fit best.

A value is `scale * level`, or `scale * level - minimum` for Q4_K and Q5_K. Types of 32 columns store a half for each
scale. Super-blocks of 256 columns store halves `d` and `dmin`, and for each sub-block an integer: the scale is `d` times
that integer, and the minimum `dmin` times another. Source: ggml-common.h and ggml-quants.c of llama.cpp.

R rows, B columns of a sub-block, N candidates. Errors are weighted by `importance`, `(B,)`.
"""

from __future__ import annotations

import gguf
import numpy as np
import torch

from edgekit.export.gguf import blocks
from edgekit.export.gguf.blocks import CODECS, IQ4_VALUES, Rounded
from edgekit.export.weights.feedback import Rows, Scale, Top, divisor, half
from edgekit.export.weights.weight_compare import Array

TABLE = torch.from_numpy(IQ4_VALUES).float()
MIDDLES = (TABLE[1:] + TABLE[:-1]) / 2  # all of them multiples of 1/2
NEAREST = TABLE[
    torch.bucketize((torch.arange(-256, 228) + 0.5) / 2, MIDDLES)
]  # for each half from -128 to 114
STEPS = 18  # candidates for the scale of a sub-block


class Grid:
    """The grid of one type of `CODECS`: `block` columns share `d`, and `sub` columns a scale."""

    def __init__(self, type: gguf.GGMLQuantizationType) -> None:
        codec = CODECS[type]
        self.type, self.sub = type, codec.group
        self.block, size = gguf.GGML_QUANT_SIZES[type]
        self.bits = 8 * size / self.block
        self.low, self.high, _ = codec.integers["levels"]
        self.table = codec.values is not None
        self.minima = "sub_minima" in codec.integers
        self.steps = codec.integers.get("sub_scales")

    def nearest(self, scaled: torch.Tensor) -> torch.Tensor:
        """The nearest number that can be multiplied by a scale, for each weight over its scale."""
        if self.table:
            places = (scaled * 2).floor_().clamp_(-256, 227).add_(256)
            return NEAREST.take(places.long())
        return scaled.round().clamp_(self.low, self.high)

    def levels(self, numbers: torch.Tensor) -> torch.Tensor:
        """The integers that stand for the numbers."""
        return torch.searchsorted(TABLE, numbers.contiguous()) if self.table else numbers

    def rounded(self, rows: Rows) -> Rounded:
        """The integers and halves that the blocks of the rows store."""
        scale, _, steps, minimum_steps = (part.numpy() for part in rows.scales)
        levels = self.levels(rows.numbers).numpy().astype(np.int8)
        if self.steps is None:
            return Rounded(self.type, levels, scale.astype(np.float16))
        d, dmin = (
            torch.stack([getattr(top, name) for top in rows.tops], 1).numpy().astype(np.float16)
            for name in Top._fields
        )
        if not self.minima:
            return Rounded(self.type, levels, d, sub_scales=steps.astype(np.int8))
        return Rounded(self.type, levels, d, dmin, steps.astype(np.int8), minimum_steps.astype(np.int8))

    def values(self, rounded: Rounded) -> Array:
        """The weights that the blocks stand for."""
        return blocks.values(rounded)

    def top(self, block: torch.Tensor, importance: torch.Tensor) -> Top:
        """`d` and `dmin` of the block `(R, block)`: with them every sub-block can store nearly its best scale."""
        nothing = block.new_zeros(len(block))
        if self.steps is None:
            return Top(nothing + 1, nothing)
        parts = range(0, self.block, self.sub)
        found = [self._best(block[:, k : k + self.sub], importance[k : k + self.sub]) for k in parts]
        scales = torch.stack([scale for scale, _ in found], 1)
        largest = scales.gather(1, scales.abs().argmax(1, keepdim=True))[:, 0]
        if not self.minima:
            return Top(half(largest / self.steps.low), nothing)
        minima = torch.stack([minimum for _, minimum in found], 1)
        return Top(half(largest / self.steps.high), half(minima.amax(1) / self.steps.high))

    def scale(self, weights: torch.Tensor, importance: torch.Tensor, top: Top) -> Scale:
        """The best scale and minimum of the sub-block `(R, B)` that its block can store."""
        scale, minimum = self._best(weights, importance)
        if self.steps is None:
            scale = half(scale)
            return Scale(scale, minimum, torch.zeros_like(scale), torch.zeros_like(scale))
        near = (scale / divisor(top.d)).round()
        moves = torch.tensor([-1.0, 0.0, 1.0])[:, None]
        if not self.minima:
            steps = (near + moves).clamp_(self.steps.low, self.steps.high)
            minimum_steps = torch.zeros_like(steps)
        else:
            near_minimum = (minimum / divisor(top.dmin)).round()
            steps = (near + moves.repeat(3, 1)).clamp_(self.steps.low, self.steps.high)
            minimum_steps = (near_minimum + moves.repeat_interleave(3, 0)).clamp_(
                self.steps.low, self.steps.high
            )
        scales, minima = steps * top.d, minimum_steps * top.dmin  # (N, R)
        numbers = self.nearest((weights + minima[..., None]) / divisor(scales)[..., None])
        error = numbers * scales[..., None] - minima[..., None] - weights
        best = (error.square_() * importance).sum(-1).argmin(0), torch.arange(len(weights))
        return Scale(scales[best], minima[best], steps[best], minimum_steps[best])

    def _best(self, weights: torch.Tensor, importance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and minimum `(R,)` with the least error, before they are stored."""
        if self.minima:
            return self._best_with_minimum(weights, importance)
        return self._best_scale(weights, importance), weights.new_zeros(len(weights))

    def _best_scale(self, weights: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
        """For each candidate the nearest numbers, and for these the scale by least squares."""
        largest = weights.gather(1, weights.abs().argmax(1, keepdim=True))
        ratio = self._ends()[:, None, None] / divisor(largest)
        numbers = self.nearest(weights * ratio)  # (N, R, B)
        weighted = numbers * importance
        product, square = (weighted * weights).sum(-1), (weighted * numbers).sum(-1).clamp_(min=1e-30)
        best = (product.square() / square).argmax(0), torch.arange(len(weights))
        return (product[best] / square[best]).nan_to_num(0.0, 0.0, 0.0)

    def _ends(self) -> torch.Tensor:
        """Candidates for the number of the largest weight, `(N,)`."""
        if self.table:
            spread = torch.linspace(0.8, 1.15, STEPS // 2)
            return torch.cat([spread * TABLE[0], spread * TABLE[-1]])
        if self.low == -self.high:  # 255 levels: the full range is best
            return torch.tensor([float(self.high)])
        spread = torch.linspace(0.8, 1.1, STEPS) if self.low >= -8 else torch.linspace(0.88, 1.05, STEPS)
        return spread * self.low

    def _best_with_minimum(
        self, weights: torch.Tensor, importance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """For each candidate the levels, and for these scale and minimum by least squares; no minimum lies below zero."""
        low = weights.amin(1, keepdim=True).clamp_(max=0)
        width = (weights.amax(1, keepdim=True) - low).clamp_(min=1e-12)
        ratio = self.high * torch.linspace(0.88, 1.06, STEPS)[:, None, None] / width
        levels = ((weights - low) * ratio).round_().clamp_(0, self.high)  # (N, R, B)
        weighted = levels * importance
        ones, first, second = importance.sum(), weighted.sum(-1), (weighted * levels).sum(-1)
        plain, product = (importance * weights).sum(-1), (weighted * weights).sum(-1)
        determinant = ones * second - first.square()
        both = determinant > 1e-12 * ones * second
        scale = torch.where(both, (ones * product - plain * first) / determinant, 0.0)
        offset = torch.where(both, (second * plain - first * product) / determinant, 1.0)
        alone = product / second.clamp(min=1e-30)
        scale, offset = torch.where(offset > 0, alone, scale), offset.clamp(max=0)
        error = (scale[..., None] * levels + offset[..., None] - weights).square_().mul_(importance).sum(-1)
        best = error.where(scale > 0, torch.inf).argmin(0), torch.arange(len(weights))
        return scale[best].clamp(min=0).nan_to_num(0.0, 0.0, 0.0), (-offset[best]).nan_to_num(0.0, 0.0, 0.0)


GRIDS = {type.name: Grid(type) for type in CODECS}
"""By name."""
