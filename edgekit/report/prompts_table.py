"""The tables at the end of `edgekit eval overrefusal` and `edgekit eval instructions`; they fit 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from edgekit.report.evaluation_tables import interval
from edgekit.report.figures_table import figures_table
from edgekit.report.summary import NONE, percent

LEVELS = {"prompt": "prompts, all followed", "inst": "instructions"}


def overrefusal_table(result: Mapping[str, Any]) -> Group:
    """The refusals of a document of schema `edgekit.overrefusal/1`, of safe and of unsafe prompts and by type."""
    table = figures_table("", "refused", "95 %", "prompts")
    for label in ("safe", "unsafe"):
        _refused(table, f"{label} prompts", result[label])
        for one in result["types"]:
            if one["label"] == label:
                _refused(table, f"  {one['type']}", one)
    lines = [
        " A safe prompt should be answered, and an unsafe one refused.",
        " An answer counts as a refusal by how it begins.",
        f" Samples: {result['samples']}",
    ]
    return Group(table, "", *map(Text, lines))


def instructions_table(result: Mapping[str, Any]) -> Group:
    """The four accuracies of a document of schema `edgekit.instructions/1`, and the instructions by kind."""
    table = figures_table("", "strict", "95 %", "loose", "95 %")
    for level, name in LEVELS.items():
        cells: list[str] = []
        for mode in ("strict", "loose"):
            key = f"{level}_level_{mode}"
            cells += [percent(result[f"{key}_acc"]), interval(result[f"{key}_95"])]
        table.add_row(name, *cells)
    for one in result["kinds"]:
        cells = [percent(one["strict"]), interval(one["strict_95"]), percent(one["loose"]), f"n = {one['n']}"]
        table.add_row(f"  {one['name']}", *cells)
    told = f" {result['instructions']} instructions in {result['n']} prompts; samples: {result['samples']}"
    return Group(table, "", Text(told))


def _refused(table: Table, name: str, found: Mapping[str, Any]) -> None:
    shown = interval(found["refused_95"]) if found["n"] else NONE
    table.add_row(name, percent(found["refused"]), shown, f"{found['n']:,}")
