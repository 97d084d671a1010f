"""Merge a LoRA adapter into its base model, one tensor at a time.

Every base tensor is mapped, changed in float32, rounded once to the type in which it is stored, and streamed to new
shards, so memory holds about one tensor and its low-rank product. A setting of the adapter that is not supported here is refused by name, never ignored.
LoRA: Hu et al. 2021, arXiv 2106.09685; rsLoRA: arXiv 2312.03732; DoRA: arXiv 2402.09353; all as `peft` merges them.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.base.artifacts import sha256_file
from edgekit.base.errors import ConfigError, CorruptError, UnsupportedError
from edgekit.base.events import Emit, Progress, ignore
from edgekit.containers.safetensors import ADAPTER_PREFIX, ADAPTER_WEIGHTS
from edgekit.export.weights.folder import copy_companions, model_config, note, read_json
from edgekit.export.weights.safetensors_io import Weights, write_weights
from edgekit.models.source import MERGED

# Keys of adapter_config.json that are handled here or do not change what the stored tensors mean.
# Any other key may be present only if it is unset.
UNDERSTOOD = {
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias", "lora_bias",
    "init_lora_weights", "lora_dropout", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path",
    "revision", "inference_mode", "megatron_core", "qalora_group_size", "loftq_config", "eva_config",
    "ensure_weight_tying", "runtime_config",
}  # fmt: skip
# The other initialisations (pissa, olora, corda, loftq ...) change the base weights when the adapter is created.
PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")
OWN = "own"
STORED_AS = {
    OWN: None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip

_PART = re.compile(
    re.escape(ADAPTER_PREFIX) + r"(.+)\.(lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.(weight|bias))?"
)

Edit = Callable[[torch.Tensor], torch.Tensor]
Shapes = Mapping[str, tuple[int, ...]]
Floats = NDArray[np.float32]


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    dtype: str = OWN,
    max_shard_mib: int = 2048,
    emit: Emit = ignore,
) -> None:
    """Write `base` with the PEFT LoRA folder `adapter` merged in to the new folder `out`.

    `dtype` is what the weights are stored as: float32, bfloat16, float16, or `own`, each tensor as in the base. They are
    computed in float32.
    Raises `UnsupportedError` for what cannot be merged exactly, `ConfigError` when the adapter does not fit this
    base, and `CorruptError` for damaged files or weights that are not finite.
    """
    if dtype not in STORED_AS:
        raise ConfigError(
            f"Merged weights cannot be stored as '{dtype}'.", f"Use one of: {', '.join(STORED_AS)}."
        )
    stored = STORED_AS[dtype]
    config = read_json(base / "config.json")
    weights = Weights(base)
    if config.pop("quantization_config", None) and any(
        not kind.is_floating_point for kind, _ in weights.layout.values()
    ):
        raise UnsupportedError(
            f"{base} holds quantized weights, which an adapter cannot be merged into.",
            "Name the unquantized base model.",
        )
    edits = plan_edits(base, weights.shapes, adapter)

    layout = {
        name: ((stored or kind) if kind.is_floating_point else kind, shape)
        for name, (kind, shape) in weights.layout.items()
    }
    total = sum(math.prod(shape) for _, shape in layout.values())
    done = 0

    def merged(name: str) -> torch.Tensor:
        nonlocal done
        value = apply(edits.get(name, ()), weights[name]).to(layout[name][0])
        if value.is_floating_point() and not torch.stack(value.aminmax()).isfinite().all():
            raise CorruptError(
                f"'{name}' holds weights that are not finite after merging and storing as "
                f"{str(value.dtype).removeprefix('torch.')}.",
                "The adapter or the base is damaged. With float16 the range may be too small: use bfloat16.",
            )
        done += value.numel()
        emit(Progress("merge", done / 1e6, total / 1e6, "M weights"))
        return value

    out.mkdir(parents=True, exist_ok=True)
    write_weights(out, layout, merged, max_shard_mib=max_shard_mib)
    kinds = {kind for kind, _ in layout.values() if kind.is_floating_point}
    if len(kinds) == 1:
        config.pop("torch_dtype", None)
        config["dtype"] = str(*kinds).removeprefix("torch.")
    (out / "config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    copy_companions(base, out)
    note(out, MERGED, sha256_file(adapter / ADAPTER_WEIGHTS))


def apply(edits: Iterable[Edit], value: torch.Tensor) -> torch.Tensor:
    """`value` with each edit made in turn, in float32."""
    for edit in edits:
        value = edit(value.float())
    return value


def merged_tensors(base: Path, shapes: Shapes, adapter: Path) -> dict[str, Callable[[Floats], Floats]]:
    """For each tensor of `base` that the adapter changes, its merged values from the stored ones, all in float32.

    `shapes` are those of the base's tensors. The arithmetic is that of `merge`, bit for bit; used to write other formats. Raises as `plan_edits`.
    """

    def merged(edits: list[Edit], values: Floats) -> Floats:
        changed: Floats = apply(edits, torch.from_numpy(values)).numpy()
        return changed

    return {name: partial(merged, edits) for name, edits in plan_edits(base, shapes, adapter).items()}


def plan_edits(base: Path, shapes: Shapes, adapter: Path) -> dict[str, list[Edit]]:
    """For each base tensor that the adapter changes, the functions of one float32 tensor that change it, in order.

    `shapes` are those of the tensors of the folder `base`. Raises as `merge`; every tensor of the adapter is used, or the call fails.
    """
    config = _adapter_config(adapter)
    stored = _adapter_weights(adapter)
    modules: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    edits: dict[str, list[Edit]] = defaultdict(list)
    faults: list[str] = []

    for key in stored:
        if match := _PART.fullmatch(key):
            module, part, kind = match.groups()
            modules[module][f"{part}.bias" if kind == "bias" else part] = stored[key]
            continue
        # modules_to_save, trained biases and resized embeddings are stored whole and replace the base tensor.
        name = key.removeprefix(ADAPTER_PREFIX).replace(".base_layer.", ".")
        if name not in shapes:
            faults.append(f"{key}: the base has no such tensor")
        elif shapes[name] != stored.shapes[key]:
            faults.append(_differ(key, stored.shapes[key], shapes[name]))
        else:
            edits[name].append(partial(_replace, stored[key]))

    _refuse_tied(base, {*modules, *(key.removeprefix(ADAPTER_PREFIX).rpartition(".")[0] for key in stored)})
    for module, parts in sorted(modules.items()):
        faults += _plan_module(module, parts, config, shapes, edits)
    faults += _missing(config, modules, edits, shapes)
    if faults:
        shown = "; ".join(faults[:4]) + (f"; and {len(faults) - 4} more" if len(faults) > 4 else "")
        raise ConfigError(
            f"The adapter {adapter} does not fit the base {base}: {shown}. Nothing was written.",
            "Check that the adapter was trained on this base model.",
            faults,
        )
    return edits


def _adapter_config(adapter: Path) -> Any:
    """The adapter's `peft.LoraConfig`; raises `UnsupportedError` for settings that are not supported here."""
    from peft import LoraConfig

    raw = read_json(adapter / "adapter_config.json")
    if raw.get("peft_type") != "LORA":
        raise UnsupportedError(
            f"{adapter} is a {raw.get('peft_type')} adapter; only LORA adapters can be merged.",
            "Tune a LoRA adapter.",
        )
    if unknown := sorted(key for key, value in raw.items() if value and key not in UNDERSTOOD):
        raise UnsupportedError(
            f"{adapter} sets {', '.join(unknown)}, which cannot be merged.",
            "Tune again without these options.",
        )
    if raw.get("init_lora_weights") not in PLAIN_INITIALISATIONS:
        raise UnsupportedError(
            f"{adapter} was initialised with init_lora_weights='{raw['init_lora_weights']}', which changes the base "
            "weights, so it cannot be merged into the plain base.",
            "Convert it to a plain LoRA with peft (path_initial_model_for_weight_conversion).",
        )
    known = {
        key: value
        for key, value in raw.items()
        if key in UNDERSTOOD and key not in ("peft_type", "loftq_config")
    }
    return LoraConfig(**known)


