"""Hugging Face folders, read and written one tensor at a time.

`Weights` maps a folder's safetensors (one file or shards) without loading them; `write_weights` asks for one
tensor after another and streams it to disk, so a whole model never has to fit in memory.
Format: https://huggingface.co/docs/safetensors (8 bytes of header length, JSON header, tensor bytes).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from edgekit.base.artifacts import write_json
from edgekit.base.errors import ConfigError, CorruptError, UnsupportedError
from edgekit.containers.safetensors import INDEX
from edgekit.models.source import PROVENANCE

SINGLE = "model.safetensors"
AGAIN = "Download the model again, or save it again as safetensors."
# All files of a model folder except its weights and its config.json.
COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates", "edgekit.json", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE",
)  # fmt: skip
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class Weights(Mapping[str, torch.Tensor]):
    """The tensors of one safetensors file, or of a Hugging Face folder, by name, in the order they are stored.

    `weights[name]` is mapped from the file, read-only by convention. `layout[name]` is its dtype and shape.
    Raises `CorruptError` naming the file when one is truncated, malformed or missing from the index, and
    `UnsupportedError` when the weights are pickled or stored in a packed format.
    """

    def __init__(self, path: Path) -> None:
        self._files: dict[str, Any] = {}
        self.layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for file in [path] if path.is_file() else _weight_files(path):
            handle = _open(file)
            for name in handle.offset_keys():
                if name in self._files:
                    raise CorruptError(
                        f"{file} holds the tensor '{name}', which another shard holds too.", AGAIN
                    )
                piece = handle.get_slice(name)
                if (stored := piece.get_dtype()) not in DTYPES:
                    raise UnsupportedError(
                        f"{file} stores '{name}' as {stored}; only unquantized weights can be edited.",
                        "Use the model's float32, bfloat16 or float16 weights.",
                    )
                self._files[name] = handle
                self.layout[name] = DTYPES[stored], tuple(piece.get_shape())

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptError(
            f"{file} is truncated or not a safetensors file ({error}). Nothing was written.",
            "Download or write the file again; its size must match its header.",
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, checked against its index when it is sharded."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        if any(folder.glob("*.bin")):
            raise UnsupportedError(
                f"{folder} holds only pickled weights (*.bin), which edgekit never loads.",
                "Save the model again as safetensors.",
            )
        raise ConfigError(f"{folder} holds no {SINGLE} and no {INDEX}.", "Name a Hugging Face model folder.")
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(p, str) and Path(p).name == p for p in places.values()
    ):
        raise CorruptError(f"{folder / INDEX} has no weight_map from tensor names to file names.", AGAIN)
    files = [folder / place for place in sorted(set(places.values()))]
    for file in files:
        promised = {name for name, place in places.items() if place == file.name}
        if absent := sorted(promised - set(_open(file).keys())):
            raise CorruptError(
                f"{file} lacks {len(absent)} tensors that {INDEX} lists, such as '{absent[0]}'.", AGAIN
            )
    return files


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


def write_weights(
    out: Path, layout: Layout, tensor: Callable[[str], torch.Tensor], *, max_shard_mib: int = 2048
) -> None:
    """Write `model.safetensors`, or numbered shards and their index, asking `tensor(name)` once for each name.

    `layout` gives each tensor's dtype and shape beforehand, in the order to write; a shard holds at most
    `max_shard_mib` MiB unless one tensor alone is larger. Equal inputs give equal bytes.
    """
    shards = _shards(layout, max_shard_mib << 20)
    total = len(shards)
    files = (
        [SINGLE] if total == 1 else [f"model-{i:05}-of-{total:05}.safetensors" for i in range(1, total + 1)]
    )
    for file, names in zip(files, shards, strict=True):
        _write_file(out / file, {name: layout[name] for name in names}, tensor)
    if total > 1:
        index = {
            "metadata": {"total_size": sum(_bytes(*layout[name]) for name in layout)},
            "weight_map": {
                name: file for file, names in zip(files, shards, strict=True) for name in sorted(names)
            },
        }
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(layout: Layout, limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name in layout:
        size = _bytes(*layout[name])
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_file(path: Path, layout: Layout, tensor: Callable[[str], torch.Tensor]) -> None:
    # Wider elements first, so that every tensor starts at a multiple of its element size.
    names = sorted(layout, key=lambda name: -layout[name][0].itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        dtype, shape = layout[name]
        start, end = end, end + _bytes(dtype, shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            value = tensor(name)
            if (value.dtype, tuple(value.shape)) != layout[name]:
                raise ValueError(f"{name}: promised {layout[name]}, got {value.dtype} {tuple(value.shape)}")
            file.write(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * torch.Size(shape).numel()


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
