"""Rounding with error feedback: what it gains, and that it stays as close to the weights as their proof asks."""

from __future__ import annotations

import pytest
import torch

from edgekit.export.gguf import stored
from edgekit.export.gguf.grids import GRIDS
from edgekit.export.gguf.rounding import round_weight
from edgekit.export.weights import rounding
from edgekit.export.weights.feedback import Moment
from edgekit.export.weights.rounding import Result
from edgekit.export.weights.weight_compare import is_close

COLUMNS = 512
NEAREST = Moment.of(torch.eye(COLUMNS))


def layer(kinds: int, faint: int = 32) -> tuple[torch.Tensor, Moment]:
    """A weight `(64, 512)` and the moment of inputs that are mixed from so many `kinds`, with `faint` columns at the end."""
    made = torch.Generator().manual_seed(0)
    weight = torch.randn(64, COLUMNS, generator=made)
    inputs = torch.randn(400, kinds, generator=made) @ torch.randn(kinds, COLUMNS, generator=made).abs()
    inputs[:, -faint:] *= 0.01
    return weight, Moment.of(inputs.T @ inputs)


def accepted(weight: torch.Tensor, found: Result, kind: str) -> bool:
    return is_close(found.values.numpy(), weight.numpy(), stored.GRIDS[kind])


@pytest.mark.parametrize("kind", ["Q4_0", "IQ4_NL", "Q4_K", "IQ4_XS"])
def test_a_block_that_uniform_inputs_say_little_of_stays_as_close_as_the_proof_asks(kind: str) -> None:
    faint = GRIDS[kind].block
    weight, moment = layer(2, faint)
    weight[:16, -faint:] *= 0.01  # all errors of these rows are moved into their small weights
    once = rounding._round(weight, moment, moment, GRIDS[kind], 2, 1)
    found = round_weight(weight, moment, kind, 2, 1)
    nearest = rounding._round(weight, NEAREST, moment, GRIDS[kind], 0, 1)
    assert not accepted(weight, once, kind) and accepted(weight, found, kind)
    assert found.error < 0.25 * nearest.error  # still with feedback


def test_what_no_damping_brings_close_is_rounded_to_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moment = layer(2)
    monkeypatch.setattr(rounding, "is_close", lambda *_: False)
    found = round_weight(weight, moment, "Q8_0", 2, 1)
    error = found.values - weight
    steps = weight.reshape(len(weight), -1, 32).abs().amax(2).repeat_interleave(32, 1) / 127
    assert (error.abs() <= 0.51 * steps).all()
    cost = ((error @ moment.single) * error).sum(1)
    assert torch.allclose(found.cost, cost, rtol=1e-3)  # measured with the inputs that the layer has


@pytest.mark.parametrize("kind", ["IQ4_NL", "Q8_0", "Q4_K"])
def test_feedback_gains_over_rounding_to_the_nearest(kind: str) -> None:
    weight, moment = layer(kinds=200)
    found = round_weight(weight, moment, kind, 2, 1)
    assert accepted(weight, found, kind)
    assert found.cost.sum() < 0.5 * rounding._round(weight, NEAREST, moment, GRIDS[kind], 0, 1).cost.sum()
