"""Rounding the layers of a network holds one of them in float32 at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from edgekit.export.onnx.gptq import Rounding, round_network
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
