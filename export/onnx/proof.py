"""Compares an onnxruntime-genai folder with the Hugging Face folder that it claims to be, without running it.

The graph is read as onnxruntime-genai's model builder writes it. Every weight is identified by the node that uses it, so
a weight that is attached to the wrong node is compared with that node's tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.base.errors import CorruptError, UnsupportedError
from edgekit.base.events import Emit, ignore
from edgekit.export.gguf.families import architecture, head_size, interleave, rope_of, typed
from edgekit.export.onnx.export import ARCHITECTURES
from edgekit.export.onnx.graph import FLOATS, Graph, Node, read_graph, stored, vector
from edgekit.export.weights.safetensors_io import Weights, read_json
from edgekit.export.weights.weight_compare import Array, Reference, Stored
from edgekit.export.weights.weight_proof import Facts, StaticProof, prove_weights
from edgekit.models.source import read_config

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
DERIVED = ".rotary_emb.inv_freq"
ATTENTION, ROTARY = "GroupQueryAttention", "RotaryEmbedding"
NORMS = {
    "SimplifiedLayerNormalization": 1,
    "SkipSimplifiedLayerNormalization": 2,
}  # which input is the weight
LINEAR, LOOKUP = ("MatMul", "MatMulNBits"), ("Gather", "GatherBlockQuantized")
NODE = re.compile(r"/model/layers\.(\d+)/(?:(attn|mlp)/)?(\w+)/\w+")
PACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
OPERATORS = {  # the operators in a decoder of these architectures
    ATTENTION, ROTARY, *NORMS, *LINEAR, *LOOKUP, "Add", "Mul", "Sigmoid", "Split", "Reshape", "Transpose", "Shape",
    "Constant", "ReduceSum", "Sub", "Cast", "Slice", "Unsqueeze", "Concat", "Squeeze",
}  # fmt: skip
POSITIONS = (1, 2, 16, 64)  # where the rope is checked, in addition to the last
CLOSE = 2e-3  # tolerance of a cosine; angles of late positions are products of large 32-bit floats


def prove(path: Path, model: Path, emit: Emit = ignore, *, stage: str) -> StaticProof:
    """Compare the onnxruntime-genai folder `path`, from any source, with the Hugging Face folder `model`.

    Gates `onnx.structure` and `onnx.weights`: the shares of facts and of tensors that agree. Raises `CorruptError` when
    either cannot be read, and `UnsupportedError` for architectures and weights that edgekit does not know.
    """
    raw = read_config(model)
    if architecture(raw) not in ARCHITECTURES:
        raise UnsupportedError(
            f"{architecture(raw)} is not among the architectures proven in ONNX: {', '.join(ARCHITECTURES)}.",
            "Compare the runtimes' answers instead.",
        )
    config = typed(raw)
    genai = read_json(path / "genai_config.json")
    graph = read_graph(path / _file_name(genai, path))
    references = read_references(model, config)
    found = list(find_weights(graph, references))
    facts = Facts()
    _check_settings(facts, genai, config)
    _check_graph(facts, graph, config)
    _check_rope(facts, graph, config)
    _check_tensors(facts, found, references)
    _check_head(facts, graph, config.tie_word_embeddings)
    _check_leftovers(facts, graph)
    weights, tensors = prove_weights(found, references, "onnx.weights", emit, stage=stage)
    return StaticProof([facts.gate("onnx.structure", stage), weights], tensors)


def _file_name(genai: Mapping[str, Any], path: Path) -> str:
    try:
        name = str(genai["model"]["decoder"]["filename"])
    except (KeyError, TypeError) as error:
        raise CorruptError(
            f"{path / 'genai_config.json'} names no model file.", "Download it again."
        ) from error
    if Path(name).name != name:
        raise CorruptError(
            f"{path / 'genai_config.json'} names a file outside its folder: {name}.", "Export it again."
        )
    return name


def read_references(model: Path, config: Any) -> dict[str, Reference]:
    """The folder's tensors by name; a tied head is the embedding under another name."""
    weights = Weights(model)
    if EMBEDDING not in weights:
        raise CorruptError(f"The weights in {model} lack {EMBEDDING}.", "Fetch or merge the model again.")

    def load(name: str) -> Array:
        values: Array = weights[name].float().numpy()
        return values if values.ndim == 2 else values.reshape(1, -1)

    references = {
        name: Reference(name, weights.layout[name][1], partial(load, name), partial(_variants, name, config))
        for name in weights
        if not name.endswith(DERIVED)
    }
    if config.tie_word_embeddings:
        references[HEAD] = replace(references[EMBEDDING], name=HEAD)
    return references


