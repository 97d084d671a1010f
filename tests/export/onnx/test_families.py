"""Every architecture that the model builder builds: the graph computes what transformers computes, and is proven."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
import torch
import vocabularies
from faults import plant
from numpy.typing import NDArray

from edgekit.export.onnx import build as onnx_build
from edgekit.export.onnx import export as exporting
from edgekit.export.onnx.proof import prove
from edgekit.proof.drift import kl_divergence
from edgekit.registry import Runtime
from edgekit.runtimes.onnxruntime import open_model
from edgekit.targets.target import Budget, OnnxExport

CHANCE = random.Random(0)
# More tokens than a window, and more than Phi-4-mini's original context.
TEXT = [CHANCE.randrange(3, 300) for _ in range(100)]
CALIBRATION = [[CHANCE.randrange(3, 300) for _ in range(48)] for _ in range(4)]
FAMILIES = ("qwen3", "gemma3", *tiny.ONNX_FAMILIES)
QUICK = (
    "gemma3",
    "granite",
    "phi3",
    "lfm2",
)  # one of each kind: scaled norms, factors, stacked weights, convolutions

Build = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A tiny model of a family with a small tokenizer, and its ONNX folder with `bits`, each made once."""
    made: dict[str, Path] = {}
    small = vocabularies.for_transformers()

    def folders(family: str, bits: int, seed: int = 0) -> tuple[Path, Path]:
        model = made.setdefault(f"{family} {seed}", tmp_path_factory.mktemp("family") / "model")
        if not model.exists():
            tiny.make(model, family, seed=seed, tokens=small)
        out = made.setdefault(f"{family} {seed} {bits}", tmp_path_factory.mktemp("onnx") / "onnx")
        if not out.exists():
            task = {"model": str(model), "out": str(out), "work": str(out.with_name("work")), "bits": bits}
            task |= {"block_size": 32, "accuracy_level": 1, "texts": {"rows": CALIBRATION}, "max_bytes": None}
            task |= {"int8_modules": OnnxExport(format="onnx").at_8_bits, "threads": 1}
            onnx_build.write(task)
        return model, out

    return folders


def reference(model: Path, ids: list[int]) -> NDArray[np.float32]:
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: NDArray[np.float32] = network(torch.tensor([ids])).logits[0].numpy()
    return logits


def runtime(folder: Path) -> Runtime:
    return open_model(folder, threads=1, context=256)


def failures(model: Path, folder: Path) -> dict[str, str]:
    return {gate.name: gate.detail for gate in prove(folder, model, stage="x").gates if not gate.passed}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_computes_what_transformers_computes(family: str, build: Build) -> None:
    model, folder = build(family, 32)
    wanted = reference(model, TEXT)
    got = runtime(folder).logits(TEXT)
    assert np.abs(got - wanted).max() < 1e-4 * wanted.std()
    assert exporting.refusal(json.loads((model / "config.json").read_text()), OnnxExport(format="onnx")) == ""


@pytest.mark.parametrize(
    "family",
    [family if family in QUICK else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES],
)
def test_rounded_weights_are_proven(family: str, build: Build) -> None:
    model, folder = build(family, 4)
    assert failures(model, folder) == {}
    drift = kl_divergence(reference(model, TEXT), runtime(folder).logits(TEXT))
    assert drift.mean() < Budget().mean_kld_nats


@pytest.mark.parametrize("family", ["gemma3", "phi3", "smollm3"])
def test_answers_follow_the_logits_beyond_the_window(family: str, build: Build) -> None:
    model = runtime(build(family, 32)[1])
    prompts = [TEXT[:5], TEXT[:30], TEXT[5:17]]
    alone = [list(model.generate(ids, 12)) for ids in prompts]
    assert model.generate_batch(prompts, 12) == alone
    for ids, answer in zip(prompts, alone, strict=True):
        tokens = [*ids, *answer]
        assert model.logits(tokens).argmax(-1)[len(ids) - 1 : -1].tolist() == answer


WITHOUT = [
    ("llama-yarn", "rope's tables do not follow from the model's scaling (yarn)"),
    ("mistral-window", "local_window_size is -1, the model's is 8"),
    ("olmo", "is a RMSNorm, the model's is a LayerNorm"),
    ("phi", "norm epsilon is 1e-06 in /model/layers.0/input_layernorm/LayerNorm, the model's is 1e-05"),
    ("granite4", "rope turns the queries of layer 0, the model does not"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "words"), WITHOUT)
def test_what_the_builder_alone_gets_wrong_is_named(
    family: str, words: str, build: Build, tmp_path: Path
) -> None:
    model, _ = build(family, 32)
    with contextlib.redirect_stdout(io.StringIO()):
        onnx_build.build(model, tmp_path / "onnx", tmp_path / "cache", {"type": "none"})
    found = failures(model, tmp_path / "onnx")
    assert list(found) == ["onnx.structure"] and words in found["onnx.structure"]


