"""Zero clean folders are refused over the makers' own vocabularies."""

from __future__ import annotations

import shutil
from pathlib import Path

import makers
import pytest
from faults import plant

from edgekit.base.events import GateResult, ignore
from edgekit.export.onnx import export as exporting
from edgekit.export.onnx.proof import prove
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.proof import bare, text_path
from edgekit.proof.facts import ReferenceFacts
from edgekit.registry import ExportContext
from edgekit.runtimes.onnxruntime import open_model
from edgekit.targets.target import OnnxExport


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize("name", makers.MODELS)
def test_a_clean_folder_passes(name: str, precision: str, tmp_path: Path) -> None:
    model, folder = makers.make(tmp_path / "model", name), tmp_path / "onnx"
    options = OnnxExport.model_validate({"format": "onnx", "precision": precision})
    exporting.export(model, folder, options, ExportContext(model), ignore)
    facts = ReferenceFacts.of(ModelTokenizer(model))
    opened = open_model(folder)
    results: list[GateResult] = [
        *prove(folder, model, stage="x").gates,
        *text_path.identity(opened, facts, "onnx", "x")[0],
    ]
    if (without_edgekit := bare.compare(opened, facts)) is not None:
        results.append(without_edgekit.gate("onnx", "x"))
    assert [(result.name, result.detail) for result in results if not result.passed] == []


FAULTS = {
    "flipped bits": plant.plant_onnx_flipped_bits,
    "negated rows": plant.plant_onnx_negated_rows,
    "swapped embeddings": plant.plant_onnx_swapped_embeddings,
    "norm epsilon": plant.plant_onnx_norm_epsilon_of_thousandth,
    "repeated layer": plant.plant_onnx_repeated_layer,
    "dropped added token": plant.plant_onnx_dropped_added_token,
    "altered merge": plant.plant_onnx_altered_merge,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_planted_faults_are_caught(name: str, tmp_path: Path) -> None:
    model, clean = makers.make(tmp_path / "model", name), tmp_path / "clean"
    options = OnnxExport.model_validate({"format": "onnx", "precision": "int4"})
    exporting.export(model, clean, options, ExportContext(model), ignore)
    facts = ReferenceFacts.of(ModelTokenizer(model))
    missed = []
    for fault, change in FAULTS.items():
        folder = plant.copied(clean, tmp_path / fault)
        change(folder)
        results = prove(folder, model, stage="x").gates
        if all(result.passed for result in results):
            opened = open_model(folder)
            results = text_path.identity(opened, facts, "onnx", "x")[0]
            opened.close()
        if all(result.passed for result in results):
            missed.append(fault)
        shutil.rmtree(folder)
    assert missed == []
