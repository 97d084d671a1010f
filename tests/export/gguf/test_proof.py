"""A GGUF file is proven against its model without running it: clean files pass, each planted fault is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
import torch
import transformers
from faults import plant
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file, save_file

from edgekit import registry
from edgekit.base.errors import CorruptError, UnsupportedError
from edgekit.base.events import ignore
from edgekit.containers.safetensors import SINGLE
from edgekit.export.gguf import converter, stream
from edgekit.export.gguf import write as export
from edgekit.export.gguf.families import deinterleave, interleave
from edgekit.export.gguf.grids import GRIDS as FITTED
from edgekit.export.gguf.proof import prove
from edgekit.export.gguf.quantize import quantize
from edgekit.export.gguf.rounding import round_model
from edgekit.export.gguf.stored import GRIDS, ROUNDING
from edgekit.export.weights import rounding
from edgekit.export.weights.rounding import Text
from edgekit.export.weights.weight_compare import Grid, Reference, Stored, compare, is_close, largest_singular
from edgekit.export.weights.weight_faults import explain
from edgekit.export.weights.weight_proof import StaticProof

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8}
MHA = {"num_key_value_heads": 4}
CHANCE = np.random.default_rng(0)
CALIBRATION = [Text("rows", [CHANCE.integers(3, 300, 48).tolist() for _ in range(6)])]

Make = Callable[..., Path]
Write = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Tiny models with a small tokenizer, each made once."""
    return tiny.maker(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def write(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """A model and its GGUF file, each written once; `copied` before a test changes it."""
    written: dict[str, Path] = {}

    def file(family: str, kind: str, imatrix: bool = False, **changes: Any) -> tuple[Path, Path]:
        folder = make(family, **changes)
        key = f"{folder}/{kind}/{imatrix}"
        if key not in written:
            out = tmp_path_factory.mktemp("gguf")
            export.write(folder, out / "floats.gguf", ignore)
            written[key] = out / "floats.gguf"
            if kind.endswith(" with feedback"):
                written[key] = _with_feedback(folder, out, kind.split()[0])
            elif kind != "F32":
                written[key] = out / "model.gguf"
                weights = _importance(out / "floats.gguf") if imatrix else None
                quantize(out / "floats.gguf", out / "model.gguf", tiny.gguf_options(kind), imatrix=weights)
        return folder, written[key]

    return file


def _with_feedback(model: Path, out: Path, kind: str) -> Path:
    """The file of this type whose weights are rounded with error feedback."""
    options, file, rows = tiny.gguf_options(kind), out / "model.gguf", out / "rows"
    types, _ = stream.layout(model, options, out)
    rows.mkdir()
    round_model(model, {name: kind for name, kind in types.items() if kind in FITTED}, CALIBRATION, rows)
    stream.assemble(model, file, options, rows)
    return file


def _importance(file: Path) -> dict[str, Any]:
    """Uneven weights for columns, as real activations give."""
    chance = np.random.default_rng(0)
    return {
        tensor.name: np.exp(1.5 * chance.standard_normal(int(tensor.shape[0]))).astype(np.float32)
        for tensor in gguf.GGUFReader(file).tensors
        if len(tensor.shape) == 2 and tensor.name.startswith("blk.")
    }


def copied(written: tuple[Path, Path], folder: Path) -> tuple[Path, Path]:
    return written[0], Path(shutil.copy(written[1], folder / "model.gguf"))


def held(proof: StaticProof) -> bool:
    return all(gate.passed and gate.value == gate.limit for gate in proof.gates)


def details(proof: StaticProof) -> dict[str, str]:
    return {gate.name: "" if gate.passed else gate.detail for gate in proof.gates}


CLEAN = [
    *((family, kind, {}) for family in tiny.FAMILIES for kind in ("F32", "Q8_0", "Q4_0")),
    *(("llama", kind, WIDE) for kind in ("F16", "BF16", "Q6_K", "Q5_K_M", "Q4_K_M", "Q5_0", "Q4_1", "Q3_K_M", "Q2_K")),
    ("qwen3", "Q4_K_M", {"hidden_size": 256, "intermediate_size": 256}),
    ("llama", "F32", {"attention_bias": True, "mlp_bias": True}),
    ("qwen2", "F32", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                          "original_max_position_embeddings": 16}}),
    *((family, f"{kind} with feedback", {}) for family, kind in (("llama", "Q8_0"), ("llama", "Q4_0"), ("qwen2", "IQ4_NL"))),
    ("llama", "Q4_K_M with feedback", {**WIDE, "num_hidden_layers": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "kind", "changes"), CLEAN)
def test_a_clean_file_is_proven(family: str, kind: str, changes: dict[str, Any], write: Write) -> None:
    folder, file = write(family, kind, **changes)
    proof = prove(file, folder, stage="export.gguf")
    assert held(proof), details(proof)
    assert [gate.name for gate in proof.gates] == ["gguf.structure", "gguf.vocabulary", "gguf.weights"]
    assert {gate.stage for gate in proof.gates} == {"export.gguf"}
    excesses = [tensor.excess for tensor in proof.tensors]
    assert len(excesses) == len(gguf.GGUFReader(file).tensors) and excesses == sorted(excesses, reverse=True)
    assert not [tensor for tensor in proof.tensors if tensor.note or tensor.relative_error > tensor.limit]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K_M", "IQ4_XS", "IQ3_S"])
def test_an_importance_matrix_is_no_fault(kind: str, write: Write) -> None:
    folder, file = write("llama", kind, imatrix=True, **WIDE)
    proof = prove(file, folder, stage="x")
    assert held(proof), details(proof)


def test_a_reference_of_halves_in_shards(make: Make, tmp_path: Path) -> None:
    folder = make("llama-untied")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "shards")
    export.write(tmp_path / "shards", tmp_path / "model.gguf", ignore)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert held(prove(tmp_path / "model.gguf", tmp_path / "shards", stage="x"))
    assert not held(prove(tmp_path / "model.gguf", folder, stage="x"))  # its weights are not rounded to bf16


