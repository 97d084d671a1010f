"""What the tables of figures in the terminal have in common."""

from __future__ import annotations

from rich.table import Table


def figures_table(first: str, *others: str) -> Table:
    """An empty table without borders: names on the left under `first`, and a column of figures for each of `others`."""
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column(first, no_wrap=True)
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    return table
