"""Checks that the parts of a Hugging Face folder fit together: token ids, embedding rows, layers, finite weights.

transformers fills missing layers with random weights, and torch fails with an IndexError on a token id that has no
embedding row; this module reports both before anything is loaded. The chat template is checked first, because an endless
one would otherwise be found after minutes of other work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.base.errors import CorruptError, UnsupportedError
from edgekit.containers import finite
from edgekit.containers.reader import shown
from edgekit.containers.safetensors import INDEX, SINGLE, StoredTensor, read_safetensors
from edgekit.models import tokenizer_files
from edgekit.models.tokenizer_files import HINT, read_object

EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings)\.weight$")
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
PICKLED = re.compile(r"(?!training_args|optimizer|scheduler|scaler|rng_state).+\.(?:bin|pt|pth|ckpt)")
WHOLE = "Copy or download the whole model folder."
MOST_NAMED = 3  # missing files
FLOATS = {"F64": finite.F64, "F32": finite.F32, "F16": finite.F16, "BF16": finite.BF16}


def check_folder(folder: Path) -> None:
    """Check the parts of a model folder against each other; all weights are read once.

    Raises as `check_weights`, and `CorruptError` for a chat template beyond its limits, a token id that is given out and
    has no embedding, a config that does not fit the weights, and NaN or infinite weights.
    """
    prompts = tokenizer_files.printed(tokenizer_files.chat_template(folder))
    check_weights(folder)
    files = {file: read_safetensors(file) for file in sorted(folder.glob("*.safetensors"))}
    tensors = {name: tensor for found in files.values() for name, tensor in found.items()}
    _check_sizes(folder, tensors, prompts)
    for file, found in files.items():
        floats = (
            (n, FLOATS[t.dtype], t.start, t.end - t.start) for n, t in found.items() if t.dtype in FLOATS
        )
        if broken := finite.first_broken_float(file, floats):
            raise CorruptError(
                f"{file} is damaged: tensor {shown(broken[0])} holds NaN or infinity at index {broken[1]}.",
                HINT,
            )


def missing_weights(folder: Path) -> list[str]:
    """The names of the weight files that a folder lacks: `model.safetensors`, or an index and the shards that it names.

    Raises `CorruptError` for an index that cannot be read.
    """
    here = {file.name for file in folder.glob("*") if file.is_file()}
    named = read_object(folder / INDEX).get("weight_map")
    needed = {str(name) for name in named.values()} if isinstance(named, dict) else set[str]()
    if not needed and SINGLE not in here:
        for shard in filter(None, map(SHARD.fullmatch, here)):
            count = int(shard[2])
            needed |= {f"{shard[1]}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)}
        needed |= {INDEX if needed else SINGLE}
    return sorted(needed - here)


def check_weights(folder: Path) -> None:
    """Raise `CorruptError` for a folder that lacks a part of its weights, and `UnsupportedError` for one without weights."""
    missing = [shown(name)[1:-1] for name in missing_weights(folder)]
    if not missing:
        return
    if missing != [SINGLE] or any(folder.glob("*.safetensors")):
        more = f" and {len(missing) - MOST_NAMED} others" if len(missing) > MOST_NAMED else ""
        raise CorruptError(
            f"{folder} is incomplete: it has no {', '.join(missing[:MOST_NAMED])}{more}.", WHOLE
        )
    pickled = sorted(file.name for file in folder.glob("*") if PICKLED.fullmatch(file.name))
    if not pickled:
        raise UnsupportedError(
            f"{folder} has no weights: no {SINGLE}, and no {INDEX} with its shards. Nothing was started.",
            WHOLE,
        )
    python = f"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{folder}').save_pretrained('{folder}')"
    raise UnsupportedError(
        f"{folder} has no {SINGLE}, and edgekit never loads pickled files such as {shown(pickled[0])[1:-1]}, which can "
        "run any code. Nothing was started.",
        f'Get the model as safetensors. If you trust the file, transformers converts it: python -c "{python}"',
    )


def _check_sizes(folder: Path, tensors: Mapping[str, StoredTensor], prompts: str) -> None:
    whole = read_object(folder / "config.json")
    config = part if isinstance(part := whole.get("text_config"), dict) else whole
    embedding = next((tensor for name, tensor in tensors.items() if EMBEDDING.search(name)), None)
    if embedding is not None and len(embedding.shape) == 2:
        rows, width = embedding.shape
        for key, size in (("vocab_size", rows), ("hidden_size", width)):
            if config.get(key, size) != size:
                raise CorruptError(
                    f"{folder / 'config.json'} says {key} {str(config[key])[:40]}, but the embedding has {size}.",
                    HINT,
                )
        if fault := next(tokenizer_files.faults(folder, rows, prompts), ""):
            raise CorruptError(f"{folder} is damaged: {fault}.", HINT)
        for name in ("config.json", "generation_config.json"):
            _check_special_ids(folder / name, read_object(folder / name), rows)
    layers = {int(match[1]) for name in tensors if (match := LAYER.search(name))}
    expected = config.get("num_hidden_layers")
    if layers and isinstance(expected, int) and layers != set(range(expected)):
        raise CorruptError(
            f"{folder / 'config.json'} says num_hidden_layers {expected}, and there are weights of {len(layers)} layers, up to {max(layers)}.",
            HINT,
        )


def _check_special_ids(file: Path, settings: Mapping[str, Any], rows: int) -> None:
    """Raise `CorruptError` for an id with a role and without a row. A negative id says that there is none, but of an end."""
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given = settings.get(role)
        for id_ in given if isinstance(given, list) else [given]:
            least = 0 if role == "eos_token_id" else -1
            if id_ is not None and (type(id_) is not int or not least <= id_ < rows):
                raise CorruptError(
                    f"{file} says {role} {ascii(id_)[:40]}, and the embedding has {rows} rows.", HINT
                )
