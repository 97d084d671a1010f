"""The page, the README and the terminal table, from one made-up report that looks like a real one."""

from __future__ import annotations

import ast
import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from results_support import calibration, robustness
from rich.console import Console

from edgekit.report import plots, summary
from edgekit.report.html import changed_answers, write_html
from edgekit.report.readme import bundle_readme
from edgekit.report.table import result_table

HOSTILE = "<script>alert('x')</script><img src=\"https://example.org/x.png\" onerror=alert(1)>"


def measured(median: float, low: float, high: float) -> dict[str, Any]:
    return {"median": median, "min": low, "max": high, "n": 7}


def drift(mean: float, p99: float, top1: float) -> dict[str, Any]:
    found = {"mean_kld_nats": mean, "p99_kld_nats": p99, "top1_agreement": top1, "n_tokens": 6144}
    return {**found, "mean_kld_95": [0.9 * mean, 1.1 * mean]}


def gate(
    name: str, value: float, limit: float, passed: bool = True, detail: str = "", stage: str = ""
) -> dict[str, Any]:
    return {"name": name, "value": value, "limit": limit, "passed": passed, "detail": detail, "stage": stage}


def profile(
    artifact: str, runtime: str, threads: int, ttft: float, prefill: float, decode: float, rss: float
) -> dict[str, Any]:
    return {
        "artifact": artifact,
        "runtime": runtime,
        "threads": threads,
        "ttft_ms": measured(ttft, ttft * 0.97, ttft * 1.08),
        "prefill_tokens_per_s": measured(prefill, prefill * 0.93, prefill * 1.02),
        "decode_tokens_per_s": measured(decode, decode * 0.95, decode * 1.01),
        "peak_rss_mib": rss,
        "joules_per_token": None,
    }


def stage(name: str, seconds: float, rss: float, d: Any = None, cached: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "seconds": seconds,
        "peak_rss_mib": rss,
        "cached": cached,
        "drift": d,
        "drift_from_input": d,
    }


