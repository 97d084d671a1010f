"""GPTQ: rounds weights one column after another and corrects each column's error in the columns that follow.

Frantar et al. 2022, <https://arxiv.org/abs/2210.17323>. A rounded layer takes the place of the network's own, and
onnxruntime-genai's model builder copies its integers unchanged into the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch

from edgekit.base.memory import give_back
from edgekit.export.onnx import ranges
from edgekit.export.onnx.layout import stacked
from edgekit.export.weights.layerwise import Layerwise
from edgekit.export.weights.weight_compare import Grid, is_close
from edgekit.models import mapped

DAMPINGS = (
    0.01,
    0.1,
    1.0,
)  # shares of the mean diagonal added to the Hessian; the authors' code adds the first

Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Rounding:
    """How many bits each layer gets: 8 for those whose name matches a pattern of `int8`, else `bits`."""

    bits: int
    block_size: int
    int8: Sequence[str] = ()

    def bits_of(self, name: str) -> int:
        """Bits of the layer called `name`."""
        return 8 if any(fnmatchcase(name, pattern) for pattern in self.int8) else self.bits


@dataclass(frozen=True)
class Rounded:
    """A weight `(rows, columns)` as integers: `scales * (codes - zeros)` in blocks of columns."""

    codes: torch.Tensor
    """`(rows, columns)`, uint8."""
    scales: torch.Tensor
    """`(rows, blocks)`, float32."""
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

        Codes are bytes `(rows, blocks, bytes of a block)`, the others flat; a row of zero points ends with its byte.
        """
        rows, blocks = self.scales.shape
        codes = _pack(self.codes, self.bits).reshape(rows, blocks, -1)
        return codes, self.scales.flatten(), _pack(self.zeros, self.bits).flatten()


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack two 4-bit integers into a byte, the first in the low half; rows of odd length end in a zero."""
    if bits == 8:
        return codes.contiguous()
    even = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))
    return even[:, ::2] | even[:, 1::2] << 4


def round_nearest(weight: torch.Tensor, bits: int, block_size: int) -> Rounded:
    """Round each weight of `(rows, columns)` to the nearest of its block's 2^bits values."""
    rows, columns = weight.shape
    codes = weight.new_empty((rows, columns), dtype=torch.uint8)
    scales = weight.new_empty((rows, columns // block_size), dtype=torch.float32)
    zeros = torch.empty_like(scales, dtype=torch.uint8)
    step = max(1, ranges.PIECE // columns)

    def fill(start: int) -> None:
        piece = slice(start, start + step)
        blocks = weight[piece].float().reshape(-1, block_size)
        scale, zero = ranges.best(blocks, bits)
        rounded = ranges.codes(blocks, scale[:, None], zero[:, None], bits)
        codes[piece] = rounded.byte().reshape(-1, columns)
        scales[piece], zeros[piece] = (part.reshape(-1, scales.shape[1]) for part in (scale, zero.byte()))

    ranges.in_threads(fill, range(0, rows, step))
    return Rounded(codes, scales, zeros, bits)


def round_gptq(weight: torch.Tensor, hessian: torch.Tensor, bits: int, block_size: int) -> Rounded:
    """Round `weight` `(rows, columns)` so that its outputs change least; `hessian` `(columns, columns)` is the second
    moment of its inputs.

    Few or uniform calibration rows say nothing about some columns, and the errors of all others are moved into these. Such
    a weight is rounded again with more damping, and to the nearest value at last, until the proof of the weights accepts it.
    """
    grid = Grid(block_size, 2**bits - 1, "range")
    for damping in DAMPINGS:
        rounded = _with_feedback(weight, _inverse_root(hessian, damping), bits, block_size)
        if is_close(rounded.weight.cpu().numpy(), weight.float().cpu().numpy(), grid):
            return rounded
    return round_nearest(weight, bits, block_size)


def _with_feedback(weight: torch.Tensor, inverse: torch.Tensor, bits: int, block_size: int) -> Rounded:
    """Round `weight`, given the upper Cholesky factor of its inverse Hessian."""
    rest = weight.float().clone()
    codes = torch.empty_like(rest, dtype=torch.uint8)
    scales, zeros = [], []
    for start in range(0, rest.shape[1], block_size):
        block = rest[:, start : start + block_size]
        scale, zero = ranges.best(block, bits)
        errors = torch.empty_like(block)
        for column in range(block_size):
            row = inverse[start + column, start : start + block_size]
            code = ranges.codes(block[:, column], scale, zero, bits)
            codes[:, start + column] = code.byte()
            errors[:, column] = (block[:, column] - (code - zero) * scale) / row[column]
            block[:, column + 1 :] -= errors[:, column, None] * row[column + 1 :]
        rest[:, start + block_size :] -= errors @ inverse[start : start + block_size, start + block_size :]
        scales.append(scale)
        zeros.append(zero)
    return Rounded(codes, torch.stack(scales, 1), torch.stack(zeros, 1).byte(), bits)


def _inverse_root(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse, `(columns, columns)`."""
    # Each step takes the place of the one before: at 9,728 columns a matrix takes 722 MiB.
    matrix = hessian.double()
    diagonal = matrix.diagonal()
    # A column whose input is always zero may be rounded freely; its diagonal entry only keeps the matrix invertible.
    diagonal += damping * diagonal.mean() + (diagonal == 0)
    torch.linalg.cholesky(matrix, out=matrix)
    torch.cholesky_inverse(matrix, out=matrix)
    root: torch.Tensor = torch.linalg.cholesky(matrix, upper=True, out=matrix)
    return root.float()


class RoundedLinear(torch.nn.Module):
    """A rounded layer with the attributes that the model builder reads, on the processor; it cannot be called."""

    g_idx = None
    """The builder's order of columns: as they are."""

    def __init__(self, rounded: Rounded, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = rounded.codes.shape
        self.bits, self.group_size = rounded.bits, self.in_features // rounded.scales.shape[1]
        self.qzeros: torch.Tensor | None
        self.qweight, self.scales, self.qzeros = (part.cpu() for part in rounded.packed())
        self.bias = bias if bias is None else bias.cpu()


class PackedLinear(torch.nn.Module):
    """A layer that stacks several; each of its `parts` is rounded by itself, with its own bits."""

    def __init__(self, parts: dict[str, torch.nn.Module]) -> None:
        super().__init__()
        self.parts = parts


@torch.inference_mode()
def round_network(
    network: Any, rounding: Rounding, calibration: Sequence[Sequence[int]], report: Report
) -> None:
    """Replace the linear layers of the decoder of `network`, a transformers model, by rounded ones.

    The inputs of a layer are computed by the already rounded layers before it. One layer at a time is in memory in float32,
    with the inputs of all rows. The embedding and the head are left to the model builder. `report(done, total, unit)`
    reports progress.
    """
    walk = Layerwise(network, calibration, [1.0] * len(calibration), threads=1)
    for number, layer in enumerate(walk.layers):
        mapped.in_float32(layer)
        linear = walk.linear(number)
        by_gptq = [
            module
            for name, module in linear.items()
            if calibration and _needs_hessian(name, module, network, rounding)
        ]
        hessians = walk.moments(number, by_gptq)
        replacements = {
            name: _rounded_linear(
                name, module, hessians.pop(module, None), network, rounding, bool(calibration)
            )
            for name, module in linear.items()
        }
        walk.advance(number)
        for name, module in replacements.items():
            network.set_submodule(name, module)
        give_back()  # what lies between the rounded weights would stay with the process, layer by layer
        report(number + 1, len(walk.layers), "layers")


def _needs_hessian(name: str, module: torch.nn.Linear, network: Any, rounding: Rounding) -> bool:
    return any(rounding.bits_of(part) < 8 for part, _ in stacked(name, module.out_features, network.config))


def _rounded_linear(
    name: str,
    module: torch.nn.Linear,
    hessian: torch.Tensor | None,
    network: Any,
    rounding: Rounding,
    called: bool,
) -> torch.nn.Module:
    """The rounded form of the layer `module`. If that is `called` again, its own weight becomes what the integers represent."""
    block = _block_size(module.in_features, rounding.block_size)
    parts: dict[str, torch.nn.Module] = {}
    start = 0
    for part, rows in stacked(name, module.out_features, network.config):
        weight, bits = module.weight[start : start + rows], rounding.bits_of(part)
        if hessian is not None and bits < 8:
            rounded = round_gptq(weight, hessian, bits, block)
        else:
            rounded = round_nearest(weight, bits, block)
        if called:
            weight.copy_(rounded.weight)
        bias = None if module.bias is None else module.bias[start : start + rows].clone()
        parts[part.rpartition(".")[2]] = RoundedLinear(rounded, bias)
        start += rows
    return next(iter(parts.values())) if len(parts) == 1 else PackedLinear(parts)


def _block_size(columns: int, wanted: int) -> int:
    """The largest block of at most `wanted` columns, a power of two, that divides `columns`."""
    return min(wanted, columns & -columns)
