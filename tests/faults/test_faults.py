"""Every planted fault is caught by the check that is named for it, and no clean file is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
import tiny
from faults import plant

from edgekit.base.cache import Cache
from edgekit.base.errors import CorruptError
from edgekit.base.events import GateResult, ignore
from edgekit.export.gguf import write as gguf_export
from edgekit.export.gguf.quantize import quantize
from edgekit.export.onnx import export as onnx_export
from edgekit.models.source import resolve
from edgekit.proof.verify import verify_file
from edgekit.registry import ExportContext
from edgekit.targets.target import Budget, OnnxExport

BUDGET = Budget(
    text_mean_kld_nats=0.05,
    top1_agreement=0.8,
    answer_top1_agreement=0.7,
    stop_agreement=0.0,
    greedy_agreement=0.0,
)
EIGHT_HEADS = {"num_key_value_heads": 4}  # as many as heads, so that q and k have one shape
TWO_STOPS = {"eos_token_id": [2, 0]}

FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "wrong template": (plant.plant_wrong_template, "gguf.template_identity"),
    "template with a hidden trigger": (plant.plant_trigger, "gguf.template_branches"),
    "dropped added token": (plant.plant_dropped_added_token, "gguf.tokenizer_identity"),
    "altered merge rule": (plant.plant_altered_merge_rule, "gguf.vocabulary"),
    "wrong EOS": (plant.plant_wrong_eos, "gguf.stop_ids"),
    "missing EOT": (plant.plant_missing_eot, "gguf.stop_ids"),
    "swapped q and k": (plant.plant_swapped_q_and_k, "gguf.weights"),
    "un-permuted q and k": (plant.plant_unpermuted_q_and_k, "gguf.weights"),
    "transposed projection": (plant.plant_transposed_projection, "gguf.weights"),
    "one tensor scaled by 2": (plant.plant_doubled_tensor, "gguf.weights"),
    "one layer twice": (plant.plant_repeated_layer, "gguf.weights"),
    "flipped bits in one block": (plant.plant_flipped_bits, "gguf.weights"),
    "LoRA alpha doubled": (plant.plant_doubled_alpha, "gguf.weights"),
    "untied head written as tied": (plant.plant_tied_head, "gguf.structure"),
    "rope base changed": (plant.plant_rope_base, "gguf.structure"),
    "norm epsilon changed": (plant.plant_norm_epsilon, "gguf.structure"),
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"), ignore)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied Llama with two stop tokens, as many key-value heads as heads, and square projections."""
    folder = tiny.make_small(tmp_path_factory.mktemp("model") / "llama", "llama-untied", **EIGHT_HEADS)
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | TWO_STOPS))
    return folder


@pytest.fixture(scope="module")
def good(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("file")
    gguf_export.write(model, folder / "float.gguf", ignore)
    quantize(folder / "float.gguf", folder / "model.gguf", tiny.gguf_options("Q8_0"), threads=1)
    return folder / "model.gguf"


@pytest.fixture
def file(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(good, tmp_path / "model.gguf"))


def check(path: Path, model: Path, cache: Cache) -> dict[str, GateResult]:
    found = verify_file(path, resolve(str(model)), [], BUDGET, cache, quick=True, threads=1)
    return {gate.name: gate for gate in found}


def failed(found: dict[str, GateResult]) -> dict[str, GateResult]:
    return {name: gate for name, gate in found.items() if not gate.passed}


def test_the_good_file_passes(good: Path, model: Path, cache: Cache) -> None:
    assert not failed(check(good, model, cache))


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_by_name(name: str, file: Path, model: Path, cache: Cache) -> None:
    fault, gate = FAULTS[name]
    fault(file)
    found = failed(check(file, model, cache))
    assert gate in found, found
    assert found[gate].detail


def test_a_truncated_file_is_corrupt(file: Path, model: Path, cache: Cache) -> None:
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(CorruptError, match="cut|short|beyond|end"):
        check(file, model, cache)


# ONNX


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_small(tmp_path_factory.mktemp("small") / "llama")


def test_a_ruinous_calibration_set_is_caught(model: Path, cache: Cache, tmp_path: Path) -> None:
    """An importance matrix of rows in which one column of each block fires and the others hardly ever do."""
    gguf_export.write(model, tmp_path / "float.gguf", ignore)
    columns = {
        tensor.name: int(tensor.shape[0])
        for tensor in gguf.GGUFReader(tmp_path / "float.gguf").tensors
        if len(tensor.shape) == 2 and tensor.name.startswith("blk.")
    }
    chance, found = np.random.default_rng(0), {}
    for name in ("varied", "ruinous"):
        importance = {
            key: chance.exponential(1.0, count).astype(np.float32) for key, count in columns.items()
        }
        if name == "ruinous":
            importance = {key: np.where(np.arange(len(v)) % 32 == 0, v, 0) for key, v in importance.items()}
        out = tmp_path / f"{name}.gguf"
        quantize(
            tmp_path / "float.gguf",
            out,
            tiny.gguf_options("Q4_0", token_embedding_type="Q8_0"),
            imatrix=importance,
            threads=1,
        )
        found[name] = failed(check(out, model, cache))
    assert not found["varied"]
    assert "gguf.mean_kld_nats" in found["ruinous"]
    assert "tensors with the largest error: blk." in found["ruinous"]["gguf.mean_kld_nats"].detail


def test_weights_outside_the_folder_are_never_read(small: Path, cache: Cache, tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    onnx_export.export(
        small, folder, OnnxExport(format="onnx", precision="fp32"), ExportContext(small), ignore
    )
    (folder / "model.onnx.data").rename(tmp_path / "model.onnx.data")
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../model.onnx.data"
    onnx.save(graph, folder / "model.onnx")
    with pytest.raises(CorruptError, match="outside"):
        check(folder, small, cache)


# Clean files


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_no_clean_file_is_refused(family: str, cache: Cache, tmp_path: Path) -> None:
    """Each family in three types; `BUDGET` allows what rounding does to a random model, which is sure of nothing."""
    model = tiny.make_small(tmp_path / family, family)
    gguf_export.write(model, tmp_path / "F32.gguf", ignore)
    for type in ("F16", "Q8_0"):
        quantize(tmp_path / "F32.gguf", tmp_path / f"{type}.gguf", tiny.gguf_options(type), threads=1)
    for type in ("F32", "F16", "Q8_0"):
        found = failed(check(tmp_path / f"{type}.gguf", model, cache))
        assert not found, (type, found)
        assert gguf.GGUFReader(tmp_path / f"{type}.gguf").tensors
