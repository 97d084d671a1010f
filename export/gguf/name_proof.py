"""Compares the weights of a GGUF file with a model of an architecture that edgekit does not write itself.

gguf-py's map of names pairs the tensors. llama.cpp's converter may store a tensor in another form than the model: the
known forms are tried, and the one that fits a kind of tensor best must hold for it in every layer. The queries and keys
must have one form, and all norms one. A tensor that should have a counterpart and has none is a fault. Tensors that
gguf-py does not know are named in a warning; only the answers of the opened file prove those.
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
from edgekit.export.gguf import converter
from edgekit.export.gguf.families import architecture, interleave, rope_of, typed
from edgekit.export.gguf.stored import GRIDS, file_name_map, stored_tensor, type_of
from edgekit.export.gguf.vocab_proof import check_vocabulary, prove_vocabulary
from edgekit.export.weights.rows import Rows
from edgekit.export.weights.weight_compare import Array, Reference, Stored
from edgekit.export.weights.weight_proof import Facts, StaticProof, prove_weights
from edgekit.models.network import without_weights
from edgekit.models.source import read_config

# Parameters that mean the same in every architecture, by their names in the file and in `config.json`.
PARAMETERS = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok",
}  # fmt: skip
SPLIT = {  # tensors of the model that the converter may store in two parts
    "attn_kv_b": ("attn_k_b", "attn_v_b"), "ffn_gate_up_exps": ("ffn_gate_exps", "ffn_up_exps"),
}  # fmt: skip
DERIVED = ".rotary_emb.inv_freq"
HEAD, EMBEDDING = "output.weight", "token_embd.weight"
QUERIES_AND_KEYS = re.compile(r"attn_[qk]\.(weight|bias)$")
EXPERT = re.compile(r"\.experts\.(\d+)\.")
WINDOW = "attention.sliding_window"
NEUTRAL = {
    "rope.scaling.factor": (0, 1),
    "rope.scaling.type": ("none",),
}  # means the same as its absence; else 0
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
        return _kind(self.stored.name)

    @property
    def group(self) -> str:
        """What must have the same form: its kind, the queries and keys, or the norms."""
        if QUERIES_AND_KEYS.search(self.stored.name):
            return "queries and keys"
        name = self.stored.name
        # The gated norm of linear attention adds nothing to its weight, whatever the other norms do.
        return "norms" if name.endswith("norm.weight") and "ssm_norm" not in name else self.kind

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
    facts = Facts()
    for info in layout.tensors.values():
        facts.add(type_of(info) in GRIDS, f"{info.name} is of type {type_of(info)}, which cannot be compared")
    tied = bool(getattr(config, "tie_word_embeddings", False))
    places = _places(layout, rows, names, tied)
    pairs = {pair.stored.name: pair for pair in _pairs(facts, held, rows, places, config)}
    _check_names(facts, layout, pairs, places, tied)
    _tell_unpaired(layout, rows, pairs, emit)
    references: dict[str, Reference] = {}
    for group in dict.fromkeys(pair.group for pair in pairs.values()):
        alike = [pair for pair in pairs.values() if pair.group == group]
        form = _form(alike)
        references |= {pair.stored.name: _reference(pair, form) for pair in alike}
    _check_architecture(facts, layout, model)
    _check_parameters(facts, layout, config)
    check_vocabulary(facts, layout, config.vocab_size, model)
    weights, tensors = prove_weights(
        [pair.stored for pair in pairs.values()], references, "gguf.weights", emit, stage=stage
    )
    vocabulary = prove_vocabulary(layout, config.vocab_size, model, stage)
    return StaticProof([facts.gate("gguf.structure", stage), *vocabulary, weights], tensors)


def _kind(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _places(layout: GgufLayout, rows: Rows, names: gguf.TensorNameMap, tied: bool) -> dict[str, list[str]]:
    """The model's tensors by the name that gguf-py gives them; those of a stack of experts have one name."""
    found: dict[str, list[tuple[int, str]]] = {}
    for key in rows.shapes:
        expert = EXPERT.search(key)
        place = names.get_name(EXPERT.sub(".experts.", key), try_suffixes=(".weight", ".bias"))
        if place is None or key.endswith(DERIVED):
            continue
        if place not in layout.tensors and f"{place}.weight" in layout.tensors:
            place = f"{place}.weight"
        found.setdefault(place, []).append((int(expert[1]) if expert else 0, key))
    places = {place: [key for _, key in sorted(keys)] for place, keys in found.items()}
    if tied and HEAD in layout.tensors and EMBEDDING in places:
        places.setdefault(HEAD, places[EMBEDDING])
    return places


