"""Scales as halves: onnxruntime widens them once, when it loads the graph, so that products are as fast as with floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

BLOCKWISE = ("MatMulNBits", "GatherBlockQuantized")
SCALES = 2  # which input of theirs


def store_halves(graph: ir.Graph) -> None:
    """Store the scales of all rounded weights as halves, each with a `Cast` that widens it.

    The scales must be numbers that a half can store.
    """
    scales: dict[str, Any] = {}
    for node in graph:
        if node.op_type in BLOCKWISE and (value := node.inputs[SCALES]) is not None:
            scales[str(value.name)] = value
    first = graph[0]
    for name, wide in scales.items():
        narrow = ir.Value(
            name=f"{name}_half",
            shape=wide.shape,
            type=ir.TensorType(ir.DataType.FLOAT16),
            const_value=ir.tensor(wide.const_value.numpy().astype(np.float16), name=f"{name}_half"),
        )
        cast = ir.node("Cast", [narrow], {"to": ir.DataType.FLOAT}, name=f"{name}/Cast")
        graph.insert_before(first, cast)
        ir.convenience.replace_all_uses_with(wide, cast.outputs[0])
        del graph.initializers[name]
        cast.outputs[0].name = name
        cast.outputs[0].shape, cast.outputs[0].type = wide.shape, wide.type
        graph.register_initializer(narrow)
