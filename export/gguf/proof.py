"""Compares a GGUF file with the Hugging Face folder that it claims to be, without running it.

The expected parameters are those that `write_parameters` would write for the folder, and the expected tensors those of
`read_tensors`. For keys that a file leaves out, llama.cpp's defaults apply.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgekit.base.errors import UnsupportedError
from edgekit.base.events import Emit, ignore
from edgekit.containers.gguf import GgufLayout, TensorInfo, read_gguf
from edgekit.export.gguf.families import (
    FAMILIES,
    ROPE_FREQS,
    Family,
    architecture,
    deinterleave,
    faults,
    from_gguf,
    interleave,
    name_map,
    typed,
    write_parameters,
)
from edgekit.export.gguf.name_proof import prove_by_name
from edgekit.export.gguf.stored import GRIDS, Bytes, factors_of, stored_tensor, type_of
from edgekit.export.gguf.vocab_proof import check_vocabulary, listed, prove_vocabulary
from edgekit.export.gguf.write import EMBEDDING, HEAD, read_tensors
from edgekit.export.weights.folder import places_of
from edgekit.export.weights.weight_compare import Array, Reference
from edgekit.export.weights.weight_proof import Facts, StaticProof, prove_weights
from edgekit.models.source import read_config

OUTPUT, TOKENS = "output.weight", "token_embd.weight"
LABELS = {
    "block_count": "layer count", "context_length": "context length", "embedding_length": "hidden size",
    "feed_forward_length": "MLP size", "attention.head_count": "number of heads",
    "attention.head_count_kv": "number of key-value heads", "attention.key_length": "size of a key head",
    "attention.value_length": "size of a value head", "attention.layer_norm_rms_epsilon": "norm epsilon",
    "rope.dimension_count": "number of rotated columns", "rope.freq_base": "rope base",
    "rope.freq_base_swa": "rope base of the sliding-window layers", "rope.scaling.type": "rope scaling type",
    "rope.scaling.factor": "rope scaling factor", "attention.sliding_window": "sliding window",
    "attention.sliding_window_pattern": "pattern of sliding-window layers", "vocab_size": "vocabulary size",
}  # fmt: skip
# Keys that change what llama.cpp computes, and the values with which they do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope.scaling.type": ("none",), "rope.scaling.factor": (0.0, 1.0), "rope.scale_linear": (0.0, 1.0),
    "rope.scaling.attn_factor": (0.0, 1.0), "attention.scale": (0.0,), "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,), "attention.max_alibi_bias": (0.0,), "final_logit_softcapping": (0.0,),
    "attn_logit_softcapping": (0.0,), "logit_scale": (0.0, 1.0), "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0), "expert_count": (0,), "pooling_type": (0,),
}  # fmt: skip


def prove(path: Path, model: Path, emit: Emit = ignore, *, stage: str) -> StaticProof:
    """Compare the GGUF file `path`, from any source, with the Hugging Face folder `model`.

    Gates `gguf.structure`, `gguf.vocabulary` and `gguf.weights`: the shares of facts, entries and tensors that agree. The
    tensors of an architecture that edgekit does not write itself are paired by name (`prove_by_name`).
    Raises `CorruptError` when either cannot be read, and `UnsupportedError` for a model that has no exact form in GGUF.
    """
    raw = read_config(model)
    if architecture(raw) not in FAMILIES:
        return prove_by_name(path, model, emit, stage=stage)
    if fault := next(faults(raw), ""):
        raise UnsupportedError(
            f"{fault} A GGUF file therefore cannot be proven to be this model.",
            "Compare the runtimes' answers instead.",
        )
    config, family = typed(raw), FAMILIES[architecture(raw)]
    layout, data = read_gguf(path), np.memmap(path, np.uint8, "r")
    references = read_references(model, config, family)
    known = [info for info in layout.tensors.values() if type_of(info) in GRIDS]
    stored = [stored_tensor(info, data, factors_of(layout)) for info in known]
    facts = Facts()
    _check_parameters(facts, read_fields(layout), config, family)
    check_vocabulary(facts, layout, config.vocab_size, model)
    _check_tensors(facts, layout, data, references, config.tie_word_embeddings)
    weights, tensors = prove_weights(stored, references, "gguf.weights", emit, stage=stage)
    gates = [
        facts.gate("gguf.structure", stage),
        *prove_vocabulary(layout, config.vocab_size, model, stage),
        weights,
    ]
    return StaticProof(gates, tensors)


def read_fields(layout: GgufLayout) -> dict[str, Any]:
    """The file's metadata without the tokenizer's lists, and without the architecture's name in the keys."""
    prefix = f"{layout.metadata.get('general.architecture', '')}."
    short = {
        key.removeprefix(prefix): value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in layout.metadata.items()
        if not key.startswith("tokenizer.")
    }
    return short | {"tokens": len(listed(layout, "tokens"))}


