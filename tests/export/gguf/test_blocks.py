"""The packed blocks are those of llama.cpp: it and gguf read from them the weights that the integers represent."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.export.gguf.blocks import Rounded, pack, values
from edgekit.export.gguf.ggml import library

Floats = NDArray[np.float32]
Draw = Callable[[int, int, tuple[int, int]], NDArray[np.int8]]  # integers of a range and a shape

# The lowest and the highest of the levels, the sub-scales and the sub-minima.
NIBBLE, SIX_BITS, SIGNED_SIX_BITS = (0, 15), (0, 63), (-32, 31)
RANGES = {
    Type.Q4_0: [(-8, 7)],
    Type.Q5_0: [(-16, 15)],
    Type.Q8_0: [(-127, 127)],
    Type.IQ4_NL: [NIBBLE],
    Type.Q3_K: [(-4, 3), SIGNED_SIX_BITS],
    Type.Q4_K: [NIBBLE, SIX_BITS, SIX_BITS],
    Type.Q5_K: [(0, 31), SIX_BITS, SIX_BITS],
    Type.Q6_K: [(-32, 31), (-128, 127)],
    Type.IQ4_XS: [NIBBLE, SIGNED_SIX_BITS],
}
EDGES = [0.0, -0.0, 2.0**-24, -(2.0**-24), 65504.0, -65504.0]  # the smallest and the largest float16 numbers
HALVES = st.sampled_from(EDGES) | st.integers(0, 2 * 0x7C00 - 1).map(
    lambda n: float(np.uint16(n % 0x7C00 | n // 0x7C00 << 15).view(np.float16))  # any finite bits
)

each_type = pytest.mark.parametrize("kind", RANGES, ids=lambda kind: kind.name)


def rounded(kind: Type, draw: Draw, halves: list[float], rows: int = 2, blocks: int = 2) -> Rounded:
    """A weight of integers by `draw` with the scales, and then the minima, `halves`."""
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    group = 16 if kind in (Type.Q3_K, Type.Q6_K) else 32
    widths = [block * blocks] + [block // group * blocks] * 2
    integers = [
        draw(low, high, (rows, width)) for (low, high), width in zip(RANGES[kind], widths, strict=False)
    ]
    levels, sub_scales, sub_minima = integers + [None] * (3 - len(integers))
    scales, minima = np.resize(np.array(halves, np.float16), (2, rows, blocks))
    return Rounded(kind, levels, scales, None if sub_minima is None else minima, sub_scales, sub_minima)


def at_random(seed: int) -> Draw:
    generator = np.random.default_rng(seed)
    return lambda low, high, shape: generator.integers(low, high, shape, np.int8, endpoint=True)


def at_end(end: int) -> Draw:
    return lambda low, high, shape: np.full(shape, (low, high)[end], np.int8)


def read_by_llama_cpp(kind: Type, data: NDArray[np.uint8], columns: int) -> Floats:
    """The weights of `data` `(rows, bytes)`, by the function that `ggml_get_type_traits(kind)->to_float` names."""
    read = library()[f"dequantize_row_{kind.name.lower().replace('_k', '_K')}"]
    read.argtypes, read.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    out = np.empty((len(data), columns), np.float32)
    read(data.ctypes.data, out.ctypes.data, out.size)
    return out


def same(one: Floats, other: Floats) -> bool:
    """Whether the two hold the same bits, that of a zero's sign too."""
    return np.array_equal(one.view(np.uint32), other.view(np.uint32))


def check(weight: Rounded) -> None:
    data, expected = pack(weight), values(weight)
    block, size = gguf.GGML_QUANT_SIZES[weight.type]
    rows, columns = weight.levels.shape
    assert data.shape == (rows, columns // block * size)
    assert data.dtype == np.uint8 and data.flags.c_contiguous
    assert expected.shape == (rows, columns)
    assert expected.dtype == np.float32 and expected.flags.c_contiguous
    assert same(gguf.quants.dequantize(data, weight.type), expected)
    assert same(read_by_llama_cpp(weight.type, data, columns), expected)
    assert library().ggml_validate_row_data(weight.type, data.ctypes.data, data.nbytes)


@each_type
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), halves=st.lists(HALVES, min_size=8, max_size=8), rows=st.integers(1, 3))
def test_readers_get_the_weights_that_the_integers_represent(
    kind: Type, seed: int, halves: list[float], rows: int
) -> None:
    check(rounded(kind, at_random(seed), halves, rows))


@each_type
@pytest.mark.parametrize("end", [0, 1], ids=["lowest", "highest"])
def test_ends_of_the_ranges(kind: Type, end: int) -> None:
    check(rounded(kind, at_end(end), EDGES, rows=3))


@each_type
def test_arrays_may_have_any_memory_layout(kind: Type) -> None:
    weight = rounded(kind, at_random(0), EDGES, rows=3)
    arrays = {name: array for name, array in vars(weight).items() if isinstance(array, np.ndarray)}
    by_column = replace(weight, **{name: np.asfortranarray(array) for name, array in arrays.items()})
    check(by_column)
    assert np.array_equal(pack(by_column), pack(weight))


@each_type
def test_exchanged_levels_are_noticed(kind: Type) -> None:
    """A packer that exchanges two weights of a block would fail the comparisons above."""
    weight = rounded(kind, at_end(1), [1.0])
    weight.levels[0, 16] -= 1
    levels = weight.levels.copy()
    levels[0, [16, 17]] = levels[0, [17, 16]]
    data = pack(replace(weight, levels=levels))
    assert not np.array_equal(data, pack(weight))
    assert not same(gguf.quants.dequantize(data, kind), values(weight))
    assert not same(read_by_llama_cpp(kind, data, levels.shape[1]), values(weight))


@each_type
def test_integers_out_of_range_are_refused(kind: Type) -> None:
    weight = rounded(kind, at_random(0), [1.0])
    for name, (low, high) in zip(("levels", "sub_scales", "sub_minima"), RANGES[kind], strict=False):
        for wrong in {low - 1, high + 1} - {-129, 128}:
            integers = getattr(weight, name).copy()
            integers[-1, -1] = wrong
            with pytest.raises(ValueError, match=name):
                replace(weight, **{name: integers})


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Type.Q8_0, {"type": Type.Q2_K}),
        (Type.Q8_0, {"levels": np.zeros((2, 65), np.int8)}),
        (Type.Q8_0, {"levels": np.zeros(64, np.int8)}),
        (Type.Q8_0, {"levels": np.zeros((0, 64), np.int8)}),
        (Type.Q8_0, {"levels": np.zeros((2, 64), np.int16)}),
        (Type.Q8_0, {"scales": np.zeros((2, 2), np.float32)}),
        (Type.Q8_0, {"scales": np.zeros((2, 1), np.float16)}),
        (Type.Q8_0, {"sub_scales": np.zeros((2, 2), np.int8)}),
        (Type.Q6_K, {"sub_scales": np.zeros((2, 16), np.int8)}),
        (Type.Q6_K, {"minima": np.zeros((2, 2), np.float16)}),
        (Type.Q4_K, {"minima": None}),
        (Type.Q4_K, {"sub_minima": None}),
    ],
)
def test_wrong_arrays_are_refused(kind: Type, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        replace(rounded(kind, at_random(0), [1.0]), **changes)  # type: ignore[arg-type]