def stored_weights(path: Path, model: Path) -> dict[str, Callable[[], Array]]:
    """The dequantized tensors of the ONNX folder `path`, by their names in the Hugging Face folder `model` it was made from.

    Each value loads one tensor.
    """
    references = read_references(model, typed(read_config(model)))
    graph = read_graph(path / _file_name(read_json(path / "genai_config.json"), path))
    found = {tensor.name: tensor for tensor in find_weights(graph, references)}

    def load(tensor: Stored) -> Array:
        return tensor.all().reshape(tensor.shape)

    return {name: partial(load, found[name]) for name in Weights(model) if name in found}


def _variants(name: str, config: Any, rows: Array) -> Iterator[tuple[str, Array]]:
    """The form that GGUF files of the Llama family hold."""
    if ".q_proj." in name or ".k_proj." in name:
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        columns = rows if len(rows) > 1 else rows.T
        words = "has its rows permuted for rope as in GGUF, not in Hugging Face's order"
        yield words, interleave(columns, heads).reshape(rows.shape)


def find_weights(graph: Graph, references: Mapping[str, Reference]) -> Iterator[Stored]:
    """The graph's weights, each named after the Hugging Face tensor that belongs in its place."""
    for node in graph.nodes:
        place = NODE.fullmatch(node.name)
        if node.op in LINEAR and node.name.startswith("/lm_head/"):
            yield stored(graph, node, HEAD)
        elif node.op in LOOKUP and node.name.startswith("/model/embed_tokens/"):
            yield _narrowed(stored(graph, node, EMBEDDING), references[EMBEDDING].shape[1])
        elif node.op in NORMS and (source := graph.origin(node.input(NORMS[node.op]))):
            yield vector(graph, source, f"{_module(place, node)}.weight")
        elif node.op in LINEAR and place:
            yield from _split(stored(graph, node, f"{_module(place, node)}.weight"), references)
            if node.op == "MatMulNBits" and (source := graph.origin(node.input(5))):
                yield from _split(vector(graph, source, f"{_module(place, node)}.bias"), references)
        elif (
            node.op == "Add" and place and (source := next(filter(None, map(graph.origin, node.inputs)), ""))
        ):
            yield from _split(vector(graph, source, f"{_module(place, node)}.bias"), references)


def _narrowed(whole: Stored, columns: int) -> Stored:
    """The first columns; the blocks of an embedding may reach beyond the last one."""
    shape = (whole.shape[0], min(columns, whole.shape[1]))
    return replace(whole, shape=shape, read=lambda start, stop: whole.read(start, stop)[:, :columns])


def _module(place: re.Match[str] | None, node: Node) -> str:
    """The Hugging Face name of the module that a node computes."""
    if place is None:
        return node.name
    layer, group, module = place.groups()
    if module == "final_norm_layernorm":
        return "model.norm"
    return ".".join(filter(None, ("model.layers", layer, {"attn": "self_attn"}.get(group, group), module)))


def _split(whole: Stored, references: Mapping[str, Reference]) -> Iterator[Stored]:
    """The parts of a weight that stacks several modules; any other weight unchanged."""
    prefix, module, kind = whole.name.rsplit(".", 2)
    start = 0
    parts = PACKED.get(module, ())
    for part in parts:
        name = f"{prefix}.{part}.{kind}"
        rows = references[name].shape[0] if name in references else 0
        if len(whole.shape) == 1:

            def read(first: int, last: int, start: int = start, rows: int = rows) -> Array:
                return whole.read(first, last)[:, start : start + rows]
        else:

            def read(first: int, last: int, start: int = start, rows: int = rows) -> Array:
                return whole.read(start + first, start + last)

        held = max(min(rows, whole.shape[0] - start), 0)
        yield replace(whole, name=name, shape=(held, *whole.shape[1:]), read=read)
        start += rows
    if not parts:
        yield whole


def _check_settings(facts: Facts, genai: Mapping[str, Any], config: Any) -> None:
    """Check the sizes in `genai_config.json`."""
    model = genai["model"]
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


def _check_graph(facts: Facts, graph: Graph, config: Any) -> None:
    """Check the attributes of attention and norms, and the inputs of attention."""
    scale = head_size(config) ** -0.5
    expected = {
        "num_heads": (config.num_attention_heads, None),
        "kv_num_heads": (config.num_key_value_heads, None),
        "scale": (scale, scale),
        "rotary_interleaved": (0, 0),
        "local_window_size": (-1, -1),
        "softcap": (0.0, 0.0),
    }
    attentions = [node for node in graph.nodes if node.op == ATTENTION]
    layers = config.num_hidden_layers
    facts.add(len(attentions) == layers, f"{layers} layers expected, {len(attentions)} found")
    for node in attentions:
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
    for node in graph.nodes:
        if node.op in NORMS:
            found = node.attributes.get("epsilon", 0.0)
            facts.add(
                math.isclose(found, config.rms_norm_eps, rel_tol=1e-6),
                f"norm epsilon is {found:g} in {node.name}, the model's is {config.rms_norm_eps:g}",
            )
    for op in sorted({node.op for node in graph.nodes} - OPERATORS):
        facts.add(False, f"the graph has the operator {op}, which the model does not use")


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


