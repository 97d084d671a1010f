"""Checks an adapter file before a runtime reads it: it must be complete, made for this base, and fit its layers.

llama.cpp and onnxruntime trust much of an adapter's content; a wrong type or size ends the process or reads past the
end of the file. GGUF adapters are those of `convert_lora_to_gguf.py` in llama.cpp, ONNX adapters those of
`onnxruntime/lora/adapter_format/adapter_schema.fbs`, in the encoding of
<https://flatbuffers.dev/internals/>.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.base.errors import ConfigError, CorruptError, UnsupportedError
from edgekit.containers.ggml_types import GGML_TYPES
from edgekit.containers.gguf import read_gguf
from edgekit.containers.reader import HINT, Reader, shown
from edgekit.models.source import BASE_DIGEST, MERGED

ALPHA = "adapter.lora.alpha"
GGUF_TYPES = ("F32", "F16", "BF16", "Q8_0")  # those that llama.cpp's converter writes and its products accept
GGUF_FLOAT32 = 6  # GGUF_METADATA_VALUE_TYPE_FLOAT32
FLOAT, UINT8 = 1, 2  # onnx.TensorProto.DataType
ITEM_BYTES = {FLOAT: 4, UINT8: 1}
FLATBUFFER_LIMIT = 2**31 - 1
JSON_LIMIT = 1 << 20
FORMAT_VERSION, PARAMETERS = 0, 3  # fields of the table Adapter
NAME, DIMS, DATA_TYPE, RAW_DATA = range(4)  # fields of the table Parameter

Shapes = Mapping[str, tuple[int, ...]]


def file_key(path: Path) -> str:
    """A name for what the file holds now, so that one rewritten in place is read again.

    Raises `ConfigError` when there is no such file.
    """
    if not path.is_file():
        raise ConfigError(
            f"There is no adapter file {path}.", "Give a file that `edgekit export --adapter` wrote."
        )
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def check_base(adapter: Path, made_for: object, base: str | None, merged: str | None) -> None:
    """Compare the base digest in `adapter` with `base`, the digest of the opened model.

    Raises `CorruptError` when they differ, and `UnsupportedError` when a file has no digest or the model already has an
    adapter (`merged`) in its weights.
    """
    if merged:
        raise UnsupportedError(
            f"The opened model already has the adapter {merged} in its weights; {adapter} was not loaded.",
            "Open the base model, exported without tuning.",
        )
    if not base:
        raise UnsupportedError(
            f"The opened model does not contain the digest of its base, so {adapter} was not loaded.",
            "Export the base with edgekit, which writes the digest to the file.",
        )
    if not isinstance(made_for, str):
        raise UnsupportedError(
            f"{adapter} does not contain the digest of its base; it was not loaded.",
            "Export it with edgekit, which writes the digest to the file.",
        )
    if made_for != base:
        raise CorruptError(
            f"{adapter} was made for the base {shown(made_for)}, but the opened model is {base}; it was not loaded.",
            "Open the base that it was tuned on, or use the adapter of this base.",
        )


def check_gguf(adapter: Path, layers: Shapes, base: str | None, merged: str | None) -> None:
    """Raise unless `adapter` is a LoRA adapter for the base with the tensors `layers`, `(in, out)` as the file has it.

    Raises as `check_base`, and `CorruptError` for a damaged file, tensors of other names, sizes or types than the
    base's layers take, or metadata at which llama.cpp would end the process.
    """
    layout = read_gguf(adapter)
    found = layout.metadata
    if (found.get("general.type"), found.get("adapter.type")) != ("adapter", "lora"):
        raise CorruptError(f"{adapter} is not a LoRA adapter.", "Give an adapter file.")
    check_base(adapter, found.get(BASE_DIGEST), base, merged)
    if not isinstance(found.get("general.architecture"), str):
        raise _corrupt(adapter, "it does not name an architecture")
    if "adapter.alora.invocation_tokens" in found:
        raise UnsupportedError(
            f"{adapter} is an activated LoRA (aLoRA), which is not supported.", "Use a plain LoRA adapter."
        )
    _check_alpha(adapter, found.get(ALPHA), layout.data_start)
    for tensor in layout.tensors.values():
        if GGML_TYPES[tensor.type].name not in GGUF_TYPES:
            raise _corrupt(adapter, f"{shown(tensor.name)} has the type {tensor.type}")
    # llama.cpp would accept the embedding's factors unchecked, and it ignores norms without a message
    linear = {name: size for name, size in layers.items() if len(size) == 2 and name != "token_embd.weight"}
    sizes = {name: tensor.shape for name, tensor in layout.tensors.items()}
    _check_factors(adapter, sizes, linear, (".lora_a", ".lora_b"))


def _check_alpha(adapter: Path, alpha: object, header_bytes: int) -> None:
    """llama.cpp asserts that alpha is a 32-bit float, and a scale that is not finite would make every answer NaN."""
    with adapter.open("rb") as file:
        header = file.read(header_bytes)
    _, key, rest = header.partition(struct.pack("<Q", len(ALPHA)) + ALPHA.encode())
    if not isinstance(alpha, float) or not math.isfinite(alpha) or alpha == 0:
        raise _corrupt(adapter, f"{ALPHA} is {alpha}")
    if not key or rest[:4] != struct.pack("<I", GGUF_FLOAT32) or key in rest:
        raise _corrupt(adapter, f"{ALPHA} is not a 32-bit float")


@dataclass(frozen=True)
class Origin:
    """What the `edgekit.json` of an ONNX folder says: the base's digest, a merged adapter's, and the slots' sizes."""

    base: str | None
    merged: str | None
    slots: Shapes
    """`(in, out)` by the layer's name."""


