"""An onnxruntime-genai folder is proven against its model without running it; each planted fault is named."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
import vocabularies
from faults import plant
from hypothesis import given
from hypothesis import strategies as st

from edgekit import registry
from edgekit.base.errors import CorruptError
from edgekit.export.onnx import build as onnx_build
from edgekit.export.onnx.graph import read_graph, unpack
from edgekit.export.onnx.proof import prove
from edgekit.export.weights.weight_proof import StaticProof, prove_weights
from edgekit.targets.target import OnnxExport

Write = Callable[..., tuple[Path, Path]]
CHANCE = random.Random(0)
CALIBRATION = [[CHANCE.randrange(3, 300) for _ in range(48)] for _ in range(6)]
MHA = {"num_key_value_heads": 4}


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """A tiny model with a small tokenizer and its ONNX folder, each made once by what the export's child runs."""
    made: dict[str, Path] = {}
    small = vocabularies.for_transformers()

    def once(key: str, make: Callable[[Path], Any]) -> Path:
        if key not in made:
            made[key] = tmp_path_factory.mktemp("proof") / "made"
            make(made[key])
        return made[key]

    def folders(family: str, precision: str, **changes: Any) -> tuple[Path, Path]:
        def model(to: Path) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tiny, "tokenizer", lambda: small)
                tiny.make(to, family, **changes)

        def build(to: Path) -> None:
            task = {"model": str(source), "out": str(to), "work": str(to.with_name("work"))}
            task |= {"bits": {"fp32": 32, "int8": 8}.get(precision, 4), "block_size": 32, "accuracy_level": 4}
            task |= {"int8_modules": OnnxExport(format="onnx").at_8_bits, "max_bytes": None, "threads": 1}
            task |= {"texts": {"rows": CALIBRATION} if precision == "int4 by GPTQ" else {}}
            onnx_build.write(task, lambda *done: None)

        source = once(f"{family} {changes}", model)
        return source, once(f"{family} {changes} {precision}", build)

    return folders


def copied(folders: tuple[Path, Path], to: Path) -> tuple[Path, Path]:
    return folders[0], Path(shutil.copytree(folders[1], to / "onnx"))


def details(proof: StaticProof) -> dict[str, str]:
    return {gate.name: "" if gate.passed else gate.detail for gate in proof.gates}


CLEAN = [
    *(("llama", precision, MHA) for precision in ("fp32", "int8", "int4", "int4 by GPTQ")),
    ("llama3", "fp32", {}),
    ("qwen2", "int4 by GPTQ", {}),
    ("qwen3", "fp32", {}),
]


@pytest.mark.parametrize(("family", "precision", "changes"), CLEAN)
def test_a_clean_folder_is_proven(family: str, precision: str, changes: dict[str, Any], write: Write) -> None:
    model, folder = write(family, precision, **changes)
    proof = prove(folder, model, stage="export.onnx")
    assert all(gate.passed and gate.value == 1.0 for gate in proof.gates), details(proof)
    assert [gate.name for gate in proof.gates] == ["onnx.structure", "onnx.weights"]
    names = {tensor.name for tensor in proof.tensors}
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= names
    assert {f"model.layers.2.self_attn.{part}_proj.weight" for part in "qkvo"} <= names
    assert {tensor.type for tensor in proof.tensors} >= (
        {"fp32"} if precision == "fp32" else {precision[:4], "fp32"}
    )


FAULTS: list[tuple[Callable[[Path], None], str, str, str]] = [
    (plant.plant_onnx_swapped_q_and_k, "fp32", "weights", "model.layers.1.self_attn.q_proj.weight holds model.layers.1.self_attn.k_proj.weight"),
    (plant.plant_onnx_crossed_wires, "int4", "structure", "takes /model/layers.1/attn/k_proj where q_proj belongs"),
    (plant.plant_onnx_transposed_projection, "fp32", "weights", "model.layers.1.self_attn.o_proj.weight is the reference transposed"),
    (plant.plant_onnx_doubled_tensor, "int4", "weights", "times the reference"),
    (plant.plant_onnx_repeated_layer, "int4 by GPTQ", "weights", "model.layers.2 repeats model.layers.1"),
    (plant.plant_onnx_rope_base, "int8", "structure", "rope base is 2e+04, the model's is 10000"),
    (plant.plant_onnx_norm_epsilon, "int4", "structure", "norm epsilon is 1e-05 in /model/layers.1/input_layernorm/"),
    (plant.plant_onnx_flipped_bits, "int4 by GPTQ", "weights", "model.layers.1.mlp.gate_proj.weight has 1 damaged block in row 3, columns 32 to 63"),
    (plant.plant_onnx_flipped_bits, "int8", "weights", "model.layers.1.mlp.gate_proj.weight has 1 damaged block in row 3, columns 32 to 63"),
    (plant.plant_onnx_negated_rows, "int4", "weights", "model.layers.1.self_attn.v_proj.weight has the wrong sign in 16 of 64 rows"),
    (plant.plant_onnx_swapped_embeddings, "int4", "weights", "model.embed_tokens.weight has its rows 40 and 70 swapped"),
    (plant.plant_onnx_noise, "fp32", "weights", "noise"),
    (plant.plant_onnx_doubled_alpha, "fp32", "weights", "low-rank update (rank 4"),
]  # fmt: skip