def test_what_llama_cpp_takes_by_default_may_be_left_out(write: Write, tmp_path: Path) -> None:
    folder, file = copied(write("llama", "F32"), tmp_path)
    names = ("key_length", "value_length", "dimension_count", "vocab_size", "freq_base")
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(tmp_path / "short.gguf", "llama")
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.")) and not key.endswith(names):
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert held(prove(tmp_path / "short.gguf", folder, stage="x"))


# Fault, family, type, changes, the gate it fails, and the words it is named with.
FAULTS: list[tuple[Callable[[Path], None], str, str, dict[str, Any], str, str]] = [
    (plant.plant_swapped_q_and_k, "llama", "Q8_0", MHA, "weights", "blk.1.attn_q.weight holds blk.1.attn_k.weight"),
    (plant.plant_swapped_q_and_k, "qwen3", "Q4_0", MHA, "weights", "blk.1.attn_k.weight holds blk.1.attn_q.weight"),
    (plant.plant_unpermuted_q_and_k, "llama", "Q4_0", {}, "weights", "Hugging Face's order, not permuted for rope"),
    (plant.plant_transposed_projection, "llama", "Q8_0", {}, "weights", "blk.1.attn_output.weight is the reference transposed"),
    (plant.plant_doubled_tensor, "qwen2", "Q8_0", {}, "weights", "blk.1.ffn_up.weight is 2.00 times the reference"),
    (plant.plant_repeated_layer, "llama", "Q8_0", {}, "weights", "blk.2 repeats blk.1"),
    (plant.plant_repeated_layer, "gemma3", "F32", {}, "weights", "blk.2 repeats blk.1"),
    (plant.plant_missing_layer, "qwen3", "Q8_0", {}, "structure", "3 layers expected, 2 found"),
    (plant.plant_tied_head, "llama-untied", "Q8_0", {}, "structure", "the file ties the head to the embedding, and the model has a separate head"),
    (plant.plant_rope_base, "llama", "Q8_0", {}, "structure", "rope base is 20000, the model's is 10000"),
    (plant.plant_norm_epsilon, "qwen3", "Q8_0", {}, "structure", "norm epsilon is 0.0001, the model's is 1e-06"),
    (plant.plant_flipped_bits, "llama", "Q4_0", {}, "weights", "blk.1.ffn_down.weight has 1 damaged block in row 3, columns 32 to 63"),
    (plant.plant_flipped_bits, "llama", "Q4_K_M", WIDE, "weights", "damaged blocks, the worst in row 3, columns"),
    (plant.plant_broken_scale, "llama", "Q4_0", {}, "weights", "blk.0.ffn_gate.weight holds 32 weights that are not finite numbers"),
    (plant.plant_negated_rows, "llama", "Q4_0", {}, "weights", "blk.1.attn_v.weight has the wrong sign in 16 of 32 rows"),
    (plant.plant_negated_rows, "llama", "F32", {}, "weights", "blk.1.attn_v.weight has the wrong sign in 16 of 32 rows"),
    (plant.plant_noise, "llama", "Q4_0", {}, "weights", "noise, or another"),
    (plant.plant_swapped_embeddings, "llama", "Q4_0", {}, "weights", "token_embd.weight has its rows 40 and 70 swapped"),
    (plant.plant_doubled_alpha, "llama", "Q8_0", WIDE, "weights", "low-rank update (rank 4"),
    (plant.plant_doubled_alpha, "llama", "Q8_0 with feedback", {}, "weights", "low-rank update (rank 4"),
    (plant.plant_doubled_tensor, "llama", "Q4_0 with feedback", {}, "weights", "blk.1.ffn_up.weight is 1.98 times the reference"),
    (plant.plant_repeated_layer, "llama", "Q4_0 with feedback", {}, "weights", "blk.2 repeats blk.1"),
    (plant.plant_flipped_bits, "llama", "Q4_0 with feedback", {}, "weights", "blk.1.ffn_down.weight has 1 damaged block in row 3, columns 32 to 63"),
    (plant.plant_swapped_embeddings, "llama", "Q4_0 with feedback", {}, "weights", "token_embd.weight has its rows 40 and 70 swapped"),
]  # fmt: skip


