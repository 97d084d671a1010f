"""onnxruntime-genai folders whose containers are sound and whose contents hurt: each function changes a good one in place.

`ONNX` names the cases, each with the rule that refuses it, or nothing where the parser or the runtime does. The good folder is the model builder's, rounded to 8 bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Hurt = Callable[[Path], None]


def written(folder: Path, file: str, change: Callable[[Any], object]) -> None:
    """Change a JSON file of the folder."""
    value = json.loads((folder / file).read_text(encoding="utf-8"))
    change(value)
    (folder / file).write_text(json.dumps(value), encoding="utf-8")


def setting(**changes: Any) -> Hurt:
    """Other values in `model` of genai_config.json, or in `decoder` there where they stand."""

    def change(config: Any) -> None:
        for key, value in changes.items():
            table = config["model"]["decoder"] if key in config["model"]["decoder"] else config["model"]
            table[key] = value

    return lambda folder: written(folder, "genai_config.json", change)


def named(kind: str, key: str, name: str) -> Hurt:
    """Another name for an input or output of the graph."""
    return lambda folder: written(
        folder, "genai_config.json", lambda config: config["model"]["decoder"][kind].update({key: name})
    )


def token_id(id_: Any) -> Hurt:
    """A token of the vocabulary with that id."""
    return lambda folder: written(
        folder, "tokenizer.json", lambda found: found["model"]["vocab"].update({"zzz": id_})
    )


def added_token(id_: Any) -> Hurt:
    """The last added token with that id."""
    return lambda folder: written(
        folder, "tokenizer.json", lambda found: found["added_tokens"][-1].update(id=id_)
    )


def plain_token(id_: int, special: bool = False) -> Hurt:
    """One more added token, which any text may hold unless it is special."""
    token = {"content": "zzz", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return lambda folder: written(
        folder,
        "tokenizer.json",
        lambda found: found["added_tokens"].append({**token, "id": id_, "special": special}),
    )


def edited(change: Callable[[Any], object]) -> Hurt:
    """Another graph."""

    def hurt(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        change(model.graph)
        onnx.save(model, folder / "model.onnx")

    return hurt


def attribute(op: str, name: str, value: int) -> Hurt:
    """Another attribute of the first node of an operator."""

    def change(graph: Any) -> None:
        node = next(node for node in graph.node if node.op_type == op)
        next(found for found in node.attribute if found.name == name).i = value

    return edited(change)


def without(field: str, name: str) -> Hurt:
    """A graph that does not declare one of its inputs or outputs."""

    def change(graph: Any) -> None:
        values = getattr(graph, field)
        values.remove(next(value for value in values if value.name == name))

    return edited(change)


def broken_float(part: str, value: float = float("nan")) -> Hurt:
    """A value that is no finite number in the first initializer whose name ends in `part`."""

    def hurt(folder: Path) -> None:
        graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
        tensor = next(found for found in graph.initializer if found.name.endswith(part))
        where = {entry.key: entry.value for entry in tensor.external_data}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        assert np.issubdtype(dtype, np.floating)
        data = np.memmap(folder / where["location"], dtype, "r+", int(where["offset"]), tuple(tensor.dims))
        data.reshape(-1)[-1] = value
        data.flush()

    return hurt


def inline_floats(folder: Path) -> None:
    """A norm's weight that stands in the graph value by value, one of them NaN."""

    def change(graph: Any) -> None:
        tensor = next(found for found in graph.initializer if found.name.endswith("norm_layernorm.weight"))
        values = [1.0] * (tensor.dims[0] - 1) + [float("nan")]
        tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, values))

    edited(change)(folder)


def external(**changes: str) -> Hurt:
    """Other places of the first tensor that stands in a file beside the graph."""

    def change(graph: Any) -> None:
        tensor = next(found for found in graph.initializer if found.external_data)
        for entry in tensor.external_data:
            entry.value = changes.get(entry.key, entry.value)

    return edited(change)


