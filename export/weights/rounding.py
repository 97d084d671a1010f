"""Rounds whole weights with error feedback, some rows at a time, and says what their errors cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np
import torch

from edgekit.export.weights import weight_compare
from edgekit.export.weights.feedback import Grid, Moment, round_with_feedback
from edgekit.export.weights.layerwise import in_order
from edgekit.export.weights.weight_compare import is_close

ROWS = 1024  # rows that one thread rounds at a time
MORE_DAMPING = (0.1, 1.0)  # for a weight that usual damping rounds too far away


@dataclass(frozen=True)
class Text:
    """Calibration text of one kind: sequences of token ids. Every kind counts the same, however long it is."""

    name: str
    sequences: Sequence[Sequence[int]]

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(map(len, self.sequences))

    def beginning(self, tokens: int) -> Text:
        """Sequences from the start, until they have `tokens` tokens."""
        lengths = accumulate(map(len, self.sequences), initial=0)
        return Text(
            self.name, [ids for ids, before in zip(self.sequences, lengths, strict=False) if before < tokens]
        )


def weighted(texts: Sequence[Text]) -> tuple[list[Sequence[int]], list[float]]:
    """All sequences, and what a token of each counts: each kind of text counts the same."""
    sequences = [ids for text in texts for ids in text.sequences]
    weights = [1 / text.tokens / len(texts) for text in texts for _ in text.sequences]
    return sequences, weights


def even(moment: Moment) -> Moment:
    """A moment of the same size in which each column counts the same: for an embedding, which is looked up."""
    return Moment.of(torch.eye(len(moment.matrix)))


def all_damped(
    moments: Mapping[torch.nn.Linear, torch.Tensor], threads: int
) -> dict[torch.nn.Linear, Moment]:
    """Each layer's moment, damped, with its root; layers with the same input share one."""
    distinct = list({id(moment): moment for moment in moments.values()}.values())
    made = in_order(lambda moment: Moment.of(moment).prepared(), distinct, threads)
    places = dict(zip(map(id, distinct), made, strict=True))
    return {module: places[id(moment)] for module, moment in moments.items()}


class Result(NamedTuple):
    """A rounded weight."""

    pieces: tuple[Any, ...]
    """What the format stores of `ROWS` rows each."""
    values: torch.Tensor
    """The weights that it stands for, `(rows, columns)`."""
    cost: torch.Tensor
    """What the error of each row costs, `(rows,)`."""
    distance: torch.Tensor
    """The squared distance of each row from what it was, `(rows,)`."""
    error: float
    """The error of the layer's outputs, as a share of their size."""


def round_weight(
    weight: torch.Tensor, moment: Moment, grid: Grid, proof: weight_compare.Grid, sweeps: int, threads: int
) -> Result:
    """Round `weight` `(rows, columns)` to `grid`, so that its outputs for inputs of `moment` change least.

    Little or uniform calibration text says nothing about some columns, and the errors of all others are moved into these. Such
    a weight is rounded again with more damping, and to the nearest value at last, until the proof of the weights accepts it as one of the grid `proof`.
    """
    for inputs in chain([moment], map(moment.damped, MORE_DAMPING)):
        result = _round(weight, inputs, moment, grid, sweeps, threads)
        if is_close(result.values.numpy(), weight.detach().float().cpu().numpy(), proof):
            return result
    return _round(weight, even(moment), moment, grid, 0, threads)


def _round(
    weight: torch.Tensor, inputs: Moment, moment: Moment, grid: Grid, sweeps: int, threads: int
) -> Result:
    """Round `weight` for inputs of the moment `inputs`, some rows at a time, and measure it with `moment`."""
    inputs.prepare(grid)

    def work(start: int) -> tuple[Any, Any, torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = weight[start : start + ROWS].detach().float().cpu()
        with torch.inference_mode():  # holds for one thread only
            rounded, cost = round_with_feedback(rows, inputs, grid, sweeps)
            values = grid.values(rounded)
            error = rows - torch.from_numpy(values)
            if inputs is not moment:
                cost = ((error @ moment.single) * error).sum(1)
            size = ((rows @ moment.single) * rows).sum(1)
        return rounded, values, cost, error.square().sum(1), size

    starts = range(0, len(weight), ROWS)
    pieces, values, cost, distance, size = zip(*in_order(work, starts, threads), strict=True)
    costs = torch.cat(cost)
    error = float((costs.double().sum() / torch.cat(size).double().sum().clamp(min=1e-30)).sqrt())
    made = torch.from_numpy(np.concatenate(values))
    return Result(pieces, made, costs, torch.cat(distance), error)
