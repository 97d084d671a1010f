"""Safetensors files: the JSON header held against the file.

Format: <https://huggingface.co/docs/safetensors>. Stricter than the Rust library in one point: a name that stands
twice is refused, because readers differ in which of the two they take.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from edgekit.containers.reader import Reader, shown

# The Rust library allows 100 MB, of which Python makes gigabytes of objects; a tensor's entry takes about 110 bytes.
SINGLE = "model.safetensors"  # the weights of a model in one file
INDEX = "model.safetensors.index.json"  # names the file of each tensor of a model in several files
ADAPTER_WEIGHTS = "adapter_model.safetensors"  # the weights of a PEFT adapter
ADAPTER_PREFIX = "base_model.model."  # before the names of the base's modules in it
HEADER_LIMIT = 25_000_000
VALUES_LIMIT = 2_000_000  # brackets, commas and colons: each starts a JSON value
DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


class StoredTensor(NamedTuple):
    """A tensor of a safetensors file: its bytes stand from `start` to `end`, counted from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Read and check the header of a safetensors file; the tensors by name, in the order of their bytes.

    Raises `CorruptError` with the place of the first fault, and `ConfigError` when there is no such file.
    """
    with Reader(path, HEADER_LIMIT + 8) as reader:
        length = int.from_bytes(reader.take(8, "the length of the header"), "little")
        if length > min(reader.left, HEADER_LIMIT):
            raise reader.corrupt(f"it claims a header of {length} bytes, and {reader.left} are left", 0)
        header = _json(reader, reader.take(length, "the header"))
        _check_metadata(reader, header.pop("__metadata__", {}))
        data_start = 8 + length
        tensors = {name: _tensor(reader, name, entry, data_start) for name, entry in header.items()}
        tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
        end = data_start
        for name, tensor in tensors.items():
            if tensor.start != end:
                fault = "overlaps what stands before it" if tensor.start < end else "leaves a hole before it"
                raise reader.corrupt(f"tensor {shown(name)} {fault}", tensor.start)
            end = tensor.end
        if end != reader.size:
            raise reader.corrupt(f"its header does not fit its size: {end} bytes against {reader.size}", end)
    return tensors


def _json(reader: Reader, raw: bytes) -> dict[str, Any]:
    values = sum(raw.count(sign) for sign in (b"{", b"[", b",", b":"))
    if values > VALUES_LIMIT:
        raise reader.corrupt(f"the header holds {values} values, more than any model needs", 8)
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise reader.corrupt(f"the header is not JSON: {str(error)[:120]}", 8) from error
    if not isinstance(header, dict):
        raise reader.corrupt("the header is not a JSON object", 8)
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shown(name)} appears twice")
        found[name] = value
    return found


def _check_metadata(reader: Reader, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise reader.corrupt("__metadata__ is not a table of texts", 8)


def _tensor(reader: Reader, name: str, entry: Any, data_start: int) -> StoredTensor:
    what = f"tensor {shown(name)}"
    if any("\ud800" <= character <= "\udfff" for character in name):  # from an escape; it cannot be printed
        raise reader.corrupt(f"{what} has half a character in its name", 8)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise reader.corrupt(f"{what} is not described by dtype, shape and data_offsets", 8)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise reader.corrupt(f"{what} has an unknown dtype", 8)
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise reader.corrupt(f"{what} has a shape or offsets that are not sizes", 8)
    start, end = offsets
    if 8 * (end - start) != math.prod(shape) * DTYPE_BITS[dtype]:
        raise reader.corrupt(
            f"{what}, {dtype} of shape {shown(str(shape))}, is given {end - start} bytes", data_start + start
        )
    return StoredTensor(dtype, tuple(shape), data_start + start, data_start + end)


def _sizes(values: Any) -> bool:
    """Whether `values` is a short list of whole numbers that fit 64 bits (`True` is not one)."""
    return (
        isinstance(values, list)
        and len(values) <= 64
        and all(type(value) is int and 0 <= value < 1 << 64 for value in values)
    )