@pytest.mark.parametrize(
    "fault", FAULTS, ids=[f"{f[0].__name__.removeprefix('plant_')}-{f[1]}-{f[2]}" for f in FAULTS]
)
def test_a_planted_fault_is_named(fault: Any, write: Write, tmp_path: Path) -> None:
    change, family, kind, changes, gate, words = fault
    folder, file = copied(write(family, kind, **changes), tmp_path)
    change(file)
    found = details(prove(file, folder, stage="x"))
    assert words in found[f"gguf.{gate}"]
    other = {"weights": "structure", "structure": "weights"}[gate]
    assert not found[f"gguf.{other}"]  # the other gate has nothing to say


@pytest.fixture(scope="module")
def uneven(make: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[bool]]:
    """A model with faint columns, its file, and whether each rounding was close enough.

    Its norms weight columns very differently, as real ones do. The errors are moved into the faintest columns, where some
    of the weights are too small for them.
    """
    model = shutil.copytree(make("llama"), tmp_path_factory.mktemp("uneven") / "model")
    tensors, chance = load_file(model / SINGLE), torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor *= torch.exp(3 * torch.randn(64, generator=chance)).sort(descending=True).values
        elif "proj" in name and tensor.shape[1] == 64:
            tensor[:4, 32:] *= 0.01
    save_file(tensors, model / SINGLE, metadata={"format": "pt"})
    close: list[bool] = []

    def check(*given: Any) -> bool:
        close.append(is_close(*given))
        return close[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding, "is_close", check)
        file = _with_feedback(model, tmp_path_factory.mktemp("gguf"), "Q4_0")
    return model, file, close


