"""What a runtime trusts of a GGUF model beyond its header: ids, lengths, shapes and weights that fit each other.

llama.cpp reads past an array that is shorter than the vocabulary, aborts on a token id outside it and on sizes that
its graphs were not made for, and computes with NaN. Each rule here has a name, which stands in its error.
Sources: `llama-vocab.cpp`, `llama-model.cpp` and `llama-hparams.h` of <https://github.com/ggml-org/llama.cpp>.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.base.errors import CorruptError, UnsupportedError
from edgekit.containers.finite import first_broken_block
from edgekit.containers.ggml_types import GGML_TYPES
from edgekit.containers.gguf import GgufLayout, read_gguf
from edgekit.containers.reader import HINT, shown

LAYER_LIMIT, EXPERT_LIMIT = 512, 512  # LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS: llama.cpp aborts beyond
SIZE_LIMIT = 1 << 28
TOKEN_TYPES = range(7)  # undefined to byte
SPECIAL_ID = re.compile(r"tokenizer\.ggml\..*_token_ids?")
LAYER = re.compile(r"blk\.(\d+)\.")
# Architectures whose attention and MLP have the shapes below; the others' shapes are checked by llama.cpp alone.
PLAIN = ("llama", "qwen2", "qwen3", "gemma3")
SIZES = ("block_count", "embedding_length", "context_length", "vocab_size")
LAYER_SIZES = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")

Fault = Iterator[str]


def check_gguf(path: Path) -> GgufLayout:
    """Read the header of a GGUF model and hold its contents against the rules; all weights are read once.

    Takes about a tenth of a second for 100 MB. Raises `CorruptError` with the first rule that is broken,
    and `UnsupportedError` for one part of a split model: llama.cpp would read the others unchecked.
    """
    layout = read_gguf(path)
    parts = layout.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise UnsupportedError(
            f"{path} is one of {parts} parts of a model.",
            "Join them first: llama-gguf-split --merge FIRST OUT.",
        )
    for rule, faults in RULES.items():
        if fault := next(faults(layout), ""):
            raise CorruptError(f"{path} is damaged or malicious ({rule}): {fault}.", HINT)
    data = np.memmap(path, np.uint8, "r")
    for tensor in layout.tensors.values():
        stored = GGML_TYPES[tensor.type]
        block = first_broken_block(data[tensor.offset : tensor.offset + tensor.nbytes], stored)
        if block is not None:
            raise CorruptError(
                f"{path} is damaged (finite weights): tensor {shown(tensor.name)} holds NaN or infinity in block {block} "
                f"of {tensor.nbytes // stored.block_bytes}, type {stored.name}.",
                HINT,
            )
    return layout


def _tokens(layout: GgufLayout) -> list[str]:
    found = layout.metadata.get("tokenizer.ggml.tokens")
    return found if isinstance(found, list) else []


def _vocabulary(layout: GgufLayout) -> Fault:
    """Lists about tokens have one entry for each, in the type that llama.cpp reads."""
    count = len(_tokens(layout))
    if count == 0:
        yield "there is no list of tokens"
    for name, kinds in {"scores": ("<f4",), "token_type": ("<i4", "<u4")}.items():
        values = layout.metadata.get(f"tokenizer.ggml.{name}")
        if values is None:
            continue
        if not isinstance(values, np.ndarray) or values.dtype not in [np.dtype(kind) for kind in kinds]:
            yield f"tokenizer.ggml.{name} is not an array of numbers of type {kinds[0]}"
        elif len(values) != count:
            yield f"tokenizer.ggml.{name} has {len(values)} entries, and there are {count} tokens"
        elif name == "scores" and not np.isfinite(values).all():
            yield "tokenizer.ggml.scores holds NaN or infinity"
        elif name == "token_type" and not np.isin(values, TOKEN_TYPES).all():
            yield f"tokenizer.ggml.token_type holds {int(values[~np.isin(values, TOKEN_TYPES)][0])}, which is no type"


def _special_ids(layout: GgufLayout) -> Fault:
    count = len(_tokens(layout))
    for key, value in layout.metadata.items():
        if SPECIAL_ID.fullmatch(key):
            ids = value.tolist() if isinstance(value, np.ndarray) else [value]
            for id_ in ids:
                if type(id_) is not int or not 0 <= id_ < count:
                    yield f"{key} is {str(id_)[:40]}, and the vocabulary has {count} tokens"


def _merges(layout: GgufLayout) -> Fault:
    merges = layout.metadata.get("tokenizer.ggml.merges")
    if merges is None:
        return
    if not isinstance(merges, list):
        yield "tokenizer.ggml.merges is not a list of texts"
        return
    # llama.cpp's converter writes the spaces of an added token as such, and as U+2581 in the merges.
    tokens = {form for text in _tokens(layout) for form in (text, text.replace(" ", "\u2581"))}
    for index, merge in enumerate(merges):
        middle = merge.find(" ", 1)  # as llama.cpp splits it
        left, right = merge[:middle], merge[middle + 1 :]
        if middle < 0 or left not in tokens or right not in tokens or left + right not in tokens:
            yield f"merge {index}, {shown(merge)}, does not join two tokens to a third"


def _sizes(layout: GgufLayout) -> Fault:
    """Sizes are positive, small enough to be sizes, and those of layers are one number or one for each layer."""
    fields = _Fields(layout)
    for key in (*SIZES, *LAYER_SIZES):
        value = fields.get(key)
        if value is None:
            continue
        values = value.tolist() if isinstance(value, np.ndarray) else [value]
        least = 1 if key in SIZES else 0 if isinstance(value, np.ndarray) else 1
        if any(type(size) is not int or not least <= size <= SIZE_LIMIT for size in values):
            yield f"{fields.name(key)} is {str(value)[:40]}, which is no size"
        elif isinstance(value, np.ndarray) and (key in SIZES or len(value) != fields.get("block_count")):
            yield f"{fields.name(key)} has {len(value)} entries, and there are {fields.get('block_count')} layers"
    layers, experts = fields.get("block_count"), fields.get("expert_count", 0)
    if layers is None or layers > LAYER_LIMIT:
        yield f"{fields.name('block_count')} is {layers}, and llama.cpp takes 1 to {LAYER_LIMIT} layers"
    if not isinstance(experts, int) or not 0 <= fields.get("expert_used_count", 0) <= experts <= EXPERT_LIMIT:
        yield f"{fields.name('expert_count')} is {experts}, with {fields.get('expert_used_count')} used"
    for name, value in layout.metadata.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{name} is {value}"
    if (base := fields.get("rope.freq_base")) is not None and not base > 0:
        yield f"{fields.name('rope.freq_base')} is {base}"


def _heads(layout: GgufLayout) -> Fault:
    """Heads divide what they share, and rope turns pairs of columns."""
    fields = _Fields(layout)
    heads, kv_heads = fields.get("attention.head_count"), fields.get("attention.head_count_kv")
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        size = fields.get(key)
        if size is not None and (type(size) is not int or not 0 < size <= SIZE_LIMIT):
            yield f"{fields.name(key)} is {str(size)[:40]}, which is no size"
    if not isinstance(heads, int):
        return
    if isinstance(kv_heads, int) and heads % kv_heads:
        yield f"{heads} heads cannot share {kv_heads} key-value heads"
    rotated = fields.get("rope.dimension_count", fields.head_size)
    if rotated % 2 and fields.architecture in PLAIN:
        yield f"{fields.name('rope.dimension_count')} is {rotated}, and rope turns pairs of columns"
    if rotated > fields.head_size > 0 and fields.architecture in PLAIN:
        yield f"{fields.name('rope.dimension_count')} is {rotated}, and a head has {fields.head_size} columns"


def _layers(layout: GgufLayout) -> Fault:
    found = {int(match[1]) for name in layout.tensors if (match := LAYER.match(name))}
    expected = _Fields(layout).get("block_count")
    if found != set(range(expected)):
        odd = min(found ^ set(range(expected)))
        state = "has tensors" if odd in found else "has no tensor"
        yield f"the metadata name {expected} layers, and layer {odd} {state}"


def _shapes(layout: GgufLayout) -> Fault:
    """Tensors have the shapes that the metadata imply, the fastest dimension first."""
    fields, count = _Fields(layout), len(_tokens(layout))
    if fields.get("vocab_size", count) != count:
        yield f"{fields.name('vocab_size')} is {fields.get('vocab_size')}, and there are {count} tokens"
    width = fields.get("embedding_length")
    if "token_embd.weight" not in layout.tensors or width is None:
        yield "there is no token embedding, or no embedding_length"
        return
    expected: dict[str, tuple[int, ...]] = {"token_embd.weight": (width, count)}
    if fields.architecture in PLAIN:
        expected |= {"output.weight": (width, count), "output_norm.weight": (width,)}
        heads, kv_heads, inner = (fields.get(key) for key in LAYER_SIZES)
        kv_heads = heads if kv_heads is None else kv_heads
        if isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(inner, int):
            expected |= dict(_layer_shapes(fields, heads, kv_heads, inner))
    for name, shape in expected.items():
        tensor = layout.tensors.get(name)
        if tensor is not None and _stripped(tensor.shape) != _stripped(shape):
            yield f"tensor {name} has the shape {tensor.shape}, and the metadata imply {shape}"


def _layer_shapes(
    fields: _Fields, heads: int, kv_heads: int, inner: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, key = fields.get("embedding_length"), fields.head_size
    value = fields.get("attention.value_length", width // heads)
    shapes = {
        "attn_norm": (width,), "ffn_norm": (width,), "attn_q": (width, heads * key), "attn_k": (width, kv_heads * key),
        "attn_v": (width, kv_heads * value), "attn_output": (heads * value, width),
        "ffn_gate": (width, inner), "ffn_up": (width, inner), "ffn_down": (inner, width),
    }  # fmt: skip
    for layer in range(fields.get("block_count")):
        for name, shape in shapes.items():
            yield f"blk.{layer}.{name}.weight", shape


def _stripped(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the ones at its end, which GGUF writers add or leave out."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


class _Fields:
    """The metadata of the file's architecture."""

    def __init__(self, layout: GgufLayout) -> None:
        self._metadata = layout.metadata
        self.architecture = str(layout.metadata.get("general.architecture", ""))

    def name(self, key: str) -> str:
        """The key as it stands in the file, as a message may show it."""
        return shown(f"{self.architecture}.{key}").strip("'")

    def get(self, key: str, default: Any = None) -> Any:
        """A value, or `default`."""
        return self._metadata.get(f"{self.architecture}.{key}", default)

    @property
    def head_size(self) -> int:
        """Columns of a head: as the metadata say, else an equal share of the embedding."""
        share = (self.get("embedding_length") or 0) // self.get("attention.head_count")
        size: int = self.get("attention.key_length", share)
        return size


RULES: dict[str, Callable[[GgufLayout], Fault]] = {
    "lists of tokens": _vocabulary,
    "special token ids": _special_ids,
    "merges": _merges,
    "sizes": _sizes,
    "heads": _heads,
    "number of layers": _layers,
    "shapes": _shapes,
}
