"""What the tables of figures in the terminal have in common."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table


def figures_table(first: str, *others: str, words: Sequence[str] = ()) -> Table:
    """An empty table without borders: names under `first`, a column of figures for each of `others`, and then one of `words` each.

    Figures stand on the right of their columns. Words stand on the left, and are broken over lines where the terminal is narrow.
    """
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column(first, no_wrap=True)
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    for column in words:
        table.add_column(column, overflow="fold")
    return table
