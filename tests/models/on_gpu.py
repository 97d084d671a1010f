"""What a model computes on a GPU is what it computes on the processor: run by test_accelerator.py in a process of its own.

python -m pytest tests/models/on_gpu.py
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pretend_gpu
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from edgekit.export.gguf.imatrix import importance
from edgekit.export.gguf.rounding import round_model
from edgekit.export.gguf.stream import packed_rows
from edgekit.export.onnx import build
from edgekit.export.onnx.forms import Form
from edgekit.export.onnx.rounding import Forms, round_network
from edgekit.export.weights.layerwise import quietly
from edgekit.export.weights.merge import merge
from edgekit.export.weights.merge_check import merge_proof
from edgekit.export.weights.prune import block_influence
from edgekit.export.weights.rounding import Text
from edgekit.models import accelerator, mapped
from edgekit.runtimes.torch import open_model

ROWS = [[3, 4, 5, 6, 7, 8], [40, 30, 20, 10]]
LONG = [
    [3 + (7 * n + row) % 400 for n in range(96)] for row in range(4)
]  # more tokens than a layer has columns


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In bfloat16, whose weights are widened as they are used."""
    monkeypatch.setattr(mapped, "KEPT", 200)  # tiny layers are treated like those of a large model
    wide = tiny.make_small(tmp_path / "wide")
    AutoModelForCausalLM.from_pretrained(wide, dtype=torch.bfloat16).save_pretrained(wide)
    return wide


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A function that computes something on the processor and then on the GPU, and returns both results."""

    def compute(function: Callable[[], Any]) -> tuple[Any, Any]:
        with torch.no_grad():
            first = function()
            with pretend_gpu.gpu(monkeypatch):
                return first, function()

    return compute


def test_tensors_of_two_devices_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretended GPU finds the faults that a real one would."""
    with pretend_gpu.gpu(monkeypatch):
        there = torch.ones(3, device=accelerator.GPU)
        assert (there + there).cpu().tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


def test_a_model_without_room_stays_on_the_processor(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_gpu.gpu(monkeypatch):
        assert str(accelerator.place(mapped.load(model)).device) != "cpu"
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 17, 1 << 34))
        assert str(accelerator.place(mapped.load(model)).device) == "cpu"


@pytest.mark.parametrize("adapted", [False, True])
def test_reference_and_answers(model: Path, adapted: bool, both: Callable[..., Any], tmp_path: Path) -> None:
    adapter = tiny.adapter(model, tmp_path / "adapter") if adapted else None

    def answer() -> Any:
        opened = open_model(model, adapter=adapter)
        batch = opened.generate_batch(ROWS, 6)
        return opened.logits(ROWS[0], 2), list(opened.generate(ROWS[1], 6)), batch

    (logits, *answers), (there, *also) = both(answer)
    np.testing.assert_allclose(logits, there, atol=1e-4)
    assert answers == also and all(answers)


def test_importance_and_influence(model: Path, both: Callable[..., Any]) -> None:
    matrix, there = both(lambda: importance(model, ROWS))
    assert matrix.keys() == there.keys()
    for name, values in matrix.items():
        np.testing.assert_allclose(values, there[name], rtol=1e-3, atol=1e-5)
    (prefix, influence), there = both(lambda: block_influence(model, ROWS))
    assert there == (prefix, pytest.approx(influence, abs=1e-4))


def test_the_proof_of_a_merge(model: Path, both: Callable[..., Any], tmp_path: Path) -> None:
    adapter = tiny.adapter(model, tmp_path / "adapter")
    merge(model, adapter, tmp_path / "merged")
    here, there = both(lambda: merge_proof(model, adapter, tmp_path / "merged", ROWS))
    assert here.pop("rounding") == there.pop("rounding")
    assert here == pytest.approx(there, abs=1e-4)


@pytest.mark.parametrize(("rows", "equal"), [([], 1.0), (LONG, 0.9)], ids=["nearest", "feedback"])
def test_rounded_layers(model: Path, rows: list[list[int]], equal: float, both: Callable[..., Any]) -> None:
    """They are on the processor afterwards, where the builder reads them. Feedback amplifies how inputs round."""

    def rounded() -> list[tuple[torch.Tensor, ...]]:
        network = accelerator.place(mapped.load(model))
        texts = [Text("rows", rows)] if rows else []
        round_network(network, Forms(Form(4, 32)), texts, 1, quietly)
        layers = [module for module in network.modules() if hasattr(module, "qweight")]
        return [(layer.qweight, layer.scales, layer.qzeros) for layer in layers]

    here, there = both(rounded)
    assert here and len(here) == len(there)
    for parts in zip(here, there, strict=True):
        for first, second in zip(*parts, strict=True):
            assert second.device.type == "cpu" and first.shape == second.shape
            assert (first == second).float().mean() >= equal or first.is_floating_point() and rows


def test_blocks_with_error_feedback(model: Path, both: Callable[..., Any], tmp_path: Path) -> None:
    """Feedback amplifies how inputs round."""
    types = {"blk.0.attn_q.weight": "IQ4_NL", "blk.2.ffn_down.weight": "Q8_0", "token_embd.weight": "Q5_0"}

    def rounded() -> dict[str, Any]:
        out = tmp_path / ("there" if torch.cuda.is_available() else "here")
        out.mkdir()
        round_model(model, types, [Text("rows", ROWS)], out, threads=1)
        return packed_rows(out)

    here, there = both(rounded)
    assert here.keys() == there.keys() == types.keys()
    for name, rows in here.items():
        assert (rows[:] == there[name][:]).mean() > 0.9


def test_an_onnx_folder(model: Path, both: Callable[..., Any], tmp_path: Path) -> None:
    def digests() -> list[str]:
        name = "there" if torch.cuda.is_available() else "here"
        out, work = tmp_path / name / "out", tmp_path / name / "work"
        task = {
            "model": str(model), "out": str(out), "work": str(work), "bits": 8, "block_size": 32, "int8_modules": [],
            "accuracy_level": 4, "texts": {"rows": ROWS}, "max_bytes": None, "threads": 1,
        }  # fmt: skip
        build.write(task)
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.glob("model.onnx*"))]

    here, there = both(digests)
    assert here == there and here
