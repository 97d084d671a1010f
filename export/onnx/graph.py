"""The graph of an onnxruntime-genai folder: its nodes by name, and its weights as floats, read row by row from disk.

Packing as in onnxruntime's contrib operators (`ContribOperators.md`: MatMulNBits, GatherBlockQuantized): the codes
of a block are adjacent, the first in the low bits, and represent `(code - zero) * scale`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from edgekit.base.errors import CorruptError, UnsupportedError
from edgekit.export.weights.weight_compare import BF16, CALIBRATED, F16, F32, Array, Grid, Stored

FLOATS = {onnx.TensorProto.FLOAT: ("fp32", F32), onnx.TensorProto.FLOAT16: ("fp16", F16),
          onnx.TensorProto.BFLOAT16: ("bf16", BF16)}  # fmt: skip
MOVING = ("Reshape", "Transpose")
"""Operators between a weight and its user that change no value."""


@dataclass(frozen=True)
class Node:
    """One node of the graph."""

    name: str
    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]

    def input(self, index: int) -> str:
        """The name of an input; empty when the node has none at this index."""
        return self.inputs[index] if index < len(self.inputs) else ""


@dataclass(frozen=True)
class Graph:
    """Nodes in order, the node that computes each value, and the initializers, whose data may be in a separate file."""

    folder: Path
    nodes: list[Node]
    makers: dict[str, Node]
    initializers: dict[str, Any]

    def origin(self, value: str) -> str:
        """The initializer that `value` is a view of; empty when it is computed."""
        while value not in self.initializers:
            maker = self.makers.get(value)
            if maker is None or not (maker.op in MOVING or self._widens(maker)):
                return ""
            value = maker.inputs[0]
        return value

    def _widens(self, node: Node) -> bool:
        """Whether the node makes floats of a stored tensor of halves, which changes no value."""
        tensor = self.initializers.get(node.input(0)) if node.op == "Cast" else None
        halves = tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT16
        return halves and node.attributes.get("to") == onnx.TensorProto.FLOAT

    def array(self, name: str) -> NDArray[Any]:
        """An initializer, mapped from its file. Raises `CorruptError` when the file does not hold it."""
        tensor = self.initializers[name]
        where = {entry.key: entry.value for entry in tensor.external_data}
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
            whole_bytes = tensor.data_type in (*FLOATS, onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
            if not where or not whole_bytes:
                return np.asarray(onnx.numpy_helper.to_array(tensor, str(self.folder)))
            if Path(where["location"]).name != where["location"]:
                raise CorruptError(f"{name} has its data outside {self.folder}.", "Do not use this folder.")
            return np.memmap(
                self.folder / where["location"], dtype, "r", int(where.get("offset", 0)), tuple(tensor.dims)
            )
        except (KeyError, ValueError, OSError, onnx.checker.ValidationError) as error:
            raise CorruptError(
                f"{self.folder} does not hold the data of {name}: {error}.", "Download it again."
            ) from error

    def scalar(self, value: str) -> float | None:
        """The float or whole number that `value` is; None when it is computed or an array."""
        maker = self.makers.get(value)
        if maker is not None and maker.op == "Constant" and "value" in maker.attributes:
            found = np.asarray(onnx.numpy_helper.to_array(maker.attributes["value"]))
        elif value in self.initializers and not self.initializers[value].external_data:
            found = np.asarray(onnx.numpy_helper.to_array(self.initializers[value]))
        else:
            return None
        return float(found) if found.ndim == 0 else None

    def branch_tables(self, switch: Node, branch: str) -> list[NDArray[Any]]:
        """The constants that a branch of the node `switch` (an `If`) returns."""
        subgraph = switch.attributes[branch]
        constants = {
            node.output[0]: _attributes(node).get("value")
            for node in subgraph.node
            if node.op_type == "Constant"
        }
        try:
            return [
                np.asarray(onnx.numpy_helper.to_array(constants[output.name], str(self.folder)))
                for output in subgraph.output
            ]
        except (KeyError, TypeError, ValueError, OSError, onnx.checker.ValidationError) as error:
            raise CorruptError(
                f"{switch.name} in {self.folder} lacks its tables: {error}.", "Download it again."
            ) from error


def read_graph(file: Path) -> Graph:
    """The graph in `file`; its weights stay on disk. Raises `CorruptError` when it is not an ONNX model."""
    try:
        model = onnx.load(file, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise CorruptError(f"{file} is not an ONNX model: {error}.", "Download or write it again.") from error
    nodes = [
        Node(node.name, node.op_type, list(node.input), list(node.output), _attributes(node))
        for node in model.graph.node
    ]
    makers = {output: node for node in nodes for output in node.outputs}
    return Graph(file.parent, nodes, makers, {tensor.name: tensor for tensor in model.graph.initializer})


def _attributes(node: Any) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def stored(graph: Graph, node: Node, name: str) -> Stored:
    """The weight of a linear or embedding `node` as `(rows, columns)`, rows those of the Hugging Face tensor `name`.

    Raises `UnsupportedError` for weights that the graph computes or stores in a form that edgekit cannot read.
    """
    quantized = node.op in ("MatMulNBits", "GatherBlockQuantized")
    weight = node.inputs[0] if node.op in ("Gather", "GatherBlockQuantized") else node.input(1)
    source = graph.origin(weight)
    if not source or (node.op == "MatMulNBits" and node.input(4)):
        raise UnsupportedError(
            f"The weight of {node.name} is {'stored in another order' if source else 'computed in the graph'}, "
            "which edgekit cannot read.",
            "Compare the runtimes' answers instead.",
        )
    if quantized:
        return _blockwise(graph, node, source, name)
    if graph.initializers[source].data_type not in FLOATS:
        raise UnsupportedError(f"{source} does not hold floats.", "Compare the runtimes' answers instead.")
    kind, grid = FLOATS[graph.initializers[source].data_type]
    array = graph.array(source)
    turned = (node.op == "MatMul") != (_turns(graph, weight) % 2 == 1)
    rows = array.T if turned else array
    return Stored(name, kind, rows.shape, grid, lambda start, stop: rows[start:stop].astype(np.float32))


def vector(graph: Graph, source: str, name: str) -> Stored:
    """A norm's weight or a bias `(columns,)`, or the filters of a convolution as `(rows, columns)`."""
    kind, grid = FLOATS.get(graph.initializers[source].data_type, ("fp32", F32))
    array = graph.array(source)
    rows = array.reshape(1 if array.ndim == 1 else len(array), -1)
    shape = array.shape if array.ndim == 1 else rows.shape
    return Stored(name, kind, shape, grid, lambda start, stop: rows[start:stop].astype(np.float32))


