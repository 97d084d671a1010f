"""The output head in 8 bits, in the form in which a tied embedding can be read from it.

The model builder would round it too, but only after it has copied the whole graph, with the head in 32 and then in 64-bit
floats: at three billion weights that takes more memory than all the rest. This is the same rounding, some rows at a time.
"""

from __future__ import annotations

from typing import Any

import torch

from edgekit.export.onnx.gptq import Rounded, RoundedLinear
from edgekit.export.onnx.ranges import in_threads

BITS, MIDDLE = 8, 128
PIECE = 1 << 17  # weights in 64-bit floats at a time, which fit in the processor's cache


@torch.inference_mode()
def round_head(network: Any, block_size: int) -> None:
    """Replace the head of `network`, a transformers model, by a rounded one without zero points.

    Each block's largest absolute weight becomes half of the range, as in the method `rtn` of onnxruntime's
    `MatMulNBitsQuantizer`. The last block of a row is filled up with zeros.
    """
    head = network.get_output_embeddings()
    rows, columns = head.weight.shape
    blocks = -(-columns // block_size)
    codes = torch.full((rows, blocks * block_size), MIDDLE, dtype=torch.uint8)
    scales = torch.ones(rows, blocks)
    step = max(1, PIECE // columns)

    def fill(start: int) -> None:
        piece = head.weight[start : start + step].double()
        padded = torch.nn.functional.pad(piece, (0, blocks * block_size - columns))
        values = padded.reshape(len(piece), blocks, block_size)
        largest = values.abs().amax(2)
        scale = torch.where(largest > 0, largest * 2 / (2**BITS - 1), 1.0)
        rounded = (values / scale[:, :, None]).add_(MIDDLE).round_().clamp_(0, 2**BITS - 1)
        codes[start : start + step] = rounded.flatten(1).byte()
        scales[start : start + step] = scale.float()

    in_threads(fill, range(0, rows, step))
    zeros = torch.full_like(scales, MIDDLE, dtype=torch.uint8)
    replaced = RoundedLinear(Rounded(codes, scales, zeros, BITS), head.bias)
    replaced.in_features, replaced.qzeros = columns, None
    replaced.scales = scales  # by rows, because an embedding is looked up in them
    names = {module: name for name, module in network.named_modules()}
    network.set_submodule(names[head], replaced)
