"""GGUF files: header, metadata and tensor table, bounded.

Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Where a file would mean one thing to this
parser and another to llama.cpp, which reads names as C strings, it is refused.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.base.errors import ConfigError, CorruptError, reason
from edgekit.containers.ggml_types import GGML_TYPES
from edgekit.containers.reader import HINT, Reader, shown

# Vocabularies of 262,144 tokens with merges take 20 MiB; 40 MiB of short strings become 450 MB of Python objects.
HEADER_LIMIT = 40 << 20
COUNT_LIMIT = 1 << 16  # metadata keys, and tensors; also the bytes of a name, by the format
LEAST_KEY_BYTES = 8 + 1 + 4 + 1  # length, name, type, value
LEAST_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # length, name, dimensions: count and one, type, offset
DEFAULT_ALIGNMENT = 32
MAGIC = b"GGUF"

UINT32, BOOL, STRING, ARRAY = 4, 7, 8, 9
NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", UINT32: "<u4", 5: "<i4", 6: "<f4", BOOL: "?",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip

Value = bool | int | float | str | list[str] | NDArray[Any]


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor stands: `shape` as in the file (fastest first), `offset` from the file's start, in bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufLayout:
    """A GGUF file's header.

    `metadata` holds scalars, lists of strings and read-only arrays of numbers, `places` where each key with its value
    begins and ends, in bytes; `tensors` are in the file's order;
    `trailing_bytes` stand behind the last tensor and belong to none.
    """

    version: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]
    alignment: int
    data_start: int
    trailing_bytes: int
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def read_gguf(path: Path) -> GgufLayout:
    """Read and check the header of a GGUF file of version 2 or 3; no weights are read.

    Raises `CorruptError` with the place of the first fault, and `ConfigError` when there is no such file.
    """
    with Reader(path, HEADER_LIMIT) as reader:
        version, tensor_count, key_count = _head(reader)
        metadata, places = _metadata(reader, key_count)
        alignment = int(metadata.get("general.alignment", DEFAULT_ALIGNMENT))  # type: ignore[arg-type]
        if not 8 <= alignment <= COUNT_LIMIT or alignment & (alignment - 1):
            raise reader.corrupt(
                f"general.alignment is {alignment}, not a power of two from 8 to {COUNT_LIMIT}"
            )
        relative = _tensors(reader, tensor_count)
        data_start = _padded(reader.position, alignment)
        tensors = {
            info.name: TensorInfo(info.name, info.shape, info.type, data_start + info.offset, info.nbytes)
            for info in relative
        }
        end = _check_places(reader, tensors.values(), alignment, data_start)
    return GgufLayout(version, metadata, tensors, alignment, data_start, max(0, reader.size - end), places)


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does. Raises `ConfigError` for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {reason(error)}.", "Check its permissions.") from error


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _head(reader: Reader) -> tuple[int, int, int]:
    """Version, number of tensors, number of metadata keys."""
    if reader.size < 4 or reader.take(4, "the magic") != MAGIC:
        raise CorruptError(f"{reader.path} is not a GGUF file.", HINT)
    version = _u32(reader, "the version")
    if version not in (2, 3):
        big_endian = version & 0xFFFF == 0 and version != 0
        found = f"big-endian GGUF, version {version >> 24}" if big_endian else f"GGUF version {version}"
        raise CorruptError(
            f"{reader.path} is {found}; versions 2 and 3 (little-endian) can be read.",
            "Export it again with a current converter.",
        )
    tensor_count, key_count = _u64(reader, "the number of tensors"), _u64(reader, "the number of keys")
    for count, least, what in (
        (tensor_count, LEAST_TENSOR_BYTES, "tensors"),
        (key_count, LEAST_KEY_BYTES, "metadata keys"),
    ):
        if count > min(reader.left // least, COUNT_LIMIT):
            raise reader.corrupt(f"the file claims {count} {what}, and {reader.left} bytes are left")
    return version, tensor_count, key_count


def _u32(reader: Reader, what: str) -> int:
    return int.from_bytes(reader.take(4, what), "little")


def _u64(reader: Reader, what: str) -> int:
    return int.from_bytes(reader.take(8, what), "little")


def _text(reader: Reader, what: str) -> str:
    """A string; llama.cpp reads it up to its first NUL, so it must hold none."""
    at = reader.position
    try:
        text = reader.take(_u64(reader, what), what).decode()
    except UnicodeDecodeError as error:
        raise reader.corrupt(f"{what} is not UTF-8", at) from error
    if "\0" in text:
        raise reader.corrupt(f"{what} holds a NUL, where llama.cpp would end it", at)
    return text


def _name(reader: Reader, what: str, taken: Mapping[str, object] | set[str]) -> str:
    at = reader.position
    name = _text(reader, what)
    if not 0 < len(name) < COUNT_LIMIT:
        raise reader.corrupt(f"{what} is {len(name)} characters long", at)
    if name in taken:
        raise reader.corrupt(f"{what} {shown(name)} appears twice", at)
    return name


def _metadata(reader: Reader, count: int) -> tuple[dict[str, Value], dict[str, tuple[int, int]]]:
    """The value of each key, and where key and value stand."""
    metadata: dict[str, Value] = {}
    places: dict[str, tuple[int, int]] = {}
    for _ in range(count):
        start = reader.position
        key = _name(reader, "a metadata key", metadata)
        what = f"metadata {shown(key)}"
        at, kind = reader.position, _u32(reader, what)
        if key == "general.alignment" and kind != UINT32:
            raise reader.corrupt(f"{what} has type {kind} instead of {UINT32}", at)
        if kind == STRING:
            metadata[key] = _text(reader, what)
        elif kind == ARRAY:
            metadata[key] = _array(reader, what)
        else:
            metadata[key] = _numbers(reader, kind, 1, what)[0].item()
        places[key] = (start, reader.position)
    return metadata, places


def _array(reader: Reader, what: str) -> list[str] | NDArray[Any]:
    at, kind = reader.position, _u32(reader, what)
    count = _u64(reader, what)
    if kind == ARRAY:  # gguf flattens them and llama.cpp refuses them
        raise reader.corrupt(f"{what} is an array of arrays", at)
    if kind != STRING:
        return _numbers(reader, kind, count, what)
    if count > reader.left // 8:
        raise reader.corrupt(f"{what} claims {count} strings, and {reader.left} bytes are left", at)
    take = reader.take
    try:
        return [take(int.from_bytes(take(8, what), "little"), what).decode() for _ in range(count)]
    except UnicodeDecodeError as error:
        raise reader.corrupt(f"{what} holds a text that is not UTF-8") from error


def _numbers(reader: Reader, kind: int, count: int, what: str) -> NDArray[Any]:
    if kind not in NUMBERS:
        raise reader.corrupt(f"{what} has the unknown type {kind}")
    dtype = np.dtype(NUMBERS[kind])
    if count > reader.left // dtype.itemsize:
        raise reader.corrupt(f"{what} claims {count} elements, and {reader.left} bytes are left")
    at, data = reader.position, reader.take(count * dtype.itemsize, what)
    if kind == BOOL and data.strip(b"\0\1"):
        raise reader.corrupt(f"{what} holds a truth value other than 0 and 1", at)
    return np.frombuffer(data, dtype)


def _tensors(reader: Reader, count: int) -> list[TensorInfo]:
    """The tensor table, with offsets from the start of the data."""
    tensors: dict[str, TensorInfo] = {}
    for _ in range(count):
        name = _name(reader, "a tensor's name", tensors)
        what = f"tensor {shown(name)}"
        at, dimensions = reader.position, _u32(reader, what)
        if not 1 <= dimensions <= 4:
            raise reader.corrupt(f"{what} has {dimensions} dimensions", at)
        shape = struct.unpack(f"<{dimensions}Q", reader.take(8 * dimensions, what))
        if not all(shape):
            raise reader.corrupt(f"{what} has a dimension of 0: {shape}", at)
        at, kind = reader.position, _u32(reader, what)
        if kind not in GGML_TYPES:
            raise reader.corrupt(f"{what} has the unknown type {kind}", at)
        stored = GGML_TYPES[kind]
        if shape[0] % stored.block_size:
            raise reader.corrupt(
                f"{what} has rows of {shape[0]}, and {stored.name} stores blocks of {stored.block_size}", at
            )
        nbytes = math.prod(shape) // stored.block_size * stored.block_bytes
        tensors[name] = TensorInfo(name, shape, kind, _u64(reader, what), nbytes)
    return list(tensors.values())


def _check_places(reader: Reader, tensors: Iterable[TensorInfo], alignment: int, data_start: int) -> int:
    """Hold the tensors' places against the file and each other; where the data end, padding included."""
    end, before = data_start, ""
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        what = f"tensor {shown(tensor.name)}"
        if tensor.offset % alignment:
            raise reader.corrupt(f"{what} is not aligned to {alignment} bytes", tensor.offset)
        if tensor.offset < end:
            raise reader.corrupt(f"{what} overlaps {before}", tensor.offset)
        if tensor.offset + tensor.nbytes > reader.size:
            raise reader.corrupt(
                f"{what} ends at byte {tensor.offset + tensor.nbytes} of a file of {reader.size}",
                tensor.offset,
            )
        end, before = tensor.offset + tensor.nbytes, what
    return _padded(end, alignment)