def _check_rope(facts: Facts, graph: Graph, config: Any) -> None:
    """Compare the tables of cosines and sines with the model's base and scaling."""
    turning = [node for node in graph.nodes if node.op == ROTARY]
    turning += [node for node in graph.nodes if node.op == ATTENTION and node.attributes.get("do_rotary")]
    tables = {
        (node.input(2), node.input(3)) if node.op == ROTARY else (node.input(7), node.input(8))
        for node in turning
    }
    once = len(turning) in (config.num_hidden_layers, 2 * config.num_hidden_layers)
    facts.add(once, f"rope turns {len(turning)} times in {config.num_hidden_layers} layers")
    frequencies, factor = rope_frequencies(config)
    for names in sorted(tables):
        if not all(name in graph.initializers for name in names):
            facts.add(False, f"rope's tables {' and '.join(names)} are missing")
            continue
        cosines, sines = (graph.array(name) for name in names)
        rows = config.max_position_embeddings
        facts.add(len(cosines) == rows, f"{names[0]} has {len(cosines)} positions, the model {rows}")
        facts.add(_same_rope(cosines, sines, frequencies, factor), _rope_fault(cosines, sines, config))


def rope_frequencies(config: Any) -> tuple[Array, float]:
    """The model's rotary frequencies `(head_size / 2,)`, and the factor of cosine and sine."""
    rope, _ = rope_of(config)
    size = head_size(config)
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return (1.0 / rope["rope_theta"] ** (np.arange(0, size, 2) / size)).astype(np.float32), 1.0
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return frequencies.float().numpy(), float(factor)


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


def _rope_fault(cosines: Any, sines: Any, config: Any) -> str:
    """A sentence on what is wrong with the tables: another base, where they follow from one."""
    rope, _ = rope_of(config)
    if cosines.shape == sines.shape and len(cosines) > 1 and cosines.shape[1] > 1:
        first, second = np.arctan2(sines[1, :2], cosines[1, :2]).astype(np.float64)
        base = float((first / second) ** cosines.shape[1]) if second else math.inf
        if not math.isclose(base, rope["rope_theta"], rel_tol=0.01):
            return f"rope base is {base:.4g}, the model's is {rope['rope_theta']:g}"
    return f"rope's tables do not follow from the model's scaling ({rope.get('rope_type', 'default')})"


def _check_tensors(facts: Facts, found: list[Stored], references: Mapping[str, Reference]) -> None:
    """Check that each of the model's tensors occurs once, in its shape, and no others."""
    names = [tensor.name for tensor in found]
    for name in references:
        count = names.count(name)
        facts.add(count == 1, f"{name} is missing" if not count else f"{name} is there {count} times")
    for tensor in found:
        if tensor.name not in references:
            facts.add(False, f"{tensor.name} is in the file, and the model has no such tensor")
        else:
            wanted = references[tensor.name].shape
            shapes = (" x ".join(map(str, shape)) for shape in (tensor.shape, wanted))
            words = "{} has the shape {}, the model's is {}".format(tensor.name, *shapes)
            facts.add(tensor.shape == wanted, words)


def _check_head(facts: Facts, graph: Graph, tied: bool) -> None:
    lookups = {
        graph.origin(node.input(0)) for node in graph.nodes if node.op in LOOKUP and "embed" in node.name
    }
    heads = {
        graph.origin(node.input(1))
        for node in graph.nodes
        if node.name.startswith("/lm_head/") and node.op in LINEAR
    }
    facts.add(
        tied or not lookups & heads,
        "the file ties the head to the embedding, and the model has a separate head",
    )


def _check_leftovers(facts: Facts, graph: Graph) -> None:
    """Check that every float tensor of the file is used by a node that computes part of the model."""
    known = {
        source
        for node in graph.nodes
        if node.op in (*NORMS, *LINEAR, *LOOKUP, ATTENTION, ROTARY)
        or (node.op == "Add" and NODE.fullmatch(node.name))
        for source in map(graph.origin, node.inputs)
    }
    for name, tensor in graph.initializers.items():
        if tensor.data_type in FLOATS:
            facts.add(name in known, f"{name} is in the file, and no part of the model uses it")