def read_origin(folder: Path) -> Origin:
    """The origin of the ONNX folder `folder`; empty when it says none, and it then takes no adapter.

    Raises `CorruptError` for a file that is not as edgekit writes it.
    """
    file = folder / "edgekit.json"
    if not file.is_file():
        return Origin(None, None, {})
    try:
        with Reader(file, JSON_LIMIT) as reader:
            said = json.loads(reader.take(reader.size, "the origin"))
        slots = {
            str(name): (int(inner), int(outer))
            for name, (inner, outer) in said.get("adapter_slots", {}).items()
        }
        base, merged = said.get("sha256"), said.get(MERGED)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptError(f"{file} is damaged: {error}.", HINT) from error
    return Origin(base, merged, slots)


def check_onnx(adapter: Path, origin: Origin) -> None:
    """Raise unless `adapter` is an adapter of onnxruntime for the folder that says `origin`.

    Raises as `check_base`, `UnsupportedError` for a folder without slots, and `CorruptError` for a damaged file or
    parameters of other names, sizes or types than the slots.
    """
    if not origin.slots:
        raise UnsupportedError(
            f"The opened ONNX folder does not support adapters, so {adapter} was not loaded.",
            "Export the base for adapters: `edgekit export BASE --adapter ADAPTER`.",
        )
    with Reader(adapter, FLATBUFFER_LIMIT) as reader:
        parameters = dict(_Flatbuffer(reader).parameters())
    bound = parameters.pop(BASE_DIGEST, None)
    made_for = bound.data.hex() if bound and (bound.type, bound.shape) == (UINT8, (32,)) else None
    check_base(adapter, made_for, origin.base, origin.merged)
    for name, parameter in parameters.items():
        if parameter.type != FLOAT:
            raise _corrupt(adapter, f"{shown(name)} has the type {parameter.type}")
    sizes = {name: parameter.shape for name, parameter in parameters.items()}
    _check_factors(adapter, sizes, origin.slots, (".lora_A.weight", ".lora_B.weight"))


@dataclass(frozen=True)
class _Parameter:
    type: int
    shape: tuple[int, ...]
    data: memoryview


