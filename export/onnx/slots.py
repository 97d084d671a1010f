"""An exported ONNX folder whose decoder layers take LoRA adapters at run time.

`x A B` is added to the output of each linear layer. The factors are graph inputs whose defaults have rank 0, so without an
adapter the output is unchanged. onnxruntime fills them from an adapter file with factors of any rank; the layer's weight
may have any precision.
Source: <https://onnxruntime.ai/docs/genai/tutorials/finetune.html>, and Olive's pass `ExtractAdapters`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.base.artifacts import remove
from edgekit.base.errors import CorruptError, UnsupportedError
from edgekit.base.events import Emit, Progress, ignore
from edgekit.export.adapters.write import STAGE, base_digest, slot_names
from edgekit.export.weights.folder import places_of, read_json
from edgekit.models.source import BASE_DIGEST, PROVENANCE

MODEL = "model.onnx"
SLOTS = "adapter_slots"
_NODE = re.compile(r"/model/layers\.(\d+)/(attn|mlp)/(\w+_proj)/MatMul\w*")
_WEIGHT = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")


def open_slots(folder: Path, base: Path, out: Path, emit: Emit = ignore) -> None:
    """Write the exported ONNX folder `folder` of the Hugging Face folder `base` to the new folder `out`, with slots.

    All linear layers of the decoder get one, named as PEFT names the factors. `edgekit.json` in `out` names the base
    and the sizes of the slots. Raises `CorruptError` for a damaged graph and `UnsupportedError` for one that
    lacks a layer of the base.
    """
    import onnx

    digest = base_digest(base)
    shapes = {name: place.tensor.shape for name, place in places_of(base).items() if _WEIGHT.fullmatch(name)}
    sizes = {name: (shape[1], shape[0]) for name, shape in shapes.items()}
    try:
        model = onnx.load(folder / MODEL, load_external_data=False)
    except Exception as error:  # protobuf's own error, which onnx does not document
        raise CorruptError(f"{folder / MODEL} cannot be read: {error}.", "Export the model again.") from error
    missing = _add_slots(model.graph, sizes)
    if missing:
        raise UnsupportedError(
            f"The graph of {folder} has no layer for {', '.join(sorted(missing)[:3])}, so it takes no adapters. "
            "Nothing was written.",
            "Merge the adapter into its base and export the result, or export the base again with this version of edgekit.",
        )
    _input(model.graph, BASE_DIGEST, onnx.TensorProto.UINT8, [32], bytes.fromhex(digest))
    out.mkdir(parents=True)
    try:
        for file in sorted(folder.iterdir()):
            if file.name != MODEL:
                shutil.copyfile(file, out / file.name)
        onnx.save(model, out / MODEL)
        slots = {name.removesuffix(".weight"): list(size) for name, size in sizes.items()}
        origin = read_json(base / PROVENANCE) | {SLOTS: slots}
        (out / PROVENANCE).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
    except BaseException:
        remove(out)
        raise
    emit(Progress(STAGE, len(sizes), len(sizes), "layers"))


def _add_slots(graph: Any, sizes: dict[str, tuple[int, int]]) -> set[str]:
    """Add a slot to every layer of `graph`; returns the weights without a layer."""
    from onnx import TensorProto, helper

    missing = set(sizes)
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        graph.node.append(node)
        weights = list(_weights_of(node))
        if not weights or not sizes.keys() >= set(weights):
            continue
        missing -= set(weights)
        output = node.output[0]
        graph.node[-1].output[0] = f"{node.name}/base"
        changes = []
        for weight in weights:
            (a, b), (inner, outer), name = slot_names(weight), sizes[weight], weight.removesuffix(".weight")
            _input(graph, a, TensorProto.FLOAT, [inner, f"{name}.rank"], b"", (inner, 0))
            _input(graph, b, TensorProto.FLOAT, [f"{name}.rank", outer], b"", (0, outer))
            changes.append(f"{name}/change")
            graph.node.append(
                helper.make_node("MatMul", [node.input[0], a], [f"{name}/low"], f"{name}/lora_A")
            )
            graph.node.append(helper.make_node("MatMul", [f"{name}/low", b], changes[-1:], f"{name}/lora_B"))
        change = changes[0]
        if len(changes) > 1:
            change = f"{node.name}/change"
            graph.node.append(helper.make_node("Concat", changes, [change], f"{node.name}/Concat", axis=-1))
        graph.node.append(
            helper.make_node("Add", [f"{node.name}/base", change], [output], f"{node.name}/with_adapter")
        )
    return missing


def _weights_of(node: Any) -> Iterator[str]:
    """The base's weights that a node multiplies by; the model builder packs q, k and v into one where it can."""
    if node.op_type in ("MatMul", "MatMulNBits") and (found := _NODE.fullmatch(node.name)):
        layer, part, name = found.groups()
        for projection in ("q_proj", "k_proj", "v_proj") if name == "qkv_proj" else (name,):
            yield f"model.layers.{layer}.{'self_attn' if part == 'attn' else part}.{projection}.weight"


def _input(
    graph: Any, name: str, kind: int, shape: list[Any], data: bytes, default: tuple[int, ...] | None = None
) -> None:
    """Add an optional input to the graph, whose default is `data` of the shape `default`."""
    from onnx import helper

    graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    graph.initializer.append(helper.make_tensor(name, kind, default or shape, data, raw=True))
