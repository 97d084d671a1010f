"""Compares an onnxruntime-genai folder with the Hugging Face folder that it claims to be, without running it.

The graph is read as onnxruntime-genai's model builder writes it. Every weight is identified by the node that uses it, so
a weight that is attached to the wrong node is compared with that node's tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.base.errors import CorruptError
from edgekit.base.events import Emit, ignore
from edgekit.export.gguf.families import interleave
from edgekit.export.onnx.graph import FLOATS, Graph, read_graph, stored, vector
from edgekit.export.onnx.layout import EMBEDDING, HEAD, PACKED, place_of_module, place_of_node, stacked
from edgekit.export.onnx.network import measure, skeleton
from edgekit.export.onnx.structure import (
    ATTENTION,
    CONVOLUTION,
    LINEAR,
    LOOKUP,
    NORMS,
    ROTARY,
    check_graph,
    check_rope,
    check_settings,
    norms_of,
    width_of,
)
from edgekit.export.weights.folder import places_of, read_json
from edgekit.export.weights.rows import Rows
from edgekit.export.weights.weight_compare import Array, Reference, Stored
from edgekit.export.weights.weight_proof import Facts, StaticProof, prove_weights

EMBEDDING_NAME, HEAD_NAME = "model.embed_tokens.weight", "lm_head.weight"
DERIVED = ".rotary_emb.inv_freq"

References = Mapping[str, Reference]
"""The model's tensors by the place and kind that they have in the graph, such as `layers.0.attn.q_proj.weight`."""


def prove(path: Path, model: Path, emit: Emit = ignore, *, stage: str) -> StaticProof:
    """Compare the onnxruntime-genai folder `path`, from any source, with the Hugging Face folder `model`.

    Gates `onnx.structure` and `onnx.weights`: the shares of facts and of tensors that agree. Raises `CorruptError` when
    either cannot be read, and `UnsupportedError` for weights in a form that edgekit does not know.
    """
    network = skeleton(model)
    genai = read_json(path / "genai_config.json")
    graph = read_graph(path / _file_name(genai, path))
    references = read_references(model, network)
    found = list(find_weights(graph, references))
    facts = Facts()
    check_settings(facts, genai, network)
    check_graph(facts, graph, network)
    check_rope(facts, graph, network)
    by_name = {reference.name: reference for reference in references.values()}
    _check_tensors(facts, found, by_name)
    _check_head(facts, graph, network.config.tie_word_embeddings)
    _check_leftovers(facts, graph)
    weights, tensors = prove_weights(found, by_name, "onnx.weights", emit, stage=stage)
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


def read_references(model: Path, network: Any) -> References:
    """The folder's tensors; stacked ones as their parts, and a tied head as the embedding under another name."""
    folder_rows = Rows(model)  # mapped weights would take the size of the model
    if EMBEDDING_NAME not in folder_rows.shapes:
        raise CorruptError(
            f"The weights in {model} lack {EMBEDDING_NAME}.", "Fetch or merge the model again."
        )
    norms = norms_of(network)
    references = {}
    for name, shape in folder_rows.shapes.items():
        if name.endswith(DERIVED):
            continue
        module, _, kind = name.rpartition(".")
        start = 0
        for part, rows in stacked(module, shape[0], network.config):
            place = place_of_module(part)
            offset = 0.0
            if place in norms and kind == "weight":
                offset = measure(norms[place], width_of(place, network.config)).offset
            load = partial(_load, folder_rows, name, slice(start, start + rows), offset)
            own = f"{part}.{kind}"
            variants = partial(_variants, own, network.config)
            size = (rows,) if len(shape) == 1 else (rows, math.prod(shape[1:]))
            references[f"{place}.{kind}"] = Reference(own, size, load, variants)
            start += rows
    if network.config.tie_word_embeddings:
        references[f"{HEAD}.weight"] = replace(references[f"{EMBEDDING}.weight"], name=HEAD_NAME)
    return references


def _load(folder_rows: Rows, name: str, rows: slice, offset: float) -> Array:
    values: Array = folder_rows.read(name, rows.start, rows.stop)
    values = values + np.float32(offset) if offset else values
    return values.reshape(1 if values.ndim == 1 else len(values), -1)


