"""Checks that the parts of an onnxruntime-genai folder fit together: settings, graph, tokenizer, finite weights.

onnxruntime-genai takes the sizes of its caches and vocabulary from `genai_config.json`, and its native tokenizer trusts
the ids of `tokenizer.json`; both are compared with the graph before either is loaded. Each rule has a name, which its
error contains. onnxruntime itself checks the shapes within the graph and the packing of quantized matrices.
Sources: `config.cpp` and `kv_cache.cpp` of <https://github.com/microsoft/onnxruntime-genai>.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgekit.base.errors import CorruptError
from edgekit.containers import finite
from edgekit.containers.onnx import OnnxLayout, check_onnx
from edgekit.containers.onnx_graph import OnnxGraph, OnnxNode, read_onnx_graph
from edgekit.containers.reader import shown
from edgekit.models import tokenizer_files

AGAIN = "Export the model again, or copy the whole folder again."
HINT = "Do not use this folder. Get it again from a source that you trust, or export it again."
NEEDED = ("genai_config.json", "tokenizer.json", "tokenizer_config.json")
# Session options that only change how it computes. `provider_options` are cleared; other options can load a native
# library, read other files instead of the model, and write files (onnxruntime_session_options_config_keys.h).
HARMLESS = {
    "log_id", "log_severity_level", "log_verbosity_level", "intra_op_num_threads", "inter_op_num_threads",
    "enable_cpu_mem_arena", "enable_mem_pattern", "use_env_allocators", "graph_optimization_level", "provider_options",
    "session.intra_op.allow_spinning", "session.inter_op.allow_spinning", "session.set_denormal_as_zero",
    "session.qdq_matmulnbits_accuracy_level", "session.dynamic_block_base", "session.disable_prepacking",
}  # fmt: skip
FLOATS = {1: finite.F32, 10: finite.F16, 11: finite.F64, 16: finite.BF16}  # TensorProto.DataType
SIZE_LIMIT, LAYER_LIMIT = 1 << 28, 4096
SHORTEST_CONTEXT = 32  # tokens; a chat prompt of one word takes about as many
DECODER_SIZES = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_size",
    "hidden_size",
)
NAMES = {
    "inputs": {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
    "outputs": {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"},
}
PATTERN = re.compile(r"[^%]*%d[^%]*")
OTHER_STATE = re.compile(r"(?:past|present)[._](?!key_values)(?!\d+\.(?:key|value)$).*\d")
LOOKUP = ("Gather", "GatherBlockQuantized")
SAME_VALUES = ("Cast", "Reshape", "Transpose")  # operators that change no value; scales are halves, widened

Fault = Iterator[str]


def check_onnx_folder(folder: Path) -> dict[str, Any]:
    """Check the parts of a folder against each other, and return the `model` table of its `genai_config.json`.

    The chat template is rendered first, within its limits; then all weights are read once, at about 1 GB/s. Raises
    `CorruptError` when a file is missing or damaged, when an option may load native code or write files, and for the
    first broken rule.
    """
    prompts = tokenizer_files.printed(tokenizer_files.chat_template(folder))
    config = _model_config(folder)
    layouts = {file: check_onnx(folder, file) for file in sorted({*_file_names(config)})}
    file = str(config["decoder"]["filename"])
    parts = _Parts(folder, config, read_onnx_graph(folder / file), layouts[file], prompts)
    for rule, faults in RULES.items():
        if fault := next(faults(parts), ""):
            raise CorruptError(f"{folder} is damaged or malicious ({rule}): {fault}.", HINT)
    for name, layout in layouts.items():
        graph = parts.graph if name == file else read_onnx_graph(folder / name)
        if fault := _broken_weight(folder, layout, graph):
            raise CorruptError(f"{folder / name} is damaged (finite weights): {fault}.", HINT)
    return config


def _model_config(folder: Path) -> dict[str, Any]:
    """The `model` table of `genai_config.json` of a complete folder that refers only to its own files."""
    for name in NEEDED:
        if not (folder / name).is_file():
            raise CorruptError(f"{folder} has no {name}.", AGAIN)
    source = folder / "genai_config.json"
    try:
        config: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))["model"]
        files = {str(config["decoder"]["filename"]), *_file_names(config)}
        options = sorted(set(_options(config)) - HARMLESS)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptError(f"{source} is malformed: {str(error)[:120]}", AGAIN) from error
    if options:
        raise CorruptError(
            f"{source} sets options that may load native code or write files: {', '.join(options)}. Nothing was loaded.",
            "Get the folder from a source that you trust, or remove these options.",
        )
    for file in sorted(files):
        if Path(file).name != file or not (folder / file).is_file():
            raise CorruptError(f"{folder} has no model file '{file}'.", AGAIN)
    return config


def _file_names(config: Any) -> Iterator[str]:
    """Every model file that the configuration names: of the decoder, of embeddings and of a pipeline."""
    if isinstance(config, dict) and "filename" in config:
        yield str(config["filename"])
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from _file_names(value)


def _options(config: Any) -> Iterator[str]:
    """The name of every option that the configuration sets for a session or a run, at any depth."""
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        if key in ("session_options", "run_options") and isinstance(value, dict):
            yield from value
        elif isinstance(value, dict | list):
            yield from _options(value)


@dataclass(frozen=True)
class _Parts:
    """The parts that are compared."""

    folder: Path
    config: Mapping[str, Any]
    graph: OnnxGraph
    layout: OnnxLayout
    prompts: str
    """What the chat template prints for plain conversations."""

    @property
    def decoder(self) -> Mapping[str, Any]:
        """The `decoder` table."""
        found: Mapping[str, Any] = self.config["decoder"]
        return found

    def name(self, kind: str, key: str, usual: str) -> Any:
        """The configured name of an input or output of the graph."""
        table = self.decoder.get(kind)
        return table.get(key, usual) if isinstance(table, dict) else usual

    @cached_property
    def makers(self) -> Mapping[str, OnnxNode]:
        """The node that computes each value."""
        return {output: node for node in self.graph.nodes for output in node.outputs}

    def stored(self, value: str) -> tuple[tuple[int, ...], bool]:
        """The shape of the initializer that `value` is a view of, and whether it is transposed; empty without one."""
        turned = False
        for _ in range(4):
            if value in self.layout.initializers:
                return self.layout.initializers[value].dims, turned
            maker = self.makers.get(value)
            if maker is None or maker.op not in SAME_VALUES:
                break
            turned ^= maker.op == "Transpose"
            value = maker.input(0)
        return (), False


def _sizes(parts: _Parts) -> Fault:
    """Sizes are positive integers below a limit."""
    least = {"context_length": SHORTEST_CONTEXT}
    most = {"num_hidden_layers": LAYER_LIMIT}
    for table, keys in (
        (parts.config, ("vocab_size", "context_length")),
        (parts.decoder, DECODER_SIZES),
    ):
        for key in keys:
            size, low, high = table.get(key), least.get(key, 1), most.get(key, SIZE_LIMIT)
            if type(size) is not int or not low <= size <= high:
                yield f"{key} is {_short(size)}, but must be an integer from {low} to {high}"


def _special_ids(parts: _Parts) -> Fault:
    count, eos = parts.config["vocab_size"], parts.config.get("eos_token_id")
    found = [("eos_token_id", id_) for id_ in (eos if isinstance(eos, list) and eos else [eos])]
    for role in ("bos_token_id", "pad_token_id"):
        if parts.config.get(role) is not None:
            found.append((role, parts.config[role]))
    for role, id_ in found:
        if type(id_) is not int or not 0 <= id_ < count:
            yield f"{role} is {_short(id_)}, but the vocabulary has {count} tokens"


def _token_ids(parts: _Parts) -> Fault:
    yield from tokenizer_files.faults(parts.folder, parts.config["vocab_size"], parts.prompts)


def _inputs_and_outputs(parts: _Parts) -> Fault:
    """The graph has the inputs and outputs of onnxruntime-genai, and names of caches have one placeholder."""
    for kind, key, values in (
        ("inputs", "input_ids", parts.graph.inputs),
        ("outputs", "logits", parts.graph.outputs),
    ):
        if key == "input_ids" and "inputs_embeds" in values:
            continue  # a separate model embeds the tokens
        if (name := parts.name(kind, key, key)) not in values:
            yield f"the graph has no {key} with the name {_short(name)}"
    for kind, patterns in NAMES.items():
        for key, usual in patterns.items():
            pattern = parts.name(kind, key, usual)
            if not isinstance(pattern, str) or not PATTERN.fullmatch(pattern):
                yield f"{key} is {_short(pattern)}, which does not have exactly one placeholder for a number"


def _layers(parts: _Parts) -> Fault:
    """Each layer has its keys and values among the graph's inputs and outputs, and there are no others."""
    layers = parts.decoder["num_hidden_layers"]
    for kind, patterns in NAMES.items():
        values = parts.graph.inputs if kind == "inputs" else parts.graph.outputs
        for key, usual in patterns.items():
            before, _, after = parts.name(kind, key, usual).partition("%d")
            numbered = re.compile(f"{re.escape(before)}(\\d+){re.escape(after)}")
            found = {match[1] for name in values if (match := numbered.fullmatch(name))}
            odd = found ^ {str(layer) for layer in range(layers)}
            if any(OTHER_STATE.match(name) for name in values):
                odd &= found  # some layers have another state than keys and values
            if odd:
                layer = min(odd, key=len)
                state = "has" if layer in found else "lacks"
                yield f"num_hidden_layers is {layers}, and the graph {state} the {kind[:-1]} {before}{layer[:20]}{after}"