def _adapter_weights(adapter: Path) -> Weights:
    file = adapter / ADAPTER_WEIGHTS
    if file.is_file():
        return Weights(file)
    if (adapter / "adapter_model.bin").exists():
        raise UnsupportedError(
            f"{adapter} holds adapter_model.bin, a pickle, which is never loaded.",
            "Save the adapter as safetensors.",
        )
    raise ConfigError(f"{file} does not exist.", "Name the folder that tuning wrote.")


def _refuse_tied(base: Path, modules: set[str]) -> None:
    """Refuse an adapter on the embedding or the head of a tied model: one matrix serves as both, so both would change."""
    touched = sorted(m for m in modules if m.removesuffix(".base_layer").rpartition(".")[2] in EMBEDDINGS)
    if touched and model_config(base).tie_word_embeddings:
        raise UnsupportedError(
            f"The adapter changes {', '.join(touched)}, but the base ties its embedding and its head to one matrix.",
            "Tune without these modules, or tune a base that was saved with tie_word_embeddings=false.",
        )


def _plan_module(
    module: str, parts: dict[str, torch.Tensor], config: Any, shapes: Shapes, edits: dict[str, list[Edit]]
) -> list[str]:
    """Add one module's low-rank update to `edits`; returns its faults."""
    from peft.utils.other import get_pattern_key

    embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    names = ("lora_embedding_B", "lora_embedding_A") if embedding else ("lora_A", "lora_B")
    expected = {*names} | ({"lora_magnitude_vector"} if config.use_dora else set())
    expected |= {"lora_B.bias"} if config.lora_bias and not embedding else set()
    if parts.keys() != expected:
        return [f"{module}: expected {', '.join(sorted(expected))}, found {', '.join(sorted(parts))}"]
    if f"{module}.weight" not in shapes:
        return [f"{module}: the base has no such module"]

    # peft stores an embedding's factors transposed: (r, V) and (H, r).
    a, b = (parts[name].T if embedding else parts[name] for name in names)
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern, module), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, module), config.lora_alpha)
    shape = shapes[f"{module}.weight"]
    if a.ndim != 2 or b.ndim != 2 or (b.shape[0], a.shape[1]) != shape:
        return [_differ(module, (*b.shape[:1], *a.shape[1:]), shape)]
    if (a.shape[0], b.shape[1]) != (rank, rank):
        return [f"{module}: rank {a.shape[0]} stored, rank {rank} in adapter_config.json"]
    scaling = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
    magnitude = parts.get("lora_magnitude_vector")
    axis: Literal[0, 1] = 0 if embedding else 1
    if magnitude is not None and magnitude.numel() != shape[1 - axis]:
        return [f"{module}: a DoRA magnitude of {magnitude.numel()} for {shape[1 - axis]} rows"]
    edits[f"{module}.weight"].append(partial(_add_low_rank, a, b, scaling, magnitude, axis))

    if (bias := parts.get("lora_B.bias")) is not None:
        if f"{module}.bias" not in shapes:
            return [f"{module}: the adapter has a LoRA bias and the base has no bias"]
        edits[f"{module}.bias"].append(partial(_add_scaled, bias, scaling))
    return []


