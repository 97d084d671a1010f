"""`edgekit quantize` with error feedback: what it compares the file on, and what it tells of the comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.base.errors import GateError
from edgekit.cli import main
from edgekit.export.gguf import trial
from edgekit.export.gguf.fit import Fitted, Try
from edgekit.registry import ExportContext

TRIES = [
    Try("edgekit's text", 1200, 0.02, {"text": 0.0301}),
    Try("the text of own.txt", 1100, 0.02, {"text": 2.5}),
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ExportContext]:
    """What the trial was asked for; the first of `TRIES` is kept."""
    contexts: list[ExportContext] = []

    def search(out: Path, options: Any, context: ExportContext, emit: Any) -> Fitted:
        contexts.append(context)
        assert context.trial
        if context.quantize and context.quantize.max_kld_nats == 1e-6:
            raise GateError("No file holds it. No file was written.", "Allow more.")
        out.write_bytes(b"GGUF")
        kept = TRIES[0]
        tries = TRIES[: len(context.trial.sets)]
        types = {"blk.0.attn_q.weight": "Q4_K"}
        return Fitted(
            types, 0.02, {}, {}, calibration=kept.calibration, mean_kld_nats=kept.mean_kld_nats, tries=tries
        )

    monkeypatch.setattr(trial, "search", search)
    return contexts


def quantize(capsys: Any, *typed: object) -> tuple[int, Any]:
    with pytest.raises(SystemExit) as ended:
        main(["quantize", *map(str, typed)])
    return int(ended.value.code or 0), capsys.readouterr()


def test_the_divergence_is_told_and_has_the_limits_of_verify(
    asked: list[ExportContext], small_model: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out.gguf"
    code, said = quantize(capsys, small_model, "--bits", "5", "--out", out, "--data", "demo", "--json")
    assert code == 0, said.err
    found = json.loads(said.out)
    assert found["mean_kld_nats"] == {"text": 0.0301} and found["bytes"] == 4 == out.stat().st_size
    assert [tried["calibration"] for tried in found["tries"]] == [found["calibration"]]
    (context,) = asked
    assert context.trial and context.trial.limits == {"rows": 0.05, "text": 0.15}
    assert context.trial.held_out.keys() == {"rows", "text"}
    code, said = quantize(capsys, small_model, "--out", tmp_path / "other.gguf")
    assert code == 0 and "measured on held-out text: 0.0301 nats on text" in said.out
    assert asked[1].trial and asked[1].trial.held_out.keys() == {"text"}


def test_a_given_set_that_was_passed_over_is_told_with_both_figures(
    asked: list[ExportContext], small_model: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "own.txt").write_text("a " * 9000)
    out = tmp_path / "out.gguf"
    code, said = quantize(capsys, small_model, "--out", out, "--calibration", tmp_path / "own.txt")
    assert (
        code == 0 and asked[0].trial and [*asked[0].trial.sets] == ["edgekit's text", "the text of own.txt"]
    )
    assert "not calibrated on the text of own.txt" in said.err
    assert "2.5 nats on text" in said.err and "0.0301 nats on text" in said.err


def test_a_divergence_that_no_file_holds_ends_with_3_and_leaves_what_was_there(
    asked: list[ExportContext], small_model: Path, tmp_path: Path, capsys: Any
) -> None:
    (out := tmp_path / "out.gguf").write_bytes(b"before")
    code, said = quantize(capsys, small_model, "--max-kld", "1e-6", "--out", out, "--force")
    assert code == 3 and "No file holds it" in said.err and "Allow more." in said.err
    assert out.read_bytes() == b"before" and [*tmp_path.iterdir()] == [out]
