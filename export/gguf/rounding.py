"""Rounds the weights of a Hugging Face folder for a GGUF file with error feedback, layer by layer.

The inputs of a layer are computed by the rounded layers before it. The head comes last, and with it the embedding that it is
tied to: llama.cpp's importance matrix leaves both out. One layer at a time is in memory in float32, with the hidden states of
the calibration text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from edgekit.base.errors import CorruptError, StageError
from edgekit.base.events import Emit, Progress, ignore
from edgekit.base.memory import give_back
from edgekit.export.gguf import blocks, stored
from edgekit.export.gguf.families import FAMILIES, architecture, name_map, to_gguf, typed
from edgekit.export.gguf.feedback import SWEEPS, Moment, round_with_feedback
from edgekit.export.gguf.grids import GRIDS, LARGEST_HALF
from edgekit.export.weights.layerwise import Layerwise, in_order
from edgekit.export.weights.weight_compare import is_close
from edgekit.models import accelerator, mapped
from edgekit.models.source import read_config

STAGE = "quantize.gguf"
ROWS = 1024  # rows that one thread rounds at a time
MORE_DAMPING = (0.1, 1.0)  # for a weight that usual damping rounds too far away
Types = Mapping[str, str]


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


class Network:
    """A model of `FAMILIES` in torch, and the places of its weights in the GGUF file.

    Raises `CorruptError` for a weight that is not a finite number, and `StageError` for one beyond the largest half.
    """

    def __init__(self, model: Path) -> None:
        config = read_config(model)
        self.family, self.config = FAMILIES[architecture(config)], typed(config)
        self.torch: Any = accelerator.place(mapped.load(model))
        for name, weight in self.torch.named_parameters():
            _check_range(name, weight)
        self._names = name_map(self.config, self.family)
        embedding, head = self.torch.get_input_embeddings(), self.torch.get_output_embeddings()
        self.tied: bool = head.weight is embedding.weight

    def name(self, path: str) -> str:
        """The GGUF name of the weight of the module `path`."""
        return str(self._names.get_name(f"{path}.weight", try_suffixes=(".weight",)))

    def file_order(self, path: str, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows of the weight of the module `path`, in the order of the file."""
        return to_gguf(f"{path}.weight", rows, self.config, self.family)

    def outer(self) -> dict[str, Any]:
        """Head and embedding by GGUF name; where the two are tied, the head, by the embedding's name."""
        paths = {module: path for path, module in self.torch.named_modules()}
        embedding, head = self.torch.get_input_embeddings(), self.torch.get_output_embeddings()
        if self.tied:
            return {self.name(paths[embedding]): head}
        return {self.name(paths[module]): module for module in (head, embedding)}


def _check_range(name: str, weight: torch.Tensor) -> None:
    largest = float(torch.stack(weight.detach().aminmax()).abs().max())
    if not isfinite(largest):
        raise CorruptError(
            f"'{name}' holds a weight that is not a finite number. No file was written.",
            "The model or its adapter is damaged: download or tune it again.",
        )
    if weight.ndim > 1 and largest > LARGEST_HALF:
        raise StageError(
            f"'{name}' holds a weight of {largest:g}, and scales are at most {LARGEST_HALF:g}. No file was written.",
            'Let llama.cpp round the weights: method "nearest".',
        )


def weighted(texts: Sequence[Text]) -> tuple[list[Sequence[int]], list[float]]:
    """All sequences, and what a token of each counts: each kind of text counts the same."""
    sequences = [ids for text in texts for ids in text.sequences]
    weights = [1 / text.tokens / len(texts) for text in texts for _ in text.sequences]
    return sequences, weights


