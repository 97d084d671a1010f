"""Tiny seeded models with the makers' own tokenizers, whose files are copied byte for byte."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers

from edgekit.data.rows import Message
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.proof import texts
from edgekit.proof.held_out import TEXT_TOKENS

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


ANSWERS = [
    "Paris", "Hello", "yes", "12", "red", "door", "días", "LAMP", "seven", "East", "mice", "dog", "ocean", "bye", "late",
    "assistant", "apples", "no", "honey", "rain", "water", "Oslo", "July", "receive", "green", "Goodbye", "never", "5",
    "spring", "bottles", "paper", "A",
]  # fmt: skip
LEARNING_RATE = 3e-3


def teach(folder: Path, read: Sequence[str] = texts.TEXTS[:1], steps: int = 45) -> Path:
    """Tune the model in `folder` until it is sure of an answer to each of `texts.PROMPTS`, and of the texts `read`.

    A seeded model's most likely tokens are nearly as likely as the next ones, so that any rounding exchanges them. This
    one's are not. Only the rows of the tokens in these texts are trained; the probability of all others is estimated
    from the spread of their rows, which stay as they are.
    """
    tokenizer = ModelTokenizer(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ends = min(tokenizer.stop_ids)
    asked: list[list[Message]] = [[{"role": "user", "content": prompt}] for prompt in texts.PROMPTS]
    rendered = [tokenizer.chat_template.render(messages, add_generation_prompt=True) for messages in asked]
    rows = [
        [*tokenizer.encode(prompt), *tokenizer.encode(word), ends]
        for prompt, word in zip(rendered, ANSWERS, strict=True)
    ]
    plain = [[*tokenizer.begin_ids, *tokenizer.encode(text)[:TEXT_TOKENS]] for text in read]
    used = sorted({id_ for ids in (*rows, *plain) for id_ in ids})
    table = model.get_input_embeddings()
    scale = float(getattr(table, "embed_scale", 1.0))
    table.weight.requires_grad_(False)
    trained = torch.nn.Parameter(table.weight[used].clone())
    others, spread = math.log(len(table.weight)), float(table.weight.std())
    parameters = [trained, *(part for part in model.parameters() if part.requires_grad)]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    batches = [_batch(group, used) for group in (rows, plain) if group]
    for _ in range(steps):
        losses = []
        for ids, following in batches:
            states = model.model(inputs_embeds=trained[ids] * scale, use_cache=False).last_hidden_state
            states = states[following >= 0]
            logits = states @ trained.T
            rest = others + spread**2 / 2 * states.square().sum(-1)
            whole = torch.logaddexp(logits.logsumexp(-1), rest)
            losses.append(whole - logits.gather(1, following[following >= 0][:, None])[:, 0])
        optimizer.zero_grad()
        torch.cat(losses).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        table.weight[used] = trained
    settings = (folder / "generation_config.json").read_text(encoding="utf-8")
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(settings, encoding="utf-8")
    return folder


def _batch(rows: Sequence[list[int]], used: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Places in `used` of the tokens of each row, and of the tokens that follow them, -100 for none; `(rows, T)`."""
    place = {id_: number for number, id_ in enumerate(used)}
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    following = torch.full_like(ids, -100)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor([place[id_] for id_ in row])
        following[number, : len(row) - 1] = ids[number, 1 : len(row)]
    return ids, following
