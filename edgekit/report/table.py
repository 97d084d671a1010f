"""The table at the end of `edgekit build`: it fits 80 columns, and does not rely on colour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgekit.report import allocation, confidence, failures, robustness, summary
from edgekit.report.figures_table import figures_table
from edgekit.report.summary import exact, figure, mib, percent

COLUMNS = (
    "",
    "right\nanswers",
    "size\nMiB",
    "bits/\nweight",
    "drift\nnats",
    "same\ntoken",
    "first\nms",
    "decode\ntok/s",
    "peak\nMiB",
)


def result_table(report: Mapping[str, Any], next_step: str = "") -> Group:
    """Key figures of each model, failed gates with advice, the verdict, and the next command.

    `report` is a dict of schema `edgekit.report/1`.
    """
    gates, failed = report.get("gates") or [], summary.failed_gates(report)
    simulation = summary.simulation(report)
    lines: list[RenderableType] = [_figures(report), *([Text(f" {simulation}")] if simulation else [])]
    for title, told in (
        ("Where it fails", failures.short(report)),
        ("Noise and other phrasings", robustness.short(report)),
        ("Confidence", confidence.short(report)),
        ("Bits of each tensor", allocation.short(report)),
    ):
        if told:
            lines += [
                "",
                Text(f" {title}:"),
                *(Padding(Text(line), (0, 0, 0, 3), expand=False) for line in told),
            ]
    lines.append("")
    for gate in failed:
        stage = f", stage {gate['stage']}" if gate["stage"] else ""
        lines.append(
            Text(f" ✗ {gate['name']}  {figure(gate['value'])}, limit {exact(gate['limit'])}{stage}", "red")
        )
        for note in filter(None, [gate.get("detail"), gate["advice"]]):
            lines.append(Padding(Text(note), (0, 0, 0, 3), expand=False))
    if failed:
        lines.append("")
    verdict = Text(f" {summary.verdict_word(report)}", "bold green" if summary.passed(report) else "bold red")
    lines.append(
        verdict.append(f": {len(gates) - len(failed)} of {len(gates)} gates passed", "not bold default")
    )
    if next_step:
        lines.append(Text(f" Next: {next_step}"))
    return Group(*lines)


def _figures(report: Mapping[str, Any]) -> Table:
    table = figures_table(*COLUMNS)
    for variant in summary.variants(report):
        table.add_row(
            variant.name,
            percent(variant.accuracy),
            mib(variant.bytes),
            figure(variant.bits_per_weight),
            figure(variant.drift.get("mean_kld_nats")),
            percent(variant.drift.get("top1_agreement")),
            figure(variant.ttft),
            figure(variant.decode),
            figure(variant.speed.get("peak_rss_mib")),
        )
    return table