def shorter(part: str) -> Hurt:
    """The first initializer whose name ends in `part` with half of its rows."""

    def change(graph: Any) -> None:
        tensor = next(found for found in graph.initializer if found.name.endswith(part))
        tensor.dims[0] //= 2
        for entry in tensor.external_data:
            if entry.key == "length":
                entry.value = str(int(entry.value) // 2)

    return edited(change)


ONNX: dict[str, tuple[Hurt, str]] = {
    "more layers than the graph": (setting(num_hidden_layers=9), "layers"),
    "fewer layers than the graph": (setting(num_hidden_layers=2), "layers"),
    "billions of layers": (setting(num_hidden_layers=2**31), "sizes"),
    "no layers": (setting(num_hidden_layers=0), "sizes"),
    "more key-value heads than the graph": (setting(num_key_value_heads=4), "heads"),
    "no key-value heads": (setting(num_key_value_heads=0), "sizes"),
    "more heads than the graph": (setting(num_attention_heads=8), "heads"),
    "three heads for two": (setting(num_attention_heads=3), "heads"),
    "a wider head": (setting(head_size=4096), ""),
    "a narrower head": (setting(head_size=8), "heads"),
    "a wider embedding": (setting(hidden_size=4096), "vocabulary"),
    "a larger vocabulary": (setting(vocab_size=100_000), "vocabulary"),
    "a smaller vocabulary": (setting(vocab_size=100), "token ids"),
    "a vocabulary of billions": (setting(vocab_size=2**40), "sizes"),
    "a vocabulary that is a text": (setting(vocab_size="478"), "sizes"),
    "a context of four tokens": (setting(context_length=4), "sizes"),
    "a context longer than the tables of rope": (setting(context_length=100_000), "context"),
    "an eos id outside the vocabulary": (setting(eos_token_id=70_000), "special token ids"),
    "a negative eos id": (setting(eos_token_id=[2, -5]), "special token ids"),
    "a bos id outside the vocabulary": (setting(bos_token_id=478), "special token ids"),
    "a pad id outside the vocabulary": (setting(pad_token_id=2**31), "special token ids"),
    "a token id outside the vocabulary": (token_id(70_000), "token ids"),
    "a token id of billions": (token_id(2**40), "token ids"),
    "a negative token id": (token_id(-7), "token ids"),
    "a token id that is a text": (token_id("7"), "token ids"),
    "an end of the answer outside the vocabulary": (added_token(478), "token ids"),
    "text outside the vocabulary": (plain_token(478), "token ids"),
    "an added token far outside the vocabulary": (plain_token(2**31, special=True), "token ids"),
    "no such input": (named("inputs", "input_ids", "nothing"), "inputs and outputs"),
    "no such output": (named("outputs", "logits", "nothing"), "inputs and outputs"),
    "no such cache": (named("inputs", "past_key_names", "past.%d"), "layers"),
    "a pattern that formats": (named("inputs", "past_key_names", "%n%s%d"), "inputs and outputs"),
    "a graph without logits": (without("output", "logits"), "inputs and outputs"),
    "a graph without one cache": (without("input", "past_key_values.1.key"), "layers"),
    "attention with other heads": (attribute("GroupQueryAttention", "num_heads", 64), "heads"),
    "attention with other key-value heads": (attribute("GroupQueryAttention", "kv_num_heads", 1), "heads"),
    "a matrix with more rows than its data": (attribute("MatMulNBits", "N", 1 << 20), ""),
    "a matrix with more columns than its data": (attribute("MatMulNBits", "K", 1 << 20), ""),
    "a matrix of other bits": (attribute("MatMulNBits", "bits", 2), ""),
    "half of a matrix's scales": (shorter("scales_half"), ""),
    "NaN in a scale": (broken_float("scales_half"), "finite weights"),
    "infinity in a norm": (broken_float("norm_layernorm.weight", float("inf")), "finite weights"),
    "NaN among values in the graph": (inline_floats, "finite weights"),
    "weights beyond the end of their file": (external(offset=str(1 << 40)), ""),
    "weights in a file elsewhere": (external(location="../model.onnx.data"), ""),
    "a graph in a folder elsewhere": (setting(filename="../model.onnx"), ""),
}  # fmt: skip
