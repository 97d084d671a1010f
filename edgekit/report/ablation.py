"""The end of `edgekit eval ablate`: a table that fits 80 columns, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from edgekit.report import plots
from edgekit.report.figures_table import figures_table
from edgekit.report.summary import NONE, percent

COLUMNS = ("", "clean", "95 %", "noise", "95 %", "phrasings", "95 %")
KEPT_OUT = 14  # cells of the name of a part


def ablation_table(result: Mapping[str, Any]) -> Group:
    """The accuracy of the recipe with every part, and the points that each part buys, of a document `edgekit.ablation/1`."""
    measures = list(result["n"])
    table = figures_table(*COLUMNS)
    whole = next(one for one in result["runs"] if not one["left_out"])
    table.add_row("every part", *_accuracies(whole, measures))
    table.add_row(Text("points it buys", "dim"))
    for effect in result["effects"]:
        cells: list[str] = []
        for measure in measures:
            found = effect["points"].get(measure)
            cells += [f"{found['points']:+.1f}", _ends(found["interval_95"])] if found else [NONE, ""]
        table.add_row(Text(f"  {effect['part'][:KEPT_OUT]}"), *cells)
    counts = ", ".join(f"{count} {name}" for name, count in result["n"].items())
    how = "in every combination" if result["grid"] else "each left out alone"
    lines: list[RenderableType] = [
        table,
        "",
        Text(f" {result['format']} file of {result['model']} for {result['target']}, {how};"),
        Text(f" seeds {', '.join(map(str, result['seeds']))}; rows: {counts}."),
        Text(" An interval that leaves out 0 shows that a part helps, or hurts."),
    ]
    return Group(*lines)


def picture(result: Mapping[str, Any]) -> str:
    """What each part buys as the text of an SVG file."""
    parts = {
        effect["part"]: [
            (measure, found["points"], (found["interval_95"][0], found["interval_95"][1]))
            for measure, found in effect["points"].items()
        ]
        for effect in result["effects"]
    }
    return plots.standalone(plots.effects(parts))


def _accuracies(run: Mapping[str, Any], measures: list[str]) -> list[str]:
    cells: list[str] = []
    for measure in measures:
        found = run["accuracy"].get(measure)
        ends = found["interval_95"] if found else None
        cells += [
            percent(found["mean"] if found else None),
            _ends([100 * end for end in ends]) if ends else "",
        ]
    return cells


def _ends(ends: list[float]) -> str:
    return f"{round(ends[0], 1):g}..{round(ends[1], 1):g}"
