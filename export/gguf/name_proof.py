"""Compares the weights of a GGUF file with a model of an architecture that edgekit does not write itself.

gguf-py's map of names pairs the tensors. llama.cpp's converter may store a tensor in another form than the model: the
known forms are tried, and the one that fits a kind of tensor best must hold for it in every layer. Tensors without a
counterpart are named in a warning; only the answers of the opened file prove those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgekit.base.errors import UnsupportedError
from edgekit.base.events import Alert, Emit
from edgekit.containers.gguf import GgufLayout, read_gguf
from edgekit.export.gguf.families import interleave, rope_of, typed
from edgekit.export.gguf.stored import GRIDS, file_name_map, stored_tensor, type_of
from edgekit.export.gguf.vocab_proof import check_vocabulary, prove_vocabulary
from edgekit.export.weights.rows import Rows
from edgekit.export.weights.weight_compare import Array, Reference, Stored
from edgekit.export.weights.weight_proof import Facts, StaticProof, prove_weights
from edgekit.models.source import read_config

# Parameters that mean the same in every architecture, by their names in the file and in `config.json`.
PARAMETERS = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok",
}  # fmt: skip
EXPERT = re.compile(r"\.experts\.(\d+)\.")
SAMPLES = 3  # tensors of a kind from which its form is told
SHOWN = 5  # tensors without a counterpart that the warning names

Form = Callable[[Array], Array]


@dataclass(frozen=True)
class Pair:
    """A tensor of the file, and how to read its counterpart in the model."""

    stored: Stored
    keys: list[str]
    """The names of the counterpart in the model: of each expert, for a stack of experts."""
    read: Callable[[], Array]
    forms: dict[str, Form]
    """The forms in which the converter may have stored it, by a phrase that describes each."""

    @property
    def kind(self) -> str:
        """Its name without the number of the layer."""
        return re.sub(r"\d+", "*", self.stored.name)

    def values(self, form: str) -> Array:
        """The model's values in this form, `(rows, columns)`."""
        return self.forms[form](self.read()).reshape(self.stored.matrix)


def prove_by_name(path: Path, model: Path, emit: Emit, *, stage: str) -> StaticProof:
    """Gates `gguf.structure`, `gguf.vocabulary` and `gguf.weights` of the file `path`, as far as the names allow.

    Raises `UnsupportedError` when gguf-py has no names for the file's architecture, and `CorruptError` as `read_gguf`.
    """
    config = typed(read_config(model)).get_text_config()
    layout, data = read_gguf(path), np.memmap(path, np.uint8, "r")
    if (names := file_name_map(layout)) is None:
        raise UnsupportedError(
            f"{path.name} is of the architecture {layout.metadata.get('general.architecture')}, whose tensor names are unknown.",
            "Compare the runtimes' answers instead.",
        )
    held = {
        name: stored_tensor(info, data) for name, info in layout.tensors.items() if type_of(info) in GRIDS
    }
    rows = Rows(model)
    pairs = {pair.stored.name: pair for pair in _pairs(held, rows, names, config)}
    _tell_unpaired(layout, rows, pairs, emit)
    references: dict[str, Reference] = {}
    facts = Facts()
    for kind in dict.fromkeys(pair.kind for pair in pairs.values()):
        alike = [pair for pair in pairs.values() if pair.kind == kind]
        form = _form(alike)
        references |= {pair.stored.name: _reference(pair, form) for pair in alike}
    _check_parameters(facts, layout, config)
    check_vocabulary(facts, layout, config.vocab_size, model)
    weights, tensors = prove_weights(
        [pair.stored for pair in pairs.values()], references, "gguf.weights", emit, stage=stage
    )
    vocabulary = prove_vocabulary(layout, config.vocab_size, model, stage)
    return StaticProof([facts.gate("gguf.structure", stage), *vocabulary, weights], tensors)