def _heads(parts: _Parts) -> Fault:
    """The numbers of heads match the caches and the attention nodes, and are divisible."""
    heads, kv_heads, size = (parts.decoder[key] for key in DECODER_SIZES[1:4])
    if heads % kv_heads:
        yield f"{heads} heads cannot be divided among {kv_heads} key-value heads"
    for kind, patterns in NAMES.items():
        values = parts.graph.inputs if kind == "inputs" else parts.graph.outputs
        for key, usual in patterns.items():
            name = parts.name(kind, key, usual).replace("%d", "0")
            for dim, wanted in zip(values.get(name, ())[1::2], (kv_heads, size), strict=False):
                if dim is not None and dim != wanted:
                    yield f"{name} has the shape {values[name]}, with {kv_heads} key-value heads of {size} columns"
    for node in parts.graph.nodes:
        if node.op == "GroupQueryAttention":
            found = node.numbers.get("num_heads"), node.numbers.get("kv_num_heads")
            if found != (heads, kv_heads):
                yield f"an attention node has {found[0]} and {found[1]} heads, genai_config.json {heads} and {kv_heads}"
            if (table := parts.stored(node.input(7))[0]) and 2 * table[-1] > size:
                yield f"rope rotates {2 * table[-1]} columns, but a head has {size}"