def _pairs(
    facts: Facts, held: Mapping[str, Stored], rows: Rows, places: Mapping[str, list[str]], config: Any
) -> Iterator[Pair]:
    """Each tensor of the file with a counterpart; that of a stack of experts is all of theirs."""
    turned = _turned_weights(config)
    for place, ordered in places.items():
        if place not in held:
            continue
        shapes = [rows.shapes[key] for key in ordered]
        size = sum(int(np.prod(shape)) for shape in shapes)
        own = int(np.prod(held[place].shape))
        facts.add(size == own, f"{place} has {own} weights, the model's has {size}")
        if size == own:
            if ordered[0].endswith(turned):
                forms: dict[str, Form] = {"transposed": lambda values: values.swapaxes(-1, -2)}
            else:
                forms = dict(_forms(place, ordered[0], shapes[0], config))
            yield Pair(held[place], ordered, partial(_stack, rows, ordered), forms)


def _check_names(
    facts: Facts,
    layout: GgufLayout,
    pairs: Mapping[str, Pair],
    places: Mapping[str, list[str]],
    tied: bool,
) -> None:
    """Check that the file has every tensor of the model that gguf-py names, and no layer one of its own."""
    for place, keys in places.items():
        base, _, kind = place.removesuffix(".weight").rpartition(".")
        parts = [f"{base}.{part}.weight" for part in SPLIT.get(kind, ())]
        split = bool(parts) and all(part in layout.tensors for part in parts)
        spared = split or (tied and place == HEAD)
        facts.add(place in layout.tensors or spared, f"{place} is missing, which holds {keys[0]}")
    kinds = {pair.kind for pair in pairs.values()}
    for name in layout.tensors.keys() - places.keys():
        facts.add(
            _kind(name) not in kinds, f"{name} has no counterpart in the model, and that of other layers has"
        )


def _stack(rows: Rows, keys: list[str]) -> Array:
    parts = [rows.read(key, 0, rows.shapes[key][0]) for key in keys]
    return parts[0] if len(parts) == 1 else np.stack(parts)


def _turned_weights(config: Any) -> tuple[str, ...]:
    """The weights that transformers' own class of the model keeps transposed, `(in, out)`: GPT-2's `Conv1D`, and the experts
    of GPT-OSS, each of which is so.

    The names are without what may stand before them in a checkpoint. Empty for a class that transformers lacks.
    """
    from transformers.pytorch_utils import Conv1D

    if (network := without_weights(config)) is None:
        return ()
    prefix = f"{network.base_model_prefix}."
    return tuple(
        f"{name.removeprefix(prefix)}.{own}"
        for name, module in network.named_modules()
        for own, value in module.named_parameters(recurse=False)
        if (value.ndim == 2 and isinstance(module, Conv1D))
        or (value.ndim == 3 and getattr(module, "is_transposed", False))
    )


def _forms(place: str, key: str, shape: tuple[int, ...], config: Any) -> Iterator[tuple[str, Form]]:
    yield "as it is", lambda values: values
    query = getattr(config, "num_attention_heads", None)
    heads = {"q_proj": query, "k_proj": getattr(config, "num_key_value_heads", None) or query}
    for layer, count in heads.items():
        if f".{layer}." in key and isinstance(count, int) and count and shape[0] % (2 * count) == 0:
            yield "permuted for rope", partial(interleave, heads=count)
    if len(shape) == 1 and place.endswith("norm.weight"):
        yield "with one added", lambda values: values + np.float32(1)
    if key.endswith("A_log"):
        yield "as a decay", lambda values: -np.exp(values)
    if len(shape) == 2 and shape[0] != shape[1]:
        yield "transposed", lambda values: values.T