@pytest.mark.parametrize(
    "fault", FAULTS, ids=[f"{f[0].__name__.removeprefix('plant_onnx_')}-{f[1]}" for f in FAULTS]
)
def test_a_planted_fault_is_named(fault: Any, write: Write, tmp_path: Path) -> None:
    change, precision, gate, words = fault
    model, folder = copied(write("llama", precision, **MHA), tmp_path)
    change(folder)
    found = details(prove(folder, model, stage="x"))
    assert words in found[f"onnx.{gate}"]
    assert not found[f"onnx.{ {'weights': 'structure', 'structure': 'weights'}[gate] }"]


def test_a_graph_that_branches_is_refused(write: Write, tmp_path: Path) -> None:
    model, folder = copied(write("llama", "int8", **MHA), tmp_path)
    plant.plant_onnx_branch(folder)
    (structure, _) = prove(folder, model, stage="x").gates
    assert not structure.passed and "the graph branches at /lm_head/If" in structure.detail


def test_nothing_compared_is_not_proven() -> None:
    gate, errors = prove_weights([], {}, "onnx.weights", stage="x")
    assert (gate.passed, gate.value, errors) == (False, 0.0, [])
    assert gate.detail == "no tensor could be compared"


def test_another_model_is_found_out(write: Write) -> None:
    _, folder = write("llama", "int8", **MHA)
    model, _ = write("llama3", "fp32")
    structure, _ = prove(folder, model, stage="x").gates
    assert not structure.passed and structure.value < 1
    assert "num_key_value_heads is 4, the model's is 2" in structure.detail


def test_a_wrong_count_in_the_settings_is_found(write: Write, tmp_path: Path) -> None:
    model, folder = copied(write("llama", "int8", **MHA), tmp_path)
    settings = json.loads((folder / "genai_config.json").read_text())
    settings["model"]["decoder"]["num_hidden_layers"] = 2
    (folder / "genai_config.json").write_text(json.dumps(settings))
    found = details(prove(folder, model, stage="x"))
    assert "num_hidden_layers is 2, the model's is 3" in found["onnx.structure"]


def test_what_cannot_be_read_is_refused(write: Write, tmp_path: Path) -> None:
    model, folder = copied(write("llama", "int8", **MHA), tmp_path)
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    next(
        e for e in graph.graph.initializer[5].external_data if e.key == "location"
    ).value = "../model.onnx.data"
    onnx.save(graph, folder / "model.onnx")
    with pytest.raises(CorruptError, match="outside"):
        prove(folder, model, stage="x")
    (folder / "model.onnx").write_bytes(b"\xff" * 50)
    with pytest.raises(CorruptError, match="not an ONNX model"):
        prove(folder, model, stage="x")
    config = json.loads((model / "config.json").read_text()) | {"model_type": "unheard-of"}
    shutil.copytree(model, tmp_path / "unknown")
    (tmp_path / "unknown" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptError, match=r"config\.json does not describe a model that transformers knows"):
        prove(folder, tmp_path / "unknown", stage="x")


def test_a_cut_data_file_is_corrupt(write: Write, tmp_path: Path) -> None:
    model, folder = copied(write("llama", "int8", **MHA), tmp_path)
    data = (folder / "model.onnx.data").read_bytes()
    (folder / "model.onnx.data").write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptError):
        prove(folder, model, stage="x")


def test_it_is_registered() -> None:
    assert registry.load("proofs", "onnx") is prove


def test_weights_stay_on_disk(write: Write) -> None:
    _, folder = write("llama", "int8", **MHA)
    graph = read_graph(folder / "model.onnx")
    name = next(name for name in graph.initializers if name.startswith("lm_head"))
    assert isinstance(graph.array(name), np.memmap)


@given(st.lists(st.lists(st.integers(0, 15), min_size=8, max_size=8), min_size=1), st.sampled_from([2, 4, 8]))
def test_unpacking_takes_packing_back(rows: list[list[int]], bits: int) -> None:
    codes = np.array(rows, np.uint8) & (2**bits - 1)
    per_byte = 8 // bits
    packed = sum((codes[:, i::per_byte] << (i * bits) for i in range(per_byte)), np.zeros(1, np.uint8))
    assert np.array_equal(unpack(packed, bits), codes)
