"""The table at the end of `edgekit eval task`; it fits 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekit.base.texts import one_line
from edgekit.report.abstention import abstention_lines
from edgekit.report.evaluation_tables import interval
from edgekit.report.failures import MOST, NAMES
from edgekit.report.figures_table import figures_table
from edgekit.report.summary import percent

MOST_VALUES = 12
WIDEST = 44


def task_table(result: Mapping[str, Any]) -> Group:
    """The figures of a document of schema `edgekit.task/1`, its slices, and the worst of them.

    Slices of one kind with more than twelve values are left out; the document has them all.
    """
    table = figures_table("", "right", "95 %", "rows")
    table.add_row("all rows", percent(result["accuracy"]), interval(result["wilson_95"]), f"{result['n']:,}")
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for one in result["slices"]:
        kinds.setdefault(one["by"], []).append(one)
    for by, found in kinds.items():
        if 1 < len(found) <= MOST_VALUES:
            _section(table, f"by {by}", found)
    _section(table, "the worst", result["worst"], named=True)
    lines: list[RenderableType] = [table, ""]
    if result["failures"]["classes"]:
        lines += [Text(" Where it fails:"), _failures(result["failures"]), ""]
    lines += abstention_lines({"all rows": result["abstention"]})
    lines += map(Text, _words(result))
    return Group(*lines)


def _section(table: Table, title: str, found: Sequence[Mapping[str, Any]], *, named: bool = False) -> None:
    if found:
        table.add_row(Text(title, "dim"))
    for one in found:
        name = f"  {one['by']} {one['value']}" if named else f"  {one['value']}"
        cells = (percent(one["accuracy"]), interval(one["wilson_95"]), f"{one['n']:,}")
        table.add_row(Text(name if len(name) <= WIDEST else f"{name[: WIDEST - 1]}…"), *cells)


def _failures(found: Mapping[str, Any]) -> Table:
    """At most eight classes with wrong answers, the surest failure first, and what is answered instead."""
    words = [] if found["by"] == "words" else ["answered instead"]
    table = figures_table(NAMES[found["by"]], "right", "95 %", "rows", words=words)
    for one in found["classes"][:MOST]:
        cells = [percent(one["accuracy"]), interval(one["wilson_95"]), f"{one['n']:,}"]
        if said := one["instead"]:
            cells.append(f"{said['n']} × {one_line(said['answer'], 20) or '(empty)'}")
        table.add_row(*map(Text, [one_line(one["label"], 22), *cells]))
    return table


def _words(result: Mapping[str, Any]) -> list[str]:
    """What the answers are, and the figures of answers in JSON, as one line each."""
    found = []
    if result["labels"]:
        found.append(f" Each answer is the most likely of {result['labels']} labels")
    if result["left_out"]:
        found.append(f" {result['left_out']} rows have another answer, and are left out")
    if result["shots"]:
        found.append(f" {result['shots']} examples in each prompt")
    if parts := result["json"]:
        found.append(
            f" Valid JSON objects: {percent(parts['valid'])} [{interval(parts['valid_95'])}] of {parts['n']} rows"
        )
        found.append(
            f" Keys and values: F1 {percent(parts['f1'])} [{interval(parts['f1_95'])}],"
            f" precision {percent(parts['precision'])}, recall {percent(parts['recall'])}"
        )
    if result["worst"]:
        found.append(f" The worst are slices of at least {result['slice_rows']} rows")
    return [*found, f" Samples: {result['samples']}"]
