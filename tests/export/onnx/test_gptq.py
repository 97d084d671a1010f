"""GPTQ: what it gains, that it stays close to the weights, and that it holds one layer in float32 at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from edgekit.export.onnx import gptq, ranges
from edgekit.export.onnx.gptq import Rounding, round_gptq, round_nearest, round_network
from edgekit.export.weights.weight_compare import CALIBRATED, Grid, Stored, compare
from edgekit.models import mapped


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return tiny.maker(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("calibration", [[], [list(range(8))]], ids=["rtn", "gptq"])
def test_rounded_layers_leave_memory(model: Callable[..., Path], calibration: list[list[int]]) -> None:
    network = mapped.load(model("llama"))
    layers = network.get_decoder().layers
    linear = [
        [weakref.ref(module) for module in layer.modules() if isinstance(module, nn.Linear)]
        for layer in layers
    ]
    alive: list[int] = []

    def report(done: int, total: int, unit: str) -> None:
        gc.collect()
        alive.append(sum(found() is not None for layer in linear[: done - 1] for found in layer))

    with torch.no_grad():
        round_network(network, Rounding(4, 32), calibration, report)
    assert len(alive) == len(layers) and alive == [0] * len(layers)


def excess(weight: torch.Tensor, rounded: gptq.Rounded) -> float:
    """The largest error of a block as the proof of the weights measures it; more than 1 is refused."""
    values = rounded.weight.numpy()
    grid = Grid(32, 15, "range", factors=CALIBRATED)
    return compare(
        Stored("", "", values.shape, grid, lambda start, stop: values[start:stop]), weight.numpy()
    ).excess


def layer(kinds: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight `(64, 256)` and the second moment of inputs that are mixed from so many `kinds`, `(256, 256)`."""
    made = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 256, generator=made)
    inputs = torch.randn(400, kinds, generator=made) @ torch.randn(kinds, 256, generator=made).abs()
    inputs[:, -32:] *= 0.05
    return weight, inputs.T @ inputs


@pytest.mark.parametrize("kinds", [1, 2])
def test_a_block_that_uniform_inputs_say_little_of_stays_as_close_as_the_proof_asks(kinds: int) -> None:
    weight, hessian = layer(kinds)
    weight[0, -32:] *= 0.01  # all errors of the row are moved into these faint weights
    once = gptq._with_feedback(weight, gptq._inverse_root(hessian, gptq.DAMPINGS[0]), 4, 32)
    assert excess(weight, once) > 1
    assert excess(weight, round_gptq(weight, hessian, 4, 32)) <= 1


def test_feedback_gains_over_rounding_to_the_nearest() -> None:
    weight, hessian = layer(kinds=200)

    def loss(rounded: gptq.Rounded) -> float:
        difference = rounded.weight - weight
        return float(((difference @ hessian) * difference).sum())

    assert loss(round_gptq(weight, hessian, 4, 32)) < 0.7 * loss(round_nearest(weight, 4, 32))


def test_pieces_do_not_show_in_what_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(37, 256, generator=torch.Generator().manual_seed(0))
    whole = round_nearest(weight, 4, 32)
    monkeypatch.setattr(ranges, "PIECE", 8 * 256)
    pieces = round_nearest(weight, 4, 32)
    for part in ("codes", "scales", "zeros"):
        assert torch.equal(getattr(whole, part), getattr(pieces, part))