REPORT: dict[str, Any] = {
    "schema": "edgekit.report/1",
    "model": "smollm2-135m",
    "target": "cpu-int4",
    "verdict": "pass",
    "budget": {"size_mib": 120.0, "mean_kld_nats": 0.05, "top1_agreement": 0.95},
    "artifacts": [
        {
            "path": "model.gguf",
            "format": "gguf",
            "bytes": 105_454_368,
            "sha256": "5f" * 32,
            "bits_per_weight": 6.272,
        },
        {
            "path": "onnx",
            "format": "onnx",
            "bytes": 116_881_211,
            "sha256": "a3" * 32,
            "bits_per_weight": 6.951,
        },
    ],
    "stages": [
        stage("model", 9.1, 1610.2, drift(1.873, 9.42, 0.614)),
        stage("tune", 466.3, 1904.5, cached=True),
        stage("merge", 6.2, 1711.9, drift(0.0, 0.0, 1.0)),
        stage("export.gguf", 14.4, 958.0, drift(3.1e-6, 2.2e-5, 0.9998)),
        stage("quantize.gguf", 8.9, 431.7, drift(0.0214, 0.288, 0.9731)),
        stage("export.onnx", 31.0, 2174.3, drift(0.0382, 0.402, 0.9604)),
        stage("verify.gguf", 21.3, 702.1),
        stage("eval.gguf", 24.9, 389.0),
    ],
    "evaluation": {
        "base": {"accuracy": 0.0, "n": 150},
        "tuned": {"accuracy": 0.9667, "n": 150},
        "gguf": {"accuracy": 0.96, "n": 150},
        "onnx": {"accuracy": 0.9533, "n": 150},
    },
    "profile": [
        profile("model.gguf", "llama.cpp", 1, 402, 318, 71.2, 214.5),
        profile("model.gguf", "llama.cpp", 2, 213.4, 600, 127.8, 216.1),
        profile("onnx", "onnxruntime", 1, 760, 168, 48.3, 402.8),
        profile("onnx", "onnxruntime", 2, 391.7, 327, 84.4, 407.3),
    ],
    "gates": [
        gate("source.tokenizer_identity", 1.0, 1.0, detail="412 texts", stage="model"),
        gate("source.mean_kld_nats", 0.0004, 0.01, detail="256 tokens", stage="model"),
        gate(
            "merge.mean_kld_nats",
            2.1e-8,
            1e-5,
            detail="largest logit difference 3.1e-05 on 1,024 tokens",
            stage="merge",
        ),
        *(
            gate(f"{name}.{check}", value, limit, stage=f"export.{name}")
            for name, values in {
                "gguf": (1.0, 1.0, 100.569, 216.1, 0.0214, 0.288, 0.9731, 0.67),
                "onnx": (1.0, 1.0, 111.466, 407.3, 0.0382, 0.402, 0.9604, 1.33),
            }.items()
            for (check, limit), value in zip(
                [
                    ("tokenizer_identity", 1.0),
                    ("template_identity", 1.0),
                    ("size_mib", 120.0),
                    ("peak_rss_mib", 600.0),
                    ("mean_kld_nats", 0.05),
                    ("p99_kld_nats", 1.0),
                    ("top1_agreement", 0.95),
                    ("accuracy_drop_points", 2.0),
                ],
                values,
                strict=True,
            )
        ),
    ],
    "tuning": {
        "loss": [
            [5 * i, 2.9 * 0.965**i + 0.08 + 0.05 * ((7 * i) % 5 - 2) / 2 * 0.97**i] for i in range(1, 61)
        ],
        "validation_loss": [[50 * i, 1.7 * 0.52**i + 0.11] for i in range(1, 7)],
    },
    "reliability": {
        "bins": [
            {"confidence": 0.31, "accuracy": 0.20, "n": 5},
            {"confidence": 0.55, "accuracy": 0.50, "n": 8},
            {"confidence": 0.74, "accuracy": 0.71, "n": 17},
            {"confidence": 0.96, "accuracy": 0.99, "n": 120},
            {"confidence": 0.05, "accuracy": 0.0, "n": 0},
        ]
    },
    "machine": {
        "processor": "Intel Xeon Platinum 8481C",
        "cores": 2,
        "memory_mib": 24032,
        "system": "Linux 6.1 x86_64",
        "versions": {"llama-cpp-python": "0.3.36", "onnxruntime-genai": "0.18.0"},
    },
}
MINIMAL: dict[str, Any] = {
    "schema": "edgekit.report/1",
    "target": "cpu-int4",
    "verdict": "pass",
    "artifacts": [
        {"path": "model.gguf", "format": "gguf", "bytes": 1 << 20, "sha256": "0" * 64, "bits_per_weight": 4.5}
    ],
    "stages": [{"name": "tune", "seconds": 0.0, "peak_rss_mib": 0.0, "cached": False, "drift": None}],
    "evaluation": {"base": {}, "tuned": {}, "gguf": {}},
    "profile": [],
    "gates": [],
}
MANIFEST: dict[str, Any] = {
    "schema": "edgekit.bundle/1",
    "name": "smollm2-135m",
    "target": "cpu-int4",
    "verdict": "pass",
    "formats": {
        "gguf": {"path": "model.gguf", "runtime": "llama.cpp"},
        "onnx": {"path": "onnx", "runtime": "onnxruntime"},
    },
    "max_tokens": 48,
    "example": {
        "messages": [
            {"role": "system", "content": "Answer with one JSON object."},
            {"role": "user", "content": 'it\'s pump 3 again,\nclose job "4512" | thanks ```'},
        ],
        "answer": '{"intent": "close_job", "job": "4512"}',
    },
}


def failing() -> dict[str, Any]:
    report = copy.deepcopy(REPORT)
    report["verdict"] = "fail"
    for failed in report["gates"]:
        if failed["name"] == "onnx.mean_kld_nats":
            failed |= {
                "value": 0.0814,
                "passed": False,
                "stage": "export.onnx",
                "detail": "worst after 'job' in row 17",
            }
        if failed["name"] == "gguf.tokenizer_identity":
            failed |= {"value": 0.9976, "passed": False, "detail": "first difference: 'naïve\\u200b'"}
    return report


