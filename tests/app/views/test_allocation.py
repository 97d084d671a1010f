"""The bits of each tensor in characters: cells, shades, and more layers than columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from results_support import quantization, report, write_bundle

from edgekit.app.views import allocation, results
from edgekit.app.views.allocation import Part


def drawn(tmp_path: Path, found: dict[str, Any], width: int = 40) -> list[list[Part]]:
    artifacts = report()["artifacts"]
    artifacts[0]["quantization"] = found
    return list(allocation.lines(results.load(write_bundle(tmp_path / "b", artifacts=artifacts)), width))


def texts(lines: list[list[Part]]) -> list[str]:
    return ["".join(text for text, _ in line) for line in lines]


def test_each_layer_is_a_digit_and_more_bits_are_stronger(tmp_path: Path) -> None:
    lines = drawn(tmp_path, quantization())
    assert texts(lines) == [
        "",
        "bits of each tensor of gguf, by layer",
        "attn_q     4·4 4.50",
        "ffn_down   848 7.17",
        "token_embd 5   5.50",
        "           0",
        "4 IQ4_NL, 4.5 bits  5 Q5_0, 5.5 bits  8 Q8_0, 8.5 bits  ",
        "costliest tensors: estimated KLD in nats, output error",
        "blk.2.ffn_down Q8_0   0.00400 2.10\N{NO-BREAK SPACE}%",
        "blk.0.attn_q   IQ4_NL 0.00100 2.10\N{NO-BREAK SPACE}%",
    ]
    low, high = "auto on $primary 25%", "auto on $primary 100%"
    assert lines[3][1:4] == [("8", high), ("4", low), ("8", high)]
    assert lines[2][2] == ("·", "")  # no such tensor, no colour


def test_layers_share_cells_where_there_are_fewer_columns(tmp_path: Path) -> None:
    types = ["Q5_0"] * 100 + ["F16"]
    found = quantization() | {"layers": {"attn_q": types}, "counts": {"Q5_0": 100, "F16": 2}}
    for width, cells in ((117, 101), (80, 51), (30, 13)):
        lines = texts(drawn(tmp_path / str(width), found, width))
        row = next(line for line in lines if line.startswith("attn_q"))
        assert row.split()[1] == "5" * (cells - 1) + "F" and max(len(line) for line in lines[2:5]) <= width
        shared = [line for line in lines if line.startswith("a cell is")]
        assert shared == (
            [] if cells == 101 else [f"a cell is {-(-101 // cells)} layers: the type with the most bits"]
        )


def test_types_of_another_version_are_shown_without_bits(tmp_path: Path) -> None:
    found = quantization() | {"layers": {"attn_q": ["Q9_Z", "IQ4_NL"]}, "bits_per_weight": {}, "worst": []}
    assert "attn_q     ?4 –" in texts(drawn(tmp_path / "a", found))
    assert "attn_q       –" in texts(drawn(tmp_path / "b", found | {"layers": {"attn_q": []}}))


def test_without_costs_the_largest_errors_are_named(tmp_path: Path) -> None:
    worst = [one | {"cost_nats": None} for one in quantization()["worst"]]
    lines = texts(drawn(tmp_path, quantization() | {"worst": worst, "estimated_kld_nats": None}))
    assert lines[-3:-1] == ["largest output errors", "blk.2.ffn_down Q8_0   2.10\N{NO-BREAK SPACE}%"]


def test_a_report_without_types_has_no_such_picture(tmp_path: Path) -> None:
    assert list(allocation.lines(results.load(write_bundle(tmp_path / "b")), 40)) == []