@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_a_clean_file_of_the_builder_alone_is_proven(family: str, build: Build, tmp_path: Path) -> None:
    model, _ = build(family, 32)
    weights = {"type": "int4", "method": "rtn", "block_size": 32}
    with contextlib.redirect_stdout(io.StringIO()):
        onnx_build.build(model, tmp_path / "onnx", tmp_path / "cache", weights)
    assert failures(model, tmp_path / "onnx") == {}


def test_caches_of_the_length_of_a_window_are_used_as_they_must(build: Build, tmp_path: Path) -> None:
    model, whole = build("gemma2", 32)
    with contextlib.redirect_stdout(io.StringIO()):
        onnx_build.build(model, tmp_path / "onnx", tmp_path / "cache", {"type": "none"})
    short = json.loads((tmp_path / "onnx" / "genai_config.json").read_text())["model"]["decoder"]
    assert short["sliding_window"]["window_size"] == 8
    (tmp_path / "onnx" / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    prompts = [TEXT[:5], TEXT[:30], TEXT[5:17]]
    opened, expected = runtime(tmp_path / "onnx"), runtime(whole)
    # the builder alone rounds the embedding's scale to two decimals
    assert np.abs(opened.logits(TEXT[:3]) - expected.logits(TEXT[:3])).max() < 2e-3
    assert opened.generate_batch(prompts, 12) == expected.generate_batch(prompts, 12)


FAULTS: list[tuple[str, Callable[[Path], None], str]] = [
    ("gemma3", plant.plant_onnx_whole_attention, "/model/layers.0/attn/GroupQueryAttention: local_window_size is -1, the model's is 8"),
    ("gemma2", plant.plant_onnx_no_cap, "/lm_head/softcap/Div is missing, which has the model's factor 30"),
    ("gemma2", plant.plant_onnx_no_attention_cap, "softcap is 0.0, the model's is 50.0"),
    ("gemma3", plant.plant_onnx_embedding_scale, "/model/embed_tokens/Mul has the factor 4, the model's is 8"),
    ("granite", plant.plant_onnx_residual_scale, "/model/layers.1/residual_mul/Mul_1 has the factor 0.6, the model's is 0.3"),
    ("gemma2", plant.plant_onnx_activation, "the activation is computed by Relu in /model/layers.1/mlp/act_fn/FastGelu"),
    ("smollm3", plant.plant_onnx_turned_layer, "rope turns the queries of layer 1, the model does not"),
    ("phi4-mini", plant.plant_onnx_late_switch, "rope's tables change after 128.0 tokens, the model's after 64"),
]  # fmt: skip


@pytest.mark.parametrize(
    "fault",
    FAULTS,
    ids=[f"{name}-{change.__name__.removeprefix('plant_onnx_')}" for name, change, _ in FAULTS],
)
def test_a_planted_fault_is_named(fault: Any, build: Build, tmp_path: Path) -> None:
    family, change, words = fault
    model, clean = build(family, 32)
    folder = plant.copied(clean, tmp_path / "onnx")
    change(folder)
    found = failures(model, folder)
    assert list(found) == ["onnx.structure"] and words in found["onnx.structure"]


@pytest.mark.parametrize("family", ["gemma3", "granite", "phi3"])
def test_the_head_of_another_model_is_named(family: str, build: Build, tmp_path: Path) -> None:
    model, clean = build(family, 4)
    _, other = build(family, 4, seed=1)
    folder = plant.copied(clean, tmp_path / "onnx")
    plant.plant_onnx_head(folder, other)
    found = failures(model, folder)
    assert list(found) == ["onnx.weights"] and "lm_head.weight" in found["onnx.weights"]


def test_a_switch_without_tables_is_corrupt(build: Build, tmp_path: Path) -> None:
    from edgekit.base.errors import CorruptError

    model, clean = build("phi4-mini", 32)
    folder = plant.copied(clean, tmp_path / "onnx")
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    switch = next(node for node in graph.graph.node if node.op_type == "If")
    del switch.attribute[0].g.node[:]
    onnx.save(graph, folder / "model.onnx")
    with pytest.raises(CorruptError, match="lacks its tables"):
        prove(folder, model, stage="x")


@pytest.mark.parametrize("value", ["logits", "cos_cache"])
def test_longrope_branches_for_its_tables_by_length_alone(value: str, build: Build, tmp_path: Path) -> None:
    model, clean = build("phi4-mini", 32)
    assert failures(model, clean) == {}
    folder = plant.copied(clean, tmp_path / "onnx")
    if value == "logits":
        plant.plant_onnx_branch(folder)
    else:
        graph = onnx.load(folder / "model.onnx", load_external_data=False)
        switch = next(node for node in graph.graph.node if node.op_type == "If")
        next(node for node in graph.graph.node if switch.input[0] in node.output).op_type = "Sub"
        onnx.save(graph, folder / "model.onnx")
    assert "the graph branches at" in failures(model, folder)["onnx.structure"]