def _pairs(held: Mapping[str, Stored], rows: Rows, names: gguf.TensorNameMap, config: Any) -> Iterator[Pair]:
    """Each tensor of the file with a counterpart; that of a stack of experts is all of theirs."""
    found: dict[str, list[tuple[int, str]]] = {}
    for key in rows.weights:
        expert = EXPERT.search(key)
        place = names.get_name(EXPERT.sub(".experts.", key), try_suffixes=(".weight", ".bias"))
        if place in held:
            found.setdefault(place, []).append((int(expert[1]) if expert else 0, key))
    for place, keys in found.items():
        ordered = [key for _, key in sorted(keys)]
        shapes = [rows.weights.layout[key][1] for key in ordered]
        size = sum(int(np.prod(shape)) for shape in shapes)
        if size == int(np.prod(held[place].shape)):
            forms = dict(_forms(ordered[0], shapes[0], config))
            yield Pair(held[place], ordered, partial(_stack, rows, ordered), forms)


def _stack(rows: Rows, keys: list[str]) -> Array:
    parts = [rows.read(key, 0, rows.weights.layout[key][1][0]) for key in keys]
    return parts[0] if len(parts) == 1 else np.stack(parts)


def _forms(key: str, shape: tuple[int, ...], config: Any) -> Iterator[tuple[str, Form]]:
    yield "as it is", lambda values: values
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for layer, count in heads.items():
        if f".{layer}." in key and shape[0] % (2 * count) == 0:
            yield "permuted for rope", partial(interleave, heads=count)
    if len(shape) == 1:
        yield "with one added", lambda values: values + np.float32(1)
    if key.endswith("A_log"):
        yield "as a decay", lambda values: -np.exp(values)
    if len(shape) == 2 and shape[0] != shape[1]:
        yield "transposed", lambda values: values.T


def _form(pairs: list[Pair]) -> str:
    """The form that fits most of these tensors of one kind best."""
    chosen = [pairs[i * (len(pairs) - 1) // max(1, SAMPLES - 1)] for i in range(min(SAMPLES, len(pairs)))]

    def error(form: str) -> float:
        return float(np.median([_error(pair, form) for pair in chosen]))

    return min(pairs[0].forms, key=error)


def _error(pair: Pair, form: str) -> float:
    wanted = pair.values(form)
    return float(np.linalg.norm(pair.stored.all() - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))


def _reference(pair: Pair, form: str) -> Reference:
    def variants(values: Array) -> Iterator[tuple[str, Array]]:
        for other in pair.forms.keys() - {form}:
            yield f"is stored {other}, and {form} in other layers", pair.values(other)

    return Reference(pair.stored.name, pair.stored.shape, partial(pair.values, form), variants)


def _check_parameters(facts: Facts, layout: GgufLayout, config: Any) -> None:
    prefix = f"{layout.metadata['general.architecture']}."
    wanted = {key: getattr(config, name, None) for key, name in PARAMETERS.items()}
    wanted["rope.freq_base"] = (
        getattr(config, "rope_parameters", None) and rope_of(config)[0].get("rope_theta")
    ) or None
    for key, value in wanted.items():
        found = layout.metadata.get(prefix + key)
        if value is not None and isinstance(found, int | float):
            facts.add(
                bool(np.isclose(found, value, rtol=1e-6)), f"{key} is {found:g}, the model's is {value:g}"
            )


def _tell_unpaired(layout: GgufLayout, rows: Rows, pairs: Mapping[str, Pair], emit: Emit) -> None:
    left = [info for name, info in layout.tensors.items() if name not in pairs]
    compared = {key for pair in pairs.values() for key in pair.keys}
    others = [key for key in rows.weights if key not in compared]
    if left or others:
        total = sum(info.nbytes for info in layout.tensors.values())
        share = sum(info.nbytes for info in left) / total
        names = [*(info.name for info in left[:SHOWN]), *others[:SHOWN]]
        emit(
            Alert(
                "warning",
                f"{len(left)} tensors of the file ({share:.1%} of its weights) and {len(others)} of the model have no "
                f"counterpart by name and are not compared: {', '.join(names)}.",
                "The answers of the opened file are compared in any case.",
            )
        )
