"""`report.html`: one file that needs no network and no scripts; every value in it is escaped."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from edgekit.evaluation.samples import read_samples
from edgekit.proof.calibration import Bin, calibration_error
from edgekit.report import allocation, allocation_plot, confidence, failures, plots, robustness, summary

MOST_CHANGED = 20
_environment = Environment(
    loader=PackageLoader("edgekit.report", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_environment.filters.update(
    exact=summary.exact,
    figure=summary.figure,
    percent=summary.percent,
    mib=summary.mib,
    median=summary.median,
    gate_words=summary.gate_words,
    bounds=summary.bounds,
    conditions=summary.conditions,
    output_error=allocation.error,
)


def write_html(report: Mapping[str, Any], out: Path, samples: Path | None = None) -> None:
    """Write the page for `report` (schema `edgekit.report/1`) to the file `out`.

    `samples` is the folder of per-sample logs (`tuned.jsonl` and one JSONL per exported format); with it the page
    shows the answers that an export changed. Sections whose keys are missing in `report` are left out.
    """
    variants, confident = summary.variants(report), confidence.measured(report)
    page = _environment.get_template("report.html.jinja").render(
        report=report,
        title=f"{report.get('model') or 'edgekit'} for {report['target']}",
        passed=summary.passed(report),
        verdict=summary.verdict_word(report),
        sentence=summary.verdict_sentence(report),
        failed=summary.failed_gates(report),
        simulation=summary.simulation(report),
        files=[variant for variant in variants if variant.path],
        pictures=_pictures(report, variants),
        gate_groups=_gate_groups(report),
        failing_models=list(report.get("failures") or {}),
        failing_rows=failures.table(report),
        failing_what=failures.what(report),
        robust_models=list(report.get("robustness") or {}),
        robust_rows=robustness.table(report),
        robust_words=robustness.short(report),
        abstention_rows=robustness.abstentions(report),
        confident_files=confident,
        confidences={name: dict(confidence.rows(found)) for name, found in confident.items()},
        not_calibrated=confidence.refused(report),
        worst_rows=robustness.worst_rows(report),
        allocated=[
            (name, found, allocation_plot.types(found), allocation.by_cost(found))
            for name, found in allocation.allocated(report).items()
        ],
        allocation_words=allocation.short(report),
        profile_groups=[
            (f"{artifact} in {runtime}", list(rows))
            for (artifact, runtime), rows in groupby(
                report.get("profile") or [], key=lambda row: (row["artifact"], row.get("runtime", ""))
            )
        ],
        stages=report.get("stages") or [],
        longest=max((stage["seconds"] for stage in report.get("stages") or []), default=0),
        changed=changed_answers(samples) if samples else {},
        most_changed=MOST_CHANGED,
        machine=_flat(report.get("machine") or {}),
    )
    out.write_text(page, encoding="utf-8")


def changed_answers(samples: Path) -> dict[str, list[dict[str, Any]]]:
    """For each exported format, the samples whose answers differ from the tuned model's, lost ones first.

    A row holds the `before` and `after` samples and, to mark the difference, the `pieces` of both answers: the common
    beginning, the two differing middle parts, and the common end.
    """
    if not (samples / "tuned.jsonl").is_file():
        return {}
    tuned = _read(samples / "tuned.jsonl")
    changed: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(samples.glob("*.jsonl")):
        if path.stem in ("base", "base_few_shot", "tuned"):
            continue
        rows: list[dict[str, Any]] = [
            {
                "before": tuned[key],
                "after": after,
                "pieces": _difference(tuned[key]["answer"], after["answer"]),
            }
            for key, after in _read(path).items()
            if key in tuned and tuned[key]["answer"] != after["answer"]
        ]
        rows.sort(key=lambda row: row["after"]["correct"] - row["before"]["correct"])
        changed[path.stem] = rows
    return changed


def _read(path: Path) -> dict[Any, dict[str, Any]]:
    return {row["id"]: row for row in read_samples(path)}


def _difference(before: str, after: str) -> tuple[str, str, str, str]:
    start = len(os.path.commonprefix([before, after]))
    end = len(os.path.commonprefix([before[start:][::-1], after[start:][::-1]]))
    return (
        before[:start],
        before[start : len(before) - end],
        after[start : len(after) - end],
        before[len(before) - end :],
    )


def _pictures(report: Mapping[str, Any], variants: list[summary.Variant]) -> list[tuple[str, str, Markup]]:
    """Title, caption and SVG of each plot that the report has figures for."""
    budget = report.get("budget") or {}
    size_limit, drift_limit = budget.get("size_mib"), budget.get("mean_kld_nats")
    drifted = [stage for stage in report.get("stages") or [] if stage.get("drift")]
    sized = [variant for variant in variants if variant.bytes and variant.drift]
    tuning = report.get("tuning") or {}
    training, validation = tuning.get("loss") or [], tuning.get("validation_loss") or []
    bins = (report.get("reliability") or {}).get("bins") or []
    pictures = []
    if any(variant.accuracy is not None and variant.n for variant in variants):
        caption = "Share of held-out prompts with an exactly right answer. Thin lines: 95 % Wilson intervals."
        pictures.append(("Right answers", caption, plots.accuracy(variants)))
    if sized:
        caption = "File size and mean KL divergence from the tuned model, log scale. Lower left is better."
        if len(sized) > 1:
            caption += " Hollow dot: another file is both smaller and closer to the tuned model."
        caption += " Dashed line: the budget." if size_limit or drift_limit else ""
        pictures.append(("Size against drift", caption, plots.pareto(sized, size_limit, drift_limit)))
    if measured := list(report.get("robustness") or {}):
        caption = (
            "Share of right answers on some rows as they are (clean), with noise, and in other phrasings."
        )
        caption += f" Full dot: {measured[-1]}, with its 95 % Wilson interval."
        caption += f" Hollow: {summary.join(measured[:-1])}." if measured[1:] else ""
        picture = plots.robustness(measured, robustness.table(report))
        pictures.append(("Noise and other phrasings", caption, picture))
    if drifted:
        caption = "Mean KL divergence after each stage, in nats, log scale, with 95 % intervals. Full dot: from the tuned"
        caption += " model. Hollow dot: from the input of the stage."
        caption += " Dashed line: the budget." if drift_limit else ""
        pictures.append(("Drift by stage", caption, plots.drift(drifted, drift_limit)))
    if training or validation:
        caption = (
            "Cross-entropy in nats per token. Thin line: training loss. Line with dots: validation loss."
        )
        pictures.append(("Loss while tuning", caption, plots.loss(training, validation)))
    if bins:
        error = calibration_error([Bin(b["confidence"], b["accuracy"], b["n"]) for b in bins])
        caption = "Accuracy of answers by confidence. On the dashed line, confidence equals accuracy."
        caption += f" Expected calibration error: {summary.percent(error)}."
        pictures.append(("Reliability", caption, plots.reliability(bins)))
    return pictures


def _gate_groups(report: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Gates grouped by the first part of their names, in order."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for gate in report.get("gates") or []:
        groups.setdefault(gate["name"].partition(".")[0], []).append(gate)
    return list(groups.items())


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested dict as pairs of texts."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ").replace(" mib", ", MiB")
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{name}, ")
        elif isinstance(value, list):
            pairs.append((name, ", ".join(map(str, value))))
        else:
            pairs.append((name, str(value)))
    return pairs