def stored_weights(path: Path, model: Path) -> dict[str, Callable[[], Array]]:
    """The dequantized tensors of the ONNX folder `path`, by their names in the Hugging Face folder `model` it was made from.

    Each value loads one tensor.
    """
    references = read_references(model, skeleton(model))
    graph = read_graph(path / _file_name(read_json(path / "genai_config.json"), path))
    found = {tensor.name: tensor for tensor in find_weights(graph, references)}

    def load(tensor: Stored) -> Array:
        return tensor.all().reshape(tensor.shape)

    return {name: partial(load, found[name]) for name in places_of(model) if name in found}


def _variants(name: str, config: Any, rows: Array) -> Iterator[tuple[str, Array]]:
    """The form that GGUF files of the Llama family hold."""
    if ".q_proj." in name or ".k_proj." in name:
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        columns = rows if len(rows) > 1 else rows.T
        words = "has its rows permuted for rope as in GGUF, not in Hugging Face's order"
        yield words, interleave(columns, heads).reshape(rows.shape)


def find_weights(graph: Graph, references: References) -> Iterator[Stored]:
    """The graph's weights, each named after the Hugging Face tensor that belongs in its place."""
    for node in graph.nodes:
        place = place_of_node(node.name)
        if not place:
            continue
        if node.op in LOOKUP and place == EMBEDDING:
            embedding = stored(graph, node, f"{place}.weight")
            yield from _split(_narrowed(embedding, references[embedding.name].shape[1]), references)
        elif node.op in NORMS:
            for index, kind in enumerate(("weight", "bias"), NORMS[node.op]):
                if source := graph.origin(node.input(index)):
                    yield from _norm(vector(graph, source, f"{place}.{kind}"), references)
        elif node.op == CONVOLUTION:
            for index, kind in enumerate(("weight", "bias"), 1):
                if source := graph.origin(node.input(index)):
                    yield from _split(vector(graph, source, f"{place}.conv.{kind}"), references)
        elif node.op in LINEAR:
            yield from _split(stored(graph, node, f"{place}.weight"), references)
            if node.op == "MatMulNBits" and (source := graph.origin(node.input(5))):
                yield from _split(vector(graph, source, f"{place}.bias"), references)
        elif node.op == "Add" and (source := next(filter(None, map(graph.origin, node.inputs)), "")):
            yield from _split(vector(graph, source, f"{place}.bias"), references)


def _norm(whole: Stored, references: References) -> Iterator[Stored]:
    """A weight of a norm; none for ones and zeros where the model's norm has no weight."""
    neutral = 1.0 if whole.name.endswith(".weight") else 0.0
    if whole.name in references or not bool((whole.all() == neutral).all()):
        yield from _split(whole, references)


def _narrowed(whole: Stored, columns: int) -> Stored:
    """The first columns; the blocks of an embedding may reach beyond the last one."""
    shape = (whole.shape[0], min(columns, whole.shape[1]))
    return replace(whole, shape=shape, read=lambda start, stop: whole.read(start, stop)[:, :columns])


def _split(whole: Stored, references: References) -> Iterator[Stored]:
    """The parts of a weight that stacks several modules; any other weight unchanged. Names become the model's."""
    prefix, module, kind = whole.name.rsplit(".", 2) if whole.name.count(".") > 1 else ("", "", "")
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
        yield replace(whole, name=_own_name(name, references), shape=(held, *whole.shape[1:]), read=read)
        start += rows
    if not parts:
        yield replace(whole, name=_own_name(whole.name, references))


def _own_name(place: str, references: References) -> str:
    return references[place].name if place in references else place


def _check_tensors(facts: Facts, found: list[Stored], references: Mapping[str, Reference]) -> None:
    """Check that each of the model's tensors occurs once, in its shape, and no others."""
    names = [tensor.name for tensor in found]
    for name, reference in references.items():
        count = names.count(name)
        if not count and name.endswith(".bias") and not reference.load().any():
            continue  # the model builder leaves out a bias of zeros
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
        if node.op in (*NORMS, *LINEAR, *LOOKUP, ATTENTION, ROTARY, CONVOLUTION)
        or (node.op == "Add" and place_of_node(node.name))
        for source in map(graph.origin, node.inputs)
    }
    for name, tensor in graph.initializers.items():
        if tensor.data_type in FLOATS:
            facts.add(name in known, f"{name} is in the file, and no part of the model uses it")
