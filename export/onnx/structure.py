"""The facts that an onnxruntime-genai folder states about its model, beside those of transformers' own network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgekit.export.onnx.graph import Graph, Node
from edgekit.export.onnx.layout import PACKED, head_size, place_of_module, place_of_node
from edgekit.export.onnx.network import (
    attention_of,
    embedding_scale,
    interleaved,
    layer_type,
    measure,
    rope_frequencies,
    turns,
    window,
)
from edgekit.export.weights.weight_compare import Array
from edgekit.export.weights.weight_proof import Facts

ATTENTION, ROTARY = "GroupQueryAttention", "RotaryEmbedding"
NORMS = {  # which input is the weight
    "SimplifiedLayerNormalization": 1,
    "SkipSimplifiedLayerNormalization": 2,
    "LayerNormalization": 1,
    "SkipLayerNormalization": 2,
}
CENTRED = ("LayerNormalization", "SkipLayerNormalization")
LINEAR, LOOKUP, CONVOLUTION = (
    ("MatMul", "MatMulNBits"),
    ("Gather", "GatherBlockQuantized"),
    "CausalConvWithState",
)
OPERATORS = {  # the operators of a decoder as the model builder writes it
    ATTENTION, ROTARY, CONVOLUTION, *NORMS, *LINEAR, *LOOKUP, "Add", "Mul", "Div", "Tanh", "Sigmoid", "Gelu", "Relu", "Pow",
    "Split", "Reshape", "Transpose", "Shape", "Constant", "ReduceSum", "Sub", "Cast", "Slice", "Unsqueeze", "Concat",
    "Squeeze", "If", "Greater",
}  # fmt: skip
ACTIVATIONS = {  # the operator that computes an activation, and which approximation
    "silu": ("Sigmoid", None), "swish": ("Sigmoid", None), "gelu": ("Gelu", b"none"), "relu": ("Relu", None),
    "gelu_new": ("Gelu", b"tanh"), "gelu_fast": ("Gelu", b"tanh"), "gelu_pytorch_tanh": ("Gelu", b"tanh"),
    "relu2": ("Relu", None),
}  # fmt: skip
POSITIONS = (1, 2, 16, 64)  # where the rope is checked, in addition to the last
CLOSE = 2e-3  # tolerance of a cosine; angles of late positions are products of large 32-bit floats
TWO_DECIMALS = 0.005  # to which the model builder rounds the embedding's scale; bf16 rounds it more


def check_settings(facts: Facts, genai: Mapping[str, Any], network: Any) -> None:
    """Check the sizes in `genai_config.json`, and which layers' caches are limited to a window."""
    config, model = network.config, genai["model"]
    told = {**model, **model["decoder"]}
    for key, wanted in {
        "head_size": head_size(config),
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
    }.items():
        facts.add(
            told.get(key) == wanted, f"genai_config.json: {key} is {told.get(key)}, the model's is {wanted}"
        )
    if short := model["decoder"].get("sliding_window"):
        windows = {n: window(network, n) for n in range(config.num_hidden_layers)}
        local = [n for n, size in windows.items() if size]
        facts.add(
            short.get("layers") == local,
            f"genai_config.json: the layers with a window are {short.get('layers')}, the model's are {local}",
        )


def check_graph(facts: Facts, graph: Graph, network: Any) -> None:
    """Check attention, norms, activations, factors and operators."""
    _check_attention(facts, graph, network)
    _check_norms(facts, graph, network)
    _check_activations(facts, graph, network.config)
    _check_factors(facts, graph, network)
    for op in sorted({node.op for node in graph.nodes} - OPERATORS):
        facts.add(False, f"the graph has the operator {op}, which the model does not use")
    _check_branches(facts, graph, network)


def _check_branches(facts: Facts, graph: Graph, network: Any) -> None:
    """Check that the graph branches only for longrope's two pairs of tables, by a comparison of lengths."""
    tables = {name for node in graph.nodes if node.op in (ATTENTION, ROTARY) for name in _tables(node)}
    rope = getattr(network.config, "rope_parameters", None) or {}
    longrope = rope.get("full_attention", rope).get("rope_type") == "longrope"
    for node in graph.nodes:
        if node.op == "If":
            condition = graph.makers.get(node.input(0))
            compares = condition is not None and condition.op == "Greater"
            facts.add(
                longrope and compares and set(node.outputs) <= tables,
                f"the graph branches at {node.name or node.outputs[0]}, and the model does not",
            )


def _attentions(graph: Graph) -> Iterator[tuple[int, Node]]:
    for node in graph.nodes:
        if node.op == ATTENTION:
            yield int(place_of_node(node.name).split(".")[1]), node


