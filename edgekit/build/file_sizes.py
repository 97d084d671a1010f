"""The sizes of exported files, from the model's config and the types that a target asks for.

GGUF: llama.cpp's mixtures give the embedding and some of the most sensitive tensors a larger type, and rows that do not
divide into blocks of 256 weights another type (`llama_tensor_get_type` in llama-quant.cpp). ONNX: a block of weights has a
scale of 16 bits and a zero point; an embedding of its own, which is not tied to the head, stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from edgekit.containers.ggml_types import BITS, GGML_TYPES
from edgekit.models.shape import MIB, Shape
from edgekit.targets.target import Export, GgufExport, OnnxExport, Quantize

BLOCKS = {kind.name: kind.block_size for kind in GGML_TYPES.values()}
INSTEAD = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q8_0", "Q6_K": "Q8_0"}
"""The types that llama.cpp, with edgekit's choice, gives rows that K types cannot hold; IQ types get Q4_0 or IQ4_NL."""
TOKEN = 45  # bytes of one token of the vocabulary in a GGUF file: its text, type and merge
TOKEN_ONNX = 75  # and in tokenizer.json
ONNX_BITS = {"int4": 4, "int8": 8}
SCALE_BITS = 16


@dataclass(frozen=True)
class _Part:
    """Matrices of one kind: the name in both formats, how many weights there are, and the columns of a row."""

    gguf: str
    onnx: str
    weights: int
    columns: int


def file_size(shape: Shape, export: Export, quantize: Quantize | None = None) -> tuple[str, float]:
    """The type of the file and about how many MiB it takes; a plug-in's format is taken to have 16 bits a weight.

    With a size in `quantize` that is the size of a GGUF file of fewer than 8 bits, and with one in `export` that of an ONNX folder.
    With a largest divergence the size is not known: it is the largest that there is, and the type has the range.
    """
    if isinstance(export, GgufExport):
        if quantize is not None and searched(export, quantize):
            least, most = (_chosen(shape, quantize, choose) for choose in (min, max))
            return f"mean KLD {quantize.max_kld_nats:g}, {least:.0f} to {most:.0f} MiB", most
        if (limit := fitted(shape, export, quantize)) is not None:
            return f"{8 * limit / shape.parameters:.2g} bits", limit / MIB
        bits = sum(part.weights * _gguf_bits(part, export) for part in _parts(shape))
        return export.type, bits / 8 / MIB + TOKEN * shape.vocabulary / MIB
    if isinstance(export, OnnxExport):
        if (limit := export.max_bytes(shape.parameters)) is not None:
            return f"{8 * limit / shape.parameters:.2g} bits", limit / MIB
        bits = sum(part.weights * _onnx_bits(part, export) for part in _parts(shape))
        return export.precision, bits / 8 / MIB + TOKEN_ONNX * shape.vocabulary / MIB
    return export.format, 2 * shape.parameters / MIB


def least_size(shape: Shape, export: Export, quantize: Quantize | None = None) -> float:
    """About how many MiB the smallest file takes that may come out."""
    if quantize is not None and isinstance(export, GgufExport) and searched(export, quantize):
        return _chosen(shape, quantize, min)
    return file_size(shape, export, quantize)[1]


def searched(export: GgufExport, quantize: Quantize) -> bool:
    """Whether the size of the file follows from a largest divergence."""
    return quantize.max_kld_nats is not None and export.leaves_types_open


def _chosen(shape: Shape, quantize: Quantize, choose: Callable[[list[float]], float]) -> float:
    """MiB of a file whose tensors all have the types that `choose` takes of the bits of those that fit their rows."""
    bits = 0.0
    for part in _parts(shape):
        fitting = [BITS[type] for type in quantize.types if part.columns % BLOCKS[type] == 0]
        bits += part.weights * (choose(fitting) if fitting else _bits("Q4_K", part.columns))
    return bits / 8 / MIB + TOKEN * shape.vocabulary / MIB


def fitted(shape: Shape, export: GgufExport, quantize: Quantize | None) -> float | None:
    """Bytes that a target allows the GGUF file, to which its types are chosen; None where its types are given."""
    if quantize is None or not (quantize.corrects_errors and export.leaves_types_open):
        return None
    parts = list(_parts(shape))
    short = sum(part.weights for part in parts if part.columns % 256)
    return quantize.max_bytes(shape.parameters, short_rows=2 * short > shape.parameters)


def _parts(shape: Shape) -> Iterator[_Part]:
    """The model's matrices, scaled so that they hold all its weights."""
    hidden, mlp = shape.hidden, shape.intermediate
    parts = [_Part("token_embd", "lm_head" if shape.tied else "embed_tokens", shape.embedding, hidden)]
    if not shape.tied:
        parts.append(_Part("output", "lm_head", shape.embedding, hidden))
    for gguf, onnx, rows, columns in (
        ("attn_q", "q_proj", shape.queries, hidden),
        ("attn_k", "k_proj", shape.keys, hidden),
        ("attn_v", "v_proj", shape.keys, hidden),
        ("attn_output", "o_proj", hidden, shape.queries),
        ("ffn_gate", "gate_proj", mlp, hidden),
        ("ffn_up", "up_proj", mlp, hidden),
        ("ffn_down", "down_proj", hidden, mlp),
    ):
        parts.append(_Part(gguf, onnx, shape.layers * rows * columns, columns))
    share = shape.parameters / max(sum(part.weights for part in parts), 1)
    for part in parts:
        yield _Part(part.gguf, part.onnx, round(part.weights * share), part.columns)


def _gguf_bits(part: _Part, export: GgufExport) -> float:
    name = part.gguf if part.gguf in ("token_embd", "output") else f"blk.0.{part.gguf}"
    asked = [kind for pattern, kind in export.tensor_types.items() if re.search(pattern, f"{name}.weight")]
    if export.token_embedding_type and part.gguf == "token_embd":
        asked = [export.token_embedding_type]
    kinds = asked[:1] or _mixture(part.gguf, export.type)
    return sum(_bits(kind, part.columns) for kind in kinds) / len(kinds)


def _mixture(name: str, type: str) -> list[str]:
    """The types that the file type gives tensors of this name, equally many of each."""
    plain = re.sub(r"_[SML]$", "", type)
    if not plain.endswith("_K") or plain == "Q6_K":
        return [plain if BITS.get(plain, 8.0) >= 5 or name not in ("token_embd", "output") else "Q6_K"]
    if name in ("token_embd", "output"):
        return ["Q6_K"]
    raised = type.endswith("_M") and name in ("attn_v", "ffn_down")
    return [plain, "Q6_K" if plain in ("Q4_K", "Q5_K") else "Q5_K"] if raised else [plain]


def _bits(type: str, columns: int) -> float:
    plain = re.sub(r"_[SML]$", "", type)
    plain = plain if plain in BITS else "Q4_K"
    if columns % BLOCKS[plain]:
        plain = INSTEAD.get(plain, "Q5_0")
    return BITS[plain]


def _onnx_bits(part: _Part, export: OnnxExport) -> float:
    if export.precision == "fp32" or part.onnx == "embed_tokens":
        return 32.0
    blocks = 1 / export.block_size
    name = f"model.layers.0.mlp.{part.onnx}"
    wide = any(fnmatchcase(name, pattern) for pattern in export.at_8_bits)
    bits = 8 if wide or part.onnx == "lm_head" else ONNX_BITS[export.precision]
    return bits + (SCALE_BITS + bits) * blocks
