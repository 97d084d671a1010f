"""Every planted fault is caught by the check that is named for it, and no clean file is refused.

The faults are planted over a small vocabulary, and over the makers' own ones of `REAL` (`pytest -m slow`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import makers
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
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.proof import bare, text_path
from edgekit.proof.facts import ReferenceFacts
from edgekit.proof.prove import weights
from edgekit.proof.verify import subject_of, verify_file
from edgekit.registry import ExportContext
from edgekit.runtimes.llamacpp import open_model
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
    "BOS added or left out": (plant.plant_flipped_key("bos"), "gguf.tokenizer_identity"),
    "EOS added": (plant.plant_flipped_key("eos"), "gguf.tokenizer_identity"),
    "dropped added token": (plant.plant_dropped_added_token, "gguf.tokenizer_identity"),
    "wrong rule for words": (plant.plant_wrong_words, "gguf.tokenizer_identity"),
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
    "another architecture": (plant.plant_other_architecture, "gguf.structure"),
    "rope base changed": (plant.plant_rope_base, "gguf.structure"),
    "norm epsilon changed": (plant.plant_norm_epsilon, "gguf.structure"),
}  # fmt: skip


# Each has square projections, as many key-value heads as heads, and two stop tokens.
REAL: dict[str, dict[str, Any]] = {
    "qwen3": {**EIGHT_HEADS, "head_dim": 16, "tie_word_embeddings": False},
    "gemma3": {**EIGHT_HEADS, "head_dim": 16, "query_pre_attn_scalar": 16},
}
KEYS = ("qwen3", "gemma3", "llama3.1")  # slow: the same keys of the small model are among FAULTS


@dataclass(frozen=True)
class Case:
    """A tiny model, its good file, and what its tokenizer does."""

    model: Path
    good: Path
    facts: ReferenceFacts

    @classmethod
    def make(cls, folder: Path, name: str, **changes: Any) -> Case:
        """The case of a model with the maker's tokenizer `name`."""
        model = makers.make(folder / "model", name, **changes)
        return cls(model, write(model, folder), ReferenceFacts.of(ModelTokenizer(model)))

    def check(self, path: Path, gate: str) -> dict[str, GateResult]:
        """The results of the part of the proof that `gate` belongs to."""
        if gate in ("gguf.structure", "gguf.vocabulary", "gguf.weights"):
            found = weights(subject_of(path), self.model, ignore, "verify").gates
        else:
            opened = subject_of(path).open(threads=1)
            try:
                found, _ = text_path.identity(opened, self.facts, gate.partition(".")[0], "verify")
            finally:
                opened.close()
        return {result.name: result for result in found}


@pytest.fixture(scope="module", params=list(REAL))
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case.make(tmp_path_factory.mktemp("real"), request.param, **REAL[request.param])


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
    return write(model, tmp_path_factory.mktemp("file"))


def write(model: Path, folder: Path) -> Path:
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


@pytest.mark.slow
def test_the_good_file_passes_over_a_real_vocabulary(real: Case, cache: Cache) -> None:
    assert not failed(check(real.good, real.model, cache))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_over_a_real_vocabulary(name: str, real: Case, tmp_path: Path) -> None:
    fault, gate = FAULTS[name]
    if name == "untied head written as tied" and not plant.has_head(real.good):
        pytest.skip("the model has no head of its own")
    if name in ("BOS added or left out", "wrong rule for words") and plant.has_own_rules(real.good):
        pytest.skip("llama.cpp does not read this key for the tokenizer of this model")
    file = Path(shutil.copyfile(real.good, tmp_path / "model.gguf"))
    fault(file)
    found = failed(real.check(file, gate))
    assert gate in found, found
    assert found[gate].detail


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYS)
def test_keys_that_frame_plain_text_otherwise_are_caught(name: str, tmp_path: Path) -> None:
    case = Case.make(tmp_path, name)
    gate = "gguf.tokenizer_identity"
    assert gate not in failed(case.check(case.good, gate))
    for role in ("eos",) if plant.has_own_rules(case.good) else ("bos", "eos"):
        file = Path(shutil.copyfile(case.good, tmp_path / f"{role}.gguf"))
        plant.plant_flipped_key(role)(file)
        found = failed(case.check(file, gate))
        assert "plain text 'a'" in found[gate].detail


