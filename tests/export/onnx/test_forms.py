"""Forms: what is packed stands for the rounded weight, takes the bytes that are said, and is close to the weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.export.onnx.forms import Form, Rounded, grid_of
from edgekit.export.onnx.graph import unpack
from edgekit.export.onnx.rounding import round_rows
from edgekit.export.weights.feedback import Moment, round_with_feedback

FORMS = st.builds(Form, st.sampled_from([4, 8]), st.sampled_from([16, 32, 64]))


def opened(rounded: Rounded) -> torch.Tensor:
    """The weight that the packed arrays stand for."""
    codes, scales, zeros = (part.numpy() for part in rounded.packed())
    rows, blocks = scales.shape
    steps = unpack(codes.reshape(rows, -1), rounded.bits).reshape(rows, blocks, -1).astype(np.float32)
    steps -= unpack(zeros, rounded.bits)[:, :blocks, None]
    return torch.from_numpy((steps * scales[:, :, None].astype(np.float32)).reshape(rows, -1))


@settings(max_examples=30, deadline=None)
@given(
    form=FORMS,
    rows=st.integers(1, 5),
    blocks=st.integers(1, 5),
    shift=st.floats(-3, 3),
    seed=st.integers(0, 99),
)
def test_packed_tensors_say_what_the_rounded_weight_is(
    form: Form, rows: int, blocks: int, shift: float, seed: int
) -> None:
    weight = torch.randn(rows, form.block * blocks, generator=torch.Generator().manual_seed(seed)) + shift
    rounded = round_rows(weight, None, form, 1)
    assert torch.equal(opened(rounded), rounded.weight)
    assert sum(part.nbytes for part in rounded.packed()) == form.size(*weight.shape)
    width = (weight.amax() - weight.amin()).maximum(weight.abs().max())
    assert (rounded.weight - weight).abs().max() <= 0.4 * width


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "kind", ["zeros", "one weight", "positive", "huge column", "constant", "tiny", "huge"]
)
def test_hostile_weights_stay_numbers(kind: str, bits: int) -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    match kind:
        case "zeros":
            weight.zero_()
        case "one weight":
            weight[:, 1:] = 0
        case "positive":
            weight.abs_()
        case "huge column":
            weight[:, 40] *= 1e4
        case "constant":
            weight[:] = weight[:, :1]
        case "tiny":
            weight *= 1e-30
        case "huge":
            weight *= 65504 / weight.abs().max()
    inputs = torch.randn(200, 128, generator=torch.Generator().manual_seed(1))
    form = Form(bits, 32)
    nearest = round_rows(weight, None, form, 1)
    for rounded in (nearest, round_with_feedback(weight, Moment.of(inputs.T @ inputs), grid_of(form))[0]):
        assert torch.equal(opened(rounded), rounded.weight)
        width = weight.amax(1).clamp(min=0) - weight.amin(1).clamp(max=0)
        assert ((rounded.weight - weight).abs().amax(1) <= 1.1 * width + 2.0**-20).all()
    if kind in (
        "zeros",
        "constant",
        "one weight",
    ):  # one value and zero, which a block holds as nearly as a half can
        assert ((nearest.weight - weight).abs() <= weight.abs() * 2**-10).all()


def test_more_bits_and_smaller_blocks_err_less() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    forms = [Form(4, 64), Form(4, 32), Form(4, 16), Form(8, 32)]
    errors = [float((round_rows(weight, None, form, 1).weight - weight).square().sum()) for form in forms]
    assert errors == sorted(errors, reverse=True)
    sizes = [form.size(*weight.shape) for form in forms]
    assert sizes == sorted(sizes)