def write_samples(folder: Path, changed: int = 3) -> Path:
    folder.mkdir()
    for name in ("base", "tuned", "gguf", "onnx"):
        rows = []
        for i in range(40):
            expected = f'{{"intent": "close_job", "job": "{4500 + i}"}}'
            answer = expected
            if name == "gguf" and i < changed:
                answer = expected.replace("45", "54")
            if name == "gguf" and i == 7:
                answer = HOSTILE
            if name == "tuned" and i == 9:
                answer = expected.replace("close", "open")
            rows.append(
                {"id": f"t{i}", "label": "close_job", "prompt": f"close job {4500 + i}, thanks", "expected": expected,
                 "answer": answer, "correct": answer == expected}
            )  # fmt: skip
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    return folder


def page(tmp_path: Path, report: dict[str, Any], samples: Path | None = None) -> str:
    write_html(report, tmp_path / "report.html", samples)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def tree(tmp_path: Path, report: dict[str, Any], samples: Path | None = None) -> ElementTree.Element:
    """The page parsed as XML, which it is well-formed enough to be."""
    return ElementTree.fromstring(page(tmp_path, report, samples))


def words(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).replace("\N{NO-BREAK SPACE}", " ").split())


def terminal(report: dict[str, Any], next_step: str = "") -> str:
    console = Console(width=80, no_color=True, force_terminal=False)
    with console.capture() as captured:
        console.print(result_table(report, next_step))
    return captured.get().replace("\N{NO-BREAK SPACE}", " ")


# The page


def test_page_stands_alone(tmp_path: Path) -> None:
    root = tree(tmp_path, failing(), write_samples(tmp_path / "samples"))
    assert not {e.tag for e in root.iter()} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "image",
        "use",
        "form",
        "a",
    }
    names = {name for e in root.iter() for name in e.attrib}
    assert not {n for n in names if n in ("src", "href", "srcset") or n.startswith("on")}
    assert "url(" not in "".join(e.text or "" for e in root.iter("style"))


def test_page_escapes_hostile_text_everywhere(tmp_path: Path) -> None:
    report = failing()
    report["model"] = report["target"] = HOSTILE
    report["artifacts"][0]["path"] = report["profile"][0]["artifact"] = report["profile"][1]["artifact"] = (
        HOSTILE
    )
    report["stages"][2]["name"] = HOSTILE
    report["machine"] = {HOSTILE: [HOSTILE]}
    report["evaluation"][HOSTILE] = {"accuracy": 0.5, "n": 2}
    for broken in report["gates"]:
        broken |= {"name": HOSTILE, "detail": HOSTILE, "stage": HOSTILE}
    text = page(tmp_path, report, write_samples(tmp_path / "samples"))
    assert "<script" not in text and "<img" not in text
    assert words(ElementTree.fromstring(text)).count("alert('x')") > 40


@given(
    before=st.text(st.characters(categories=("L", "N", "P", "S"))), after=st.text("<>&\"'ab{}", min_size=1)
)
def test_changed_answers_are_shown_whole(
    tmp_path_factory: pytest.TempPathFactory, before: str, after: str
) -> None:
    folder = tmp_path_factory.mktemp("samples")
    for name, answer in (("tuned", before), ("gguf", after)):
        row = {"id": 1, "prompt": "", "expected": "", "answer": answer, "correct": False}
        (folder / f"{name}.jsonl").write_text(json.dumps(row), encoding="utf-8")
    shown = [
        "".join(p.itertext())
        for p in tree(folder, MINIMAL, folder).iter("p")
        if p.get("class") == "said code"
    ]
    assert shown == ([before, after] if before != after else [])


def test_page_says_every_figure(tmp_path: Path) -> None:
    text = words(tree(tmp_path, REPORT, write_samples(tmp_path / "samples")))
    for figure in [
        "✓ Passed",
        "96.7 %",
        "95.3 %",
        "100.6 MiB",
        "6.27",
        "105,454,368",
        "5f" * 32,
        "0.0382",
        "2.1e-8",
        "97.3 %",
    ]:
        assert figure in text
    for figure in [
        "207 to 230",
        "121 to 129",
        "407",
        "tune (cached)",
        "466",
        "1,904",
        "1e-5",
        "llama.cpp",
        "24032",
    ]:
        assert figure in text
    assert "5 answers differ: 4 became wrong, 1 became right" in text