def test_what_feedback_rounds_too_far_away_is_rounded_again(uneven: tuple[Path, Path, list[bool]]) -> None:
    model, file, close = uneven
    assert not all(close)
    assert held(prove(file, model, stage="x"))


def test_only_the_word_of_the_file_widens_the_limits(
    uneven: tuple[Path, Path, list[bool]], tmp_path: Path
) -> None:
    folder, file = copied(uneven[:2], tmp_path)
    weights = prove(file, folder, stage="x").gates[-1]
    assert weights.passed and "rounding with error feedback" in weights.detail
    assert "can hide a faint update" in weights.detail
    for value in (None, 1, "Feedback", "nearest", ["feedback"], [1.0, 2.0]):
        plant.rewrite(file, added={} if value is None else {ROUNDING: value}, fields={ROUNDING: None})
        weights = prove(file, folder, stage="x").gates[-1]
        assert not weights.passed and "feedback" not in weights.detail
    plant.rewrite(file, added={ROUNDING: "feedback"})
    assert held(prove(file, folder, stage="x"))


def test_the_word_of_the_file_does_not_cover_its_floats(write: Write, tmp_path: Path) -> None:
    folder, file = copied(write("llama", "F16"), tmp_path)
    plant.rewrite(file, added={ROUNDING: "feedback"})
    plant.change(file, "blk.1.attn_v.weight", lambda rows: rows * np.float32(1.001))
    assert "blk.1.attn_v.weight" in details(prove(file, folder, stage="x"))["gguf.weights"]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K_M"])
def test_another_merge_below_the_rounding_error_is_found(kind: str, write: Write, tmp_path: Path) -> None:
    folder, floats = copied(write("llama", "F32", **WIDE), tmp_path)
    plant.plant_doubled_alpha(floats)
    quantize(floats, tmp_path / "merged.gguf", tiny.gguf_options(kind))
    proof = prove(tmp_path / "merged.gguf", folder, stage="x")
    notes = {tensor.name: tensor.note for tensor in proof.tensors if tensor.note}
    assert sorted(notes) == [f"blk.{i}.attn_{part}.weight" for i in range(3) for part in "qv"]
    assert all("low-rank update" in note for note in notes.values())
    assert any("hides a low-rank update in its rounding" in note for note in notes.values())


def test_another_model_is_found_out(make: Make, write: Write) -> None:
    _, file = write("llama", "Q8_0")
    proof = prove(file, make("llama", seed=1), stage="x")
    structure, _, weights = proof.gates
    assert structure.passed and not weights.passed and weights.value < 0.1
    other = prove(file, make("qwen2"), stage="x").gates[0]
    assert "the file is of the architecture llama, the model is qwen2" in other.detail


def test_another_architecture_is_found_without_the_converter(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a family that edgekit writes, and of a model class that only the converter writes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    assert converter.kept() is None
    model, file = copied(write("llama", "F32"), tmp_path)
    other = shutil.copytree(model, tmp_path / "olmo")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["OlmoForCausalLM"]}))
    found = details(prove(file, other, stage="x"))["gguf.structure"]
    assert "the file is of the architecture llama, and llama.cpp's of a OlmoForCausalLM is olmo" in found
    plant.plant_other_architecture(file, "olmo")
    assert "of the architecture" not in details(prove(file, other, stage="x"))["gguf.structure"]
    found = details(prove(file, model, stage="x"))["gguf.structure"]
    assert "the file is of the architecture olmo, the model is llama" in found


