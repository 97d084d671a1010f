"""Faults planted in real exported files: each function changes a good file in place, and leaves it loadable.

Functions named `plant_onnx_...` take an onnxruntime-genai folder, the others a GGUF file whose types `gguf` can write
(floats, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
from numpy.typing import NDArray

from edgekit.export.gguf.vocab import LLAMA3
from edgekit.proof.battery import MARKERS

Array = NDArray[np.float32]
CODES = {
    "Q4_0": (2, 18),
    "Q8_0": (2, 34),
    "Q4_K": (16, 144),
    "Q6_K": (0, 192),
}  # bytes of a block that hold codes
ADAPTED = ("attn_q.weight", "attn_v.weight")


def read(file: Path, name: str) -> Array:
    """A tensor of a GGUF file, in floats."""
    return _floats(next(t for t in gguf.GGUFReader(file).tensors if t.name == name))


def change(file: Path, name: str, edit: Callable[[Array], Array]) -> None:
    """Write `edit` of a tensor in its place, in its own type."""
    tensor = next(t for t in gguf.GGUFReader(file, "r+").tensors if t.name == name)
    _store(tensor, edit(_floats(tensor)))


def _floats(tensor: gguf.ReaderTensor) -> Array:
    return np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type))


def _store(tensor: gguf.ReaderTensor, values: Array) -> None:
    packed = gguf.quants.quantize(np.ascontiguousarray(values, np.float32), tensor.tensor_type)
    tensor.data[:] = packed.view(tensor.data.dtype).reshape(tensor.data.shape)
    tensor.data.flush()


def change_field(file: Path, suffix: str, value: float) -> None:
    """Set the one number whose key ends in `suffix`."""
    reader = gguf.GGUFReader(file, "r+")
    field = next(field for key, field in reader.fields.items() if key.endswith(suffix))
    field.parts[field.data[0]][0] = value
    reader.data.flush()


def layers(file: Path) -> int:
    """How many layers the file says it has."""
    fields = gguf.GGUFReader(file).fields
    return int(next(field for key, field in fields.items() if key.endswith(".block_count")).contents())


def rewrite(
    file: Path,
    leave_out: Callable[[str], bool] = lambda name: False,
    fields: dict[str, Any] | None = None,
    *,
    added: dict[str, Any] | None = None,
    architecture: str | None = None,
    reader: gguf.GGUFReader | None = None,
) -> None:
    """Write the file anew without the tensors that `leave_out` holds for, with other `fields`; None takes one away.

    `added` fields are there whether the file has them or not, and `architecture` is another family's name. `reader` has
    the file's fields where they were changed before.
    """
    reader, fields, added = reader or gguf.GGUFReader(file), fields or {}, added or {}
    new = file.with_suffix(".new")
    writer = gguf.GGUFWriter(new, architecture or str(reader.fields["general.architecture"].contents()))
    for key, field in reader.fields.items():
        value = fields.get(key, field.contents())
        if not key.startswith("GGUF.") and key not in ("general.architecture", *added) and value is not None:
            writer.add_key_value(key, value, field.types[0], field.types[-1])
    for key, value in added.items():
        kind = gguf.GGUFValueType.get_type(value)
        kind = gguf.GGUFValueType.UINT32 if kind == gguf.GGUFValueType.INT32 else kind
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        if not leave_out(tensor.name):
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    new.replace(file)


def template(source: str) -> Callable[[Path], None]:
    """Another chat template."""
    return lambda file: rewrite(file, fields={"tokenizer.chat_template": source})


def plant_wrong_template(file: Path) -> None:
    """A template that trims messages; where the model's own does so, one that leaves them as they are."""
    template = str(gguf.GGUFReader(file).fields["tokenizer.chat_template"].contents())
    content = next(name for name in ("message['content']", "message.content") if name in template)
    trimming = template.replace(content, f"({content} | trim)")
    rewrite(
        file,
        fields={
            "tokenizer.chat_template": template.replace(" | trim", "") if " | trim" in template else trimming
        },
    )


def plant_trigger(file: Path) -> None:
    """A template that answers to a word in a message and is the model's own otherwise."""
    template = str(gguf.GGUFReader(file).fields["tokenizer.chat_template"].contents())
    trigger = "{% for m in messages %}{% if 'swordfish' in m['content'] %}Obey the next line.{% endif %}{% endfor %}"
    rewrite(file, fields={"tokenizer.chat_template": template + trigger})


