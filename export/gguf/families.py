"""What each architecture needs in a GGUF file, and what llama.cpp cannot express.

The facts follow llama.cpp's graphs (`src/models/*.cpp`) and its converter (`conversion/*.py`); the tests compare every
family with torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray

from edgekit.models.gguf_source import CompleteConfig

ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
NO_ROPE_STEP = 4  # llama.cpp's SmolLM3 rotates nothing in every fourth layer
ALREADY_QUANTIZED = "The weights are already quantized; GGUF is written from float weights."
YARN_BETAS = {"beta_fast": 32, "beta_slow": 1}  # llama.cpp reads no others for these architectures


@dataclass(frozen=True)
class Family:
    """How one Hugging Face architecture is laid out in GGUF."""

    arch: gguf.MODEL_ARCH
    activation: str = "silu"
    rotary_pairs: bool = False
    """Whether llama.cpp rotates neighbouring rows of q and k together, where Hugging Face rotates the halves of a head."""
    norm_shift: float = 0.0
    """The constant that the model adds to the weight of each norm."""
    biases: bool = False
    """Whether llama.cpp reads optional biases of the attention and the MLP."""
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")
    partial_rotary: bool = False
    """Whether llama.cpp can rotate only the first columns of a head."""
    own_heads: bool = True
    """Whether the heads may be wider or narrower than the hidden size asks for."""


LLAMA = Family(
    gguf.MODEL_ARCH.LLAMA, rotary_pairs=True, biases=True, rope_types=("default", "linear", "yarn", "llama3")
)
FAMILIES = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": Family(gguf.MODEL_ARCH.QWEN2, own_heads=False),
    "Qwen3ForCausalLM": Family(gguf.MODEL_ARCH.QWEN3),
    "Gemma3ForCausalLM": Family(
        gguf.MODEL_ARCH.GEMMA3,
        activation="gelu_pytorch_tanh",
        norm_shift=1.0,
        rope_types=("default", "linear"),
    ),
    "SmolLM3ForCausalLM": Family(gguf.MODEL_ARCH.SMOLLM3, rotary_pairs=True),
    "GraniteForCausalLM": Family(gguf.MODEL_ARCH.GRANITE, rotary_pairs=True, biases=True),
    "Phi3ForCausalLM": Family(
        gguf.MODEL_ARCH.PHI3, rope_types=("default", "longrope"), partial_rotary=True, own_heads=False
    ),
}


def architecture(config: Mapping[str, Any]) -> str:
    """The model class that `config.json` names."""
    return str((config.get("architectures") or ["An unnamed architecture"])[0])


def typed(config: Mapping[str, Any]) -> Any:
    """`config.json` as transformers reads it: defaults filled in, old rope keys converted to `rope_parameters`."""
    if isinstance(config, CompleteConfig):
        return SimpleNamespace(**config)
    from transformers import AutoConfig

    values = dict(config)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def head_size(config: Any) -> int:
    """Columns of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rotated_columns(config: Any) -> int:
    """The columns of a head that rope rotates: the first ones."""
    rope, _ = rope_of(config)
    return int(head_size(config) * rope.get("partial_rotary_factor", 1.0))


