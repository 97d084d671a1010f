"""GGUF blocks: the bytes of the integers and scales that a quantizer has chosen, and the weights that these represent.

A row of a tensor is a sequence of blocks of 32 weights, or of super-blocks of 256 weights in sub-blocks of 16 or 32:

    Q4_0, Q5_0, Q8_0    weight = d * level
    IQ4_NL              weight = d * IQ4_VALUES[level]
    Q3_K, Q6_K          weight = d * sub_scale * level
    IQ4_XS              weight = d * sub_scale * IQ4_VALUES[level]
    Q4_K, Q5_K          weight = d * sub_scale * level - dmin * sub_minimum

`CODECS` gives the integers of each type and the layout of its blocks. Source: the structs `block_*` of ggml-common.h and
the functions `dequantize_row_*` of ggml-quants.c, both of llama.cpp (ggml/src).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from gguf.quants import IQ4_NL
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Halves = NDArray[np.float16]
Levels = NDArray[np.int8]

IQ4_VALUES: Levels = np.array(IQ4_NL.kvalues, np.int8)  # of the levels 0 to 15 of IQ4_NL and IQ4_XS


class Integers(NamedTuple):
    """The integers from `low` to `high`. Blocks hold their sum with `offset`, as two's complement if that is negative."""

    low: int
    high: int
    offset: int = 0


class Field(NamedTuple):
    """Bytes of a block that hold, of each of the integers `of`, the `bits` bits from bit `first` on.

    A byte holds those of `8 // bits` integers that are `apart` from one another, the first of them in its lowest bits.
    """

    of: str
    first: int = 0
    bits: int = 8
    apart: int = 1


class Codec(NamedTuple):
    """What the blocks of a type hold."""

    integers: Mapping[str, Integers]
    """By the name of their array in `Rounded`."""
    fields: tuple[Field, ...]
    """In the order of the block, by the name of the array; "pairs" are the sub-scales and sub-minima of `_pairs`."""
    group: int = 32
    """Weights of a sub-block, or of a block without sub-blocks."""
    values: Levels | None = None
    """What the levels stand for; None: themselves."""


SCALE, MINIMUM = Field("scales"), Field("minima")
NIBBLES = Field("levels", 0, 4, 16)
NIBBLES_32 = Field("levels", 0, 4, 32)
SIX_BITS, SIGNED_SIX_BITS = Integers(0, 63), Integers(-32, 31, 32)

CODECS: Mapping[Type, Codec] = {
    Type.Q4_0: Codec({"levels": Integers(-8, 7, 8)}, (SCALE, NIBBLES)),
    Type.Q5_0: Codec({"levels": Integers(-16, 15, 16)}, (SCALE, Field("levels", 4, 1, 1), NIBBLES)),
    Type.Q8_0: Codec({"levels": Integers(-127, 127)}, (SCALE, Field("levels"))),
    Type.IQ4_NL: Codec({"levels": Integers(0, 15)}, (SCALE, NIBBLES), values=IQ4_VALUES),
    Type.Q3_K: Codec(
        {"levels": Integers(-4, 3, 4), "sub_scales": SIGNED_SIX_BITS},
        (
            Field("levels", 2, 1, 32),
            Field("levels", 0, 2, 32),
            Field("sub_scales", 0, 4, 8),
            Field("sub_scales", 4, 2, 4),
            SCALE,
        ),
        group=16,
    ),
    Type.Q4_K: Codec(
        {"levels": Integers(0, 15), "sub_scales": SIX_BITS, "sub_minima": SIX_BITS},
        (SCALE, MINIMUM, Field("pairs"), NIBBLES_32),
    ),
    Type.Q5_K: Codec(
        {"levels": Integers(0, 31), "sub_scales": SIX_BITS, "sub_minima": SIX_BITS},
        (SCALE, MINIMUM, Field("pairs"), Field("levels", 4, 1, 32), NIBBLES_32),
    ),
    Type.Q6_K: Codec(
        {"levels": Integers(-32, 31, 32), "sub_scales": Integers(-128, 127)},
        (Field("levels", 0, 4, 64), Field("levels", 4, 2, 32), Field("sub_scales"), SCALE),
        group=16,
    ),
    Type.IQ4_XS: Codec(
        {"levels": Integers(0, 15), "sub_scales": SIGNED_SIX_BITS},
        (SCALE, Field("sub_scales", 4, 2, 1), Field("sub_scales", 0, 4, 1), NIBBLES),
        values=IQ4_VALUES,
    ),
}