def _check_attention(facts: Facts, graph: Graph, network: Any) -> None:
    config = network.config
    found_layers = sorted(layer for layer, _ in _attentions(graph))
    layers = [n for n in range(config.num_hidden_layers) if attention_of(network, n) is not None]
    facts.add(found_layers == layers, f"{len(layers)} attention layers expected, {len(found_layers)} found")
    for layer, node in _attentions(graph):
        attention = attention_of(network, layer)
        if attention is None:
            continue
        scale = float(attention.scaling)
        turned = turns(network, attention)
        expected = {
            "num_heads": (config.num_attention_heads, None),
            "kv_num_heads": (config.num_key_value_heads, None),
            "scale": (scale, head_size(config) ** -0.5),
            "local_window_size": (window(network, layer) or -1, -1),
            "softcap": (getattr(attention, "attn_logit_softcapping", None) or 0.0, 0.0),
        }
        if turned and node.attributes.get("do_rotary"):
            expected["rotary_interleaved"] = (int(interleaved(attention)), 0)
        for key, (wanted, usual) in expected.items():
            found = node.attributes.get(key, usual)
            facts.add(
                found is not None and math.isclose(found, wanted, rel_tol=1e-6),
                f"{node.name}: {key} is {found}, the model's is {wanted}",
            )
        parts = PACKED["qkv_proj"] if node.input(1) else ("qkv_proj",)
        for value, part in zip(node.inputs, parts, strict=False):
            fed, mine = _projection(graph, value), f"{node.name.rpartition('/')[0]}/{part}"
            facts.add(fed == mine, f"{node.name} takes {fed} where {part} belongs")


def _projection(graph: Graph, value: str) -> str:
    """The node name, without its last part, of the projection that `value` comes from."""
    while (maker := graph.makers.get(value)) is not None:
        base = maker.name.rpartition("/")[0]
        if maker.op in LINEAR:
            return base
        if maker.op == "Split":
            return f"{base.rpartition('/')[0]}/{PACKED['qkv_proj'][maker.outputs.index(value)]}"
        value = maker.inputs[0]
    return value


def norms_of(network: Any) -> dict[str, Any]:
    """The normalisation modules of the network by place."""
    norms = {}
    for name, module in network.named_modules():
        if type(module).__name__.lower().endswith(("norm", "norm1p")):
            norms[place_of_module(name)] = module
    return norms


def width_of(place: str, config: Any) -> int:
    """How many columns the normalisation layer at `place` has."""
    return head_size(config) if ".attn." in place else int(config.hidden_size)


def _check_norms(facts: Facts, graph: Graph, network: Any) -> None:
    norms = norms_of(network)
    for node in graph.nodes:
        place = place_of_node(node.name)
        if node.op not in NORMS or place not in norms:
            continue
        wanted = measure(norms[place], width_of(place, network.config))
        found = node.attributes.get("epsilon", 0.0)
        facts.add(
            math.isclose(found, wanted.epsilon, rel_tol=1e-3),
            f"norm epsilon is {found:g} in {node.name}, the model's is {wanted.epsilon:g}",
        )
        kinds = "LayerNorm", "RMSNorm"
        kind, mine = (kinds[not centred] for centred in (node.op in CENTRED, wanted.centred))
        facts.add(kind == mine, f"{node.name} is a {kind}, the model's is a {mine}")


def _check_activations(facts: Facts, graph: Graph, config: Any) -> None:
    name = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if name not in ACTIVATIONS:
        return
    op, approximation = ACTIVATIONS[name]
    for node in graph.nodes:
        if "/mlp/act_fn/" in node.name and node.op != "Mul":
            same = node.op == op and node.attributes.get("approximate") == approximation
            facts.add(same, f"the activation is computed by {node.op} in {node.name}, the model's is {name}")


def _factors(network: Any) -> dict[str, tuple[float, float]]:
    """The factor by which each node with a constant multiplies or divides, and its tolerance."""
    config, decoder = network.config, network.get_decoder()
    wanted = {"/model/embed_tokens/Mul": (embedding_scale(network), TWO_DECIMALS)}
    if scale := getattr(config, "logits_scaling", None):
        wanted["/lm_head/Mul"] = (1 / scale, 0.0)
    if cap := getattr(config, "final_logit_softcapping", None):
        wanted |= {f"/lm_head/softcap/{op}": (cap, 0.0) for op in ("Div", "Mul")}
    for number, layer in enumerate(decoder.layers):
        residual = float(getattr(layer, "residual_multiplier", 1.0))
        wanted |= {f"/model/layers.{number}/residual_mul/Mul_{n}": (residual, 0.0) for n in (1, 2)}
    return wanted


def _check_factors(facts: Facts, graph: Graph, network: Any) -> None:
    wanted = _factors(network)
    found = {
        node.name: constant
        for node in graph.nodes
        if node.op in ("Mul", "Div")
        for constant in filter(None, map(graph.scalar, node.inputs))
    }
    for name in sorted(found.keys() | {name for name, (factor, _) in wanted.items() if factor != 1}):
        factor, tolerance = wanted.get(name, (1.0, 0.0))
        given = found.get(name, 1.0)
        facts.add(
            math.isclose(given, factor, rel_tol=1e-6, abs_tol=tolerance),
            f"{name} has the factor {given:.6g}, the model's is {factor:.6g}"
            if name in found
            else f"{name} is missing, which has the model's factor {factor:.6g}",
        )