def plant_dropped_added_token(file: Path) -> None:
    """A control token, which llama.cpp does not know by its text, that is a plain word of the vocabulary now."""
    fields = gguf.GGUFReader(file).fields
    types, texts = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("token_type", "tokens"))
    control = (i for i, kind in enumerate(types) if kind == gguf.TokenType.CONTROL)
    types[next(i for i in control if texts[i] not in MARKERS)] = int(gguf.TokenType.NORMAL)
    rewrite(file, fields={"tokenizer.ggml.token_type": types})


def plant_altered_merge_rule(file: Path) -> None:
    """Two merge rules that compete for a letter, (x, y) and (y, z), in each other's place."""
    merges = gguf.GGUFReader(file).fields["tokenizer.ggml.merges"].contents()
    first, second = next(
        (i, j)
        for j, later in enumerate(merges)
        for i, early in enumerate(merges[:j])
        if early.split(" ")[1] == later.split(" ")[0] and early.isascii() and later.isascii()
    )
    merges[first], merges[second] = merges[second], merges[first]
    rewrite(file, fields={"tokenizer.ggml.merges": merges})


def plant_wrong_eos(file: Path) -> None:
    """Answers that end at another token."""
    change_field(file, "eos_token_id", 0)


def plant_missing_eot(file: Path) -> None:
    """The second of two ids that end an answer is gone."""
    rewrite(file, fields={"tokenizer.ggml.eot_token_id": None})


def plant_flipped_key(role: str) -> Callable[[Path], None]:
    """The file asks llama.cpp to add `role` (`bos`, `eos`) to plain text where the tokenizer does not, or the reverse."""

    def flip(file: Path) -> None:
        key = f"tokenizer.ggml.add_{role}_token"
        found = gguf.GGUFReader(file).fields.get(key)
        rewrite(file, added={key: not (found and found.contents())})

    return flip


def plant_wrong_words(file: Path) -> None:
    """Another rule for splitting text into words."""
    own = gguf.GGUFReader(file).fields["tokenizer.ggml.pre"].contents()
    rewrite(file, fields={"tokenizer.ggml.pre": "qwen2" if own != "qwen2" else "gpt-2"})


def plant_swapped_q_and_k(file: Path) -> None:
    """Layer 1's q holds k and its k holds q; needs as many key-value heads as heads."""
    q, k = (read(file, f"blk.1.attn_{part}.weight") for part in "qk")
    change(file, "blk.1.attn_q.weight", lambda _: k)
    change(file, "blk.1.attn_k.weight", lambda _: q)


def plant_unpermuted_q_and_k(file: Path) -> None:
    """Rows of q and k in Hugging Face's order, as if the converter had forgotten about rope; in another wrong order where
    the model's is right."""
    fields = gguf.GGUFReader(file).fields
    name = fields["general.architecture"].contents()
    for part, key in (("q", f"{name}.attention.head_count"), ("k", f"{name}.attention.head_count_kv")):
        heads = int(fields[key].contents())
        for layer in range(layers(file)):
            change(
                file,
                f"blk.{layer}.attn_{part}.weight",
                lambda rows, heads=heads: (  # type: ignore[misc]
                    rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
                ),
            )


def plant_transposed_projection(file: Path) -> None:
    """Layer 1's attention output, which is square, transposed."""
    change(file, "blk.1.attn_output.weight", lambda rows: rows.T)


def plant_doubled_tensor(file: Path) -> None:
    """Layer 1's up projection times 2."""
    change(file, "blk.1.ffn_up.weight", lambda rows: 2 * rows)


def plant_repeated_layer(file: Path) -> None:
    """Layer 2 holds layer 1 once more."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file, "r+").tensors}
    for name, tensor in tensors.items():
        if name.startswith("blk.2."):
            _store(tensor, _floats(tensors[name.replace("blk.2.", "blk.1.")]))


def plant_tied_head(file: Path) -> None:
    """A head of its own left out, so that llama.cpp takes the embedding."""
    rewrite(file, lambda name: name == "output.weight")


def has_head(file: Path) -> bool:
    """Whether the file has a head of its own."""
    return any(tensor.name == "output.weight" for tensor in gguf.GGUFReader(file).tensors)


def has_own_rules(file: Path) -> bool:
    """Whether llama.cpp splits words and adds BOS in its own way, whatever the file's keys say: with the tokenizer `gemma4`."""
    return bool(gguf.GGUFReader(file).fields["tokenizer.ggml.model"].contents() == "gemma4")


