"""A GGUF file's configuration, read by edgekit itself: the same as by transformers, and without its imports."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

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
from types import SimpleNamespace
request = Order(cache_dir=Path("cache"), threads=1, offline=True).request()
found = plan(request.source, request.target, request.data, cache_dir=Path("cache"), out=Path("out"))
print(found.architecture, [export.refusal for export in found.exports], {"torch", "transformers"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=tmp_path, text=True, capture_output=True
    )
    assert done.stdout.strip() == "LlamaForCausalLM ['', ''] set()", done.stderr


def test_runs_of_spaces_are_found_first_and_the_longest_of_them_as_by_llama_cpp(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """transformers' reader makes them by merges, the shortest first, and of a typed `▁` too."""
    runs = ["▁" * length for length in range(1, 5)]
    merges = [
        (one, other) for whole in runs for one in reversed(runs) for other in runs if one + other == whole
    ]
    backend = Tokenizer(models.BPE(vocab={text: id_ for id_, text in enumerate([*runs, "a"])}, merges=merges))
    backend.normalizer = normalizers.Replace(" ", "▁")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)

    def lengths(text: str) -> list[int]:
        return [id_ + 1 for id_ in tokenizer(text + "a").input_ids[:-1]]

    metadata = {
        "tokenizer.ggml.tokens": ["▁", "  ", "   ", "    ", "a"],
        "tokenizer.ggml.token_type": np.array([1, 4, 4, 4, 1]),
    }
    monkeypatch.setattr(gguf_source, "read_gguf", lambda _: SimpleNamespace(metadata=metadata))
    assert lengths(" " * 5) == [2, 3] and lengths(" ▁") == [2]
    gguf_source.mend_tokenizer(tokenizer, Path("model.gguf"))
    found = [lengths(" " * count) for count in (1, 4, 5, 7, 9)]
    assert found == [[1], [4], [4, 1], [4, 3], [4, 4, 1]] and lengths(" ▁") == [1, 1]
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again("     a").input_ids == tokenizer("     a").input_ids == [3, 0, 4]