def _form(pairs: list[Pair]) -> str:
    """The form that fits most of these tensors, which must have the same, best."""
    chosen = [pairs[i * (len(pairs) - 1) // max(1, SAMPLES - 1)] for i in range(min(SAMPLES, len(pairs)))]

    def error(form: str) -> float:
        return float(np.median([_error(pair, form) for pair in chosen]))

    return min((form for form in pairs[0].forms if all(form in pair.forms for pair in pairs)), key=error)


def _error(pair: Pair, form: str) -> float:
    wanted = pair.values(form)
    return float(np.linalg.norm(pair.stored.all() - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))


def _reference(pair: Pair, form: str) -> Reference:
    def variants(values: Array) -> Iterator[tuple[str, Array]]:
        for other in pair.forms.keys() - {form}:
            yield f"is stored {other}, and {form} elsewhere", pair.values(other)

    return Reference(pair.stored.name, pair.stored.shape, partial(pair.values, form), variants)


def _check_architecture(facts: Facts, layout: GgufLayout, model: Path) -> None:
    """Check the name of the architecture, where llama.cpp has one for all models of this class."""
    name = architecture(read_config(model))
    wanted, found = converter.gguf_architecture(name), layout.metadata.get("general.architecture")
    if wanted is not None:
        facts.add(
            found == wanted,
            f"the file is of the architecture {found}, and llama.cpp's of a {name} is {wanted}",
        )


def _check_parameters(facts: Facts, layout: GgufLayout, config: Any) -> None:
    prefix = f"{layout.metadata['general.architecture']}."
    wanted = {key: getattr(config, name, None) for key, name in PARAMETERS.items()}
    rope = (rope_of(config)[0] if getattr(config, "rope_parameters", None) else None) or {}
    wanted["rope.freq_base"] = rope.get("rope_theta")
    if not getattr(config, "kv_lora_rank", None):  # the converter stores latent attention as another kind
        wanted["attention.head_count_kv"] = getattr(config, "num_key_value_heads", None)
        if not getattr(config, "global_head_dim", None):
            size = _head_size(config)
            wanted["attention.key_length"] = size
            wanted["attention.value_length"] = getattr(config, "v_head_dim", None) or size
    if rope.get("rope_type") != "dynamic":  # whose context llama.cpp's converter sets itself
        wanted["context_length"] = getattr(config, "max_position_embeddings", None)
    for key, value in wanted.items():
        found = np.atleast_1d(layout.metadata.get(prefix + key, ()))
        if isinstance(value, int | float) and np.issubdtype(found.dtype, np.number):
            some = found[found != 0]  # a layer with no heads has no attention
            for each in np.unique(some if some.size else found):
                facts.add(
                    bool(np.isclose(each, value, rtol=1e-6)), f"{key} is {each:g}, the model's is {value:g}"
                )
    _check_optional(facts, layout, config, rope)


def _head_size(config: Any) -> int | None:
    if (own := getattr(config, "head_dim", None)) is not None:
        return int(own) if isinstance(own, int) else None
    heads, width = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    return width // heads if isinstance(heads, int) and isinstance(width, int) and heads else None


def _check_optional(facts: Facts, layout: GgufLayout, config: Any, rope: Mapping[str, Any]) -> None:
    """Check the parameters whose absence has a meaning: windows, soft caps and the scaling of rope."""
    prefix = f"{layout.metadata['general.architecture']}."
    wanted: dict[str, Any] = {
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
    }
    window, layers = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    used = not layers or "sliding_attention" in layers
    longest = getattr(config, "max_position_embeddings", None)
    if prefix + WINDOW in layout.metadata or (
        window and used and not (longest and window >= longest)
    ):  # one that is never reached need not be stated
        wanted[WINDOW] = window
    kind, factor = rope.get("rope_type", "default"), rope.get("factor")
    if kind in ("default", "linear", "yarn"):
        scaled = kind != "default" and factor != 1
        wanted |= {
            "rope.scaling.type": kind if scaled else None,
            "rope.scaling.factor": factor if scaled else None,
        }
    for key, value in wanted.items():
        found = layout.metadata.get(prefix + key)
        if key == "rope.scaling.type" and layout.metadata.get(f"{prefix}rope.scaling.factor", 1) == 1:
            found = None  # scaled by nothing, whatever the type
        if isinstance(found, np.ndarray):  # one for each layer; 0 where it does not apply
            each_layer = np.unique(found[found != 0]).tolist()
            found = each_layer[0] if len(each_layer) == 1 else each_layer
        found, value = (None if each in NEUTRAL.get(key, (0,)) else each for each in (found, value))
        same = found == value
        if isinstance(found, int | float) and isinstance(value, int | float):
            same = bool(np.isclose(found, value, rtol=1e-6))
        facts.add(same, f"{key} is {found or 'not stated'}, the model's is {value or 'none'}")


def _tell_unpaired(layout: GgufLayout, rows: Rows, pairs: Mapping[str, Pair], emit: Emit) -> None:
    left = [info for name, info in layout.tensors.items() if name not in pairs]
    compared = {key for pair in pairs.values() for key in pair.keys}
    others = [key for key in rows.shapes if key not in compared]
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