@dataclass(frozen=True)
class Rounded:
    """A weight `(rows, columns)` as the integers and scales of one ggml type of `CODECS`.

    Raises `ValueError` for another type; for an array that is missing, superfluous, or of another dtype or shape; and for
    an integer out of range. Scales may have any value, but llama.cpp refuses a file with one that is not finite.
    """

    type: Type
    levels: NDArray[np.int8]
    """`(rows, columns)`; of IQ4_NL and IQ4_XS, the index into `IQ4_VALUES`."""
    scales: NDArray[np.float16]
    """`(rows, blocks)`: d of each block or super-block."""
    minima: NDArray[np.float16] | None = None
    """`(rows, blocks)`: dmin of each super-block of Q4_K and Q5_K."""
    sub_scales: NDArray[np.int8] | None = None
    """`(rows, sub-blocks)`: factors of d, of all types with super-blocks."""
    sub_minima: NDArray[np.int8] | None = None
    """`(rows, sub-blocks)`: factors of dmin, of Q4_K and Q5_K."""

    def __post_init__(self) -> None:
        if self.type not in CODECS:
            raise ValueError(f"no codec for {self.type!r}")
        codec, (block, _) = CODECS[self.type], GGML_QUANT_SIZES[self.type]
        if self.levels.ndim != 2 or not self.levels.size or self.levels.shape[1] % block:
            raise ValueError(f"levels of shape {self.levels.shape} are not rows of blocks of {block}")
        rows, columns = self.levels.shape
        blocks, groups = (rows, columns // block), (rows, columns // codec.group)
        expected = {"scales": blocks, "levels": (rows, columns)}
        if "sub_scales" in codec.integers:
            expected["sub_scales"] = groups
        if "sub_minima" in codec.integers:
            expected |= {"minima": blocks, "sub_minima": groups}
        for name in ("levels", "scales", "minima", "sub_scales", "sub_minima"):
            _check(name, getattr(self, name), expected.get(name), codec.integers.get(name))


def pack(rounded: Rounded) -> Bytes:
    """The blocks as llama.cpp stores them, `(rows, bytes of a row)`, C-contiguous."""
    codec, blocks = CODECS[rounded.type], rounded.scales.shape
    parts = {"scales": _bytes(rounded.scales)}
    for name, integers in codec.integers.items():
        stored = np.add(getattr(rounded, name).view(np.uint8), np.uint8(integers.offset), order="C")
        parts[name] = stored.reshape(*blocks, -1)
    if rounded.minima is not None:
        parts["minima"] = _bytes(rounded.minima)
        parts["pairs"] = _pairs(parts["sub_scales"], parts["sub_minima"])
    fields = [_field(parts[field.of], field) for field in codec.fields]
    return np.concatenate(fields, axis=-1).reshape(blocks[0], -1)


def values(rounded: Rounded) -> Floats:
    """The weights `(rows, columns)`, C-contiguous, that the blocks represent, bit for bit as llama.cpp and gguf compute them.

    The order of the factors does not matter, as their product fits the 24 bits of a float32. Only the subtraction rounds.
    """
    codec = CODECS[rounded.type]
    levels = rounded.levels if codec.values is None else codec.values[rounded.levels]
    steps = rounded.scales.astype(np.float32)
    if rounded.sub_scales is not None:
        steps = _times(steps, rounded.sub_scales).reshape(rounded.sub_scales.shape)
    weights = _times(steps, levels)
    if rounded.minima is not None and rounded.sub_minima is not None:
        weights -= _times(rounded.minima.astype(np.float32), rounded.sub_minima).reshape(*steps.shape, 1)
    return weights.reshape(levels.shape)


def _check(
    name: str, array: NDArray[Any] | None, shape: tuple[int, int] | None, integers: Integers | None
) -> None:
    """Raise `ValueError` unless the array has this shape, or is absent if that is None, and holds `integers` or halves."""
    if (array is None) != (shape is None):
        raise ValueError(f"{name} {'are missing' if array is None else 'do not belong to this type'}")
    if array is None:
        return
    dtype = np.dtype(np.int8 if integers else np.float16)
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} are {array.dtype} {array.shape}, not {dtype} {shape}")
    if integers and not integers.low <= array.min() <= array.max() <= integers.high:
        raise ValueError(f"{name} are not from {integers.low} to {integers.high}")


def _times(factors: Floats, integers: Levels) -> Floats:
    """Each of `integers` `(rows, groups * n)` times the factor `(rows, groups)` of its group: `(rows, groups, n)`."""
    return np.multiply(factors[..., np.newaxis], integers.reshape(*factors.shape, -1), order="C")


def _bytes(halves: Halves) -> Bytes:
    """The bytes of float16 numbers `(rows, blocks)`, `(rows, blocks, 2)`."""
    return np.ascontiguousarray(halves, "<f2").view(np.uint8).reshape(*halves.shape, 2)


def _pairs(scales: Bytes, minima: Bytes) -> Bytes:
    """The 12 bytes of 8 sub-scales and 8 sub-minima, of 6 bits each, `(rows, blocks, 8)` (`get_scale_min_k4`).

    The first four of each fill bytes 0 to 7; above them are the two upper bits of the last four, whose four lower bits
    share bytes 8 to 11.
    """
    (scale, last_scale), (minimum, last_minimum) = np.split(scales, 2, -1), np.split(minima, 2, -1)
    shared = last_scale & 15 | last_minimum << 4
    return np.concatenate([scale | last_scale >> 4 << 6, minimum | last_minimum >> 4 << 6, shared], axis=-1)


def _field(integers: Bytes, field: Field) -> Bytes:
    """The bytes of one field of each block, of its integers `(rows, blocks, n)`."""
    rows, blocks, _ = integers.shape
    shifts = np.arange(0, 8, field.bits, dtype=np.uint8)
    bits = integers >> field.first & np.uint8((1 << field.bits) - 1)
    parts = bits.reshape(rows, blocks, -1, shifts.size, field.apart) << shifts[:, np.newaxis]
    packed: Bytes = np.bitwise_or.reduce(parts, axis=3)
    return packed.reshape(rows, blocks, -1)
