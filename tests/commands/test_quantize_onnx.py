"""`edgekit quantize --format onnx`: what is typed reaches the export, and what was chosen is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.cli import main
from edgekit.export.onnx import export as exporting
from edgekit.registry import ExportContext
from edgekit.targets.target import OnnxExport

CHOSEN = {"types": {"lm_head": "int8 g64", "up": "int4 g32"}, "cost": 0.0123}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[OnnxExport, ExportContext]]:
    """The options and contexts of exports, which write an empty folder."""
    seen: list[tuple[OnnxExport, ExportContext]] = []

    def export(source: Path, out: Path, options: OnnxExport, context: ExportContext, emit: Any) -> Any:
        seen.append((options, context))
        out.mkdir()
        return CHOSEN if options.is_sized else {}

    monkeypatch.setattr(exporting, "export", export)
    return seen


def run(*typed: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["quantize", *map(str, typed)])
    assert ended.value.code == 0


def test_a_size_and_a_text_reach_the_export(
    asked: list[Any], small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "words.txt", tmp_path / "onnx"
    text.write_text("Some words to calibrate on. " * 40)
    run(small_model, "--format", "onnx", "--out", out, "--bits", 5.5, "--calibration", text, "--json")
    ((options, context),) = asked
    assert (options.bits_per_weight, options.size_mib, options.at_8_bits) == (5.5, None, [])
    assert context.texts and not context.calibration
    assert json.loads(capsys.readouterr().out) == {"file": str(out), **CHOSEN}


def test_without_a_size_the_usual_layers_have_8_bits(
    asked: list[Any], small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(small_model, "--format", "onnx", "--out", tmp_path / "onnx", "--data", "demo")
    ((options, context),) = asked
    assert not options.is_sized and "*.v_proj" in options.at_8_bits
    assert context.calibration and context.texts  # the rows, and the text that comes with edgekit
    run(small_model, "--format", "onnx", "--out", tmp_path / "small", "--size-mib", 40)
    assert asked[1][0].size_mib == 40
    said = capsys.readouterr().out
    assert "1 int8 g64, 1 int4 g32; estimated KL divergence 0.012 nats" in said
    assert f"edgekit verify {tmp_path / 'small'} --reference" in said