def test_noise_and_phrasings_are_a_picture_a_table_and_sentences(tmp_path: Path) -> None:
    found = {"tuned": robustness(0.75), "gguf": robustness(0.5)}
    write_html({**REPORT, "robustness": found}, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "gguf: 91.7\xa0% right on 24 rows, 62.5\xa0% with noise; weakest: case 50.0\xa0%." in page
    assert "case: tuned 75.0\xa0%, gguf 50.0\xa0%" in page  # of the picture
    assert "Row r7 (where) is wrong in 2 of 4 variants: case, tagged." in page
    assert "upper case" in page and "right in every variant" in page
    assert "- gguf: 91.7\xa0% right on 24 rows" in bundle_readme(MANIFEST, {**REPORT, "robustness": found})
    assert "With noise" not in bundle_readme(MANIFEST, REPORT)
    told = terminal({**REPORT, "robustness": found})
    assert "weakest: case 50.0 %" in told and max(map(len, told.splitlines())) <= 80
    assert "phrasings" not in terminal(REPORT)


def failing_class(label: str, right: int, n: int, **more: Any) -> dict[str, Any]:
    found = {
        "label": label,
        "n": n,
        "wrong": n - right,
        "accuracy": right / n,
        "wilson_95": [0.1, right / n + 0.1],
    }
    return {**found, "instead": {"answer": "close_job", "n": n - right}, **more}


def test_classes_that_fail_are_a_table_and_one_line_for_each_model(tmp_path: Path) -> None:
    """The eight surest failures of any model; a class that only a file fails is marked."""
    tuned = [failing_class(f"label {n}", n, 20) for n in range(1, 10)]
    file = [failing_class(HOSTILE, 3, 4, new=True), failing_class("label 9", 0, 20, new=False)]
    found = {"tuned": {"by": "label", "classes": tuned}, "gguf": {"by": "label", "classes": file}}
    root = tree(tmp_path, {**REPORT, "failures": found})
    (table,) = [e for e in root.iter("table") if "the surest failure first" in words(e)]
    rows = [words(row) for row in table.iter("tr")][1:]
    assert len(rows) == 8 and rows[0].startswith(
        "label 9 45.0 %9 of 20, 10.0 % to 55.0 %11 × close_job0.0 %0 of 20"
    )
    assert rows[1].startswith("label 1 5.0 %") and rows[1].endswith("all right")
    assert "new 75.0 %" not in words(table)  # the ninth and tenth classes are left out
    fewer = {"tuned": {"by": "label", "classes": tuned[:1]}, "gguf": {"by": "label", "classes": file[:1]}}
    text = page(tmp_path, {**REPORT, "failures": fewer})
    assert "<script" not in text and text.count('<span class="bad">new</span> 75.0') == 1
    told = terminal({**REPORT, "failures": found})
    assert "tuned: label 1 1 of 20 (close_job instead)" in told and "and 7 more" in told
    assert "gguf: <script>" in told and "(new, close_job instead)" in " ".join(told.split())
    assert max(map(len, told.splitlines())) <= 80
    assert "- tuned: label 1 1 of 20" in bundle_readme(MANIFEST, {**REPORT, "failures": found})


def test_a_report_without_failures_has_no_table_of_them(tmp_path: Path) -> None:
    none = {"tuned": {"by": "label", "classes": []}}
    for report in (REPORT, {**REPORT, "failures": none}):
        assert "Where it fails" not in page(tmp_path, report) and "Where it fails" not in terminal(report)
        assert "Where it fails" not in bundle_readme(MANIFEST, report)
    lengths = {"by": "words", "classes": [failing_class("5 to 9", 1, 4, instead=None)]}
    told = page(tmp_path, {**REPORT, "failures": {"tuned": lengths}})
    assert "by words of the expected answer" in told and "5 to 9" in told
    assert "answers of 5 to 9 words 1 of 4" in terminal({**REPORT, "failures": {"tuned": lengths}})


def test_abstentions_are_rows_of_the_table_of_noise(tmp_path: Path) -> None:
    def of(hits: int, n: int) -> dict[str, Any]:
        return {"hits": hits, "n": n, "share": hits / n if n else None, "wilson_95": [0.1, 0.4]}

    def abstaining(hits: int) -> dict[str, Any]:
        each = {"false_abstentions": of(hits, 22), "recall": of(0, 0), "precision": of(0, hits)}
        return {"answer": "out_of_scope", "clean": each, "noise": each, "phrasings": each, "by_variant": {}}

    found = {
        name: robustness() | {"abstention": abstaining(hits)} for name, hits in (("tuned", 0), ("gguf", 5))
    }
    text = words(tree(tmp_path, {**REPORT, "robustness": found}))
    assert "abstains on rows in scope, with noise" in text and "22.7 %5 of 22, 10.0 % to 40.0 %" in text
    assert "abstains on rows out of scope" not in text  # no such row was asked
    told = " ".join(terminal({**REPORT, "robustness": found}).split())
    assert (
        told.count("abstains on") == 1
        and "weakest: case 50.0 %; abstains on 22.7 % in scope with noise" in told
    )
    none = {"tuned": found["tuned"]}
    assert "abstains" not in page(tmp_path, {**REPORT, "robustness": none})


def test_the_confidence_of_each_file_is_a_table_and_one_line(tmp_path: Path) -> None:
    older = {key: value for key, value in calibration().items() if "threshold" not in key}
    found = {**REPORT, "calibration": {"gguf": calibration(), "onnx": older}}
    text = words(tree(tmp_path, found))
    assert "Confidence of each file in its answers, on the 48 validation rows" in text
    assert "calibration error4.4 %4.4 %" in text and "threshold of --min-confidence auto85.0 %–" in text
    assert "threshold of --refuse-out-of-scope (log-likelihood of each token)-0.432–" in text
    told = " ".join(terminal(found).split())
    assert (
        "gguf: calibration error 4.4 % on 48 validation rows; --min-confidence auto refuses below 85.0 %; "
        "--refuse-out-of-scope refuses below a score of -0.432" in told
    )
    assert told.count("--min-confidence auto") == told.count("--refuse-out-of-scope") == 1


def test_a_report_says_once_why_no_file_is_calibrated(tmp_path: Path) -> None:
    found = {**REPORT, "calibration": {name: {"refused": "Free answers."} for name in ("gguf", "onnx")}}
    assert page(tmp_path, found).count("Not calibrated. Free answers.") == 1
    assert "Confidence" not in terminal(found) and "Not calibrated" not in page(tmp_path, REPORT)


def test_a_part_that_helps_is_a_full_dot_and_one_that_may_not_is_hollow() -> None:
    parts = {
        "noise": [("clean", -0.4, (-2.0, 1.2)), ("noise", 12.8, (2.9, 22.7))],
        "bits": [("clean", -3.0, (-5, -1))],
    }
    drawn = plots.standalone(plots.effects(parts))
    ElementTree.fromstring(drawn)
    assert drawn.count('class="hollow"') == 1 and drawn.count('class="mark"') == 2
    assert "noise, noise +12.8 points, 95 % interval +2.9 to +22.7" in drawn


def test_pictures_say_their_figures_to_screen_readers(tmp_path: Path) -> None:
    labels = [e.get("aria-label") or "" for e in tree(tmp_path, REPORT).iter("svg")]
    assert len(labels) == 5
    assert "gguf 96.0 %, 95 % interval 91.5 % to 98.2 %" in labels[0].replace("\N{NO-BREAK SPACE}", " ")
    assert "onnx 111.5 MiB at 0.0382 nats, beaten by another file" in labels[1]
    assert "quantize.gguf 0.0214" in labels[2]
    assert "validation from 0.994 to 0.144" in labels[3]
    assert "accuracy 99.0 %" in labels[4].replace("\N{NO-BREAK SPACE}", " ")


def test_failed_gates_come_first_with_stage_and_advice(tmp_path: Path) -> None:
    text = words(tree(tmp_path, failing()))
    first = text.index("onnx.mean_kld_nats: 0.0814, limit 0.05, caused by the stage export.onnx")
    assert first < text.index(summary.ADVICE["mean_kld_nats"]) < text.index("Right answers")
    assert text.index("2 of 19 gates failed") < first and text.count("✗ failed") == 2
    assert "answer like the tuned model" not in text


def test_missing_parts_leave_their_sections_out(tmp_path: Path) -> None:
    for missing in [*REPORT, None]:
        report = {
            key: value
            for key, value in REPORT.items()
            if key != missing or key in ("schema", "target", "verdict")
        }
        assert "✓ Passed" in words(tree(tmp_path, report))
    smallest = words(tree(tmp_path, MINIMAL))
    assert (
        "1.0 MiB" in smallest
        and "Loss" not in smallest
        and "Machine" not in smallest
        and "Speed" not in smallest
    )


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples")
    assert page(tmp_path, REPORT, samples) == page(tmp_path, copy.deepcopy(REPORT), samples)


def test_at_most_twenty_changed_answers_lost_ones_first(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples", changed=30)
    rows = changed_answers(samples)["gguf"]
    assert [row["before"]["correct"] for row in rows] == [True] * 29 + [False]
    root = tree(tmp_path, REPORT, samples)
    assert len(list(root.iter("article"))) == 20 + 1
    assert "The first 20:" in words(root)


# The pictures


@given(st.lists(st.floats(0, 1e9), min_size=1))
def test_axes_hold_their_values_in_order(values: list[float]) -> None:
    for axis in (plots.linear(values, 10, 300), plots.logarithmic(values, 10, 300)):
        places = [axis.at(value) for value in sorted(values)]
        assert places == sorted(places)
        assert all(10 - 1e-6 <= place <= 300 + 1e-6 for place in places)
        assert 2 <= len(axis.ticks) <= 7 and axis.low <= max(axis.ticks) <= axis.high * (1 + 1e-9)
        assert axis.high >= max(values) * (1 - 1e-9)


def test_a_file_both_smaller_and_closer_makes_the_other_hollow() -> None:
    def hollow(report: dict[str, Any]) -> int:
        return str(plots.pareto(summary.exported(report))).count('class="hollow"')

    assert hollow(REPORT) == 1
    traded = copy.deepcopy(REPORT)
    traded["artifacts"][1]["bytes"] = 90_000_000  # smaller but further: both are on the front
    assert hollow(traded) == 0


# The terminal


def test_table_fits_80_columns_and_needs_no_colour() -> None:
    for report in (REPORT, failing(), MINIMAL):
        text = terminal(report, "edgekit run bundles/x 'close job 4512'")
        assert max(map(len, text.splitlines())) <= 80
        assert "\x1b" not in text and "Next: edgekit run bundles/x 'close job 4512'" in text
    assert "…" not in terminal(REPORT)


def test_table_says_the_key_figures() -> None:
    rows = {line.split()[0]: line.split()[1:] for line in terminal(REPORT).splitlines() if line.strip()}
    assert rows["gguf"] == ["96.0", "%", "100.6", "6.27", "0.0214", "97.3", "%", "213", "128", "216"]
    assert rows["tuned"][:2] == ["96.7", "%"] and set(rows["tuned"][2:]) == {summary.NONE}
    assert "✓ Passed: 19 of 19 gates passed" in terminal(REPORT)


def test_table_names_failed_gates() -> None:
    text = terminal(failing())
    assert "✗ onnx.mean_kld_nats  0.0814, limit 0.05, stage export.onnx" in text
    assert "worst after 'job' in row 17" in text and "calibration_rows" in text
    assert "✗ Not passed: 17 of 19 gates passed" in text


# The README


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_readme_has_an_example_for_each_format() -> None:
    text = bundle_readme(MANIFEST, REPORT)
    blocks = python_blocks(text)
    assert len(blocks) == 3 and all(compile(block, "README.md", "exec") for block in blocks)
    assert "edgekit.load" in blocks[0] and "Llama(" in blocks[1] and "og.Model" in blocks[2]
    assert "llama-cli -m model.gguf" in text
    only_onnx = bundle_readme({**MANIFEST, "formats": {"onnx": MANIFEST["formats"]["onnx"]}}, REPORT)
    assert len(python_blocks(only_onnx)) == 2 and "llama" not in "".join(python_blocks(only_onnx)).lower()
    assert "llama-cli" not in only_onnx


@given(text=st.text(min_size=1), answer=st.text())
def test_readme_examples_ask_exactly_the_example(text: str, answer: str) -> None:
    example = {"messages": [{"role": "user", "content": text}], "answer": answer}
    readme = bundle_readme({**MANIFEST, "example": example}, REPORT)
    for block in python_blocks(readme):
        assigned = next(node for node in ast.parse(block).body if isinstance(node, ast.Assign))
        assert ast.literal_eval(assigned.value) == example["messages"]


def test_readme_of_a_failed_bundle_says_so_and_still_loads() -> None:
    text = bundle_readme({**MANIFEST, "verdict": "fail"}, failing())
    assert "**✗ Not passed.**" in text and "`onnx.mean_kld_nats` is 0.0814, limit 0.05" in text
    assert 'edgekit.load(".", allow_failed=True)' in python_blocks(text)[0]


def test_readme_says_which_texts_a_bare_runtime_reads_differently() -> None:
    entry = {"texts": 2400, "conversations": 150, "examples": [], "advice": ""}
    bare = {
        "gguf": {**entry, "differ": 0, "causes": {}},
        "onnx": {**entry, "differ": 4, "causes": {"not_nfc": 3, "nul": 1}},
    }
    text = bundle_readme({**MANIFEST, "bare_runtime": bare}, REPORT)
    assert "| `model.gguf` | llama-cpp-python | 2400 | 150 | 0 |" in text
    assert "| `onnx` | onnxruntime-genai | 2400 | 150 | 4 |" in text
    assert "With onnxruntime-genai alone" in text and "With llama-cpp-python alone these" not in text
    assert "- 3 texts that are not in the Unicode form NFC. Normalise every text first" in text
    assert "without edgekit" not in bundle_readme(MANIFEST, REPORT)  # a bundle of an earlier version


def test_readme_example_for_llama_cpp_runs(tmp_path: Path) -> None:
    import tiny

    (tmp_path / "model.gguf").symlink_to(tiny.sample_gguf())
    example = {"messages": [{"role": "user", "content": "What is 2 + 2?"}]}
    block = python_blocks(bundle_readme({**MANIFEST, "max_tokens": 12, "example": example}, REPORT))[1]
    done = subprocess.run(
        [sys.executable, "-c", block], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "4" in done.stdout, done.stderr


# Simulated profiles


def limited(simulated: bool) -> dict[str, Any]:
    """The report of a profile under limits, on the device or on another machine."""
    report = copy.deepcopy(REPORT)
    applied = {"cores": 2, "memory_mib": 1024, "how": "CPU affinity, RLIMIT_DATA, peak resident memory"}
    for row in report["profile"]:
        row |= {"simulated": simulated, "differs": "needs aarch64" if simulated else ""}
        row["limits"] = {"threads": row["threads"], **applied}
    return report


def outputs(tmp_path: Path, report: dict[str, Any]) -> dict[str, str]:
    return {
        "page": words(tree(tmp_path, report)),
        "readme": bundle_readme(MANIFEST, report),
        "table": " ".join(terminal(report).split()),
    }


@pytest.mark.parametrize("output", ["page", "readme", "table"])
def test_a_simulated_profile_is_called_so_everywhere(tmp_path: Path, output: str) -> None:
    said = "simulated: not measured on the device, which needs aarch64"
    assert said in outputs(tmp_path, limited(simulated=True))[output]
    assert "limited to 2 cores and 1,024 MiB of memory" in outputs(tmp_path, limited(simulated=True))[output]
    assert "simulated" not in outputs(tmp_path, limited(simulated=False))[output]


def test_no_limit_is_claimed_that_was_not_applied(tmp_path: Path) -> None:
    report = limited(simulated=True)
    for row in report["profile"]:
        row["limits"] = {"threads": row["threads"], "cores": None, "memory_mib": None, "how": "no limits"}
    for text in outputs(tmp_path, report).values():
        assert "simulated" in text and "limited to" not in text and "limits" not in text
    for row in report["profile"]:
        del row["limits"], row["differs"]  # a report of an earlier version
    for text in outputs(tmp_path, report).values():
        assert "simulated" in text and "limited to" not in text


def test_the_bounds_of_a_gate_and_its_sample_are_told_where_it_has_them() -> None:
    assert summary.bounds({"low": 0.9239, "high": 1.0, "n": 64}) == "0.924 to 1, n = 64"
    assert summary.bounds({"low": None, "high": None, "n": 1200}) == "n = 1,200"
    assert summary.bounds({"name": "an older report has none"}) == ""
