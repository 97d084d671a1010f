"""Tiny seeded models with the makers' own tokenizers, whose files are copied byte for byte."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers

_TOOL = Path(__file__).parents[1] / "tools" / "fetch_tokenizers.py"
_spec = importlib.util.spec_from_file_location("fetch_tokenizers", _TOOL)
assert _spec is not None and _spec.loader is not None
fetch_tokenizers = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = fetch_tokenizers  # dataclasses look their module up
_spec.loader.exec_module(fetch_tokenizers)

# The family whose weights are seeded, the rows of the makers' embedding, and the special ids of their config.json.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": (
        "qwen3",
        {
            "vocab_size": 151936,
            "bos_token_id": 151643,
            "eos_token_id": [151645, 151643],
            "pad_token_id": 151643,
        },
    ),
    "gemma3": (
        "gemma3",
        {
            "vocab_size": 262144,
            "bos_token_id": 2,
            "eos_token_id": [1, 106],
            "pad_token_id": 0,
            "num_hidden_layers": 6,  # one whole period of Gemma's windows, as llama.cpp's converter assumes
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        },
    ),
    "llama3.1": (
        "llama3",
        {
            "vocab_size": 128256,
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128009],
            "pad_token_id": None,
        },
    ),
    "deepseek-v3": (
        "llama",
        {"vocab_size": 129280, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None},
    ),
}


def tokenizer_folder(name: str) -> Path:
    """The folder with the files of the tokenizer `name`; the test is skipped, by name, where they were not fetched."""
    found: Path | None = fetch_tokenizers.folder(name)
    if found is None:
        pytest.skip(f"the tokenizer {name} is not here; fetch it: python tools/fetch_tokenizers.py")
    return found


def make(folder: Path, name: str, seed: int = 0, **changes: Any) -> Path:
    """Write a seeded model (hidden size 64) with the tokenizer `name` to `folder`; `changes` go into its config."""
    files = tokenizer_folder(name)
    family, own = MODELS[name]
    config_class, extra = tiny.FAMILIES[family]
    settings = {**tiny.SHAPE, **extra, "tie_word_embeddings": True, **own, **changes}
    config = getattr(transformers, config_class)(**settings)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    tiny.widen(model)
    model.save_pretrained(folder)
    for file in files.iterdir():
        shutil.copy(file, folder / file.name)
    generation = {
        key: own[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if own[key] is not None
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
