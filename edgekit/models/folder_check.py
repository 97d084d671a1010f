"""A Hugging Face folder whose parts fit each other: token ids, rows of the embedding, layers, and weights that are numbers.

transformers fills in layers that a folder lacks with random weights, and torch fails with an IndexError on a token id
that has no row; here both are said before anything is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit.base.errors import CorruptError
from edgekit.containers import finite
from edgekit.containers.reader import shown
from edgekit.containers.safetensors import StoredTensor, read_safetensors

HINT = "Get the folder again from its source; its files belong to different models or are damaged."
EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings)\.weight$")
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
FLOATS = {"F64": finite.F64, "F32": finite.F32, "F16": finite.F16, "BF16": finite.BF16}


def check_folder(folder: Path) -> None:
    """Hold the parts of a model folder against each other; all weights are read once.

    Raises `CorruptError` for a tokenizer with ids that have no embedding, a config that does not fit the weights, and
    NaN or infinite weights.
    """
    config = _json(folder / "config.json")
    config = config.get("text_config", config)
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found = read_safetensors(file)
        tensors |= found
        floats = (
            (n, FLOATS[t.dtype], t.start, t.end - t.start) for n, t in found.items() if t.dtype in FLOATS
        )
        if broken := finite.first_broken_float(file, floats):
            raise CorruptError(
                f"{file} is damaged: tensor {shown(broken[0])} holds NaN or infinity at index {broken[1]}.",
                HINT,
            )
    _check_sizes(folder, config, tensors)


def _check_sizes(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    embedding = next((tensor for name, tensor in tensors.items() if EMBEDDING.search(name)), None)
    if embedding is not None and len(embedding.shape) == 2:
        rows, width = embedding.shape
        if (largest := largest_id(folder)) >= rows:
            raise CorruptError(
                f"The tokenizer in {folder} has token ids up to {largest}, and the model's embedding has {rows} rows.",
                HINT,
            )
        for key, size in (("vocab_size", rows), ("hidden_size", width)):
            if config.get(key, size) != size:
                raise CorruptError(
                    f"{folder / 'config.json'} says {key} {str(config[key])[:40]}, and the embedding has {size}.",
                    HINT,
                )
    layers = {int(match[1]) for name in tensors if (match := LAYER.search(name))}
    expected = config.get("num_hidden_layers")
    if layers and isinstance(expected, int) and layers != set(range(expected)):
        raise CorruptError(
            f"{folder / 'config.json'} says num_hidden_layers {expected}, and there are weights of {len(layers)} layers, up to {max(layers)}.",
            HINT,
        )


def largest_id(folder: Path) -> int:
    """The largest token id that the tokenizer files of a folder give out, -1 without such files."""
    return max((id_ for id_ in token_ids(folder) if isinstance(id_, int)), default=-1)


def token_ids(folder: Path) -> Iterator[Any]:
    """Every token id that the tokenizer files of a folder give out, as it stands there: it may be no number."""
    tokenizer = _json(folder / "tokenizer.json")
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from vocabulary.values()
    elif isinstance(vocabulary, list):
        yield len(vocabulary) - 1
    added = tokenizer.get("added_tokens")
    yield from (token["id"] for token in added or [] if isinstance(token, dict) and "id" in token)
    yield from _json(folder / "added_tokens.json").values()
    decoder = _json(folder / "tokenizer_config.json").get("added_tokens_decoder")
    yield from (int(id_) for id_ in decoder or {} if str(id_).isdecimal())


def _json(file: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when there is no such file."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptError(f"{file} cannot be read: {str(error)[:120]}.", HINT) from error
    if not isinstance(found, dict):
        raise CorruptError(f"{file} is not a JSON object.", HINT)
    return found