def _turns(graph: Graph, value: str) -> int:
    turns = 0
    while value not in graph.initializers:
        turns += graph.makers[value].op == "Transpose"
        value = graph.makers[value].inputs[0]
    return turns


def _blockwise(graph: Graph, node: Node, source: str, name: str) -> Stored:
    """A weight stored as codes in blocks of columns, each with a scale and possibly a zero point."""
    linear = node.op == "MatMulNBits"
    bits, block = int(node.attributes.get("bits", 4)), int(node.attributes.get("block_size", 32))
    scale_source = graph.origin(node.input(2))
    if not scale_source:
        raise UnsupportedError(
            f"The scales of {node.name} are computed in the graph, which edgekit cannot read.",
            "Compare the runtimes' answers instead.",
        )
    data, scales = graph.array(source), graph.array(scale_source)
    rows = int(node.attributes.get("N", 0)) if linear else data.shape[0]
    packed = data.dtype == np.uint8
    blocks = scales.size // max(rows, 1)
    columns = int(node.attributes.get("K", 0)) if linear else blocks * block
    zeros = graph.array(node.input(3)) if node.input(3) else None
    fits = data.size * (8 // bits if packed else 1) == rows * blocks * block and scales.size == rows * blocks
    if not fits or columns > blocks * block or (zeros is not None and zeros.size % rows):
        raise CorruptError(
            f"{node.name} in {graph.folder} has a size that differs from its weights'.", "Download it again."
        )
    codes, scales = data.reshape(rows, -1), scales.reshape(rows, blocks)
    usual = 2 ** (bits - 1) if packed else 0
    if zeros is not None:
        zeros = zeros.reshape(rows, -1)
        zeros = unpack(zeros, bits)[:, :blocks] if packed and zeros.dtype == np.uint8 else zeros

    def read(start: int, stop: int) -> Array:
        part = codes[start:stop]
        plain = (unpack(part, bits) if packed else part).astype(np.float32)
        plain = plain.reshape(stop - start, blocks, block)
        zero = np.float32(usual) if zeros is None else zeros[start:stop, :, None].astype(np.float32)
        values = (plain - zero) * scales[start:stop, :, None].astype(np.float32)
        return np.asarray(values.reshape(stop - start, -1)[:, :columns], np.float32)

    signed = zeros is None or bool((zeros.astype(np.float32) == usual).all())
    steps = 2.0 ** (bits - 1) if signed else 2.0**bits - 1
    grid = Grid(block, steps, "peak" if signed else "range", factors=CALIBRATED)
    return Stored(name, f"int{bits}", (rows, columns), grid, read)


def unpack(packed: NDArray[Any], bits: int) -> NDArray[Any]:
    """Whole numbers of `bits` bits from bytes, the first in the low bits: `(R, n)` to `(R, n * 8 / bits)`."""
    parts = [packed >> shift & (2**bits - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(len(packed), -1)