def test_settings_that_the_model_lacks_are_found(write: Write, tmp_path: Path) -> None:
    folder, file = copied(write("llama", "F32"), tmp_path)
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(tmp_path / "scaled.gguf", "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    detail = details(prove(tmp_path / "scaled.gguf", folder, stage="x"))["gguf.structure"]
    assert "the file sets rope.scaling.factor to 4, which the model does not have" in detail


def test_no_file_and_no_such_model(
    make: Make, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = write("llama", "Q8_0")
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(CorruptError, match="truncated or damaged"):
        prove(tmp_path / "cut.gguf", folder, stage="x")
    shutil.copytree(folder, tmp_path / "phi")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["PhiForCausalLM"]}
    (tmp_path / "phi" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("gguf.MODEL_ARCH_NAMES", {})
    with pytest.raises(UnsupportedError, match="architecture llama, whose tensor names are unknown"):
        prove(file, tmp_path / "phi", stage="x")


def test_it_is_registered() -> None:
    assert registry.load("proofs", "gguf") is prove


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_deinterleave_takes_interleave_back(heads: int, pairs: int, columns: int) -> None:
    values = np.arange(heads * 2 * pairs * columns, dtype=np.float32).reshape(-1, columns)
    assert np.array_equal(deinterleave(interleave(values, heads), heads), values)


FINITE = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
@given(rows=arrays.arrays(np.float32, (3, 64), elements=FINITE))
def test_rounding_to_the_nearest_stays_within_every_limit(kind: str, rows: Any) -> None:
    type = gguf.GGMLQuantizationType[kind]
    values = gguf.quants.dequantize(gguf.quants.quantize(rows, type), type).reshape(rows.shape)
    stored = Stored("x", kind, rows.shape, GRIDS[kind], lambda start, stop: values[start:stop])
    assert compare(stored, rows).excess <= 1


def test_a_fault_hidden_in_a_large_tensor_is_seen_in_its_block() -> None:
    rows = np.random.default_rng(0).standard_normal((512, 512), np.float32)
    values = np.round(rows * 40) / 40
    values[7, 64:96] *= -1
    found = compare(Stored("x", "Q", rows.shape, Grid(32, 127, "peak"), lambda a, b: values[a:b]), rows)
    assert found.relative < found.limit * 2 and found.bad_blocks == 1 and found.excess > 2
    assert int(found.worst.argmax()) == 7 and found.place[7] == 64


@pytest.mark.parametrize(("kind", "kept"), [("Q4_1", False), ("Q4_0", True), ("Q5_0", True), ("Q8_0", True)])
def test_a_type_that_rounds_an_adapter_away_is_found(kind: str, kept: bool) -> None:
    """Weights that were stored in Q4_1 before tuning lie on a grid, to which Q4_1 rounds them back."""
    chance = np.random.default_rng(0)

    def stored_as(rows: Any, kind: str) -> Any:
        type = gguf.GGMLQuantizationType[kind]
        return gguf.quants.dequantize(gguf.quants.quantize(rows, type), type).reshape(rows.shape)

    base = stored_as(chance.standard_normal((512, 512), np.float32), "Q4_1")
    update = 0.02 * np.outer(chance.standard_normal(512), chance.standard_normal(512)).astype(np.float32)
    merged = base + update
    values = stored_as(merged, kind)
    share = float(np.vdot(values - base, update) / np.vdot(update, update))
    assert share > 0.8 if kept else share < 0.3
    tensor = Stored("x", kind, merged.shape, GRIDS[kind], lambda start, stop: values[start:stop])
    reference = Reference("x", merged.shape, lambda: merged)
    assert (compare(tensor, merged).excess <= 1) == kept
    if not kept:
        assert "rounds the adapter's update away" in explain(tensor, reference, {"x": reference})


def test_white_noise_has_no_direction_and_a_faint_update_has() -> None:
    chance = np.random.default_rng(0)
    noise = chance.standard_normal((200, 300), np.float32)
    update = np.outer(chance.standard_normal(200), chance.standard_normal(300)).astype(np.float32)
    assert 0.9 < largest_singular(noise) < 1.05
    assert largest_singular(noise + 0.2 * update) > 1.25
    assert largest_singular(0 * noise) == 0