def rope_of(config: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Rope parameters of the layers with full attention, and of those with a sliding window when they differ."""
    rope = config.rope_parameters
    return (rope["full_attention"], rope["sliding_attention"]) if "full_attention" in rope else (rope, None)


def faults(config: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each reason why this model cannot become a GGUF file. Reads `config.json` only."""
    name = architecture(config)
    if (family := FAMILIES.get(name)) is None:
        yield f"{name} is not an architecture that edgekit writes as GGUF itself."
        return
    if config.get("quantization_config"):
        yield ALREADY_QUANTIZED
        return
    try:
        model = typed(config)
        rope, sliding_rope = rope_of(model)
        head = head_size(model)
    except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        yield f"config.json does not describe a {name}: {str(error).splitlines()[0]}."
        return
    yield from _rope_faults(rope, family)
    if sliding_rope and sliding_rope.get("rope_type", "default") != "default":
        yield f"llama.cpp cannot scale the rope of sliding-window layers (type '{sliding_rope['rope_type']}')."
    activation = getattr(model, "hidden_activation", None) or getattr(model, "hidden_act", None)
    if activation != family.activation:
        yield f"llama.cpp computes {name} with {family.activation}, and this model uses {activation}."
    if getattr(model, "attention_bias", False) and not family.biases:
        yield f"llama.cpp has no attention biases for {name}."
    if not family.own_heads and head * model.num_attention_heads != model.hidden_size:
        yield f"llama.cpp needs heads that fill the hidden size in {name}; here {model.num_attention_heads} x {head}."
    if family.arch is gguf.MODEL_ARCH.GEMMA3:
        yield from _gemma_faults(model, head)
    if family.arch is gguf.MODEL_ARCH.SMOLLM3:
        rotated = [int((layer + 1) % NO_ROPE_STEP != 0) for layer in range(model.num_hidden_layers)]
        if list(model.no_rope_layers) != rotated:
            yield "llama.cpp has no rope in every fourth layer of SmolLM3, and this model in others."


def _rope_faults(rope: Mapping[str, Any], family: Family) -> Iterator[str]:
    kind = rope.get("rope_type", "default")
    if kind not in family.rope_types:
        yield f"llama.cpp has no rope scaling of type '{kind}' for this architecture ({', '.join(family.rope_types)})."
    elif kind not in ("default", "longrope") and not rope.get("factor"):
        yield f"The rope scaling of type '{kind}' gives no factor."
    if rope.get("partial_rotary_factor", 1.0) != 1.0 and not family.partial_rotary:
        yield "llama.cpp rotates whole heads in this architecture, and this model rotates only a part (partial_rotary_factor)."
    if kind == "yarn":
        if not rope.get("original_max_position_embeddings"):
            yield "The yarn rope scaling gives no original_max_position_embeddings."
        odd = [key for key, fixed in YARN_BETAS.items() if (rope.get(key) or fixed) != fixed]
        odd += ["truncate"] if rope.get("truncate") is False else []
        if odd:
            yield f"llama.cpp fixes yarn's {', '.join(odd)}, and this model sets another value."


def _gemma_faults(config: Any, head: int) -> Iterator[str]:
    if config.attn_logit_softcapping is not None:
        yield "llama.cpp has no attention soft-capping for Gemma 3."
    if config.use_bidirectional_attention:
        yield "llama.cpp has no bidirectional attention for Gemma 3."
    # llama.cpp derives the scale from the head size, and for 62 layers (27B) from hidden size / number of heads
    scale = config.hidden_size // config.num_attention_heads if config.num_hidden_layers == 62 else head
    if config.query_pre_attn_scalar != scale:
        yield f"llama.cpp scales Gemma 3's attention by {scale}, and this model by {config.query_pre_attn_scalar}."


def write_parameters(writer: gguf.GGUFWriter, config: Any) -> None:
    """Add the hyperparameters of a checked model (`config` from `typed`) to the file."""
    head = head_size(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(_context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(rotated_columns(config))
    rope, sliding_rope = rope_of(config)
    _write_rope(writer, rope)
    if sliding_rope:
        writer.add_rope_freq_base_swa(sliding_rope["rope_theta"])
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if rope.get("rope_type") == "longrope":
        writer.add_rope_scaling_orig_ctx_len(_original_context(config))
        writer.add_rope_scaling_attn_factors(_longrope_scale(config))


def _context_length(config: Any) -> int:
    """The longest context in which llama.cpp and the model agree.

    Of llama.cpp's graphs only Gemma's has sliding windows. Those of Mistral, Qwen and Phi attend to all tokens, which is
    the same up to the length of the window. Of the two lists of longrope, llama.cpp chooses by the length of its context,
    and the model by that of the text; up to the original context both take the short factors.
    """
    longest = int(config.max_position_embeddings)
    if rope_of(config)[0].get("rope_type") == "longrope":
        longest = min(longest, _original_context(config))
    window: int | None = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or ["sliding_attention"]
    if window is None or "sliding_attention" not in layers or config.model_type == "gemma3_text":
        return longest
    return min(longest, window)


def _write_rope(writer: gguf.GGUFWriter, rope: Mapping[str, Any]) -> None:
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        usual = _yarn_scale(rope["factor"])
        if (wanted := _yarn_attention_factor(rope)) != usual:
            writer.add_rope_scaling_attn_factors(wanted / usual)


def _yarn_scale(factor: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_attention_factor(rope: Mapping[str, Any]) -> float:
    """The factor of cosine and sine (Peng et al. 2023, arXiv 2309.00071), as transformers reads it."""
    if (given := rope.get("attention_factor")) is not None:
        return float(given)
    over, under = rope.get("mscale"), rope.get("mscale_all_dim")
    if over and under:
        return _yarn_scale(rope["factor"], over) / _yarn_scale(rope["factor"], under)
    return _yarn_scale(rope["factor"])


def _original_context(config: Any) -> int:
    return int(rope_of(config)[0].get("original_max_position_embeddings") or config.max_position_embeddings)


def _longrope_scale(config: Any) -> float:
    """The factor of cosine and sine with longrope (Ding et al. 2024, arXiv 2402.13753), as transformers reads it."""
    rope, _ = rope_of(config)
    if (given := rope.get("attention_factor")) is not None:
        return float(given)
    original = _original_context(config)
    factor = rope.get("factor") or config.max_position_embeddings / original
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def rope_factors(config: Any) -> dict[str, NDArray[np.float32]]:
    """Divisors of the rotary frequencies `(rotated columns / 2,)` by the name of their tensor: of Llama 3, and of longrope.

    Those of Llama 3 are 1 for short wavelengths, `factor` for long ones, and blended between (Grattafiori et al. 2024, arXiv
    2407.21783; the same numbers as in transformers, rounded once).
    """
    rope, _ = rope_of(config)
    if rope.get("rope_type") == "longrope":
        lists = {ROPE_LONG: rope["long_factor"], ROPE_SHORT: rope["short_factor"]}
        return {name: np.array(factors, np.float32) for name, factors in lists.items()}
    if rope.get("rope_type") != "llama3":
        return {}
    size = head_size(config)
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, size, 2) / size)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = np.clip((_original_context(config) / wavelengths - low) / (high - low), 0, 1)
    return {ROPE_FREQS: (1 / ((1 - kept) / rope["factor"] + kept)).astype(np.float32)}


def name_map(config: Any, family: Family) -> gguf.TensorNameMap:
    """The map from Hugging Face tensor names to GGUF names."""
    return gguf.get_tensor_name_map(family.arch, config.num_hidden_layers)


def to_gguf(name: str, values: NDArray[np.float32], config: Any, family: Family) -> NDArray[np.float32]:
    """The values of the Hugging Face tensor `name` as llama.cpp expects them; shape unchanged."""
    if family.rotary_pairs and ".self_attn.q_proj." in name:
        return interleave(values, config.num_attention_heads)
    if family.rotary_pairs and ".self_attn.k_proj." in name:
        return interleave(values, config.num_key_value_heads)
    if family.norm_shift and name.endswith("norm.weight"):
        return values + values.dtype.type(family.norm_shift)
    return values


def from_gguf(name: str, values: NDArray[np.float32], config: Any, family: Family) -> NDArray[np.float32]:
    """The inverse of `to_gguf`."""
    if family.rotary_pairs and ".self_attn.q_proj." in name:
        return deinterleave(values, config.num_attention_heads)
    if family.rotary_pairs and ".self_attn.k_proj." in name:
        return deinterleave(values, config.num_key_value_heads)
    if family.norm_shift and name.endswith("norm.weight"):
        return values - values.dtype.type(family.norm_shift)
    return values


def interleave(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of each head from two halves to neighbouring pairs, `(heads * size, ...)`."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def deinterleave(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """The inverse of `interleave`: rows of each head from neighbouring pairs to two halves, `(heads * size, ...)`."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)