def round_model(
    model: Path,
    types: Types,
    texts: Sequence[Text],
    out: Path,
    *,
    sweeps: int = SWEEPS,
    threads: int = 2,
    emit: Emit = ignore,
) -> dict[str, float]:
    """Write the packed rows `(rows, bytes)` of each tensor of `types` to the existing folder `out`, one file for each layer.

    `types` gives the type of a tensor by its GGUF name; the others are left out. Returns the error of each layer's outputs on
    the calibration text, as a share of their size.
    """
    network = Network(model)
    walk = Layerwise(network.torch, *weighted(texts), threads)
    errors: dict[str, float] = {}
    total = len(walk.layers) + 1
    for number, layer in enumerate(walk.layers):
        mapped.in_float32(layer)
        linear = {path: module for path, module in walk.linear(number).items() if network.name(path) in types}
        moments = walk.moments(number, list(linear.values()))
        damped = all_damped(moments, threads)
        packed = {}
        for path, module in linear.items():
            name = network.name(path)
            result = round_weight(module.weight, damped[module], types[name], sweeps, threads)
            packed[name], errors[name] = network.file_order(path, result.packed), result.error
            module.weight.data = result.values.to(module.weight.device)
        walk.advance(number)
        save_file(packed, out / f"{number:05}.safetensors")
        give_back()
        emit(Progress(STAGE, number + 1, total, "layers", "rounding"))
    moment, packed = Moment.of(walk.head_moment()), {}
    for name, module in network.outer().items():
        if name in types:
            inputs = moment if isinstance(module, torch.nn.Linear) else even(moment)
            result = round_weight(module.weight, inputs, types[name], sweeps, threads)
            packed[name], errors[name] = result.packed, result.error
    save_file(packed, out / f"{total - 1:05}.safetensors")
    emit(Progress(STAGE, total, total, "layers", "rounding"))
    return errors


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

    packed: NDArray[np.uint8]
    """`(rows, bytes)`"""
    values: torch.Tensor
    """The weights that it stands for, `(rows, columns)`."""
    cost: torch.Tensor
    """What the error of each row costs, `(rows,)`."""
    distance: torch.Tensor
    """The squared distance of each row from what it was, `(rows,)`."""
    error: float
    """The error of the layer's outputs, as a share of their size."""


def round_weight(weight: torch.Tensor, moment: Moment, type: str, sweeps: int, threads: int) -> Result:
    """Round `weight` `(rows, columns)` to the type of this name, so that its outputs for inputs of `moment` change least.

    Little or uniform calibration text says nothing about some columns, and the errors of all others are moved into these. Such
    a weight is rounded again with more damping, and to the nearest value at last, until the proof of the weights accepts it.
    """
    for inputs in chain([moment], map(moment.damped, MORE_DAMPING)):
        result = _round(weight, inputs, moment, type, sweeps, threads)
        if is_close(result.values.numpy(), weight.detach().float().cpu().numpy(), stored.GRIDS[type]):
            return result
    return _round(weight, even(moment), moment, type, 0, threads)


def _round(
    weight: torch.Tensor, inputs: Moment, moment: Moment, type: str, sweeps: int, threads: int
) -> Result:
    """Round `weight` for inputs of the moment `inputs`, some rows at a time, and measure it with `moment`."""
    inputs.prepare(GRIDS[type])

    def work(start: int) -> tuple[Any, Any, torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = weight[start : start + ROWS].detach().float().cpu()
        with torch.inference_mode():  # holds for one thread only
            rounded, cost = round_with_feedback(rows, inputs, GRIDS[type], sweeps)
            values = blocks.values(rounded)
            error = rows - torch.from_numpy(values)
            if inputs is not moment:
                cost = ((error @ moment.single) * error).sum(1)
            size = ((rows @ moment.single) * rows).sum(1)
        return blocks.pack(rounded), values, cost, error.square().sum(1), size

    starts = range(0, len(weight), ROWS)
    packed, values, cost, distance, size = zip(*in_order(work, starts, threads), strict=True)
    costs = torch.cat(cost)
    error = float((costs.double().sum() / torch.cat(size).double().sum().clamp(min=1e-30)).sqrt())
    made = torch.from_numpy(np.concatenate(values))
    return Result(np.concatenate(packed), made, costs, torch.cat(distance), error)
