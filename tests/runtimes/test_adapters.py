"""Adapter files are held against the base before llama.cpp or onnxruntime sees them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.base.errors import ConfigError, CorruptError, EdgekitError, UnsupportedError
from edgekit.runtimes.adapters import Origin, check_gguf, check_onnx, file_key, read_origin

BASE = "a" * 64
LAYERS = {"blk.0.attn_q.weight": (8, 6), "blk.0.attn_norm.weight": (8,), "token_embd.weight": (8, 50)}
ORIGIN = Origin(BASE, None, {"model.layers.0.self_attn.q_proj": (8, 6)})
A, B = "model.layers.0.self_attn.q_proj.lora_A.weight", "model.layers.0.self_attn.q_proj.lora_B.weight"

Tensors = dict[str, np.ndarray[Any, Any]]


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


def write_gguf(
    path: Path, change: Callable[[dict[str, Any], Tensors], object] = lambda keys, tensors: None
) -> Path:
    """A right adapter of rank 2, in which `change` may spoil metadata and tensors."""
    keys: dict[str, Any] = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": np.float32(4),
                            "edgekit.base_sha256": BASE}  # fmt: skip
    tensors = {"blk.0.attn_q.weight.lora_a": zeros(2, 8), "blk.0.attn_q.weight.lora_b": zeros(6, 2)}
    change(keys, tensors)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in keys.items():
        match value:
            case str():
                writer.add_string(key, value)
            case np.float32():
                writer.add_float32(key, float(value))
            case float():
                writer.add_float64(key, value)
            case list():
                writer.add_array(key, value)
            case _:
                writer.add_uint32(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_onnx(path: Path, change: Callable[[Tensors], object] = lambda tensors: None) -> Path:
    """A right adapter of rank 2, in which `change` may spoil the parameters."""
    tensors: Tensors = {
        A: zeros(8, 2),
        B: zeros(2, 6),
        "edgekit.base_sha256": np.frombuffer(bytes.fromhex(BASE), np.uint8),
    }
    change(tensors)
    file = onnxruntime.AdapterFormat()
    file.set_parameters(
        {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in tensors.items()}
    )
    file.export_adapter(str(path))
    return path


def test_right_adapters_pass(tmp_path: Path) -> None:
    check_gguf(write_gguf(tmp_path / "a.gguf"), LAYERS, BASE, None)
    check_onnx(write_onnx(tmp_path / "a.onnx_adapter"), ORIGIN)


NORM = "blk.0.attn_norm.weight"
EMBEDDING = "token_embd.weight"
GGUF_FAULTS: dict[str, tuple[Callable[[dict[str, Any], Tensors], object], str]] = {
    "a model": (lambda k, t: k.update({"general.type": "model"}), "not a LoRA adapter"),
    "a type that is a number": (lambda k, t: k.update({"general.type": 7}), "not a LoRA adapter"),
    "another kind": (lambda k, t: k.update({"adapter.type": "ia3"}), "not a LoRA adapter"),
    "alpha in 64 bits": (lambda k, t: k.update({"adapter.lora.alpha": 4.0}), "not a 32-bit float"),
    "alpha hidden in a text": (
        lambda k, t: k.update({"adapter.lora.alpha": 4.0, "general.name": "\x12" + "\1" * 7 + "adapter.lora.alpha"}),
        "not a 32-bit float",
    ),
    "alpha a whole number": (lambda k, t: k.update({"adapter.lora.alpha": 4}), "alpha is 4"),
    "alpha not a number": (lambda k, t: k.update({"adapter.lora.alpha": np.float32("nan")}), "alpha is nan"),
    "alpha missing": (lambda k, t: k.pop("adapter.lora.alpha"), "alpha is None"),
    "activated": (lambda k, t: k.update({"adapter.alora.invocation_tokens": [1, 2]}), "aLoRA"),
    "no tensors": (lambda k, t: t.clear(), "does not change any layer"),
    "one factor": (lambda k, t: t.popitem(), "is missing"),
    "another layer": (lambda k, t: t.update({"blk.7.attn_q.weight.lora_a": zeros(2, 8)}), "no layer for"),
    "a norm": (lambda k, t: t.update({NORM: zeros(8)}), "no layer for"),
    "a norm's factors": (
        lambda k, t: t.update({f"{NORM}.lora_a": zeros(2, 8), f"{NORM}.lora_b": zeros(1, 2)}), "no layer for"
    ),
    "the embedding": (
        lambda k, t: t.update({f"{EMBEDDING}.lora_a": zeros(2, 50), f"{EMBEDDING}.lora_b": zeros(3, 8)}), "no layer for"
    ),
    "another width": (lambda k, t: t.update({"blk.0.attn_q.weight.lora_a": zeros(2, 9)}), "8 x 6"),
    "ranks that differ": (lambda k, t: t.update({"blk.0.attn_q.weight.lora_a": zeros(3, 8)}), "8 x 6"),
    "a third dimension": (lambda k, t: t.update({"blk.0.attn_q.weight.lora_a": zeros(3, 2, 8)}), "8 x 6"),
    "whole numbers": (
        lambda k, t: t.update({"blk.0.attn_q.weight.lora_a": zeros(2, 8, dtype=np.int32)}), "has the type 26"
    ),
    "another base": (lambda k, t: k.update({"edgekit.base_sha256": "b" * 64}), f"{'b' * 64}.*{BASE}"),
    "a digest that is a number": (lambda k, t: k.update({"edgekit.base_sha256": 5}), "does not contain the digest of its base"),
    "no digest": (lambda k, t: k.pop("edgekit.base_sha256"), "does not contain the digest of its base"),
}  # fmt: skip


@pytest.mark.parametrize("fault", GGUF_FAULTS)
def test_a_spoilt_gguf_adapter_is_refused(fault: str, tmp_path: Path) -> None:
    change, message = GGUF_FAULTS[fault]
    with pytest.raises((CorruptError, UnsupportedError), match=message):
        check_gguf(write_gguf(tmp_path / "a.gguf", change), LAYERS, BASE, None)


ONNX_FAULTS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "no parameters": (lambda t: [t.pop(name) for name in (A, B)], "does not change any layer"),
    "one factor": (lambda t: t.pop(B), "is missing"),
    "another layer": (lambda t: t.update({"model.layers.7.lora_A.weight": zeros(8, 2)}), "no layer for"),
    "an input of the model": (lambda t: t.update({"input_ids": zeros(1, 4)}), "no layer for"),
    "another width": (lambda t: t.update({A: zeros(9, 2)}), "8 x 6"),
    "ranks that differ": (lambda t: t.update({A: zeros(8, 3)}), "8 x 6"),
    "one dimension": (lambda t: t.update({A: zeros(16)}), "8 x 6"),
    "bytes": (lambda t: t.update({A: zeros(8, 2, dtype=np.uint8)}), "has the type 2"),
    "whole numbers": (lambda t: t.update({A: zeros(8, 2, dtype=np.int64)}), "of type 7"),
    "another base": (lambda t: t.update({"edgekit.base_sha256": np.full(32, 0xBB, np.uint8)}), f"{'b' * 64}.*{BASE}"),
    "half a digest": (lambda t: t.update({"edgekit.base_sha256": zeros(16, dtype=np.uint8)}), "does not contain the digest of its base"),
    "no digest": (lambda t: t.pop("edgekit.base_sha256"), "does not contain the digest of its base"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ONNX_FAULTS)
def test_a_spoilt_onnx_adapter_is_refused(fault: str, tmp_path: Path) -> None:
    change, message = ONNX_FAULTS[fault]
    with pytest.raises((CorruptError, UnsupportedError), match=message):
        check_onnx(write_onnx(tmp_path / "a.onnx_adapter", change), ORIGIN)


def test_a_size_that_reads_past_the_end_is_refused(tmp_path: Path) -> None:
    """onnxruntime checks neither that a parameter's bytes fill its shape nor that they are there."""
    path = write_onnx(tmp_path / "a.onnx_adapter")
    whole, shape = path.read_bytes(), np.array([8, 2], "<i8").tobytes()
    assert whole.count(shape) == 1
    path.write_bytes(whole.replace(shape, np.array([1 << 40, 2], "<i8").tobytes()))
    with pytest.raises(CorruptError, match="has 64 bytes"):
        check_onnx(path, ORIGIN)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "gguf": write_gguf(folder / "a.gguf").read_bytes(),
        "onnx": write_onnx(folder / "a.onnx_adapter").read_bytes(),
    }