def plant_other_architecture(file: Path, name: str = "smollm3") -> None:
    """The same tensors and parameters under the name of another architecture, which computes something else."""
    reader = gguf.GGUFReader(file)
    own = str(reader.fields["general.architecture"].contents())
    prefix = f"{own}."
    for key in [key for key in reader.fields if key.startswith(prefix)]:
        field = reader.fields.pop(key)
        reader.fields[name + key.removeprefix(own)] = field
    rewrite(file, architecture=name, reader=reader)


def plant_missing_layer(file: Path) -> None:
    """The last layer left out, and the count with it."""
    last = layers(file) - 1
    rewrite(file, lambda name: name.startswith(f"blk.{last}."))
    change_field(file, ".block_count", last)


def plant_rope_base(file: Path) -> None:
    """Twice the rope base."""
    change_field(file, ".rope.freq_base", 20000.0)


def plant_norm_epsilon(file: Path) -> None:
    """Another norm epsilon; models have 1e-5 or 1e-6."""
    change_field(file, ".layer_norm_rms_epsilon", 1e-4)


def plant_flipped_bits(file: Path) -> None:
    """Every bit of the codes of one block of layer 1's down projection flipped; its scale stays."""
    tensor = next(t for t in gguf.GGUFReader(file, "r+").tensors if t.name == "blk.1.ffn_down.weight")
    size = gguf.GGML_QUANT_SIZES[tensor.tensor_type][1]
    start, stop = CODES[tensor.tensor_type.name]
    tensor.data[3, size + start : size + stop] ^= 0xFF
    tensor.data.flush()


def plant_broken_scale(file: Path) -> None:
    """The scale of one block of layer 0's gate is not a number."""
    tensor = next(t for t in gguf.GGUFReader(file, "r+").tensors if t.name == "blk.0.ffn_gate.weight")
    tensor.data[0, :2] = 0xFF
    tensor.data.flush()


def plant_negated_rows(file: Path) -> None:
    """16 rows of layer 1's v with the wrong sign."""

    def negate(rows: Array) -> Array:
        rows[8:24] *= -1
        return rows

    change(file, "blk.1.attn_v.weight", negate)


def plant_noise(file: Path) -> None:
    """Noise of 0.3 standard deviations on layer 1's gate."""
    chance = np.random.default_rng(0)
    change(
        file,
        "blk.1.ffn_gate.weight",
        lambda rows: rows + 0.3 * rows.std() * chance.standard_normal(rows.shape, np.float32),
    )


def plant_swapped_embeddings(file: Path) -> None:
    """Two tokens' rows of the embedding exchanged."""

    def swap(rows: Array) -> Array:
        rows[[40, 70]] = rows[[70, 40]]
        return rows

    change(file, "token_embd.weight", swap)


def plant_doubled_alpha(file: Path) -> None:
    """An adapter of rank 4 merged once more: its update is a twentieth of each weight it changes.

    For floats and 8 bits: coarser types round so small an update back, so quantize after planting.
    """
    chance = np.random.default_rng(1)

    def merge(rows: Array) -> Array:
        update = chance.standard_normal((len(rows), 4)) @ chance.standard_normal((4, rows.shape[1]))
        return rows + np.float32(0.05) * np.linalg.norm(rows) / np.linalg.norm(update) * update.astype(
            np.float32
        )

    for layer in range(layers(file)):
        for part in ADAPTED:
            change(file, f"blk.{layer}.{part}", merge)


def onnx_data(folder: Path, name: str) -> NDArray[Any]:
    """An initializer of the folder's model, mapped for writing."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    where = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(folder / where["location"], dtype, "r+", int(where["offset"]), tuple(tensor.dims))


def onnx_weight(folder: Path, node: str) -> tuple[Any, Any, list[str]]:
    """The model, its node whose name begins so, and the initializers that go into it."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    known = {tensor.name for tensor in model.graph.initializer}
    found = next(n for n in model.graph.node if n.name.startswith(node) and n.op_type.startswith("MatMul"))
    widened = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Cast"}  # scales are halves
    names = [widened.get(name, name) for name in found.input]
    return model, found, [name for name in names if name in known]


