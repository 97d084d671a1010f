"""ONNX models: the protobuf of a `ModelProto` walked in place, and the files that hold its weights.

Fields: <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>.
Only messages that can hold a tensor or an operator are entered; all else is skipped unread. Protobuf merges a
message that appears twice where one is expected; here that is refused, because readers differ in what they make of it.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.base.errors import CorruptError
from edgekit.containers.reader import HINT, Reader, shown
from edgekit.containers.wire import LENGTH, VARINT, Wire

MODEL_LIMIT = (1 << 31) - 1  # bytes of one protobuf message
GRAPH_LIMIT = 32 << 20  # bytes entered, without weights and what is skipped
TENSOR_LIMIT = 1 << 17
DEPTH_LIMIT = 64  # protobuf's own limit is 100
DIMENSION_LIMIT = 64

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})

# message -> field number -> the message that stands there
MESSAGES: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 8: "OperatorSetIdProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto",
        22: "SparseTensorProto", 23: "SparseTensorProto",
    },
    "FunctionProto": {7: "NodeProto", 9: "OperatorSetIdProto", 11: "AttributeProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}  # fmt: skip
SINGLE = {
    "ModelProto": {7}, "AttributeProto": {5, 6, 22}, "TrainingInfoProto": {1, 2}, "SparseTensorProto": {1, 2},
}  # fmt: skip
DOMAIN_FIELDS = {"NodeProto": 7, "FunctionProto": 10}

DTYPE_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2, 27: 6, 28: 6,
}  # fmt: skip
STRING = 8
VALUE_FIELDS = frozenset({4, 5, 7, 10, 11})  # float_data, int32_data, int64_data, double_data, uint64_data
AS_RAW = {
    1: 4,
    11: 10,
}  # the field in which values of a type stand one by one with the bytes that raw_data would have
EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})


@dataclass(frozen=True)
class OnnxTensor:
    """An initializer of the main graph: `dtype` is a `TensorProto.DataType`, `nbytes` the size of its raw bytes.

    They stand at `offset` of `file` in the model's folder; `offset` is None when they are stored in another form.
    """

    name: str
    dtype: int
    dims: tuple[int, ...]
    nbytes: int
    file: str
    offset: int | None


@dataclass(frozen=True)
class OnnxLayout:
    """What a model is made of: `domains` are those its operators use, `external` its weight files and their sizes."""

    ir_version: int
    opsets: Mapping[str, int]
    domains: frozenset[str]
    initializers: Mapping[str, OnnxTensor]
    external: Mapping[str, int]


def check_onnx(folder: Path, file: str) -> OnnxLayout:
    """Walk the model `file` in `folder` and check what it refers to; no weights are read.

    Raises `CorruptError` with the place of the first fault: malformed or nested too deep, an operator outside
    `DOMAINS`, a tensor whose data do not fit its shape, or weights that are not plain files of the folder.
    `ConfigError` when there is no such file.
    """
    if fault := _name_fault(file):
        raise CorruptError(f"The model file's name {shown(file)} in {folder} {fault}.", HINT)
    with Reader(folder / file, GRAPH_LIMIT) as reader:
        if fault := _link_fault(os.lstat(folder / file)):
            raise CorruptError(
                f"{folder / file} {fault}.", "Copy the folder with its links resolved: cp -rL."
            )
        if reader.size > MODEL_LIMIT:
            raise reader.corrupt(f"a model takes at most {MODEL_LIMIT} bytes, and this file {reader.size}")
        return _Walk(reader, folder).model()


def _name_fault(name: str) -> str:
    if name in ("", ".", "..") or any(sign in name for sign in "/\\:\0"):
        return "is not a plain file name"
    return ""


def _link_fault(status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    return "has another hard link" if status.st_nlink > 1 else ""


@dataclass
class _Tensor:
    """A `TensorProto` while it is read."""

    name: str = ""
    dtype: int = 0
    dims: list[int] = field(default_factory=list)
    raw: tuple[int, int] | None = None  # place and bytes of raw_data
    packed: tuple[int, int] = (0, 0)  # field and place of the first values that stand one by one
    value_bytes: int = 0
    strings: int = 0
    location: int = 0
    external: dict[str, str] = field(default_factory=dict)


class _Walk:
    def __init__(self, reader: Reader, folder: Path) -> None:
        self._reader = reader
        self._wire = Wire(reader)
        self._folder = folder
        self._tensors = 0
        self._graphs = 0
        self._ir_version = 0
        self._opsets: dict[str, int] = {}
        self._domains: set[str] = set()
        self._initializers: dict[str, OnnxTensor] = {}
        self._external: dict[str, int] = {}

    def model(self) -> OnnxLayout:
        """The whole file."""
        self._message("ModelProto", self._reader.size, ())
        if not self._graphs:
            raise self._reader.corrupt("there is no graph in it")
        return OnnxLayout(
            self._ir_version, self._opsets, frozenset(self._domains), self._initializers, self._external
        )

    def _message(self, kind: str, end: int, path: tuple[str, ...]) -> None:
        """Read a message that ends at `end` and stands in those of `path`."""
        reader, inner, path = self._reader, MESSAGES[kind], (*path, kind)
        if len(path) > DEPTH_LIMIT:
            raise reader.corrupt(f"messages are nested more than {DEPTH_LIMIT} deep")
        seen: set[int] = set()
        for number, wire, value in self._wire.fields(end):
            if number in inner:
                if number in SINGLE.get(kind, ()) and number in seen:
                    raise reader.corrupt(f"field {number} of a {kind} appears twice")
                seen.add(number)
                self._expect(wire == LENGTH, number, kind)
                self._enter(inner[number], value, path)
            elif number == DOMAIN_FIELDS.get(kind):
                self._expect(wire == LENGTH, number, kind)
                self._domain(value, kind)
            elif kind == "ModelProto" and number == 1:
                self._expect(wire == VARINT, number, kind)
                self._ir_version = value

    def _enter(self, kind: str, end: int, path: tuple[str, ...]) -> None:
        if kind == "TensorProto":
            at = self._reader.position
            tensor = self._checked(self._tensor(end), at)
            if path == ("ModelProto", "GraphProto"):
                if not tensor.name or tensor.name in self._initializers:
                    raise self._reader.corrupt(
                        f"initializer {shown(tensor.name)} has no name or appears twice", at
                    )
                self._initializers[tensor.name] = tensor
        elif kind == "OperatorSetIdProto":
            self._opset(end, path)
        else:
            self._graphs += kind == "GraphProto"
            self._message(kind, end, path)

    def _domain(self, end: int, kind: str) -> None:
        at = self._reader.position
        domain = self._wire.text(end, "an operator's domain")
        if domain not in DOMAINS:
            what = "a function" if kind == "FunctionProto" else "an operator"
            raise self._reader.corrupt(f"{what} of the unknown domain {shown(domain)} is used", at)
        self._domains.add(domain)

    def _opset(self, end: int, path: tuple[str, ...]) -> None:
        at, domain, version = self._reader.position, "", 0
        for number, wire, value in self._wire.fields(end):
            if number == 1:
                self._expect(wire == LENGTH, number, "OperatorSetIdProto")
                domain = self._wire.text(value, "an opset's domain")
            elif number == 2:
                self._expect(wire == VARINT, number, "OperatorSetIdProto")
                version = value
        if path == ("ModelProto",):
            if domain in self._opsets:
                raise self._reader.corrupt(f"the opset of domain {shown(domain)} appears twice", at)
            self._opsets[domain] = version

    def _tensor(self, end: int) -> _Tensor:
        reader, tensor, seen = self._reader, _Tensor(), set[int]()
        for number, wire, value in self._wire.fields(end):
            if number in (2, 8, 9, 14):
                if number in seen:
                    raise reader.corrupt(f"field {number} of a TensorProto appears twice")
                seen.add(number)
            if number in (8, 9, 6, 13):
                self._expect(wire == LENGTH, number, "TensorProto")
            elif number in (2, 14):
                self._expect(wire == VARINT, number, "TensorProto")
            if number == 1:
                self._dims(tensor, wire, value)
            elif number == 2:
                tensor.dtype = value
            elif number == 3:
                raise reader.corrupt("a tensor is stored in segments, which no runtime reads")
            elif number in VALUE_FIELDS:
                if wire == LENGTH and not tensor.value_bytes:
                    tensor.packed = number, reader.position
                tensor.value_bytes += value - reader.position if wire == LENGTH else 8
            elif number == 6:
                tensor.strings += 1
            elif number == 8:
                tensor.name = self._wire.text(value, "a tensor's name")
            elif number == 9:
                tensor.raw = reader.position, value - reader.position
            elif number == 13:
                self._external_entry(tensor, value)
            elif number == 14:
                tensor.location = value
        return tensor

    def _dims(self, tensor: _Tensor, wire: int, value: int) -> None:
        self._expect(wire in (VARINT, LENGTH), 1, "TensorProto")
        if wire == VARINT:
            tensor.dims.append(value)
        else:  # packed, as proto3 writers do
            while self._reader.position < value and len(tensor.dims) <= DIMENSION_LIMIT:
                tensor.dims.append(self._wire.varint(value))
        if len(tensor.dims) > DIMENSION_LIMIT:
            raise self._reader.corrupt(f"a tensor has more than {DIMENSION_LIMIT} dimensions")
        if any(dim >> 63 for dim in tensor.dims):
            raise self._reader.corrupt("a tensor has a negative dimension")

    def _external_entry(self, tensor: _Tensor, end: int) -> None:
        at, pair = self._reader.position, {1: "", 2: ""}
        for number, wire, value in self._wire.fields(end):
            if number in pair:
                self._expect(wire == LENGTH, number, "StringStringEntryProto")
                pair[number] = self._wire.text(value, "an entry of external data")
        key = pair[1]
        if key not in EXTERNAL_KEYS or key in tensor.external:
            raise self._reader.corrupt(f"external data with an unknown or repeated key {shown(key)}", at)
        tensor.external[key] = pair[2]

    def _checked(self, tensor: _Tensor, at: int) -> OnnxTensor:
        """The tensor, once its data fit its type and shape."""
        reader, what = self._reader, f"tensor {shown(tensor.name)}"
        self._tensors += 1
        if self._tensors > TENSOR_LIMIT:
            raise reader.corrupt(f"there are more than {TENSOR_LIMIT} tensors", at)
        if tensor.dtype != STRING and tensor.dtype not in DTYPE_BITS:
            raise reader.corrupt(f"{what} has the unknown type {tensor.dtype}", at)
        if tensor.location > 1:
            raise reader.corrupt(f"{what} has the unknown data location {tensor.location}", at)
        count = math.prod(tensor.dims)
        nbytes = -(-count * DTYPE_BITS.get(tensor.dtype, 0) // 8)
        stored = [bool(tensor.external), tensor.raw is not None, tensor.value_bytes > 0, tensor.strings > 0]
        if sum(stored) > 1 or bool(tensor.external) != bool(tensor.location):
            raise reader.corrupt(f"{what} has its data in more than one place, or says so", at)
        if tensor.dtype == STRING and (tensor.strings != count or tensor.raw or tensor.external):
            raise reader.corrupt(f"{what} of {count} texts holds {tensor.strings}", at)
        file, offset = reader.path.name, None
        if tensor.external:
            file, offset = self._outside(tensor, nbytes, what, at)
        elif tensor.raw is not None:
            offset, length = tensor.raw
            if length != nbytes:
                raise reader.corrupt(f"{what} takes {nbytes} bytes, and {length} are stored", offset)
        elif (
            tensor.dtype != STRING and count > 4 * tensor.value_bytes
        ):  # one byte holds four 2-bit values at most
            raise reader.corrupt(f"{what} has {count} values, and {tensor.value_bytes} bytes are stored", at)
        elif tensor.packed[0] == AS_RAW.get(tensor.dtype) and tensor.value_bytes == nbytes:
            offset = tensor.packed[1]
        return OnnxTensor(tensor.name, tensor.dtype, tuple(tensor.dims), nbytes, file, offset)

    def _outside(self, tensor: _Tensor, nbytes: int, what: str, at: int) -> tuple[str, int]:
        """File and offset of external data, once they are found in the folder."""
        reader, location = self._reader, tensor.external.get("location", "")
        if fault := _name_fault(location):
            raise reader.corrupt(f"{what} has its data in {shown(location)}, which {fault}", at)
        if location not in self._external:
            try:
                status = os.lstat(self._folder / location)
            except (OSError, ValueError) as error:
                raise reader.corrupt(
                    f"{what} has its data in {shown(location)}, which is missing", at
                ) from error
            if fault := _link_fault(status):
                raise reader.corrupt(f"{what} has its data in {shown(location)}, which {fault}", at)
            self._external[location] = status.st_size
        offset, length = (
            self._decimal(tensor.external.get(key, default), what, at)
            for key, default in (("offset", "0"), ("length", str(nbytes)))
        )
        if length != nbytes or offset + length > self._external[location]:
            raise reader.corrupt(
                f"{what} takes {nbytes} bytes, and is given {length} at byte {offset} of {shown(location)}, "
                f"which has {self._external[location]}",
                at,
            )
        return location, offset

    def _decimal(self, text: str, what: str, at: int) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) <= 18):
            raise self._reader.corrupt(f"{what} has its data at {shown(text)}, which is not a size", at)
        return int(text)

    def _expect(self, right: bool, number: int, kind: str) -> None:
        if not right:
            raise self._reader.corrupt(f"field {number} of a {kind} has the wrong wire type")
