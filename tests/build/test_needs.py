"""The memory, the disk and the file sizes that `plan` expects, beside those that were measured (`benchmarks/memory.md`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgekit import registry
from edgekit.build import needs
from edgekit.build.file_sizes import file_size, least_size
from edgekit.build.needs import Source
from edgekit.data.dataset import load_dataset
from edgekit.models.source import describe, resolve
from edgekit.targets.target import GgufExport, OnnxExport, Quantize, Target, Tune

WITHIN = 0.2
QWEN: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 151936, "tie_word_embeddings": True, "dtype": "bfloat16",
}  # fmt: skip
CONFIGS = {
    "0.5": {**QWEN, "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_hidden_layers": 22},
    "1.5": {**QWEN, "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16, "num_hidden_layers": 24},
    "3": {**QWEN, "hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32, "num_hidden_layers": 26},
}  # fmt: skip
MEMORY = {  # peak resident MiB of the process tree
    "sample": {"model": 1564, "tune": 2006, "merge": 1538, "quantize.gguf": 1134, "reference": 1476},
    "0.5": {
        "quantize.gguf": 1548,
        "reference": 2016,
        "export.onnx": 2153,
        "merge": 2204,
        "verify.gguf": 1889,
        "verify.onnx": 2488,
    },
    "1.5": {"quantize.gguf": 3028, "export.onnx": 3592, "reference": 3743, "verify.gguf": 2409},
    "3": {
        "quantize.gguf": 6340,
        "reference": 7479,
        "verify.gguf": 3900,
        "merge": 7285,
        "export.onnx": 4905,
        "verify.onnx": 5556,
        "eval.base_few_shot": 7961,
    },
}
LARGE_TYPES = GgufExport(format="gguf", type="Q4_K_M", tensor_types={"ffn_down": "Q8_0", "attn": "Q8_0"})
FILES = {
    "sample": (119.1, 110),
    "0.5": (413, 424),
    "1.5": (1186, 1203),
    "3": (2352, 2252),
}  # MiB of the GGUF file with `LARGE_TYPES` and of the ONNX folder; of a large one less what scales of 16 bits save


@pytest.fixture(scope="module")
def target() -> Target:
    found: Target = registry.load("profiles", "targets").load("cpu-int4", [])
    return found


@pytest.fixture(scope="module")
def large_files(target: Target) -> Target:
    """The target with which most was measured, whose GGUF file is larger and rounded by llama.cpp."""
    quantize = target.quantize.model_copy(update={"method": "nearest"})
    return target.model_copy(update={"export": [LARGE_TYPES, target.export[1]], "quantize": quantize})


def source_of(size: str) -> Source:
    if size == "sample":
        return Source.of(describe(resolve("smollm2-135m")), is_gguf=True)
    return Source.of(CONFIGS[size])


@pytest.fixture(autouse=True)
def computes_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the processor on which it was measured."""
    monkeypatch.setattr(needs, "cpu_has_bf16", lambda: True)


def memory(source: Source, target: Target, available: float = 4096) -> dict[str, float]:
    data = load_dataset("demo")
    tuning = needs.tuning(source, target.tune, data)
    return needs.stage_memory(source, target, data, tuning.weights + tuning.kept, available)


@pytest.mark.parametrize(("size", "stage"), [(size, stage) for size, of in MEMORY.items() for stage in of])
def test_memory_is_as_measured(size: str, stage: str, large_files: Target) -> None:
    assert memory(source_of(size), large_files)[stage] == pytest.approx(MEMORY[size][stage], rel=WITHIN)


def test_memory_of_error_feedback_is_as_measured(target: Target) -> None:
    assert memory(source_of("sample"), target)["quantize.gguf"] == pytest.approx(2808, rel=WITHIN)


def test_memory_of_robust_tuning_is_as_measured(target: Target) -> None:
    """Twins double a batch: without them, too little would be expected."""
    source, data = source_of("sample"), load_dataset("demo")
    robust = target.tune.model_copy(update={"robust": True})
    plain, need = (needs.tuning(source, options, data) for options in (target.tune, robust))
    expected = needs.stage_memory(source, target, data, need.weights + need.kept, 4096)["tune"]
    assert expected == pytest.approx(2431, rel=WITHIN)
    assert source.process + plain.weights + plain.kept < (1 - WITHIN) * 2431


def test_a_model_that_fits_well_into_memory_answers_in_float32(target: Target) -> None:
    small, large = (source_of(size) for size in ("0.5", "3"))
    assert memory(small, target, 20000)["reference"] == pytest.approx(2767, rel=WITHIN)
    assert memory(small, target)["reference"] < 0.8 * 2767
    assert memory(large, target, 20000) == memory(large, target)


def test_weights_held_in_float32_would_show(target: Target) -> None:
    for size in CONFIGS:
        wide = replace(source_of(size), bytes_of_weight=4)
        assert memory(wide, target)["reference"] > (1 + WITHIN) * MEMORY[size]["reference"]


@pytest.mark.parametrize("size", FILES)
def test_files_are_as_large_as_measured(size: str, target: Target) -> None:
    for export, measured in zip((LARGE_TYPES, target.export[1]), FILES[size], strict=True):
        assert file_size(source_of(size).shape, export)[1] == pytest.approx(measured, rel=0.05)