def _missing(config: Any, modules: dict[str, Any], edits: dict[str, Any], shapes: Shapes) -> list[str]:
    """What the adapter's configuration names and its tensors lack, such as the layers of a deeper base."""
    from peft.tuners.tuners_utils import check_target_module_exists

    faults = [
        f"{name}: in modules_to_save, but no such tensor is stored"
        for name in config.modules_to_save or ()
        if not any(f".{name}." in f".{edited}" for edited in edits)
    ]
    if config.target_modules:
        for name, shape in shapes.items():
            module = name.removesuffix(".weight")
            if len(shape) == 2 and module not in modules and check_target_module_exists(config, module):
                faults.append(f"{module}: in target_modules, but no adapter is stored for it")
    return faults


def _differ(name: str, adapter: tuple[int, ...], base: tuple[int, ...]) -> str:
    return f"{name}: shape {tuple(adapter)} in the adapter, {tuple(base)} in the base"


def _replace(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    return new.float()


def _add_scaled(bias: torch.Tensor, scaling: float, old: torch.Tensor) -> torch.Tensor:
    return old + bias.float() * scaling


def _add_low_rank(
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    magnitude: torch.Tensor | None,
    axis: int,
    weight: torch.Tensor,
) -> torch.Tensor:
    """W + scaling B A; with DoRA each vector along `axis` is rescaled to its magnitude. All in float32."""
    result = (b.float() @ a.float()).mul_(scaling).add_(weight)
    if magnitude is not None:
        norm = torch.linalg.vector_norm(result, dim=axis)
        result.mul_((magnitude.float().view(-1) / norm).unsqueeze(axis))
    return result
