"""Depth pruning: removes the whole decoder layers that change the hidden state least.

The block influence of a layer is one minus the cosine similarity of its input and its output (ShortGPT, Men et al. 2024,
arXiv 2403.03853). The weights are streamed to new shards with their layers renumbered, and `config.json` is
rewritten to describe the remaining layers one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from edgekit.base.errors import ConfigError, CorruptError, UnsupportedError
from edgekit.base.events import Emit, Measured, Progress, ignore
from edgekit.export.weights.folder import copy_companions, model_config, note, read_json
from edgekit.export.weights.safetensors_io import Layout, Weights, write_weights
from edgekit.models import accelerator, mapped
from edgekit.targets.target import Prune

# Settings that refer to layers by index, other than lists with one entry for each layer.
LAYER_INDEXED = (
    "mlp_only_layers", "cross_attention_layers", "first_k_dense_replace", "num_kv_shared_layers",
    "scale_attn_by_inverse_layer_idx", "moe_layers", "attn_layer_indices",
)  # fmt: skip
# Rules from which `layer_types` and the like are derived; after pruning only the derived lists are right.
LAYER_RULES = ("sliding_window_pattern", "_sliding_window_pattern", "no_rope_layer_interval")


def prune(
    model: Path, out: Path, options: Prune, *, calibration: Sequence[Sequence[int]], emit: Emit = ignore
) -> dict[str, Any]:
    """Write the Hugging Face folder `model` without its `options.drop_layers` least influential layers to `out`.

    `calibration` holds token ids that the influence is averaged over. The first and the last layer always stay.
    Returns `dropped`, the removed layers' indices, and `influence`, one score for each layer of `model`.
    Raises `ConfigError` when too many layers are asked for and `UnsupportedError` when the architecture has
    settings that cannot be renumbered.
    """
    weights = Weights(model)
    config = model_config(model)
    if hasattr(config, "text_config"):
        raise UnsupportedError(
            f"{model} is a multimodal model; only text decoders can be pruned.", "Set prune.drop_layers = 0."
        )
    if stated := [key for key in LAYER_INDEXED if getattr(config, key, None)]:
        raise UnsupportedError(
            f"{model} refers to layers by index in {', '.join(stated)}, which edgekit cannot renumber.",
            "Set prune.drop_layers to 0.",
        )
    layers = config.num_hidden_layers
    if options.drop_layers >= layers - 2:
        raise ConfigError(
            f"{options.drop_layers} of {layers} layers cannot be dropped; nothing was written.",
            f"Set prune.drop_layers to at most {max(layers - 3, 0)}.",
        )
    if not any(calibration):
        raise ConfigError(
            "Pruning needs calibration rows, and there are none.", "Name training data with --data."
        )

    prefix, influence = block_influence(model, calibration, emit)
    candidates = sorted(range(1, layers - 1), key=lambda layer: (influence[layer], layer))
    dropped = sorted(candidates[: options.drop_layers])
    kept = [layer for layer in range(layers) if layer not in dropped]

    sources = _renumbered(weights, prefix, kept)
    layout = {name: weights.layout[source] for name, source in sources.items()}
    raw = pruned_config(read_json(model / "config.json"), config.to_dict(), kept)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if wrong := sorted(_misfits(out, layout) - _misfits(model, weights.layout)):
        raise UnsupportedError(
            f"{model} has settings for single layers that edgekit cannot prune: without layers {dropped}, "
            f"{len(wrong)} tensors such as '{wrong[0]}' would not fit.",
            "Set prune.drop_layers to 0.",
        )
    write_weights(out, layout, lambda name: weights[sources[name]])
    copy_companions(model, out)
    note(out, "dropped_layers", dropped)
    return {"dropped": dropped, "influence": influence}


def block_influence(
    model: Path, calibration: Sequence[Sequence[int]], emit: Emit = ignore
) -> tuple[str, list[float]]:
    """The name before a layer's number (`model.layers.`), and each layer's influence averaged over all tokens."""
    network, loading = mapped.load(model, output_loading_info=True)
    if absent := sorted(loading["missing_keys"]):
        raise CorruptError(
            f"{model} lacks {len(absent)} tensors of its architecture, such as '{absent[0]}'.",
            "Download the model again.",
        )
    accelerator.place(network)
    count = network.config.num_hidden_layers
    name, blocks = next(
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    )
    sums = [0.0] * count

    def record(layer: int) -> Any:
        def hook(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            sums[layer] += (1 - torch.cosine_similarity(before, after, dim=-1)).double().sum().item()

        return hook

    for layer, block in enumerate(blocks):
        block.register_forward_hook(record(layer), with_kwargs=True)
    with torch.inference_mode():
        for done, ids in enumerate(calibration, 1):
            if ids:
                network.base_model(accelerator.ids_for(network, [ids]), use_cache=False)
            emit(Progress("prune", done, len(calibration), "rows"))
    influence = [total / sum(map(len, calibration)) for total in sums]
    for layer, value in enumerate(influence):
        emit(Measured("prune", "block_influence", value, step=layer))
    return f"{name}.", influence


def pruned_config(raw: dict[str, Any], resolved: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """`raw`, a `config.json`, for the layers `kept` alone.

    `resolved` is the same config with its class's defaults filled in. Each of its lists with one entry for each layer is
    pruned and written out, so that no rule over layer numbers is needed any more.
    """
    layers = resolved["num_hidden_layers"]
    result = {key: value for key, value in raw.items() if key not in LAYER_RULES}
    for key, value in resolved.items():
        # Lists of token ids may be as long as the model is deep, by chance.
        if isinstance(value, list) and len(value) == layers and "token" not in key:
            result[key] = [value[layer] for layer in kept]
    if isinstance(first := resolved.get("max_window_layers"), int):  # layers from this one on use the window
        result["max_window_layers"] = sum(layer < first for layer in kept)
    result["num_hidden_layers"] = len(kept)
    return result


def _renumbered(weights: Weights, prefix: str, kept: Sequence[int]) -> dict[str, str]:
    """New tensor name to old tensor name, in the stored order."""
    numbers = {old: new for new, old in enumerate(kept)}
    pattern = re.compile(re.escape(prefix) + r"(\d+)(\..+)")
    sources = {}
    for name in weights:
        if not (match := pattern.fullmatch(name)):
            sources[name] = name
        elif (old := int(match[1])) in numbers:
            sources[f"{prefix}{numbers[old]}{match[2]}"] = name
    return sources


def _misfits(folder: Path, layout: Layout) -> set[str]:
    """Tensors that the folder's config expects and `layout` lacks or shapes otherwise, and those it does not expect."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(model_config(folder))
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return {
        name
        for name in expected.keys() | layout.keys()
        if expected.get(name) != layout.get(name, (None, None))[1]
    }
