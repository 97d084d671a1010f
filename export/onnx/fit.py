"""Which form each weight of an ONNX folder gets, and the rounding to it.

forms ─ allocation within a size, or by name ─► rounding, layer by layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch

from edgekit.export.onnx.forms import Form, grid_of
from edgekit.export.onnx.layout import PACKED, stacked
from edgekit.export.onnx.network import attention_of, layer_type, rope_frequencies, turns
from edgekit.export.onnx.rounding import Forms, fitting, round_network
from edgekit.export.weights.allocation import Choice, Plan, allocate
from edgekit.export.weights.feedback import Moment
from edgekit.export.weights.layerwise import Report, outer
from edgekit.export.weights.rounding import Result, Text, round_weight
from edgekit.export.weights.sensitivity import Part, costs

# Products with blocks of 16 are slower than those of the model builder's own folders.
CANDIDATES = (Form(4, 64), Form(4, 32), Form(8, 64))
BY_NAME = {str(form): form for form in (Form(bits, block) for bits in (4, 8) for block in (16, 32, 64))}
NODES = 12_000  # bytes of a layer's nodes in `model.onnx`, at most
FLOAT = 4


def fit(network: Any, task: dict[str, Any], report: Report) -> dict[str, Any]:
    """Round the weights of `network`, a transformers model, as the `task` asks. Returns what was chosen, as JSON.

    Raises `StageError` when no forms take so little.
    """
    given = task["texts"] if task["bits"] < 8 else {}
    texts = [Text(name, sequences) for name, sequences in given.items() if sequences]
    forms, plan = Forms(Form(task["bits"], task["block_size"]), task["int8_modules"]), None
    if task["max_bytes"] is not None:
        plan = _chosen(network, texts, forms, task, report)
        forms = Forms(forms.usual, forms.int8, {name: BY_NAME[form] for name, form in plan.types.items()})
    round_network(network, forms, texts, task["threads"], report)
    return {"types": plan.types, "cost": plan.cost} if plan else {}


def _chosen(network: Any, texts: Sequence[Text], forms: Forms, task: dict[str, Any], report: Report) -> Plan:
    """The forms of all layers and of the head that cost least within the size that the task allows.

    Layers that have the same forms to choose from get the same one if they are computed together.
    """
    threads, sizes = task["threads"], dict[str, tuple[int, int]]()
    embedding = network.get_input_embeddings()
    untied = {path for path, module in outer(network).items() if module is embedding}

    def parts(path: str, shape: tuple[int, int]) -> list[Part[Form]]:
        rows, columns = shape
        found = []
        for name, own in [] if path in untied else stacked(path, rows, network.config):
            options = list(dict.fromkeys(fitting(form, columns) for form in CANDIDATES))
            if forms.fixes(name):
                options = [form for form in options if form.bits == 8]
            sizes[name] = own, columns
            found.append(Part(name, own, options))
        return found

    def rounded(weight: torch.Tensor, moment: Moment, form: Form) -> Result:
        return round_weight(weight, moment, grid_of(form), form.proof, 0, threads)

    estimates = costs(network, texts, parts, rounded, threads, report)
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, found in estimates.items():
        groups.setdefault((_product(name), *map(str, found)), []).append(name)
    choices = {
        names[0]: {
            str(form): Choice(
                sum(form.size(*sizes[name]) for name in names), sum(estimates[name][form] for name in names)
            )
            for form in estimates[names[0]]
        }
        for names in groups.values()
    }
    plan = allocate(choices, task["max_bytes"] - _rest(network, sum(map(prod, sizes.values()))))
    return replace(plan, types={name: plan.types[names[0]] for names in groups.values() for name in names})


def _product(name: str) -> str:
    """The product that the layer is a part of: queries, keys and values of one form are computed as one, which is faster."""
    prefix, _, module = name.rpartition(".")
    return f"{prefix}.qkv_proj" if module in PACKED["qkv_proj"] else name


def _rest(network: Any, rounded: int) -> int:
    """Bytes of the graph beside the `rounded` weights, at most: the other weights, the tables of rope, and the nodes."""
    config, layers = network.config, range(network.config.num_hidden_layers)
    floats = int(sum(weight.numel() for weight in network.parameters())) - rounded
    kinds = {layer_type(network, n) for n in layers if turns(network, attention_of(network, n))}
    for kind in kinds:
        frequencies, _ = rope_frequencies(network, kind)
        floats += 2 * config.max_position_embeddings * frequencies.numel()
    return FLOAT * floats + NODES * (len(layers) + 1)
