"""The table at the end of `edgekit verify`: check, measured, limit, verdict, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from edgekit.report import summary
from edgekit.report.figures_table import figures_table
from edgekit.report.summary import exact, figure


def gates_table(result: Mapping[str, Any]) -> Group:
    """One row for each check of `{path, reference, gates}`, with detail and advice for failed ones."""
    table = figures_table("check", "measured", "limit", words=["", "what to do"])
    failed = 0
    for gate in result["gates"]:
        passed = gate["passed"]
        failed += not passed
        table.add_row(
            gate["name"],
            figure(gate["value"]),
            exact(gate["limit"]),
            "✓" if passed else "✗",
            Text("" if passed else summary.advice(gate)),
            style=None if passed else "red",
        )
    lines: list[RenderableType] = [table, ""]
    for gate in result["gates"]:
        if not gate["passed"]:
            lines.append(Text(f" ✗ {gate['name']}: {gate['detail']}", "red"))
    held = len(result["gates"]) - failed
    verdict = Text(" ✗ Not proven" if failed else " ✓ Proven", "bold red" if failed else "bold green")
    lines.append(
        verdict.append(
            f": {held} of {len(result['gates'])} checks passed against {result['reference']}",
            "not bold default",
        )
    )
    return Group(*lines)
