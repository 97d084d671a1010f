"""The plan of the quantizer in report.json, in the page, and in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from results_support import quantization, report
from rich.console import Console

from edgekit.base.cache import StageOutput
from edgekit.evaluation.samples import SAMPLES, write_log
from edgekit.profiles import targets
from edgekit.report import allocation, allocation_plot
from edgekit.report.assemble import assemble
from edgekit.report.html import write_html
from edgekit.report.outcome import Artifact, Outcome
from edgekit.report.readme import bundle_readme
from edgekit.report.table import result_table

PLAN: dict[str, Any] = {
    "types": {
        "token_embd.weight": "Q5_0",
        "blk.0.ffn_down.weight": "Q8_0",
        "blk.0.attn_q.weight": "IQ4_NL",
        "blk.1.ffn_down.weight": "IQ4_NL",
        "blk.2.attn_q.weight": "IQ4_NL",
        "blk.2.ffn_down.weight": "Q8_0",
    },
    "cost": 0.01,
    "costs": {"blk.2.ffn_down.weight": 0.004, "blk.0.attn_q.weight": 0.001, "other.weight": 1.0},
    "errors": {"blk.2.ffn_down.weight": 0.021, "blk.0.attn_q.weight": 0.021, "token_embd.weight": 0.5},
}


def write(folder: Path, plan: Any) -> Path:
    (folder / "plan.json").write_text(plan if isinstance(plan, str) else json.dumps(plan))
    return folder


def files(found: dict[str, Any] | None) -> dict[str, Any]:
    """A report whose GGUF file has the types `found`."""
    whole = {**report(), "stages": []}
    whole["artifacts"][0]["quantization"] = found
    return whole


def test_a_plan_is_read_by_kind_and_layer(tmp_path: Path) -> None:
    assert allocation.read(write(tmp_path, PLAN)) == quantization()


TRIED: dict[str, Any] = {
    "calibration": "text",
    "mean_kld_nats": {"rows": 0.012, "text": 0.031},
    "tries": [
        {"calibration": "rows", "bytes": 90 << 20, "estimated_kld_nats": 0.02, "mean_kld_nats": {"rows": 0.011, "text": 0.4567}},
        {"calibration": "text", "bytes": 91 << 20, "estimated_kld_nats": None, "mean_kld_nats": {"rows": 0.012, "text": 0.031}},
    ],
}  # fmt: skip


def test_the_files_that_were_tried_are_in_the_report_and_in_the_page(tmp_path: Path) -> None:
    found = allocation.read(write(tmp_path, PLAN | TRIED))
    wanted = {"set": "text", "mean_kld_nats": TRIED["mean_kld_nats"], "tries": TRIED["tries"]}
    assert found == {**quantization(), "calibration": wanted}
    write_html(files(found), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert ">text (kept)<" in page and ">rows<" in page and "0.457" in page and ">91.0<" in page


def test_without_costs_the_worst_are_those_with_the_largest_errors(tmp_path: Path) -> None:
    found = allocation.read(write(tmp_path, PLAN | {"cost": None, "costs": {}}))
    assert found and found["estimated_kld_nats"] is None
    assert [one["name"] for one in found["worst"]] == ["token_embd", "blk.0.attn_q", "blk.2.ffn_down"]
    (line,) = allocation.short(files(found))
    assert line.endswith("; largest error: token_embd (Q5_0)")


@pytest.mark.parametrize(
    "plan",
    [
        None,
        "",
        "{",
        "[]",
        '{"types": {}}',
        PLAN | {"types": {"blk.0.attn_q.weight": "Q9_Z"}},
        PLAN | {"costs": 3},
    ],
)
def test_a_plan_that_is_missing_or_damaged_is_no_plan(tmp_path: Path, plan: Any) -> None:
    folder = tmp_path if plan is None else write(tmp_path, plan)
    assert allocation.read(folder) is None


def test_a_cost_that_is_no_number_names_no_tensor(tmp_path: Path) -> None:
    broken = {name: float("nan") for name in PLAN["types"]}
    found = allocation.read(write(tmp_path, PLAN | {"cost": float("inf"), "costs": broken}))
    assert found and found["estimated_kld_nats"] is None and found["worst"] == []
    json.dumps(found, allow_nan=False)
    assert allocation.short(files(found))[0].endswith("1 Q5_0")


def test_the_report_of_a_build_has_the_plan_of_the_last_step(tmp_path: Path) -> None:
    def stage(name: str) -> StageOutput:
        (folder := tmp_path / name).mkdir()
        write_log(folder / SAMPLES, [])
        return StageOutput(name, folder, "", {"sure": []}, 1.0, 1.0, (), False)

    made = [stage("export.gguf"), stage("quantize.gguf"), stage("export.onnx")]
    for one in made:
        (one.path / "model").write_bytes(b"1234")
    write(made[1].path, PLAN)
    outcome = Outcome(
        model="tiny", target=targets.load("cpu-int4"), parameters=8, made=[], drift={}, from_input={}, proofs=[],
        artifacts=[
            Artifact("gguf", "llama.cpp", "model.gguf", (made[0], made[1]), (made[0].path / "model", made[1].path / "model")),
            Artifact("onnx", "onnxruntime", "onnx", (made[2],), (made[2].path / "model",)),
        ],
        answers={name: stage(f"eval.{name}") for name in ("tuned", "gguf", "onnx")},
        robustness={}, golden=[], signals=[], calibrations=[stage("calibration.gguf"), stage("calibration.onnx")],
        speeds=[], facts=[],
    )  # fmt: skip
    assert [one["quantization"] for one in assemble(outcome)["artifacts"]] == [quantization(), None]


def test_the_page_has_a_picture_and_a_table_of_the_worst_tensors(tmp_path: Path) -> None:
    write_html(files(quantization()), tmp_path / "page.html")
    root = ElementTree.parse(tmp_path / "page.html").getroot()
    (picture,) = [e for e in root.iter("svg") if "Type of each tensor" in e.attrib["aria-label"]]
    label = picture.attrib["aria-label"]
    assert "IQ4_NL 4.5 bits, Q5_0 5.5 bits, Q8_0 8.5 bits" in label
    assert label.endswith("attn_q 0 IQ4_NL, 2 IQ4_NL; ffn_down 0 Q8_0, 1 IQ4_NL, 2 Q8_0; token_embd Q5_0")
    cells = {"".join(cell.itertext()): float(cell.attrib["fill-opacity"]) for cell in picture.iter("rect")}
    assert (
        cells["ffn_down of layer 1: IQ4_NL"]
        < cells["token_embd: Q5_0"]
        < cells["ffn_down of layer 2: Q8_0"]
        == 1
    )
    assert "attn_q of layer 1" not in "".join(cells)  # there is none
    (table,) = [e for e in root.iter("table") if "rounding costs most" in "".join(e.itertext())]
    rows = ["|".join("".join(cell.itertext()) for cell in row) for row in table.iter("tr")][1:]
    assert [row.strip().replace("\n", "") for row in rows] == [
        "blk.2.ffn_down|Q8_0|0.00400|2.10\N{NO-BREAK SPACE}%",
        "blk.0.attn_q|IQ4_NL|0.00100|2.10\N{NO-BREAK SPACE}%",
    ]


def test_many_layers_fit_in_the_picture() -> None:
    found = quantization() | {"layers": {"ffn_down": ["Q8_0"] * 200}}
    cells = list(ElementTree.fromstring(allocation_plot.types(found)).iter("rect"))
    ends = [float(cell.attrib["x"]) + float(cell.attrib["width"]) for cell in cells]
    assert (
        len(cells) == 200 + 1 + 3
        and max(ends) < 400
        and min(float(cell.attrib["width"]) for cell in cells) > 0
    )


def test_the_summary_and_the_readme_have_one_line() -> None:
    line = "gguf: 6 bits per weight; 3 tensors IQ4_NL, 2 Q8_0, 1 Q5_0; most costly: blk.2.ffn_down (Q8_0)"
    manifest = {
        "name": "tiny",
        "target": "cpu-int4",
        "formats": {},
        "example": {"messages": [{"role": "user", "content": ""}]},
    }
    console = Console(width=80, no_color=True, force_terminal=False)
    with console.capture() as captured:
        console.print(result_table(files(quantization())))
    said = captured.get()
    assert line in " ".join(said.split()) and max(map(len, said.splitlines())) <= 80
    assert f"Bits of each tensor:\n- {line}\n\n`report.html`" in bundle_readme(
        manifest, files(quantization())
    )


def test_a_report_without_types_says_nothing_of_them(tmp_path: Path) -> None:
    for found in ({**report(), "stages": []}, files(None)):
        write_html(found, tmp_path / "page.html")
        assert "Bits of each tensor" not in (tmp_path / "page.html").read_text()
        assert allocation.short(found) == []