def _vocabulary(parts: _Parts) -> Fault:
    """There are as many logits as tokens, and an embedding row for each token."""
    count, width = parts.config["vocab_size"], parts.decoder["hidden_size"]
    logits = parts.graph.outputs[parts.name("outputs", "logits", "logits")]
    if logits and logits[-1] is not None and logits[-1] != count:
        yield f"vocab_size is {count}, but the graph computes {logits[-1]} logits"
    fed = parts.name("inputs", "input_ids", "input_ids")
    for node in parts.graph.nodes:
        if node.op not in LOOKUP or node.input(1) != fed:
            continue
        dims, turned = parts.stored(node.input(0))
        if dims and (rows := dims[-1] if turned else dims[0]) < count:
            yield f"vocab_size is {count}, but the embedding has {rows} rows"
        if node.op == "GatherBlockQuantized":
            dims, _ = parts.stored(node.input(2))  # one scale for each block of columns
            block = node.numbers.get("block_size", 128)
            fits = not dims or block < 1 or math.prod(dims) == dims[0] * -(-width // block)
        else:
            fits = not dims or math.prod(dims) == rows * width
        if not fits:
            yield f"hidden_size is {width}, but the embedding has another width"


def _context(parts: _Parts) -> Fault:
    """The tables of cosines and sines have a row for each position of the context."""
    context = parts.config["context_length"]
    for node in parts.graph.nodes:
        for index in {"GroupQueryAttention": (7, 8), "RotaryEmbedding": (2, 3)}.get(node.op, ()):
            dims, _ = parts.stored(node.input(index))
            if dims and dims[0] < context:
                yield f"context_length is {context}, but {shown(node.input(index))} has {dims[0]} positions"


RULES: dict[str, Callable[[_Parts], Fault]] = {
    "sizes": _sizes,
    "special token ids": _special_ids,
    "token ids": _token_ids,
    "inputs and outputs": _inputs_and_outputs,
    "layers": _layers,
    "heads": _heads,
    "vocabulary": _vocabulary,
    "context": _context,
}


def _broken_weight(folder: Path, layout: OnnxLayout, graph: OnnxGraph) -> str:
    """A description of the first weight or scale that is not finite; empty when all are finite.

    Scalars and constants that only `Where` reads may be infinite, because masks are made of them.
    """
    users: dict[str, set[str]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            users.setdefault(name, set()).add(node.op)
    files: dict[str, list[tuple[str, finite.FloatBits, int, int]]] = {}
    for name, tensor in layout.initializers.items():
        if tensor.dtype not in FLOATS or math.prod(tensor.dims) < 2 or users.get(name) == {"Where"}:
            continue
        if tensor.offset is None:
            return f"tensor {shown(name)} stores its {math.prod(tensor.dims)} values one by one"
        files.setdefault(tensor.file, []).append((name, FLOATS[tensor.dtype], tensor.offset, tensor.nbytes))
    for file, tensors in files.items():
        if broken := finite.first_broken_float(folder / file, tensors):
            return f"tensor {shown(broken[0])} holds NaN or infinity at index {broken[1]}"
    return ""


def _short(value: object) -> str:
    return ascii(value)[:40]
