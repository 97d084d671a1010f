"""How often a model abstains, as a table in the terminal; it fits 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from edgekit.report.figures_table import figures_table
from edgekit.report.summary import NONE, percent

VARIANTS = {"clean": "as they are", "noise": "with noise", "phrasings": "in other phrasings"}
COLUMNS = {"false_abstentions": "rows in scope", "recall": "out of scope", "precision": "of them right"}


def abstention_lines(figures: Mapping[str, Mapping[str, Any] | None]) -> list[RenderableType]:
    """The table of abstentions by name, and an empty line; nothing where no row is out of scope and none is answered so."""
    found = {name: one for name, one in figures.items() if one}
    if not any(one["precision"]["n"] or one["recall"]["n"] for one in found.values()):
        return []
    table = figures_table("abstains on", *COLUMNS.values())
    for name, one in found.items():
        table.add_row(f"  {name}", *(_share(one[key]) for key in COLUMNS))
    return [table, ""]


def variants_lines(found: Mapping[str, Any] | None) -> list[RenderableType]:
    """The same of the rows as they are, with noise, and in other phrasings; each variant of a row counts."""
    return abstention_lines({words: found[key] for key, words in VARIANTS.items()}) if found else []


def _share(one: Mapping[str, Any]) -> str:
    """`2.5 % (1 of 40)`; a dash where there are no rows."""
    return f"{percent(one['share'])} ({one['hits']:,} of {one['n']:,})" if one["n"] else NONE
