"""A GGUF file's configuration, read by edgekit itself: the same as by transformers, and without its imports."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny

from edgekit import registry
from edgekit.models import gguf_source
from edgekit.models.source import parameter_count
from edgekit.targets.target import GgufExport, OnnxExport

ORDERS = [GgufExport(format="gguf"), OnnxExport(format="onnx")]


def header(path: Path, arch: str = "llama", tied: bool = True, name: str = "small", **changes: Any) -> Path:
    """A GGUF file of one or two tensors; a change to None leaves that key out."""
    values: dict[str, Any] = {
        "context_length": 512,
        "block_count": 3,
        "feed_forward_length": 160,
        "embedding_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "rope.dimension_count": 32,
        "rope.freq_base": 5000.0,
        "attention.layer_norm_rms_epsilon": 1e-6,
        **changes,
    }
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(name)
    for key, value in values.items():
        if isinstance(value, float):
            writer.add_float32(f"{arch}.{key}", value)
        elif isinstance(value, list):
            writer.add_array(f"{arch}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{arch}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{n}" for n in range(99)])
    for tensor in ["token_embd.weight"] if tied else ["token_embd.weight", "output.weight"]:
        writer.add_tensor(tensor, np.zeros((99, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def assert_same(path: Path) -> None:
    """Hold edgekit's reading of `path` against transformers', and what follows from each."""
    own, theirs = gguf_source.read_config(path), gguf_source._transformers_reading(path)
    assert isinstance(own, gguf_source.CompleteConfig)
    assert {key: theirs.get(key) for key in own} == dict(own)
    assert parameter_count(own) == parameter_count(theirs)
    for order in ORDERS:
        refusal = registry.load("exporters", order.format).refusal
        assert refusal(own, order) == refusal(theirs, order)


def test_the_built_in_model_is_read_as_transformers_reads_it() -> None:
    assert_same(tiny.sample_gguf())


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_usual_architectures_are_read_as_transformers_reads_them(
    arch: str, tied: bool, tmp_path: Path
) -> None:
    assert_same(header(tmp_path / "a.gguf", arch, tied))
    assert_same(header(tmp_path / "b.gguf", arch, tied, vocab_size=77))


@pytest.mark.parametrize(
    "changes",
    [
        {"attention.head_count_kv": None},
        {"attention.head_count_kv": [2, 2, 1]},
        {"rope.freq_base": None},
        {"block_count": 0},
        {"embedding_length": 64.0},
        {"name": "mistral"},
        {"arch": "phi3"},
    ],
)
def test_whatever_is_unusual_is_left_to_transformers(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_source, "_transformers_reading", lambda path: {"read by": "transformers"})
    assert gguf_source.read_config(header(tmp_path / "a.gguf", **changes)) == {"read by": "transformers"}


def test_a_plan_for_the_built_in_model_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    code = """
import sys
from edgekit.build.request import Order
from edgekit.build.plan import plan
from pathlib import Path
request = Order(cache_dir=Path("cache"), threads=1, offline=True).request()
found = plan(request.source, request.target, request.data, cache_dir=Path("cache"), out=Path("out"))
print(found.architecture, [export.refusal for export in found.exports], {"torch", "transformers"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=tmp_path, text=True, capture_output=True
    )
    assert done.stdout.strip() == "LlamaForCausalLM ['', ''] set()", done.stderr