def check_rope(facts: Facts, graph: Graph, network: Any) -> None:
    """Check which layers are turned, and compare their cosines and sines with the model's frequencies."""
    turned = {
        (int(place_of_node(node.name).split(".")[1]), *_tables(node))
        for node in graph.nodes
        if node.op == ROTARY or (node.op == ATTENTION and node.attributes.get("do_rotary"))
    }
    layers = range(network.config.num_hidden_layers)
    wanted = {n for n in layers if (own := attention_of(network, n)) is not None and turns(network, own)}
    found = {layer for layer, *_ in turned}
    for layer in sorted(wanted ^ found):
        words = ("turns", "does not") if layer in found else ("does not turn", "does")
        facts.add(False, f"rope {words[0]} the queries of layer {layer}, the model {words[1]}")
    for kind, *names in sorted(
        {(layer_type(network, layer), *names) for layer, *names in turned if layer in wanted}
    ):
        _check_tables(facts, graph, network, kind, names)


def _tables(node: Node) -> tuple[str, str]:
    return (node.input(2), node.input(3)) if node.op == ROTARY else (node.input(7), node.input(8))


def _check_tables(facts: Facts, graph: Graph, network: Any, kind: str, names: list[str]) -> None:
    config = network.config
    switch = graph.makers.get(names[0])
    if switch is not None and switch.op == "If":
        _check_switch(facts, graph, network, switch, names)
        return
    if not all(name in graph.initializers for name in names):
        facts.add(False, f"rope's tables {' and '.join(names)} are missing")
        return
    frequencies, factor = rope_frequencies(network, kind)
    cosines, sines = (graph.array(name) for name in names)
    rows = config.max_position_embeddings
    facts.add(len(cosines) == rows, f"{names[0]} has {len(cosines)} positions, the model {rows}")
    same = _same_rope(cosines, sines, frequencies.numpy(), factor)
    facts.add(same, _rope_fault(cosines, sines, _parameters(config, kind)))


def _check_switch(facts: Facts, graph: Graph, network: Any, switch: Node, names: list[str]) -> None:
    """Check Phi-3's two pairs of tables, and the length of text from which the second is used."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = network.config
    original = config.original_max_position_embeddings
    compared = graph.makers.get(switch.input(0))
    limit = graph.scalar(compared.input(1)) if compared is not None else None
    facts.add(limit == original, f"rope's tables change after {limit} tokens, the model's after {original}")
    for branch, length, rows in (("else_branch", 1, original), ("then_branch", original + 1, None)):
        tables = graph.branch_tables(switch, branch)
        cosines, sines = (tables[switch.outputs.index(name)] for name in names)
        frequencies, factor = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"), seq_len=length)
        rows = rows or config.max_position_embeddings
        facts.add(len(cosines) == rows, f"rope's {branch} has {len(cosines)} positions, the model {rows}")
        same = _same_rope(cosines, sines, frequencies.float().numpy(), float(factor))
        facts.add(same, _rope_fault(cosines, sines, _parameters(config, "full_attention")))


def _parameters(config: Any, kind: str) -> Mapping[str, Any]:
    rope: Mapping[str, Mapping[str, Any]] = config.rope_parameters
    return rope.get(kind, rope)


def _same_rope(cosines: Any, sines: Any, frequencies: Array, factor: float) -> bool:
    if cosines.shape[1:] != frequencies.shape or sines.shape != cosines.shape:
        return False
    at = np.array([position for position in (*POSITIONS, len(cosines) - 1) if position < len(cosines)])
    angles = at[:, None].astype(np.float32) * frequencies
    wrong = (
        np.abs(cosines[at] - factor * np.cos(angles)).max(),
        np.abs(sines[at] - factor * np.sin(angles)).max(),
    )
    return bool(max(wrong) <= CLOSE * factor)


def _rope_fault(cosines: Any, sines: Any, rope: Mapping[str, Any]) -> str:
    """A sentence on what is wrong with the tables: another base, where they follow from one."""
    if cosines.shape == sines.shape and len(cosines) > 1 and cosines.shape[1] > 1:
        first, second = np.arctan2(sines[1, :2], cosines[1, :2]).astype(np.float64)
        base = float((first / second) ** cosines.shape[1]) if second else math.inf
        if not math.isclose(base, rope["rope_theta"], rel_tol=0.01):
            return f"rope base is {base:.4g}, the model's is {rope['rope_theta']:g}"
    return f"rope's tables do not follow from the model's scaling ({rope.get('rope_type', 'default')})"
