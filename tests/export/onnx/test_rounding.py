"""Rounded layers: what error feedback gains, that they stay close to the weights, and that one is in float32 at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from edgekit.export.onnx import rounding
from edgekit.export.onnx.forms import Form, Rounded, grid_of
from edgekit.export.onnx.rounding import Forms, round_network, round_rows
from edgekit.export.weights.feedback import Moment, round_with_feedback
from edgekit.export.weights.layerwise import quietly
from edgekit.export.weights.rounding import Text
from edgekit.export.weights.weight_compare import is_close
from edgekit.models import mapped

FORM = Form(4, 32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return tiny.maker(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("texts", [[], [Text("rows", [list(range(8))])]], ids=["nearest", "feedback"])
def test_rounded_layers_leave_memory(model: Callable[..., Path], texts: list[Text]) -> None:
    network = mapped.load(model("llama"))
    layers = network.get_decoder().layers
    linear = [
        [weakref.ref(module) for module in layer.modules() if isinstance(module, nn.Linear)]
        for layer in layers
    ]
    alive: list[int] = []

    def report(done: int, total: int, unit: str, activity: str) -> None:
        gc.collect()
        alive.append(sum(found() is not None for layer in linear[: done - 1] for found in layer))

    with torch.no_grad():
        round_network(network, Forms(FORM), texts, 1, report)
    assert len(alive) == len(layers) + 1 and not any(alive)


def layer(kinds: int) -> tuple[torch.Tensor, Moment]:
    """A weight `(64, 256)` and the moment of inputs that are mixed from so many `kinds`."""
    made = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 256, generator=made)
    inputs = torch.randn(400, kinds, generator=made) @ torch.randn(kinds, 256, generator=made).abs()
    inputs[:, -32:] *= 0.05
    return weight, Moment.of(inputs.T @ inputs)


def loss(weight: torch.Tensor, moment: Moment, rounded: Rounded) -> float:
    difference = rounded.weight - weight
    return float(((difference @ moment.raw) * difference).sum())


@pytest.mark.parametrize("kinds", [1, 2])
def test_a_block_that_uniform_inputs_say_little_of_stays_as_close_as_the_proof_asks(kinds: int) -> None:
    weight, moment = layer(kinds)
    weight[0, -32:] *= 0.01  # all errors of the row are moved into these faint weights
    once, _ = round_with_feedback(weight, moment, grid_of(FORM))
    assert not is_close(once.weight.numpy(), weight.numpy(), FORM.proof)
    assert is_close(round_rows(weight, moment, FORM, 1).weight.numpy(), weight.numpy(), FORM.proof)


def test_feedback_gains_over_rounding_to_the_nearest() -> None:
    weight, moment = layer(kinds=200)
    found, nearest = (round_rows(weight, inputs, FORM, 1) for inputs in (moment, None))
    assert loss(weight, moment, found) < 0.5 * loss(weight, moment, nearest)


def test_inputs_that_do_not_go_together_leave_little_to_gain() -> None:
    weight, _ = layer(kinds=200)
    even = Moment.of(torch.eye(256))
    found, nearest = (round_rows(weight, inputs, FORM, 1) for inputs in (even, None))
    assert loss(weight, even, found) == pytest.approx(loss(weight, even, nearest), rel=0.02)


def test_columns_that_are_never_used_are_borne() -> None:
    weight, moment = layer(kinds=200)
    used = moment.raw.clone()
    used[3] = used[:, 3] = 0
    assert round_rows(weight, Moment.of(used), FORM, 1).weight.isfinite().all()


def test_pieces_and_threads_do_not_show_in_what_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(37, 256, generator=torch.Generator().manual_seed(0))
    whole = round_rows(weight, None, FORM, 1)
    monkeypatch.setattr(rounding, "PIECE", 8 * 256)
    pieces = round_rows(weight, None, FORM, 2)
    for part in ("codes", "scales", "zeros"):
        assert torch.equal(getattr(whole, part), getattr(pieces, part))


def test_patterns_and_choices_give_forms() -> None:
    forms = Forms(
        FORM, ["*.v_proj", "layers.0.*"], {"layers.7.mlp.up_proj": Form(4, 64), "lm_head": Form(4, 16)}
    )
    names = (
        "layers.0.mlp.up_proj",
        "layers.5.self_attn.v_proj",
        "layers.5.mlp.up_proj",
        "layers.7.mlp.up_proj",
    )
    assert [forms.of(name, 576) for name in names] == [Form(8, 32), Form(8, 32), FORM, Form(4, 64)]
    assert forms.of("layers.5.mlp.up_proj", 80) == Form(4, 16)  # of a row of 80 columns
    assert forms.of_head("lm_head", 576) == Form(4, 16) and forms.of_head("embed", 576) == Form(8, 32)


def test_the_head_is_rounded_by_what_it_sees(model: Callable[..., Path]) -> None:
    """The inputs of the last layer's norm decide, and the tied embedding is the same module no more."""
    texts = [Text("rows", [list(range(3, 40))] * 4)]
    found = {}
    for name, given in {"seen": texts, "nearest": []}.items():
        network = mapped.load(model("llama"))
        head = network.get_output_embeddings()
        weight, path = head.weight.detach().clone(), "model.embed_tokens"
        round_network(network, Forms(FORM, [], {path: FORM}), given, 1, quietly)
        rounded = network.get_output_embeddings()
        assert isinstance(rounded, rounding.RoundedLinear) and rounded.bits == 4
        found[name] = rounded.qweight
    assert weight.shape == (rounded.out_features, rounded.in_features)
    assert not torch.equal(found["seen"], found["nearest"])
