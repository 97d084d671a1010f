"""What transformers' own modules say of an architecture, where `config.json` alone is not enough.

All of this also works for a network on the meta device, which has no weights.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM

from edgekit.base.errors import CorruptError
from edgekit.models.source import read_config

LARGE, SMALL = (
    1e3,
    1e-3,
)  # inputs of a norm: epsilon vanishes beside the first, and weighs as much as the second


class Norm(NamedTuple):
    """What a normalisation layer computes; what it does not state is measured by calling it."""

    centred: bool
    """Whether the mean is subtracted first (LayerNorm), or not (RMSNorm)."""
    epsilon: float
    offset: float
    """The constant that is added to the stored weight."""


def skeleton(model: Path) -> Any:
    """The network of the Hugging Face folder `model`, without weights.

    Raises `CorruptError` when `config.json` does not describe one.
    """
    read_config(model)
    try:
        config = AutoConfig.from_pretrained(model, local_files_only=True)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config).eval()
    except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise CorruptError(
            f"{model / 'config.json'} does not describe a model that transformers knows: {str(error).splitlines()[0]}.",
            "Fetch the model again.",
        ) from error


def measure(norm: torch.nn.Module, width: int) -> Norm:
    """What the normalisation layer `norm` of `width` columns computes."""
    probe = copy.deepcopy(norm).to_empty(device="cpu").float()
    for name, parameter in probe.named_parameters():
        torch.nn.init.constant_(parameter, 0.0 if name == "bias" else 1.0)
    weighted = any(name == "weight" for name, _ in probe.named_parameters())
    signs = torch.tensor([1.0, -1.0]).repeat(width // 2).unsqueeze(0)
    with torch.no_grad():
        gain = float(probe(LARGE * signs)[0, 0])
        damped = float(probe(SMALL * signs)[0, 0]) / gain
        centred = float(probe(LARGE * torch.ones(1, width))[0, 0].abs()) < 0.5 * gain
    stated = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    epsilon = SMALL**2 * (damped**-2 - 1) if stated is None else float(stated)
    return Norm(centred, epsilon, round(gain) - 1.0 if weighted else 0.0)


def attention_of(network: Any, layer: int) -> Any:
    """The attention module of a layer; None in layers without one."""
    return getattr(network.get_decoder().layers[layer], "self_attn", None)


def window(network: Any, layer: int) -> int | None:
    """How many tokens the attention of a layer sees, its own included; None for all."""
    attention = attention_of(network, layer)
    if hasattr(attention, "sliding_window"):
        own: int | None = attention.sliding_window
        return own
    uniform = getattr(network.config, "layer_types", None) is None
    return getattr(network.config, "sliding_window", None) if uniform else None


def turns(network: Any, attention: Any) -> bool:
    """Whether the queries and keys of a layer's `attention` are turned by rope."""
    rotary = getattr(network.get_decoder(), "rotary_emb", None)
    return rotary is not None and bool(getattr(attention, "use_rope", True))


def interleaved(attention: Any) -> bool:
    """Whether rope turns neighbouring columns of a head together, and not those of its two halves."""
    turn = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if turn is None:
        return False
    column = torch.zeros(1, 1, 1, 8)
    column[..., 0] = 1.0
    angle = torch.ones(1, 1, 8)
    return bool(turn(column, column, angle.cos(), angle.sin())[0][..., 1] != 0)


def rope_frequencies(network: Any, layer_type: str) -> tuple[torch.Tensor, float]:
    """Rotary frequencies `(columns / 2,)` of the layers of a type, and the factor of cosine and sine."""
    rotary = network.get_decoder().rotary_emb
    name = f"{layer_type}_inv_freq" if has_types(rotary) else "inv_freq"
    if getattr(rotary, name).is_meta:
        rotary = type(rotary)(network.config)
    factor = getattr(rotary, name.replace("inv_freq", "attention_scaling"), 1.0)
    return getattr(rotary, name).float(), float(factor)


def has_types(rotary: Any) -> bool:
    """Whether layers with and without a window are turned differently."""
    return hasattr(rotary, "full_attention_inv_freq")


def layer_type(network: Any, layer: int) -> str:
    """`sliding_attention` for a layer with a window, else `full_attention`."""
    return "full_attention" if window(network, layer) is None else "sliding_attention"


def embedding_scale(network: Any) -> float:
    """The factor of the token embeddings."""
    own = getattr(network.get_input_embeddings(), "scalar_embed_scale", 1.0)
    return float(own) * float(getattr(network.get_decoder(), "embedding_multiplier", 1.0))