def expected_fields(config: Any, family: Family) -> dict[str, Any]:
    """What `write_parameters` writes for the model, with keys as in `read_fields`."""
    name = gguf.MODEL_ARCH_NAMES[family.arch]
    writer = gguf.GGUFWriter(None, name)
    write_parameters(writer, config)
    return {key.removeprefix(f"{name}."): value.value for key, value in writer.kv_data[0].items()}


def _default(key: str, fields: Mapping[str, Any], family: Family) -> Any:
    """llama.cpp's default for a key that the file leaves out (`llama-model.cpp`); None when the key is required."""
    heads = _first(fields.get("attention.head_count")) or 1
    if key in ("attention.key_length", "attention.value_length"):
        return fields.get("embedding_length", 0) // heads
    if key == "rope.dimension_count":
        return fields.get("attention.key_length", fields.get("embedding_length", 0) // heads)
    if key == "attention.sliding_window_pattern" and family.arch is gguf.MODEL_ARCH.GEMMA3:
        return [layer % 6 < 5 for layer in range(_first(fields.get("block_count")) or 0)]
    return {
        "attention.head_count_kv": fields.get("attention.head_count"),
        "vocab_size": fields["tokens"],
        "rope.freq_base": 10000.0,
        "rope.freq_base_swa": 10000.0,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 1.0,
        "rope.scaling.attn_factor": 1.0,
        "rope.scaling.original_context_length": fields.get("context_length"),
    }.get(key)


def _first(value: Any) -> int:
    return int(next(iter(value), 0)) if isinstance(value, list) else int(value or 0)


def _check_parameters(facts: Facts, fields: Mapping[str, Any], config: Any, family: Family) -> None:
    for key, wanted in expected_fields(config, family).items():
        try:
            found = fields.get(key, _default(key, fields, family))
        except TypeError:  # the value it is derived from is not a number
            found = None
        if key == "context_length" and found == config.max_position_embeddings:
            wanted = found  # the model's own length, which other converters write although it has a window
        facts.add(_agree(found, wanted), _disagreement(key, found, wanted))
    known = expected_fields(config, family)
    for key, values in NEUTRAL.items():
        if key in fields and key not in known:
            idle = key == "rope.scaling.type" and fields.get("rope.scaling.factor", 1.0) in (0.0, 1.0)
            facts.add(
                fields[key] in values or (idle and fields[key] == "linear"),
                f"the file sets {key} to {_short(fields[key])}, which the model does not have",
            )


def _agree(found: Any, wanted: Any) -> bool:
    """Whether the values are equal, floats up to 32-bit rounding; a list with one value for all layers equals that value."""
    if isinstance(found, list) and not isinstance(wanted, list):
        return bool(found) and all(_agree(part, wanted) for part in found)
    if isinstance(wanted, list) and isinstance(found, list):
        return len(found) == len(wanted) and all(map(_agree, found, wanted))
    if isinstance(wanted, float) and isinstance(found, int | float):
        return math.isclose(found, wanted, rel_tol=1e-6)
    return bool(found == wanted)


def _disagreement(key: str, found: Any, wanted: Any) -> str:
    if key == "block_count":
        return f"{wanted} layers expected, {found} found"
    if key == "general.architecture":
        return f"the file is of the architecture {found}, the model is {wanted}"
    label = LABELS.get(key, key)
    if found is None:
        return f"the file does not give the {label}, the model's is {_short(wanted)}"
    return f"{label} is {_short(found)}, the model's is {_short(wanted)}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, list) else str(value)


def _check_tensors(
    facts: Facts, layout: GgufLayout, data: Bytes, references: Mapping[str, Reference], tied: bool
) -> None:
    shapes = {name: info.shape[::-1] for name, info in layout.tensors.items()}
    for name, info in layout.tensors.items():
        facts.add(type_of(info) in GRIDS, f"{name} has the type {type_of(info)}, which edgekit cannot read")
    for name, reference in references.items():
        if name not in shapes:
            if name == OUTPUT and not tied:
                facts.add(
                    False,
                    f"the file ties the head to the embedding, and the model has a separate head ({OUTPUT} is missing)",
                )
            elif name != OUTPUT:
                facts.add(False, f"{name} is missing")
            continue
        found, wanted = (" x ".join(map(str, shape)) for shape in (shapes[name], reference.shape))
        facts.add(found == wanted, f"{name} has the shape {found}, the model's is {wanted}")
    for name in shapes.keys() - references.keys():
        if name == ROPE_FREQS:
            values = stored_tensor(layout.tensors[name], data).all()
            facts.add(
                bool((values == 1).all()),
                f"{name} divides the rope frequencies, and the model's are not divided",
            )
        else:
            facts.add(False, f"{name} is in the file, and the model has no such tensor")


def read_references(model: Path, config: Any, family: Family) -> dict[str, Reference]:
    """The folder's tensors as the file should hold them, by GGUF name; a tied head may be stored a second time."""
    names = name_map(config, family)
    references = {}
    for tensor in read_tensors(model, config, family):
        name = str(tensor.name)
        variants = partial(_variants, name, config, family)
        references[name] = Reference(name, tuple(tensor.shape), partial(_matrix, tensor), variants)
    if config.tie_word_embeddings:
        output = names.get_name(HEAD, try_suffixes=(".weight",)) or OUTPUT
        embedding = references[names.get_name(EMBEDDING, try_suffixes=(".weight",)) or TOKENS]
        references[output] = Reference(output, embedding.shape, embedding.load)
    return references


def stored_weights(path: Path, model: Path) -> dict[str, Callable[[], Array]]:
    """The dequantized tensors of the GGUF file `path`, in the form of the Hugging Face folder `model` that it was made from.

    Each value loads one tensor, in the folder's row order and without the shift of norms. Tensors of unknown types are
    left out.
    """
    raw = read_config(model)
    config, family = typed(raw), FAMILIES[architecture(raw)]
    layout, data = read_gguf(path), np.memmap(path, np.uint8, "r")
    names = name_map(config, family)

    def load(name: str, info: TensorInfo) -> Array:
        values = stored_tensor(info, data).all()
        return from_gguf(name, values.reshape(info.shape[::-1]), config, family)

    places = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in places_of(model)}
    return {
        name: partial(load, name, layout.tensors[place])
        for name, place in places.items()
        if place in layout.tensors and type_of(layout.tensors[place]) in GRIDS
    }


def _matrix(tensor: Any) -> Array:
    values: Array = tensor.load()
    return values if values.ndim == 2 else values.reshape(1, -1)


def _variants(name: str, config: Any, family: Family, rows: Array) -> Iterator[tuple[str, Array]]:
    """Wrong forms that exporters are known to write instead of `rows`."""
    if ".attn_q." in name or ".attn_k." in name:
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        columns = rows if len(rows) > 1 else rows.T  # a bias is stored as one row; here it is a column
        once, back = interleave(columns, heads), deinterleave(columns, heads)
        if family.rotary_pairs:
            yield "has its rows in Hugging Face's order, not permuted for rope", back.reshape(rows.shape)
            yield "has its rows permuted for rope twice", once.reshape(rows.shape)
        else:
            yield (
                "has its rows permuted for rope, which is wrong for this architecture",
                once.reshape(rows.shape),
            )
    if family.norm_shift and name.endswith("norm.weight"):
        yield (
            f"lacks the {family.norm_shift:g} that llama.cpp expects in it",
            rows - np.float32(family.norm_shift),
        )
        yield (
            f"has the {family.norm_shift:g} that llama.cpp expects added twice",
            rows + np.float32(family.norm_shift),
        )
