"""The main graph of an ONNX model without its weights: what goes in, what comes out, and its nodes in order.

Fields: <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>. The graphs within nodes are not entered. Read a model
with `containers.onnx.check_onnx` first: it refuses the messages that stand twice and the files that are not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.containers.onnx import GRAPH_LIMIT
from edgekit.containers.reader import Reader
from edgekit.containers.wire import LENGTH, VARINT, Wire

TEXT, NUMBER = "text", "number"
# message -> field number -> the field's name, and the message that stands there, a text or a number
FIELDS: dict[str, dict[int, tuple[str, str]]] = {
    "ModelProto": {7: ("graph", "GraphProto")},
    "GraphProto": {1: ("node", "NodeProto"), 11: ("input", "ValueInfoProto"), 12: ("output", "ValueInfoProto")},
    "NodeProto": {1: ("input", TEXT), 2: ("output", TEXT), 4: ("op_type", TEXT), 5: ("attribute", "AttributeProto")},
    "AttributeProto": {1: ("name", TEXT), 3: ("i", NUMBER)},
    "ValueInfoProto": {1: ("name", TEXT), 2: ("type", "TypeProto")},
    "TypeProto": {1: ("tensor_type", "TypeProto.Tensor")},
    "TypeProto.Tensor": {2: ("shape", "TensorShapeProto")},
    "TensorShapeProto": {1: ("dim", "Dimension")},
    "Dimension": {1: ("dim_value", NUMBER)},
}  # fmt: skip

Dims = tuple[int | None, ...]
Message = dict[str, list[Any]]


@dataclass(frozen=True)
class OnnxNode:
    """One operation; of its attributes the whole numbers."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: Mapping[str, int]

    def input(self, index: int) -> str:
        """The name of an input; empty when it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""


@dataclass(frozen=True)
class OnnxGraph:
    """Inputs and outputs with their shapes, in which None is a size that is known only when the graph runs."""

    inputs: Mapping[str, Dims]
    outputs: Mapping[str, Dims]
    nodes: tuple[OnnxNode, ...]


def read_onnx_graph(path: Path) -> OnnxGraph:
    """The graph of the model `path`. Raises `CorruptError` when it is malformed."""
    with Reader(path, GRAPH_LIMIT) as reader:
        model = _message(Wire(reader), reader, "ModelProto", reader.size)
    graph: Message = next(iter(model.get("graph", [])), {})
    nodes = [
        OnnxNode(
            _last(node, "op_type", ""),
            tuple(node.get("input", [])),
            tuple(node.get("output", [])),
            {_last(found, "name", ""): _last(found, "i", 0) for found in node.get("attribute", [])},
        )
        for node in graph.get("node", [])
    ]
    return OnnxGraph(_values(graph, "input"), _values(graph, "output"), tuple(nodes))


def _message(wire: Wire, reader: Reader, kind: str, end: int) -> Message:
    """The fields of a message that are known here, each with all its values in order."""
    found: Message = {}
    for number, type, value in wire.fields(end):
        name, holds = FIELDS[kind].get(number, ("", ""))
        if not name:
            continue
        if type != (VARINT if holds == NUMBER else LENGTH):
            raise reader.corrupt(f"field {number} of a {kind} has the wrong wire type")
        if holds == NUMBER:
            read: Any = value - (1 << 64 if value >> 63 else 0)
        else:
            read = (
                wire.text(value, f"{name} of a {kind}")
                if holds == TEXT
                else _message(wire, reader, holds, value)
            )
        found.setdefault(name, []).append(read)
    return found


def _last(message: Message, name: str, default: Any) -> Any:
    return message[name][-1] if name in message else default


def _values(graph: Message, field: str) -> dict[str, Dims]:
    found = {}
    for value in graph.get(field, []):
        types = (tensor for type in value.get("type", []) for tensor in type.get("tensor_type", []))
        shapes = (shape for tensor in types for shape in tensor.get("shape", []))
        dims = tuple(_last(dim, "dim_value", None) for shape in shapes for dim in shape.get("dim", []))
        found[_last(value, "name", "")] = dims
    return found