def checked(path: Path, format: str) -> str:
    """What is said of the file; any other exception than edgekit's own fails the test."""
    try:
        check_gguf(path, LAYERS, BASE, None) if format == "gguf" else check_onnx(path, ORIGIN)
    except EdgekitError as error:
        return error.message
    return ""


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_a_file_cut_off_anywhere_is_refused(format: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "cut"
    last = len(whole[format].rstrip(b"\0")) if format == "onnx" else len(whole[format]) - 32
    for kept in range(last):
        path.write_bytes(whole[format][:kept])
        assert checked(path, format), kept


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    format=st.sampled_from(["gguf", "onnx"]),
    places=st.lists(
        st.tuples(st.integers(0, 1 << 12), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    ),
)
def test_changed_bytes_are_refused_or_harmless(
    format: str, places: list[tuple[int, bytes]], whole: dict[str, bytes], tmp_path: Path
) -> None:
    data = bytearray(whole[format])
    for place, change in places:
        data[place % len(data) : place % len(data) + len(change)] = change
    path = tmp_path / "changed"
    path.write_bytes(data)
    if not checked(path, format) and format == "onnx":
        try:  # what passes here must be safe to read there
            read = onnxruntime.AdapterFormat.read_adapter(str(path)).get_parameters()
        except RuntimeError:  # its own checks are stricter in alignment and padding
            return
        for value in read.values():
            assert value.numpy().size in (12, 16, 32)


@given(data=st.binary(max_size=200))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any"
    for format, head in (("gguf", b""), ("onnx", b"\x08\0\0\0TORT")):
        path.write_bytes(head + data)
        assert checked(path, format)


def test_a_missing_file_and_a_damaged_origin_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no adapter file"):
        file_key(tmp_path / "none")
    assert read_origin(tmp_path) == Origin(None, None, {})
    for text in ("", "[]", '{"adapter_slots": 5}', '{"adapter_slots": {"q": [1]}}', "[" * 100_000):
        (tmp_path / "edgekit.json").write_text(text)
        with pytest.raises(CorruptError, match="is damaged"):
            read_origin(tmp_path)
    (tmp_path / "edgekit.json").write_text(json.dumps({"sha256": BASE, "adapter_slots": {"q": [8, 6]}}))
    assert read_origin(tmp_path) == Origin(BASE, None, {"q": (8, 6)})