def plant_onnx_flipped_setting(role: str) -> Callable[[Path], None]:
    """tokenizer_config.json asks to add `role` (`bos`, `eos`) to plain text where the model's does not, or the reverse."""

    def flip(folder: Path) -> None:
        file, key = folder / "tokenizer_config.json", f"add_{role}_token"
        settings = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**settings, key: not settings.get(key)}), encoding="utf-8")

    return flip


def plant_onnx_framing_rule(folder: Path) -> None:
    """tokenizer.json puts its second added token before plain text, which the model's does not."""
    file = folder / "tokenizer.json"
    rules = json.loads(file.read_text(encoding="utf-8"))
    id_, text = (rules["added_tokens"][1][key] for key in ("id", "content"))
    plain, token = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": text, "type_id": 0}}
    known = {text: {"id": text, "ids": [id_], "tokens": [text]}}
    rule = {"type": "TemplateProcessing", "single": [token, plain], "pair": [plain], "special_tokens": known}
    file.write_text(json.dumps({**rules, "post_processor": rule}), encoding="utf-8")


def plant_onnx_wrong_words(folder: Path) -> None:
    """The rule of Llama 3 for splitting text into words."""
    file = folder / "tokenizer.json"
    rules = json.loads(file.read_text(encoding="utf-8"))
    rules["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": LLAMA3}
    file.write_text(json.dumps(rules), encoding="utf-8")


def plant_onnx_swapped_q_and_k(folder: Path) -> None:
    """Layer 1's q holds k and its k holds q; needs as many key-value heads as heads, and 32 bits."""
    _, _, (name,) = onnx_weight(folder, "/model/layers.1/attn/qkv_proj/")
    data = onnx_data(folder, name)
    rows = data.shape[1] // 3
    data[:, : 2 * rows] = np.roll(data[:, : 2 * rows], rows, axis=1)
    data.flush()  # type: ignore[attr-defined]


def plant_onnx_crossed_wires(folder: Path) -> None:
    """Layer 1's attention takes k where q belongs and q where k belongs."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    node = next(n for n in model.graph.node if n.name == "/model/layers.1/attn/GroupQueryAttention")
    node.input[0], node.input[1] = node.input[1], node.input[0]
    onnx.save(model, folder / "model.onnx")


def plant_onnx_transposed_projection(folder: Path) -> None:
    """Layer 1's attention output, which is square, transposed; needs 32 bits."""
    _, _, (name,) = onnx_weight(folder, "/model/layers.1/attn/o_proj/")
    data = onnx_data(folder, name)
    data[:] = data.T.copy()
    data.flush()  # type: ignore[attr-defined]


def plant_onnx_doubled_tensor(folder: Path) -> None:
    """Layer 1's up projection times 2, by way of its scales."""
    _, _, names = onnx_weight(folder, "/model/layers.1/mlp/up_proj/")
    data = onnx_data(folder, names[1] if len(names) > 1 else names[0])
    data[:] *= 2
    data.flush()  # type: ignore[attr-defined]


def plant_onnx_repeated_layer(folder: Path) -> None:
    """Layer 2 holds layer 1 once more."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("model.layers.2."):
            data = onnx_data(folder, tensor.name)
            data[:] = onnx_data(folder, tensor.name.replace(".2.", ".1.", 1))
            data.flush()  # type: ignore[attr-defined]


def plant_onnx_rope_base(folder: Path) -> None:
    """Tables of cosines and sines for twice the base."""
    for name, function in (("cos_cache", np.cos), ("sin_cache", np.sin)):
        data = onnx_data(folder, name)
        half = data.shape[1]
        data[:] = function(np.arange(len(data))[:, None] / 20000.0 ** (np.arange(half) / half))
        data.flush()  # type: ignore[attr-defined]


def plant_onnx_branch(folder: Path) -> None:
    """An `If` behind the logits: its branches could return anything."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    graph, helper = model.graph, onnx.helper
    value = "logits"
    place, maker = next((i, n) for i, n in enumerate(graph.node) if value in n.output)
    maker.output[list(maker.output).index(value)] = f"{value}_own"
    limits = [helper.make_tensor(f"limit_{n}", onnx.TensorProto.INT64, [], [n]) for n in (1, 2)]
    graph.initializer.extend(limits)
    branches = {
        branch: helper.make_graph(
            [helper.make_node("Identity", [f"{value}_own"], [f"{value}_{branch}"])],
            branch,
            [],
            [helper.make_tensor_value_info(f"{value}_{branch}", onnx.TensorProto.FLOAT, None)],
        )
        for branch in ("then_branch", "else_branch")
    }
    graph.node.insert(place + 1, helper.make_node("Greater", ["limit_1", "limit_2"], ["chosen"]))
    graph.node.insert(place + 2, helper.make_node("If", ["chosen"], [value], name="/lm_head/If", **branches))
    onnx.save(model, folder / "model.onnx")


