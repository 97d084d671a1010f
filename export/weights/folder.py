"""The files of a Hugging Face folder: its settings, the places of its tensors, and what is copied beside them.

Nothing here needs torch. `safetensors_io` reads tensors with it, `rows` without.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from edgekit.base.artifacts import write_json
from edgekit.base.errors import ConfigError, CorruptError, UnsupportedError
from edgekit.containers.safetensors import INDEX, SINGLE, StoredTensor, read_safetensors
from edgekit.models.folder_check import check_weights
from edgekit.models.source import PROVENANCE

AGAIN = "Download the model again, or save it again as safetensors."
# All files of a model folder except its weights and its config.json.
COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates", "edgekit.json", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE",
)  # fmt: skip
# What safetensors calls the types of weights that are not quantized, and of indexes and masks.
PLAIN = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


class Place(NamedTuple):
    """Where a tensor is stored."""

    file: Path
    tensor: StoredTensor


def places_of(path: Path) -> dict[str, Place]:
    """The tensors of one safetensors file, or of a Hugging Face folder, by name, in the order they are stored.

    Only headers are read. Raises `CorruptError` naming the file when one is truncated, malformed or missing from the
    index, and `UnsupportedError` when there are none, or they are pickled or stored in a packed format.
    """
    found: dict[str, Place] = {}
    for file, promised in [(path, set[str]())] if path.is_file() else _weight_files(path):
        tensors = read_safetensors(file)
        if absent := sorted(promised - tensors.keys()):
            raise CorruptError(
                f"{file} lacks {len(absent)} tensors that {INDEX} lists, such as '{absent[0]}'.", AGAIN
            )
        for name, tensor in tensors.items():
            if name in found:
                raise CorruptError(f"{file} holds the tensor '{name}', which another shard holds too.", AGAIN)
            if tensor.dtype not in PLAIN:
                raise UnsupportedError(
                    f"{file} stores '{name}' as {tensor.dtype}; only unquantized weights can be edited.",
                    "Use the model's float32, bfloat16 or float16 weights.",
                )
            found[name] = Place(file, tensor)
    return found


def _weight_files(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """The safetensors files of a model folder, each with the tensors that the index of a sharded model promises in it."""
    if (folder / SINGLE).is_file():
        yield folder / SINGLE, set()
        return
    places = read_json(folder / INDEX).get("weight_map") if (folder / INDEX).is_file() else {}
    if not isinstance(places, dict) or not all(
        isinstance(p, str) and Path(p).name == p for p in places.values()
    ):
        raise CorruptError(f"{folder / INDEX} has no weight_map from tensor names to file names.", AGAIN)
    check_weights(folder)
    for name in sorted(set(places.values())):
        yield folder / name, {tensor for tensor, place in places.items() if place == name}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises `ConfigError` when it is missing and `CorruptError` when malformed."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist.", f"Check that {path.parent} is the right folder."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{path} is not valid JSON: {error}", AGAIN) from error
    if not isinstance(value, dict):
        raise CorruptError(f"{path} does not hold a JSON object.", AGAIN)
    return value


def model_config(folder: Path) -> Any:
    """The `transformers` config of a model folder, with its class's defaults filled in.

    Raises `UnsupportedError` when transformers does not know the architecture.
    """
    from transformers import AutoConfig

    read_json(folder / "config.json")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UnsupportedError(
            f"transformers cannot read {folder / 'config.json'}: {error}",
            "Check that this version of transformers supports the architecture.",
        ) from error


def copy_companions(source: Path, out: Path) -> None:
    """Copy the tokenizer, chat template, generation config, licence and `edgekit.json` that `source` has."""
    for name in COMPANIONS:
        if (source / name).is_dir():
            shutil.copytree(source / name, out / name)
        elif (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def note(folder: Path, key: str, value: Any) -> None:
    """Record in the folder's `edgekit.json`, if it has one, what was done to the model."""
    file = folder / PROVENANCE
    if file.is_file():
        write_json(file, read_json(file) | {key: value})
