"""Weights that are numbers: no NaN and no infinity among stored floats and the scales of quantized blocks.

A float is not finite when all bits of its exponent are set, so a pass over the bits of the scales is enough; nothing
is dequantized. MXFP4 and NVFP4 have scales that cannot be NaN in ggml. Where each type keeps its scales: `ggml-common.h` of llama.cpp; a test holds every type against gguf.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit.containers.ggml_types import GgmlType

CHUNK = 16 << 20  # bytes looked at together


class FloatBits(NamedTuple):
    """A float format: unsigned words of `dtype` whose `exponent` bits are all set when they are no finite number."""

    dtype: str
    exponent: int


F16, BF16 = FloatBits("<u2", 0x7C00), FloatBits("<u2", 0x7F80)
F32, F64 = FloatBits("<u4", 0x7F800000), FloatBits("<u8", 0x7FF0 << 48)

SCALES: dict[str, tuple[FloatBits, tuple[int, ...]]] = {  # byte offsets in a block
    "F32": (F32, (0,)), "F16": (F16, (0,)), "BF16": (BF16, (0,)), "F64": (F64, (0,)),
    "Q4_0": (F16, (0,)), "Q4_1": (F16, (0, 2)), "Q5_0": (F16, (0,)), "Q5_1": (F16, (0, 2)),
    "Q8_0": (F16, (0,)), "Q8_1": (F16, (0, 2)), "Q8_K": (F32, (0,)), "Q1_0": (F16, (0,)),
    "Q2_K": (F16, (80, 82)), "Q3_K": (F16, (108,)), "Q4_K": (F16, (0, 2)), "Q5_K": (F16, (0, 2)), "Q6_K": (F16, (208,)),
    "IQ2_XXS": (F16, (0,)), "IQ2_XS": (F16, (0,)), "IQ2_S": (F16, (0,)), "IQ3_XXS": (F16, (0,)), "IQ3_S": (F16, (0,)),
    "IQ1_S": (F16, (0,)), "IQ4_NL": (F16, (0,)), "IQ4_XS": (F16, (0,)), "TQ1_0": (F16, (52,)), "TQ2_0": (F16, (64,)),
}  # fmt: skip
IQ1_M_SCALES = 48  # its scale is spread over the upper four bits of four words


def first_broken_block(data: NDArray[np.uint8], type: GgmlType) -> int | None:
    """The first block of a tensor's bytes that holds a scale or value which is not finite; None when there is none."""
    size = type.block_bytes
    step = max(1, CHUNK // size) * size
    for start in range(0, len(data), step):
        broken = _broken(data[start : start + step], type)
        if broken is not None and broken.any():
            return start // size + int(broken.argmax())
    return None


def _broken(data: NDArray[np.uint8], type: GgmlType) -> NDArray[np.bool_] | None:
    """For each block whether it is broken; None for a type that cannot be."""
    if type.name == "IQ1_M":
        words = data.view("<u2").reshape(-1, type.block_bytes // 2)[:, IQ1_M_SCALES // 2 :]
        exponent = (words[:, 3] & 0x7000) | ((words[:, 2] >> 4) & 0x0C00)
        return np.asarray(exponent == F16.exponent)
    if type.name not in SCALES:
        return None
    bits, offsets = SCALES[type.name]
    width = np.dtype(bits.dtype).itemsize
    blocks = data.view(bits.dtype).reshape(-1, type.block_bytes // width)
    columns = [blocks[:, offset // width] for offset in offsets]
    found = (columns[0] & bits.exponent) == bits.exponent
    for column in columns[1:]:
        found |= (column & bits.exponent) == bits.exponent
    return np.asarray(found)


def first_broken_float(
    path: Path, tensors: Iterable[tuple[str, FloatBits, int, int]]
) -> tuple[str, int] | None:
    """The first of `(name, format, offset, nbytes)` in a file that holds a value which is not finite, and its index."""
    data = np.memmap(path, np.uint8, "r")
    for name, bits, offset, nbytes in tensors:
        width = np.dtype(bits.dtype).itemsize
        for start in range(offset, offset + nbytes, CHUNK):
            part = data[start : min(start + CHUNK, offset + nbytes)]
            words = np.frombuffer(part, bits.dtype)
            broken = (words & bits.exponent) == bits.exponent
            if broken.any():
                return name, (start - offset) // width + int(broken.argmax())
    return None