def test_a_file_is_as_large_as_the_target_asks(target: Target) -> None:
    """5.3 bits where the rows are short, else 4.6; a type of 8 bits stays as it is."""
    sample, large = (source_of(size).shape for size in ("sample", "3"))
    gguf = target.export[0]
    assert file_size(sample, gguf, target.quantize)[1] == pytest.approx(5.3 / 8 * 134.5e6 / 2**20, rel=0.01)
    assert 8 * 2**20 * file_size(large, gguf, target.quantize)[1] / large.parameters == pytest.approx(4.6)
    wide = GgufExport(format="gguf", type="Q8_0")
    assert file_size(large, wide, target.quantize) == file_size(large, wide)
    nearest = target.quantize.model_copy(update={"method": "nearest"})
    assert file_size(large, gguf, nearest) == file_size(large, gguf)


def test_the_size_that_follows_from_a_divergence_is_a_range(target: Target) -> None:
    sample, gguf = source_of("sample").shape, target.export[0]
    searched = Quantize(max_kld_nats=0.05)
    kind, most = file_size(sample, gguf, searched)
    least = least_size(sample, gguf, searched)
    assert kind == f"mean KLD 0.05, {least:.0f} to {most:.0f} MiB"
    assert 8 * 2**20 * least / sample.parameters == pytest.approx(4.5, rel=0.05)
    assert 8 * 2**20 * most / sample.parameters == pytest.approx(8.5, rel=0.05)
    assert least_size(sample, gguf, target.quantize) == file_size(sample, gguf, target.quantize)[1]
    changed = target.model_copy(update={"quantize": searched})
    sizes = [needs.disk(source_of("sample"), each) for each in (target, changed)]
    assert sizes[1] > sizes[0] + 2 * most


@pytest.mark.parametrize(
    ("export", "bits"),
    [
        (GgufExport(format="gguf", type="F16"), 16),
        (GgufExport(format="gguf", type="Q8_0"), 8.5),
        (GgufExport(format="gguf", type="Q4_0"), 5.1),  # 4.5, and 6.6 for the embedding
        (GgufExport(format="gguf", type="Q6_K"), 6.56),
        (GgufExport(format="gguf", type="Q8_0", token_embedding_type="F16"), 10.8),
        (GgufExport(format="gguf", type="Q8_0", tensor_types={"ffn": "Q4_K_M"}), 6.88),
        (OnnxExport(format="onnx", precision="int8"), 8.9),
        (OnnxExport(format="onnx", int8_modules=["*"]), 8.9),
        (OnnxExport(format="onnx", bits_per_weight=5.2), 5.2),
        (OnnxExport(format="onnx", precision="fp32"), 32),
    ],
)
def test_a_file_has_the_bits_of_its_types(export: Any, bits: float) -> None:
    shape = source_of("0.5").shape
    assert 8 * file_size(shape, export)[1] * 2**20 / shape.parameters == pytest.approx(bits, rel=0.03)


def test_a_head_of_its_own_is_counted() -> None:
    tied, own = (Source.of({**CONFIGS["3"], "tie_word_embeddings": tied}).shape for tied in (True, False))
    assert own.parameters - tied.parameters == own.embedding
    export = GgufExport(format="gguf", type="F16")
    grown = file_size(own, export)[1] - file_size(tied, export)[1]
    assert grown == pytest.approx(2 * own.embedding / 2**20, rel=0.01)
    onnx = OnnxExport(format="onnx")  # the embedding stays in 32 bits
    grown = file_size(own, onnx)[1] - file_size(tied, onnx)[1]
    assert grown == pytest.approx(4 * own.embedding / 2**20, rel=0.01)


def test_the_disk_holds_a_float_file_only_of_a_small_model(target: Target) -> None:
    """Sample: read out, merged, and the float file, 513 MiB each; 3 billion weights: merged alone. And each file once.

    The sample's ONNX folder is copied, and on two disks so is every file.
    """
    small, large = (source_of(size) for size in ("sample", "3"))
    assert needs.disk(small, target) == pytest.approx(3 * 513 + 85 + 2 * 110, rel=0.05)
    assert needs.disk(large, target) == pytest.approx(5747 + 1730 + 2252, rel=0.02)
    assert needs.disk(large, target, one_disk=False) == pytest.approx(5747 + 2 * (1730 + 2252), rel=0.02)
    pruned = target.model_copy(update={"prune": target.prune.model_copy(update={"drop_layers": 2})})
    assert needs.disk(large, pruned) - needs.disk(large, target) == pytest.approx(large.weights)


@pytest.mark.parametrize(
    "kind", [{"dtype": "float32"}, {"dtype": None, "torch_dtype": "float32"}, {"dtype": None}]
)
def test_weights_in_float32_take_four_bytes(kind: dict[str, Any]) -> None:
    assert Source.of({**CONFIGS["3"], **kind}).bytes_of_weight == 4
    assert Source.of(CONFIGS["3"]).bytes_of_weight == 2
    assert Source.of(CONFIGS["3"], is_gguf=True).bytes_of_weight == 4


def test_tuning_needs_less_when_activations_are_computed_again() -> None:
    data = load_dataset("demo")
    need = needs.tuning(source_of("3"), Tune(batch_size=8), data)
    more = needs.tuning(source_of("3"), Tune(batch_size=32), data)
    assert need.recomputed < need.kept < more.kept and need.weights == more.weights