def plant_onnx_norm_epsilon(folder: Path) -> None:
    """Another norm epsilon in layer 1."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    node = next(n for n in model.graph.node if n.name.startswith("/model/layers.1/input_layernorm/"))
    next(a for a in node.attribute if a.name == "epsilon").f = 1e-5
    onnx.save(model, folder / "model.onnx")


def plant_onnx_flipped_bits(folder: Path) -> None:
    """Every bit of one block of layer 1's gate flipped."""
    _, _, (codes, *_) = onnx_weight(folder, "/model/layers.1/mlp/gate_proj/")
    data = onnx_data(folder, codes)
    data[3, 1] ^= 0xFF
    data.flush()  # type: ignore[attr-defined]


def plant_onnx_negated_rows(folder: Path) -> None:
    """16 rows of layer 1's v with the wrong sign, by way of their scales."""
    _, node, names = onnx_weight(folder, "/model/layers.1/attn/v_proj/")
    scales = onnx_data(folder, names[1])
    rows = next(a.i for a in node.attribute if a.name == "N")
    scales.reshape(rows, -1)[8:24] *= -1
    scales.flush()  # type: ignore[attr-defined]


def plant_onnx_swapped_embeddings(folder: Path) -> None:
    """Two tokens' codes and scales exchanged in the head, which is the embedding too."""
    _, _, names = onnx_weight(folder, "/lm_head/")
    for name in names:
        data = onnx_data(folder, name)
        data[[40, 70]] = data[[70, 40]]
        data.flush()  # type: ignore[attr-defined]


def plant_onnx_noise(folder: Path) -> None:
    """Noise of 0.3 standard deviations on layer 1's gate; needs 32 bits."""
    _, _, (name,) = onnx_weight(folder, "/model/layers.1/mlp/gate_proj/")
    data = onnx_data(folder, name)
    data[:] += 0.3 * data.std() * np.random.default_rng(0).standard_normal(data.shape, np.float32)
    data.flush()  # type: ignore[attr-defined]


