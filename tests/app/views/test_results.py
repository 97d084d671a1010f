"""What the results screen shows, without a screen: rows, gates, pictures, and reports from anywhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from results_support import abstention, calibration, failures, quantization, report, robustness, write_bundle

from edgekit.app.views import allocation, bundles, deploy, differences, launch, pictures, results
from edgekit.base.command import Outcome
from edgekit.base.errors import CorruptError
from edgekit.field.releases import lifecycle


def test_a_row_holds_the_best_thread_count_with_its_range(tmp_path: Path) -> None:
    found = results.load(write_bundle(tmp_path / "b"))
    row = found.row("gguf")
    assert row is not None and row.variant.speed["threads"] == 2
    assert results.spread(row.variant.speed["decode_tokens_per_s"]) == "90 [81..99.0]"
    assert [each.variant.name for each in found.rows] == ["base", "tuned", "gguf", "onnx"]


def test_failed_gates_stand_first_with_value_limit_stage_and_advice(tmp_path: Path) -> None:
    found = results.load(write_bundle(tmp_path / "b", passed=False))
    lines = results.detail(found, found.row("onnx"))
    kinds = [kind for kind, _ in lines]
    first = next(text for kind, text in lines if kind == "failed")
    assert first.startswith("✗ FAIL gguf.mean_kld_nats") and "0.0100, limit 0.005" in first
    assert "stage quantize.gguf" in first
    assert kinds.index("failed") < kinds.index("head")
    assert any("calibration_rows" in text for _, text in lines)
    assert "NOT PASSED: 3 of 4" in results.title(found)


def test_the_gate_word_counts_what_failed(tmp_path: Path) -> None:
    gates = [
        {"name": f"gguf.{name}", "value": 1, "limit": 0, "passed": False} for name in ("size_mib", "ttft_ms")
    ]
    found = results.load(write_bundle(tmp_path / "b", gates=gates))
    words = {row.variant.name: results.gate_word(row) for row in found.rows}
    assert words["gguf"] == "✗ FAIL 2" and words["base"] == "–"
    passed = results.load(write_bundle(tmp_path / "c")).row("gguf")
    assert passed is not None and results.gate_word(passed) == "✓ PASS"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged"),
        (b'{"schema": "edgekit.report/1", ', "damaged"),
        (b"[]", "no JSON object"),
        (b'{"schema": "other/1"}', "other/1"),
        (b"[" * 100_000, "damaged"),
        (b"\x00\xff\xfe" * 100, "damaged"),
        (b" " * (bundles.MOST_BYTES + 1), "16 MiB"),
    ],
)
def test_a_bad_report_is_told_with_its_file_and_the_next_step(
    tmp_path: Path, content: bytes, said: str
) -> None:
    bundle = write_bundle(tmp_path / "b")
    (bundle / "report.json").write_bytes(content)
    with pytest.raises(CorruptError) as caught:
        results.load(bundle)
    assert said in caught.value.message and str(bundle / "report.json") in caught.value.message
    assert caught.value.hint == f"edgekit verify {bundle}"


def test_a_report_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    (bundle / "report.json").unlink()
    with pytest.raises(CorruptError, match="cannot be read"):
        results.load(bundle)
    os.mkfifo(bundle / "report.json")
    with pytest.raises(CorruptError, match="is not a file"):
        results.load(bundle)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("any") / "b")


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({}, optional={key: JSON for key in report()}))
def test_any_value_in_any_place_is_shown_or_refused(folder: Path, values: dict[str, Any]) -> None:
    show_all(folder, {**report(), **values})


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(
        ["artifacts", "stages", "profile", "gates", "robustness", "failures", "calibration", "quantization"]
    ),
    st.data(),
)
def test_any_value_within_a_row_is_shown_or_refused(folder: Path, part: str, data: st.DataObject) -> None:
    of_gguf = {
        "robustness": {**robustness(), "abstention": abstention(1)},
        "failures": failures(),
        "calibration": calibration(),
    }
    whole = {**report(), **{key: {"gguf": one} for key, one in of_gguf.items()}}
    types = whole["artifacts"][0]["quantization"] = quantization()
    rows = [types, types["layers"], types["counts"]] if part == "quantization" else whole[part]
    row = rows["gguf"] if part in of_gguf else data.draw(st.sampled_from(rows))
    if part == "failures" and data.draw(st.booleans()):
        row = data.draw(st.sampled_from(row["classes"]))
    row[data.draw(st.sampled_from(sorted(row)))] = data.draw(JSON)
    show_all(folder, whole)


def test_a_broken_models_report_is_shown_without_its_numbers(tmp_path: Path) -> None:
    gates = [{"name": "gguf.mean_kld_nats", "value": float("nan"), "limit": 0.05, "passed": False}]
    found = results.load(write_bundle(tmp_path / "b", gates=gates))
    lines = [text for _, text in results.detail(found, found.row("gguf"))]
    assert any("FAIL gguf.mean_kld_nats" in line and ": –, limit 0.05" in line for line in lines)


def test_where_noise_hurts_a_file_is_told_in_bars_and_words(tmp_path: Path) -> None:
    found = results.load(write_bundle(tmp_path / "b", robustness={"gguf": robustness()}))
    lines = [text for _, text in results.about(found.row("gguf"))]
    assert any(line.startswith("case ") and line.endswith("50.0\N{NO-BREAK SPACE}%") for line in lines)
    (worst,) = (line for line in lines if line.startswith("Row r7 (where) is wrong in 2 of 4 variants"))
    assert "Asked “WHERE IS ADA?”, the model answers “no idea” instead of “at home”." in worst
    assert "noise" in [one.head for one in results.figures(found)]
    assert results.about(found.row("onnx")) and found.row("onnx").variant.noise is None
    without = results.load(write_bundle(tmp_path / "c"))
    assert "noise" not in [one.head for one in results.figures(without)]


def test_the_classes_in_which_a_file_fails_are_named_with_what_it_answers(tmp_path: Path) -> None:
    perfect = {"by": "label", "classes": []}
    found = results.load(write_bundle(tmp_path / "b", failures={"gguf": failures(), "onnx": perfect}))
    lines = [text.replace("\N{NO-BREAK SPACE}", " ") for _, text in results.about(found.row("gguf"))]
    at = lines.index("where it fails: right answers by label, the surest failure first")
    assert lines[at + 1 : at + 4] == [
        "where  50.0 %  2 of 4, 2 × at war instead, new",
        "when   75.0 %  3 of 4, 1 × (empty) instead",
        "new: the tuned model answers all of these rows rightly",
    ]
    assert ("head", "where it fails: no answer to a test row is wrong") in results.about(found.row("onnx"))
    assert not any("where it fails" in text for _, text in results.about(found.row("base")))


def test_many_failing_classes_are_cut_and_counted(tmp_path: Path) -> None:
    one = failures()["classes"][1]
    classes = [{**one, "label": f"label {at}"} for at in range(11)]
    found = results.load(write_bundle(tmp_path / "b", failures={"gguf": {"by": "label", "classes": classes}}))
    lines = [text for _, text in results.about(found.row("gguf"))]
    assert "and 3 more" in lines and sum(line.startswith("label ") for line in lines) == 8


@pytest.mark.parametrize("hits", [1, 0])
def test_abstentions_stand_below_the_noise(tmp_path: Path, hits: int) -> None:
    noisy = {"gguf": {**robustness(), "abstention": abstention(hits)}}
    found = results.load(write_bundle(tmp_path / "b", robustness=noisy))
    lines = [text.replace("\N{NO-BREAK SPACE}", " ") for _, text in results.about(found.row("gguf"))]
    assert f"abstains on rows in scope, with noise: {5 * hits}.0 %, {hits} of 20" in lines
    assert "abstains on rows out of scope, with noise: 75.0 %, 3 of 4" in lines
    assert "right in every variant 25.0 %, same answer in every variant 25.0 %" in lines


def test_the_confidence_of_a_file_or_why_it_has_none(tmp_path: Path) -> None:
    found = results.load(
        write_bundle(
            tmp_path / "b", calibration={"gguf": calibration(), "onnx": {"refused": "Free answers."}}
        )
    )
    lines = [text.replace("\N{NO-BREAK SPACE}", " ") for _, text in results.about(found.row("gguf"))]
    assert "calibration error: 4.4 %" in lines and "threshold of --min-confidence auto: 85.0 %" in lines
    assert "threshold of --refuse-out-of-scope (log-likelihood of each token): -0.432" in lines
    assert "rows that can be answered with at most 2.0 % errors: 87.5 %" in lines
    onnx = results.about(found.row("onnx"))
    assert ("head", "confidence: not calibrated") in onnx and ("fact", "Free answers.") in onnx


def test_a_report_of_another_shape_is_refused_with_the_place_of_its_fault(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", gates=[{"value": 1}])
    with pytest.raises(CorruptError, match=r"gates\.0\.name: Field required"):
        results.load(bundle)


def show_all(folder: Path, whole: dict[str, Any]) -> None:
    (folder / "report.json").write_text(json.dumps(whole))
    try:
        found = results.load(folder)
    except CorruptError as error:
        assert "is not a report that can be shown" in error.message
        return
    lines = [results.title(found), json.dumps(results.table(found), allow_nan=False)]
    for row in found.rows:
        lines += [text for _, text in results.detail(found, row)]
        lines += [one.words(one.of(row.variant)) for one in results.FIGURES]
    lines += [text for _, text in pictures.size_lines(found, 60)]
    lines += [text for _, text in pictures.waterfall_lines(found, 60)]
    lines += [text for line in allocation.lines(found, 60) for text, _ in line]
    assert not [line for line in lines if "\x1b" in line]


def test_texts_cannot_drive_the_terminal(tmp_path: Path) -> None:
    found = results.load(write_bundle(tmp_path / "b", target="\x1b[2Jgone\x07\nline"))
    assert "\x1b" not in found.sentence and "\x07" not in found.sentence and "\n" not in found.sentence


def test_a_manifest_that_disagrees_is_told_and_not_promoted(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "verdict": "fail"}))
    found = results.load(bundle)
    assert not found.passed and "one of them was changed" in found.notes[0]
    assert "cannot be promoted" in deploy.refusal(found)
    assert bundles.bundles_in(tmp_path)[0].verdict == "?"


def test_a_damaged_manifest_is_told_and_not_promoted(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    (bundle / "manifest.json").write_text("{")
    found = results.load(bundle)
    assert not found.passed and "manifest.json is damaged" in found.notes[0]
    assert "cannot be promoted" in deploy.refusal(found)


def test_bundles_are_listed_newest_first_and_damaged_ones_are_told(tmp_path: Path) -> None:
    write_bundle(tmp_path / "old", when=1_000)
    write_bundle(tmp_path / "new", passed=False, when=2_000)
    (write_bundle(tmp_path / "bad", when=500) / "manifest.json").write_text("{")
    os.utime(tmp_path / "bad" / "manifest.json", (500, 500))
    (tmp_path / "else").mkdir()
    (tmp_path / ".new.partial").mkdir()
    found = bundles.bundles_in(tmp_path)
    assert [(each.name, each.verdict) for each in found] == [("new", "fail"), ("old", "pass"), ("bad", "?")]
    assert "manifest.json is damaged" in found[2].fault
    assert bundles.newest(tmp_path) == tmp_path / "new"
    assert bundles.bundles_in(tmp_path / "nowhere") == [] and bundles.newest(tmp_path / "nowhere") is None


def test_size_and_drift_are_shares_of_the_budget_and_a_beaten_file_is_told(tmp_path: Path) -> None:
    def lines(**changes: Any) -> list[str]:
        found = results.load(write_bundle(tmp_path / f"b{changes}", **changes))
        return [text for _, text in pictures.size_lines(found, 48)]

    said = lines()
    assert said[1] == "● gguf" and said[4].startswith("x onnx  another file is smaller and closer")
    assert said[2] == "  ████████░░░░░░░░░░░░ 100 MiB, limit 240" and said[3].endswith(
        " 0.0100 nats, limit 0.0500"
    )
    assert lines(budget={"size_mib": 90.0})[2] == "  ████████████████████ 100 MiB, limit 90 ✗"
    assert lines(budget={})[5] == "  ████████████████████ 200 MiB, limit none"


def test_a_file_whose_drift_was_not_measured_is_named(tmp_path: Path) -> None:
    found = results.load(write_bundle(tmp_path / "b", stages=[]))
    said = [text for _, text in pictures.size_lines(found, 60)]
    assert said[1:] == ["? gguf: not measured", "? onnx: not measured"]


def test_the_waterfall_blames_stages_over_the_budget_but_not_the_base(tmp_path: Path) -> None:
    found = results.load(write_bundle(tmp_path / "b", passed=False))
    said = pictures.waterfall_lines(found, 60)
    assert [text.split()[1] for kind, text in said[:-2] if kind == "failed"] == [
        "quantize.gguf",
        "export.onnx",
    ]
    for width in (36, 76):
        lines = [text for _, text in pictures.waterfall_lines(found, width)]
        assert any("[0.0090" in line or "[0.00900" in line for line in lines)  # the interval, as text
        assert any("from its input 2 [" in line for line in lines)
        assert any("█" in line for line in lines)
        assert max(len(line) for line in lines[1:-2]) <= width


def test_differences_tell_better_from_worse_by_what_the_figure_means(tmp_path: Path) -> None:
    found = results.load(write_bundle(tmp_path / "b"))
    first, second = found.row("gguf"), found.row("onnx")
    assert first is not None and second is not None
    change = {each.name: each.change for each in differences.differences(first, second)}
    assert change["size, MiB"] == "+100 (+100%) worse"
    assert change["decode, tokens/s"] == "-30 (-33%) worse"
    assert change["right answers"].endswith("points better")
    assert change["gates"] == "same"


def test_two_bundles_beside_each_other_name_what_one_alone_has(tmp_path: Path) -> None:
    first = results.load(write_bundle(tmp_path / "a"))
    second = results.load(write_bundle(tmp_path / "b", passed=False, artifacts=report()["artifacts"][:1]))
    tables = dict(differences.between(first, second))
    assert [each.change for each in tables["bundle"]] == ["differs"]
    assert list(tables) == ["bundle", "base", "tuned", "gguf", "onnx"]
    assert next(each for each in tables["gguf"] if each.name == "gates").second == "FAIL mean_kld_nats"


def test_a_failed_bundle_is_refused_by_the_names_of_its_gates(tmp_path: Path) -> None:
    assert "gguf.mean_kld_nats" in deploy.refusal(results.load(write_bundle(tmp_path / "bad", passed=False)))
    assert deploy.refusal(results.load(write_bundle(tmp_path / "good"))) == ""
    assert deploy.refusal(None)


def test_the_commands_are_those_of_the_shell(tmp_path: Path) -> None:
    assert deploy.import_command(Path("b c"), Path("s")).text == "edgekit releases import 'b c' --state s"
    promote = deploy.promote_command("abc", "it's better", "", Path("s"))
    rows = deploy.promote_command("abc", "w", "~/rows.jsonl", Path("s"))
    assert rows.arguments[5:7] == ("--data", os.path.expanduser("~/rows.jsonl"))
    assert promote.text == """edgekit releases promote abc --why 'it'"'"'s better' --state s --yes"""
    assert deploy.serve_command(Path("s"), 9000).text == "edgekit serve --state s --port 9000"


@pytest.mark.parametrize(
    ("typed", "port"),
    [("", 8080), (" 9000 ", 9000), ("0", None), ("65536", None), ("-1", None), ("x", None), ("²", None), ("9" * 99, None)],
)  # fmt: skip
def test_a_port_is_a_port(typed: str, port: int | None) -> None:
    assert deploy.port_of(typed) == port


def test_only_the_refusal_for_too_few_answers_offers_a_promotion_without_proof() -> None:
    compared: Any = SimpleNamespace(n=3, rows_needed=200, detail="0 lost")
    refusal = lifecycle._unproven("abc", "def", compared)  # as `edgekit releases promote` tells it
    command = deploy.promote_command("abc", "w", "", Path("s"))
    without = deploy.unproven(command, Outcome(command, 3, None, refusal.message, refusal.hint))
    assert without is not None and without.arguments == (*command.arguments, "--unproven")
    assert deploy.unproven(without, Outcome(without, 3, None, refusal.message, refusal.hint)) is None
    assert deploy.unproven(command, Outcome(command, 3, None, "It answers worse.", "See the flips.")) is None


def test_a_promotion_is_told_with_the_comparison() -> None:
    document = {"name": "abc", "place": "pending", "tries": 3, "comparison": {"detail": "0 lost and 2 won"}}
    assert "0 lost and 2 won" in deploy.promoted_words(document)
    assert "rejected after 3 failed starts" in deploy.promoted_words(document)
    assert "no version before" in deploy.promoted_words({**document, "comparison": None})
    assert deploy.promoted_words({"name": "abc", "place": "current"}) == "abc is in use already."
    assert deploy.promoted_words(None)


def test_a_server_that_runs_is_waited_for_as_long_as_somebody_does(tmp_path: Path) -> None:
    looks = iter([False, False, True])
    assert launch.outcome_of(os.getpid(), tmp_path / "serve.log", gone=lambda: next(looks)) == ""


def test_a_server_that_ended_is_told_by_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    log.write_bytes(b"x" * 10_000_000 + b"\nedgekit: There is no release in use.\n  \x1b[31mimport one\n")
    words = launch.outcome_of(2**22 + 1, log)  # no such process
    assert "There is no release in use." in words and "\x1b" not in words
