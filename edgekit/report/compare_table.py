"""The table at the end of `edgekit eval compare`; it fits 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from edgekit.base.texts import one_line
from edgekit.report.figures_table import figures_table
from edgekit.report.summary import percent

MOST_SLICES, MOST_IDS = 12, 20
MOST_CELLS = 18  # of the name of a slice
COLUMNS = ("", "rows", "first", "second", "change", "95 %")
SIGNS = {"as good": "✓ as good", "unproven": "? unproven", "worse": "✗ worse"}


def compare_table(result: Mapping[str, Any]) -> Group:
    """The whole, the variants and the labels that lost most, each with its change and verdict; then the changed answers."""
    table = figures_table(*COLUMNS, words=[""])
    table.add_row("all", *_cells(result))
    notes: list[str] = []
    for by in dict.fromkeys(one["by"] for one in result["slices"]):
        slices = [one for one in result["slices"] if one["by"] == by]
        shown = sorted(slices, key=lambda one: float(one["difference_points"]))[:MOST_SLICES]
        if len(slices) > len(shown):
            notes.append(
                f" Of {len(slices)} {by}s, the {MOST_SLICES} that lost most are shown; --json has all."
            )
        table.add_row(Text(f"by {by}", "dim"))
        for one in shown:
            table.add_row(f"  {one_line(one['value'], MOST_CELLS)}", *_cells(one))
    lines: list[RenderableType] = [table, "", *map(Text, notes)]
    for name, words in (("lost", "right before, wrong now"), ("won", "wrong before, right now")):
        lines.append(Text(f" {len(result[name])} {words}: {_some(result[name])}"))
    margin, bound = result["margin_points"], result["bound_points"]
    lines.append(
        Text(f" McNemar's p {result['mcnemar_p']:.2g}; intervals: bootstrap over {result['items']} rows")
    )
    lines.append(
        Text(f" {SIGNS[result['verdict']]}: margin {margin:g} points, lower 95 % bound {bound:+.2f} points")
    )
    if result["verdict"] == "unproven":
        needed = f"at least {result['rows_needed']:,}" if result["rows_needed"] else "more than a million"
        lines.append(Text(f" To tell, {needed} rows with such changes are needed."))
    return Group(*lines)


def _cells(one: Mapping[str, Any]) -> list[str | Text]:
    low, high = one["bootstrap_95"]
    return [
        f"{one['n']:,}",
        percent(one["accuracy_first"]),
        percent(one["accuracy_second"]),
        f"{one['difference_points']:+.1f}",
        f"{low:+.1f}..{high:+.1f}",
        Text(SIGNS[one["verdict"]], "red" if one["verdict"] == "worse" else ""),
    ]


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - MOST_IDS} more" if len(ids) > MOST_IDS else ""
    return (", ".join(ids[:MOST_IDS]) or "none") + more