@pytest.fixture(scope="module")
def by_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A model with Mistral's rule for words, which both runtimes have in a form of their own."""
    folder = tmp_path_factory.mktemp("by-case")
    model = tiny.make_small(folder / "model", kind="tekken")
    return Case(model, write(model, folder), ReferenceFacts.of(ModelTokenizer(model), ["ÜBER", "x;\n// y"]))


def test_another_rule_than_that_which_llama_cpp_approximates_is_caught(by_case: Case, tmp_path: Path) -> None:
    gate = "gguf.tokenizer_identity"
    found = by_case.check(by_case.good, gate)
    assert found[gate].passed and "such as ÜBER" in found["gguf.deviations"].detail
    assert not found["gguf.deviations"].passed  # the word stands in the rows
    without = bare.compare(open_model(by_case.good, threads=1), by_case.facts)
    assert without and without.causes()["split_words"] and without.gate("gguf", "verify").passed
    for rule in ("pixtral", "gpt-4o"):
        file = Path(shutil.copyfile(by_case.good, tmp_path / f"{rule}.gguf"))
        plant.rewrite(file, fields={"tokenizer.ggml.pre": rule})
        assert gate in failed(by_case.check(file, gate)), rule


def test_another_rule_than_that_which_onnxruntime_approximates_is_caught(
    by_case: Case, tmp_path: Path
) -> None:
    gate, good = "onnx.tokenizer_identity", tmp_path / "onnx"
    options = OnnxExport(format="onnx", precision="fp32")
    onnx_export.export(by_case.model, good, options, ExportContext(by_case.model), ignore)
    found = by_case.check(good, gate)
    assert found[gate].passed and "takes a slash" in found["onnx.deviations"].detail
    assert not found["onnx.deviations"].passed
    plant.plant_onnx_wrong_words(good)
    assert gate in failed(by_case.check(good, gate))


def test_a_truncated_file_is_corrupt(file: Path, model: Path, cache: Cache) -> None:
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(CorruptError, match="cut|short|beyond|end"):
        check(file, model, cache)


# ONNX


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_small(tmp_path_factory.mktemp("small") / "llama")


@pytest.fixture(scope="module")
def good_onnx(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small-onnx") / "onnx"
    options = OnnxExport(format="onnx", precision="fp32")
    onnx_export.export(small, folder, options, ExportContext(small), ignore)
    return folder


def test_a_folder_that_frames_plain_text_otherwise_is_caught(
    small: Path, good_onnx: Path, tmp_path: Path
) -> None:
    case = Case(small, good_onnx, ReferenceFacts.of(ModelTokenizer(small)))
    gate = "onnx.tokenizer_identity"
    assert gate not in failed(case.check(good_onnx, gate))
    faults = {
        "bos": plant.plant_onnx_flipped_setting("bos"),
        "eos": plant.plant_onnx_flipped_setting("eos"),
        "rule": plant.plant_onnx_framing_rule,
    }
    for name, fault in faults.items():
        folder = shutil.copytree(good_onnx, tmp_path / name)
        fault(folder)
        found = failed(case.check(folder, gate))
        assert "plain text 'a'" in found[gate].detail, name


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


def test_weights_outside_the_folder_are_never_read(
    small: Path, good_onnx: Path, cache: Cache, tmp_path: Path
) -> None:
    folder = shutil.copytree(good_onnx, tmp_path / "onnx")
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
    """Each family as written and rounded; `BUDGET` allows what rounding does to a random model, which is sure of nothing."""
    model = tiny.make_small(tmp_path / family, family)
    gguf_export.write(model, tmp_path / "F32.gguf", ignore)
    rounded = ("F16", "Q8_0") if family == "llama" else ("Q8_0",)
    for type in rounded:
        quantize(tmp_path / "F32.gguf", tmp_path / f"{type}.gguf", tiny.gguf_options(type), threads=1)
    for type in ("F32", *rounded):
        found = failed(check(tmp_path / f"{type}.gguf", model, cache))
        assert not found, (type, found)
        assert gguf.GGUFReader(tmp_path / f"{type}.gguf").tensors
