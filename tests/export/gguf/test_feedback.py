"""Rounding with error feedback: blocks that stand for what is said of them, and less error than other quantizers leave."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.export.gguf.blocks import Rounded, pack, values
from edgekit.export.gguf.ggml import library
from edgekit.export.gguf.grids import GRIDS
from edgekit.export.weights.feedback import Moment, round_with_feedback
from edgekit.export.weights.layerwise import one_torch_thread

Floats = NDArray[np.float32]

each_type = pytest.mark.parametrize("kind", GRIDS)
WEIGHTS = (
    "normal", "zeros", "zero row", "huge column", "constant rows", "tiny", "huge", "one weight", "positive",
    "no half scale",
)  # fmt: skip
MOMENTS = ("mixed", "zeros", "one token", "zero columns", "dominant", "tiny", "huge", "even")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


def weights(name: str, rows: int, columns: int, made: torch.Generator) -> torch.Tensor:
    """Weights `(rows, columns)` of this kind."""
    weight = torch.randn(rows, columns, generator=made)
    match name:
        case "zeros":
            weight.zero_()
        case "zero row":
            weight[0] = 0
        case "huge column":
            weight[:, columns // 3] *= 1e4
        case "constant rows":
            weight[:] = weight[:, :1]
        case "tiny":
            weight *= 1e-30
        case "huge":  # the largest weight that edgekit rounds
            weight *= 65504 / weight.abs().max()
        case "one weight":
            weight[:, 1:] = 0
        case "positive":
            weight.abs_()
        case "no half scale":  # scales are the smallest halves, or zero
            weight *= 2.0**-24
    return weight


def moment(name: str, columns: int, made: torch.Generator) -> torch.Tensor:
    """The second moment `(columns, columns)` of inputs of this kind."""
    tokens = torch.randn(1 if name == "one token" else 40, columns, generator=made)
    match name:
        case "zeros":
            tokens.zero_()
        case "zero columns":
            tokens[:, ::3] = 0
        case "dominant":
            tokens += 1000 * torch.randn(1, columns, generator=made)
        case "tiny":
            tokens *= 1e-6
        case "huge":
            tokens *= 1e6
        case "even":
            return torch.eye(columns)
    return tokens.T @ tokens / len(tokens)


def trace(error: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """What the errors `(rows, columns)` cost, `(rows,)`, in float64."""
    error = error.double()
    return ((error @ moment.double()) * error).sum(1)


def unpacked(rounded: Rounded) -> torch.Tensor:
    """The weights that llama.cpp's Python package reads from the packed blocks."""
    return torch.from_numpy(gguf.quants.dequantize(pack(rounded), rounded.type))


