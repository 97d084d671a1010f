"""Rounds the weights of a decoder and its head for ONNX, with error feedback, layer by layer.

A rounded layer takes the place of the network's own, and onnxruntime-genai's model builder copies its integers unchanged into
the graph. Weights of 8 bits are rounded to the nearest value, because little is left to gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch

from edgekit.base.memory import give_back
from edgekit.export.onnx.forms import Form, Grid, Rounded, grid_of
from edgekit.export.onnx.layout import stacked
from edgekit.export.weights.feedback import SWEEPS, Moment
from edgekit.export.weights.layerwise import Layerwise, Report, in_order, outer
from edgekit.export.weights.rounding import Text, all_damped, round_weight, weighted
from edgekit.models import mapped

PIECE = (
    1 << 17
)  # weights that a thread rounds to the nearest at a time, so that they stay in the processor's cache
HEAD = Form(8, 32)


@dataclass(frozen=True)
class Forms:
    """The form of each weight: the `chosen` one, or 8 bits for those whose name matches a pattern of `int8`, or `usual`."""

    usual: Form
    int8: Sequence[str] = ()
    chosen: Mapping[str, Form] = field(default_factory=dict)

    def of(self, name: str, columns: int) -> Form:
        """The form of the linear layer `name`, whose rows have so many columns."""
        if name in self.chosen:
            return self.chosen[name]
        bits = 8 if self.fixes(name) else self.usual.bits
        return fitting(Form(bits, self.usual.block), columns)

    def fixes(self, name: str) -> bool:
        """Whether a pattern gives the layer `name` 8 bits."""
        return any(fnmatchcase(name, pattern) for pattern in self.int8)

    def of_head(self, name: str, columns: int) -> Form:
        """The form of the head `name`: 8 bits unless another one is chosen."""
        return self.chosen.get(name) or fitting(Form(HEAD.bits, self.usual.block), columns)


def fitting(form: Form, columns: int) -> Form:
    """`form`, with the largest block of at most its size, a power of two, that divides `columns`."""
    return form._replace(block=min(form.block, columns & -columns))


class RoundedLinear(torch.nn.Module):
    """A rounded layer with the attributes that the model builder reads, on the processor; it cannot be called."""

    g_idx = None
    """The builder's order of columns: as they are."""

    def __init__(self, rounded: Rounded, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = rounded.codes.shape
        self.bits, self.group_size = rounded.bits, self.in_features // rounded.scales.shape[1]
        self.qweight, self.scales, self.qzeros = rounded.packed()
        self.bias = bias if bias is None else bias.cpu()


class PackedLinear(torch.nn.Module):
    """A layer that stacks several; each of its `parts` is rounded by itself, in its own form."""

    def __init__(self, parts: dict[str, torch.nn.Module]) -> None:
        super().__init__()
        self.parts = parts


@torch.inference_mode()
def round_network(network: Any, forms: Forms, texts: Sequence[Text], threads: int, report: Report) -> None:
    """Replace the linear layers of the decoder of `network`, a transformers model, and its head by rounded ones.

    The inputs of a layer are computed by the already rounded layers before it. One layer at a time is in memory in float32,
    with the inputs of all sequences. Without texts all weights are rounded to the nearest value. An embedding that is tied to
    the head is read from it; another one is left as it is.
    """
    walk = Layerwise(network, *weighted(texts), threads)
    total = len(walk.layers) + 1
    for number in range(len(walk.layers)):
        _round_layer(network, walk, number, forms, bool(texts))
        give_back()  # what lies between the rounded weights would stay with the process, layer by layer
        report(number + 1, total, "layers", "rounding")
    head = network.get_output_embeddings()
    form = forms.of_head(next(iter(outer(network))), head.in_features)
    moment = Moment.of(walk.head_moment()) if texts and form.bits < 8 else None
    rounded = round_rows(head.weight, moment, form, threads)
    names = {module: name for name, module in network.named_modules()}
    network.set_submodule(names[head], RoundedLinear(rounded, head.bias))
    report(total, total, "layers", "rounding")


def _round_layer(network: Any, walk: Layerwise, number: int, forms: Forms, calibrated: bool) -> None:
    """Replace the linear layers of the layer `number`, once its outputs are those of the rounded weights."""
    mapped.in_float32(walk.layers[number])
    linear = walk.linear(number)
    corrected = [
        module
        for name, module in linear.items()
        if calibrated and _has_few_bits(name, module, network, forms)
    ]
    moments = walk.moments(number, corrected) if corrected else {}
    damped = all_damped(moments, walk.threads)
    replacements = {
        name: _rounded_linear(name, module, damped.get(module), network, forms, walk.threads)
        for name, module in linear.items()
    }
    walk.advance(number)
    for name, replacement in replacements.items():
        network.set_submodule(name, replacement)


def _has_few_bits(name: str, module: torch.nn.Linear, network: Any, forms: Forms) -> bool:
    parts = stacked(name, module.out_features, network.config)
    return any(forms.of(part, module.in_features).bits < 8 for part, _ in parts)


def _rounded_linear(
    name: str, module: torch.nn.Linear, moment: Moment | None, network: Any, forms: Forms, threads: int
) -> torch.nn.Module:
    """The rounded form of the layer `module`, whose own weight becomes what the integers represent."""
    parts: dict[str, torch.nn.Module] = {}
    start = 0
    for part, rows in stacked(name, module.out_features, network.config):
        weight = module.weight[start : start + rows]
        rounded = round_rows(weight, moment, forms.of(part, module.in_features), threads)
        weight.copy_(rounded.weight)
        bias = None if module.bias is None else module.bias[start : start + rows].clone()
        parts[part.rpartition(".")[2]] = RoundedLinear(rounded, bias)
        start += rows
    return next(iter(parts.values())) if len(parts) == 1 else PackedLinear(parts)


def round_rows(weight: torch.Tensor, moment: Moment | None, form: Form, threads: int) -> Rounded:
    """Round `weight` `(rows, columns)` for inputs of `moment`; to the nearest value without one, or to 8 bits."""
    grid = grid_of(form)
    if moment is not None and form.bits < 8:
        return joined(round_weight(weight, moment, grid, form.proof, SWEEPS, threads).pieces)
    step = max(1, PIECE // weight.shape[1])

    def work(start: int) -> Rounded:
        with torch.inference_mode():  # holds for one thread only
            return round_nearest(weight[start : start + step].float().cpu(), grid)

    return joined(list(in_order(work, range(0, len(weight), step), threads)))


def round_nearest(weight: torch.Tensor, grid: Grid) -> Rounded:
    """Round each weight of `(rows, columns)` to the nearest value of its block."""
    blocks = weight.reshape(-1, grid.block)
    found = grid.scale(blocks, torch.ones(grid.block), grid.top(blocks, torch.ones(grid.block)))
    codes = grid.nearest(blocks / found.scale[:, None] + found.minimum_step[:, None])
    scales, zeros = (part.reshape(len(weight), -1) for part in (found.scale, found.minimum_step))
    return Rounded(codes.byte().reshape(weight.shape), scales, zeros.byte(), grid.bits)


def joined(pieces: Sequence[Rounded]) -> Rounded:
    """The weight of which `pieces` are the rows, in order."""
    codes, scales, zeros = (
        torch.cat([getattr(piece, part) for piece in pieces]) for part in ("codes", "scales", "zeros")
    )
    return Rounded(codes, scales, zeros, pieces[0].bits)
