"""Rounds the weights of a Hugging Face folder for a GGUF file with error feedback, layer by layer.

The inputs of a layer are computed by the rounded layers before it. The head comes last, and with it the embedding that it is
tied to: llama.cpp's importance matrix leaves both out. One layer at a time is in memory in float32, with the hidden states of
the calibration text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from edgekit.base.errors import CorruptError, StageError
from edgekit.base.events import Emit, Progress, ignore
from edgekit.base.memory import give_back
from edgekit.export.gguf import blocks, stored
from edgekit.export.gguf.families import FAMILIES, architecture, name_map, to_gguf, typed
from edgekit.export.gguf.grids import GRIDS
from edgekit.export.weights import rounding
from edgekit.export.weights.feedback import LARGEST_HALF, SWEEPS, Moment
from edgekit.export.weights.layerwise import Layerwise, outer
from edgekit.export.weights.rounding import Result, Text, all_damped, even, weighted
from edgekit.models import accelerator, mapped
from edgekit.models.source import read_config

STAGE = "quantize.gguf"
Types = Mapping[str, str]


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

    def name(self, path: str) -> str:
        """The GGUF name of the weight of the module `path`."""
        return str(self._names.get_name(f"{path}.weight", try_suffixes=(".weight",)))

    def file_order(self, path: str, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows of the weight of the module `path`, in the order of the file."""
        return to_gguf(f"{path}.weight", rows, self.config, self.family)

    def outer(self) -> dict[str, Any]:
        """Head and embedding by GGUF name; where the two are tied, the head, by the embedding's name."""
        return {self.name(path): module for path, module in outer(self.torch).items()}


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
            packed[name], errors[name] = network.file_order(path, packed_rows(result)), result.error
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
            packed[name], errors[name] = packed_rows(result), result.error
    save_file(packed, out / f"{total - 1:05}.safetensors")
    emit(Progress(STAGE, total, total, "layers", "rounding"))
    return errors


def round_weight(weight: torch.Tensor, moment: Moment, type: str, sweeps: int, threads: int) -> Result:
    """Round `weight` `(rows, columns)` to the type of this name, so that its outputs for inputs of `moment` change least."""
    return rounding.round_weight(weight, moment, GRIDS[type], stored.GRIDS[type], sweeps, threads)


def packed_rows(result: Result) -> NDArray[np.uint8]:
    """The blocks of a rounded weight, `(rows, bytes)`."""
    return np.concatenate([blocks.pack(piece) for piece in result.pieces])