@cache
def usual(columns: int, rows: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and the second moment of correlated inputs of different sizes: as those of a language model."""
    made = torch.Generator().manual_seed(0)
    mixed = torch.randn(1000, columns // 2, generator=made) @ torch.randn(
        columns // 2, columns, generator=made
    )
    inputs = mixed / (columns / 2) ** 0.5 + 0.3 * torch.randn(1000, columns, generator=made)
    inputs *= torch.randn(columns, generator=made).mul(0.5).exp()
    return torch.randn(rows, columns, generator=made), inputs.T @ inputs / len(inputs)


def columns_of(kind: str) -> int:
    """Several sub-blocks of the type."""
    return max(128, GRIDS[kind].block)


@cache
def rounded(kind: str, sweeps: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """The usual weights after rounding, and the cost of each row."""
    weight, inputs = usual(columns_of(kind))
    found, cost = round_with_feedback(weight, Moment.of(inputs), GRIDS[kind], sweeps)
    return unpacked(found), cost


@each_type
@settings(max_examples=4, deadline=None)
@given(
    weight=st.sampled_from(WEIGHTS),
    inputs=st.sampled_from(MOMENTS),
    rows=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_hostile_weights_become_blocks_that_stand_for_what_is_said(
    kind: str, weight: str, inputs: str, rows: int, seed: int
) -> None:
    grid, made = GRIDS[kind], torch.Generator().manual_seed(seed)
    columns = max(64, grid.block)
    given_ = weights(weight, rows, columns, made)
    damped = Moment.of(moment(inputs, columns, made))
    found, cost = round_with_feedback(given_, damped, grid, 1)
    assert found.type is grid.type and found.levels.shape == given_.shape  # `Rounded` checks the ranges
    got = torch.from_numpy(values(found))
    assert torch.isfinite(got).all() and torch.isfinite(cost).all()
    assert torch.equal(got, unpacked(found))
    packed = pack(found)
    assert library().ggml_validate_row_data(grid.type, packed.ctypes.data, packed.nbytes)
    error = got - given_
    rounding = 1e-30 + 1e-5 * error.double().square().sum(1) * damped.matrix.trace()  # of sums in float32
    assert ((cost - trace(error, damped.matrix)).abs() <= 1e-3 * cost.abs() + rounding).all()
    assert (cost <= 1.001 * trace(given_, damped.matrix) + rounding).all()  # no worse than zeros


@each_type
def test_the_outputs_change_less_than_after_rounding_to_the_nearest(kind: str) -> None:
    weight, inputs = usual(columns_of(kind))
    plain, _ = round_with_feedback(weight, Moment.of(torch.eye(len(inputs))), GRIDS[kind], 0)
    nearest = trace(unpacked(plain) - weight, inputs).sum()
    once, again = (trace(rounded(kind, sweeps)[0] - weight, inputs).sum() for sweeps in (0, 2))
    assert once < 0.5 * nearest and again < 0.9 * once


@each_type
def test_the_outputs_change_less_than_with_llama_cpp_and_an_importance_matrix(kind: str) -> None:
    weight, inputs = usual(columns_of(kind))
    type = GRIDS[kind].type
    block, size = gguf.GGML_QUANT_SIZES[type]
    source = np.ascontiguousarray(weight.numpy())
    importance = np.ascontiguousarray(inputs.diagonal().numpy())
    out = np.empty((len(source), source.shape[1] // block * size), np.uint8)
    library().ggml_quantize_chunk(
        type, source.ctypes.data, out.ctypes.data, 0, *source.shape, importance.ctypes.data
    )
    peer = torch.from_numpy(gguf.quants.dequantize(out, type)) - weight
    ours = rounded(kind)[0] - weight
    assert trace(ours, inputs).sum() < 0.5 * trace(peer, inputs).sum()
    assert ours.square().sum() < 4 * peer.square().sum()  # not paid for by weights that are far away


@each_type
def test_rounding_again_never_costs_more(kind: str) -> None:
    costs = [rounded(kind, sweeps)[1] for sweeps in (0, 1, 2)]
    for before, after in pairwise(costs):
        assert (after <= 1.0001 * before).all()


@each_type
def test_a_row_does_not_depend_on_the_others(kind: str) -> None:
    weight, inputs = usual(columns_of(kind))
    damped, among = Moment.of(inputs), 100 * weight.flip(0)
    among[3] = weight[3]
    packed = pack(round_with_feedback(weight, damped, GRIDS[kind], 0)[0])
    assert np.array_equal(pack(round_with_feedback(among, damped, GRIDS[kind], 0)[0])[3], packed[3])
    # Products of other shapes may differ in their last bit, which may move a weight to the next level.
    _, cost = round_with_feedback(weight[3:4], damped, GRIDS[kind], 2)
    assert float(cost) == pytest.approx(float(rounded(kind)[1][3]), rel=0.05)


@pytest.mark.parametrize("kind", ["IQ4_NL", "Q4_K", "Q6_K"])
def test_the_size_of_the_inputs_does_not_matter(kind: str) -> None:
    weight, inputs = usual(columns_of(kind))
    few = weight[:2]
    expected, cost = round_with_feedback(few, Moment.of(inputs), GRIDS[kind], 0)
    scaled, larger = round_with_feedback(few, Moment.of(inputs * 2.0**-40), GRIDS[kind], 0)
    assert np.array_equal(pack(scaled), pack(expected))
    assert torch.equal(larger, cost * 2.0**-40)


def test_weights_on_the_grid_stay_as_they_are() -> None:
    """Every level occurs in each block, so that there is one scale to find."""
    levels = torch.arange(-8, 8).repeat(4, 8)  # (4, 128)
    weight = 0.25 * levels
    found, cost = round_with_feedback(weight, Moment.of(usual(128)[1]), GRIDS["Q4_0"])
    assert torch.equal(unpacked(found), weight) and not cost.any()


def test_errors_go_where_inputs_are_zero() -> None:
    """Columns that no input reaches may take any value; the outputs stay as they were."""
    weight, inputs = usual(64, 8)
    seen = torch.arange(64) % 2 == 0
    given_ = inputs * seen * seen[:, None]
    found, _ = round_with_feedback(weight, Moment.of(given_), GRIDS["Q4_0"])
    alone = trace(unpacked(found) - weight, given_).sum() / trace(weight, given_).sum()
    assert alone < 0.01
