"""The tensors of Hugging Face folders, read and written with torch, one at a time.

`Weights` maps a folder's safetensors (one file or shards) without loading them; `write_weights` asks for one
tensor after another and streams it to disk, so a whole model never has to fit in memory.
Format: https://huggingface.co/docs/safetensors (8 bytes of header length, JSON header, tensor bytes).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from edgekit.base.errors import CorruptError
from edgekit.containers.safetensors import INDEX, SINGLE
from edgekit.export.weights.folder import places_of

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class Weights(Mapping[str, torch.Tensor]):
    """The tensors of one safetensors file, or of a Hugging Face folder, by name, in the order they are stored.

    `weights[name]` is mapped from the file, read-only by convention. `layout[name]` is its dtype and shape.
    Raises as `places_of`.
    """

    def __init__(self, path: Path) -> None:
        places = places_of(path)
        files = {file: _open(file) for file in {place.file for place in places.values()}}
        self._files = {name: files[place.file] for name, place in places.items()}
        self.layout = {
            name: (DTYPES[place.tensor.dtype], place.tensor.shape) for name, place in places.items()
        }

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {name: shape for name, (_, shape) in self.layout.items()}

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