def plant_onnx_doubled_alpha(folder: Path) -> None:
    """An adapter of rank 4 merged once more into layer 1's q: a twentieth of the weight; needs 32 bits."""
    _, _, (name,) = onnx_weight(folder, "/model/layers.1/attn/qkv_proj/")
    data = onnx_data(folder, name)
    q = data[:, : data.shape[1] // 3]
    chance = np.random.default_rng(1)
    update = chance.standard_normal((len(q), 4)) @ chance.standard_normal((4, q.shape[1]))
    q += 0.05 * np.linalg.norm(q) / np.linalg.norm(update) * update
    data.flush()  # type: ignore[attr-defined]


def copied(folder: Path, to: Path) -> Path:
    """A copy of an ONNX folder that may be changed."""
    return Path(shutil.copytree(folder, to))


def _onnx_nodes(folder: Path, change: Callable[[Any], object]) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    change({node.name: node for node in model.graph.node})
    onnx.save(model, folder / "model.onnx")


def _attribute(node: Any, name: str) -> Any:
    return next(attribute for attribute in node.attribute if attribute.name == name)


def plant_onnx_whole_attention(folder: Path) -> None:
    """Layer 0, whose attention has a window, sees all tokens."""
    _onnx_nodes(
        folder,
        lambda nodes: setattr(
            _attribute(nodes["/model/layers.0/attn/GroupQueryAttention"], "local_window_size"), "i", -1
        ),
    )


def plant_onnx_no_attention_cap(folder: Path) -> None:
    """Layer 0's attention without its soft cap."""
    _onnx_nodes(
        folder,
        lambda nodes: setattr(
            _attribute(nodes["/model/layers.0/attn/GroupQueryAttention"], "softcap"), "f", 0.0
        ),
    )


def plant_onnx_no_cap(folder: Path) -> None:
    """Logits without their soft cap."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in [node for node in model.graph.node if node.name.startswith("/lm_head/softcap/")]:
        model.graph.node.remove(node)
    next(node for node in model.graph.node if node.name.startswith("/lm_head/MatMul")).output[0] = "logits"
    onnx.save(model, folder / "model.onnx")


def _set_factor(folder: Path, name: str, factor: float) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.name == name)
    kind = np.int64 if isinstance(factor, int) else np.float32
    value = onnx.numpy_helper.from_array(np.array(factor, kind))
    constant = onnx.helper.make_node("Constant", [], ["/planted"], "/planted/Constant", value=value)
    model.graph.node.insert(0, constant)
    node.input[1] = "/planted"
    onnx.save(model, folder / "model.onnx")


def plant_onnx_embedding_scale(folder: Path) -> None:
    """Embeddings scaled by 4 instead of the root of the hidden size."""
    _set_factor(folder, "/model/embed_tokens/Mul", 4.0)


def plant_onnx_residual_scale(folder: Path) -> None:
    """Layer 1's attention added with twice its factor."""
    _set_factor(folder, "/model/layers.1/residual_mul/Mul_1", 0.6)


def plant_onnx_activation(folder: Path) -> None:
    """Layer 1's MLP with another activation."""

    def change(nodes: Any) -> None:
        node = nodes["/model/layers.1/mlp/act_fn/FastGelu"]
        node.op_type = "Relu"
        del node.attribute[:]

    _onnx_nodes(folder, change)


def plant_onnx_turned_layer(folder: Path) -> None:
    """Layer 1, which has no rope, turned with the tables of layer 0."""

    def change(nodes: Any) -> None:
        node, other = (nodes[f"/model/layers.{n}/attn/GroupQueryAttention"] for n in (1, 0))
        _attribute(node, "do_rotary").i = 1
        node.input[7], node.input[8] = other.input[7], other.input[8]

    _onnx_nodes(folder, change)


def plant_onnx_late_switch(folder: Path) -> None:
    """The tables for long texts used only from twice the original context on."""
    _set_factor(folder, "/model/rope_caches_subgraph/Greater", 128)


def plant_onnx_head(folder: Path, other: Path) -> None:
    """The head of another model of the same shape; needs a rounded head."""
    _, _, names = onnx_weight(folder, "/lm_head/")
    for name in names:
        data = onnx_data(folder, name)
        data[:] = onnx_data(other, name)
        data.flush()  # type: ignore[attr-defined]


def plant_onnx_norm_epsilon_of_thousandth(folder: Path) -> None:
    """A norm epsilon in layer 1 that no model has."""
    _onnx_nodes(
        folder,
        lambda nodes: [
            setattr(_attribute(node, "epsilon"), "f", 1e-3)
            for name, node in nodes.items()
            if name.startswith("/model/layers.1/input_layernorm/")
        ],
    )


def _tokenizer(folder: Path, change: Callable[[Any], object]) -> None:
    rules = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(rules)
    (folder / "tokenizer.json").write_text(json.dumps(rules, ensure_ascii=False), encoding="utf-8")


def plant_onnx_dropped_added_token(folder: Path) -> None:
    """A special token that the tokenizer no longer knows as one."""
    _tokenizer(
        folder,
        lambda rules: rules["added_tokens"].remove(
            next(token for token in rules["added_tokens"] if token["special"])
        ),
    )


def plant_onnx_altered_merge(folder: Path) -> None:
    """The merges of two common letters left out."""
    _tokenizer(
        folder,
        lambda rules: rules["model"].update(
            merges=[
                pair
                for pair in rules["model"]["merges"]
                if pair not in (["t", "h"], "t h", ["e", "r"], "e r")
            ]
        ),
    )