class _Flatbuffer:
    """The table `Adapter` of a file, every place in it held against the file's end."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._data = memoryview(reader.take(reader.size, "the adapter"))
        if bytes(self._data[4:8]) != b"TORT":
            raise CorruptError(f"{reader.path} is not an onnxruntime adapter.", HINT)

    def parameters(self) -> Iterator[tuple[str, _Parameter]]:
        """Names and parameters; a name that appears twice is refused."""
        adapter = self._follow(0)
        if (version := self._integer(self._field(adapter, FORMAT_VERSION), 4)) != 1:
            raise self._reader.corrupt(f"the format's version is {version} instead of 1", adapter)
        names: set[str] = set()
        start, count = self._vector(adapter, PARAMETERS, 4)
        for at in range(start, start + 4 * count, 4):
            table = self._follow(at)
            name = bytes(self._bytes(table, NAME)).decode(errors="replace")
            if name in names:
                raise self._reader.corrupt(f"the parameter {shown(name)} appears twice", table)
            names.add(name)
            first, dimensions = self._vector(table, DIMS, 8)
            if dimensions > 4:
                raise self._reader.corrupt(f"the parameter {shown(name)} has {dimensions} dimensions", table)
            shape = tuple(self._integer(first + 8 * n, 8) for n in range(dimensions))
            kind = self._integer(self._field(table, DATA_TYPE), 4)
            data = self._bytes(table, RAW_DATA)
            if len(data) != math.prod(shape) * ITEM_BYTES.get(kind, 0) or not data:
                raise self._reader.corrupt(
                    f"the parameter {shown(name)} of type {kind} and shape {shape} has {len(data)} bytes",
                    table,
                )
            yield name, _Parameter(kind, shape, data)

    def _integer(self, at: int, width: int, signed: bool = False) -> int:
        if not 0 <= at <= len(self._data) - width:
            raise self._reader.corrupt(f"it points to byte {at} of {len(self._data)}", 0)
        return int.from_bytes(self._data[at : at + width], "little", signed=signed)

    def _follow(self, at: int) -> int:
        return at + self._integer(at, 4)

    def _field(self, table: int, index: int) -> int:
        """Where the field is; all that are read here must be there, for onnxruntime does not look either."""
        layout = table - self._integer(table, 4, signed=True)
        offset = self._integer(layout + 4 + 2 * index, 2) if self._integer(layout, 2) >= 6 + 2 * index else 0
        if offset == 0:
            raise self._reader.corrupt(f"a table lacks its field {index}", table)
        return table + offset

    def _vector(self, table: int, index: int, width: int) -> tuple[int, int]:
        """Start and number of a vector's elements of `width` bytes."""
        at = self._follow(self._field(table, index))
        count = self._integer(at, 4)
        if count * width > len(self._data) - at - 4:
            raise self._reader.corrupt(
                f"it claims {count} elements, and {len(self._data) - at - 4} bytes are left", at
            )
        return at + 4, count

    def _bytes(self, table: int, index: int) -> memoryview:
        start, count = self._vector(table, index, 1)
        return self._data[start : start + count]


def _check_factors(adapter: Path, sizes: Shapes, layers: Shapes, suffixes: tuple[str, str]) -> None:
    """Each layer's factors are `(in, r)` and `(r, out)`; there is at least one pair, and nothing else."""
    left = dict(sizes)
    for layer, (inner, outer) in layers.items():
        a, b = (left.pop(layer + suffix, None) for suffix in suffixes)
        if a is None and b is None:
            continue
        if a is None or b is None:
            raise _corrupt(adapter, f"one factor of {shown(layer)} is missing")
        if (len(a), len(b)) != (2, 2) or a[0] != inner or b[1] != outer or a[1] != b[0]:
            raise _corrupt(
                adapter,
                f"{shown(layer)} has factors of {a} and {b}, but the base's layer is {inner} x {outer}",
            )
    if left:
        raise _corrupt(adapter, f"the base has no layer for {shown(min(left))}")
    if not sizes:
        raise _corrupt(adapter, "it does not change any layer")


def _corrupt(adapter: Path, reason: str) -> CorruptError:
    return CorruptError(f"{adapter} does not fit the opened model: {reason}. It was not loaded.", HINT)
