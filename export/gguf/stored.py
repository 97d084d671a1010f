"""The tensors that a GGUF file holds, dequantized as they are read, and the map of their names."""

from __future__ import annotations

import math
from dataclasses import replace

import gguf
import numpy as np
from numpy.typing import NDArray

from edgekit.containers.ggml_types import GGML_TYPES
from edgekit.containers.gguf import GgufLayout, TensorInfo
from edgekit.export.gguf.families import ROPE_FREQS
from edgekit.export.weights.weight_compare import (
    BF16,
    CALIBRATED,
    EXACT,
    F16,
    F32,
    ROUNDED,
    Array,
    Factors,
    Grid,
    Stored,
)

Bytes = NDArray[np.uint8]
# Metadata of a file whose weights edgekit rounded with error feedback.
ROUNDING, FEEDBACK = "edgekit.rounding", "feedback"
# Block, steps and superblock of each type, from `ggml-quants.c`. The IQ types below 4 bits store entries of a codebook;
# their steps are those of an even grid with the same error on random weights.
GRIDS = {
    "F32": F32, "F16": F16, "BF16": BF16,
    "Q4_0": Grid(32, 8, "peak"), "Q5_0": Grid(32, 16, "peak"), "Q8_0": Grid(32, 127, "peak"),
    "Q4_1": Grid(32, 15, "range"), "Q5_1": Grid(32, 31, "range"),
    "Q2_K": Grid(16, 3, "range", 256, 15), "Q3_K": Grid(16, 4, "peak", 256, 32), "Q4_K": Grid(32, 15, "range", 256, 63),
    "Q5_K": Grid(32, 31, "range", 256, 63), "Q6_K": Grid(16, 32, "peak", 256, 127),
    "IQ4_NL": Grid(32, 8, "peak"), "IQ4_XS": Grid(32, 8, "peak", 256, 32), "MXFP4": Grid(32, 4, "peak"),
    "IQ3_S": Grid(32, 4.5, "peak"), "IQ3_XXS": Grid(32, 3.4, "peak"), "IQ2_S": Grid(32, 2.4, "peak"),
    "IQ2_XS": Grid(32, 2.2, "peak"), "IQ2_XXS": Grid(32, 1.9, "peak"), "IQ1_M": Grid(32, 1.5, "peak"),
    "IQ1_S": Grid(32, 1.4, "peak"), "TQ1_0": Grid(256, 1, "peak"), "TQ2_0": Grid(256, 1, "peak"),
}  # fmt: skip


def type_of(info: TensorInfo) -> str:
    """The name of the tensor's type."""
    return GGML_TYPES[info.type].name


def factors_of(layout: GgufLayout) -> Factors:
    """The factors to judge the file's rounded tensors by: `CALIBRATED` if it says that error feedback rounded them.

    Anyone can write so into a file. It then may hide a faint update, which the gate's detail says.
    """
    found = layout.metadata.get(ROUNDING)
    return CALIBRATED if isinstance(found, str) and found == FEEDBACK else ROUNDED


def stored_tensor(info: TensorInfo, data: Bytes, factors: Factors = ROUNDED) -> Stored:
    """The tensor, out of the bytes of its file; one of more than two dimensions as a matrix with all its rows.

    Its type must be one of `GRIDS`. `factors` are those of a rounded tensor; floats stay `EXACT`.
    """
    shape, kind = info.shape[::-1], type_of(info)
    rows = math.prod(shape[:-1])
    shape = shape if len(shape) < 3 else (rows, shape[-1])
    own = data[info.offset : info.offset + info.nbytes].reshape(rows, -1)

    def read(start: int, stop: int) -> Array:
        found: Array = gguf.quants.dequantize(own[start:stop], gguf.GGMLQuantizationType[kind])
        return found.reshape(stop - start, -1)

    # Rope's divisors come from a formula, which other converters evaluate in another precision.
    grid = Grid(1, 1e5, "float", factors=EXACT) if info.name == ROPE_FREQS else GRIDS[kind]
    if grid.factors != EXACT:
        grid = replace(grid, factors=factors)
    return Stored(info.name, kind, shape, grid, read)


def file_name_map(layout: GgufLayout) -> gguf.TensorNameMap | None:
    """gguf-py's map from Hugging Face tensor names to those of the file's architecture; None for an unknown one."""
    name = layout.metadata.get("general.architecture")
    known = {text: arch for arch, text in gguf.MODEL_ARCH_NAMES.items()}
    blocks = layout.metadata.get(f"{name}.block_count")
    return (
        gguf.get_tensor_name_map(known[name], blocks) if name in known and isinstance(blocks, int) else None
    )
