"""The table of devices as a widget: only rows that differ are drawn, and the chosen one stays where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text
from textual.app import App
from textual.coordinate import Coordinate
from textual.message import Message
from textual.widgets import DataTable

from edgekit.app.views.fleet_table import PADDING, Column
from edgekit.field.fleet.fleet import key_of
from edgekit.field.status import ReleaseStatus

STYLES = {"LOST": "text-error", "CRITICAL": "text-error", "WARNING": "text-warning", "OK": "text-success"}


class FleetTable(DataTable[Text]):
    """A table that tells when a person moves the cursor, and not when its rows move under it.

    A row is one cell, with the texts of all columns in it: DataTable draws every cell that is seen anew when one changes,
    which for 13 columns of 30 rows takes a twentieth of a second. The rows stay, and what they show moves.
    """

    DEFAULT_CSS = """
    FleetTable { height: 1fr; padding: 0; scrollbar-size-horizontal: 0; overflow-x: hidden; }
    """

    @dataclass
    class Went(Message):
        """The person went to the row of this key."""

        key: str

    keys: tuple[str, ...] = ()
    """What is shown, from the first row on."""
    _moving = False
    _shown_columns: tuple[Column, ...] = ()

    def watch_cursor_coordinate(self, old_coordinate: Coordinate, new_coordinate: Coordinate) -> None:
        """Tell of a move by hand."""
        super().watch_cursor_coordinate(old_coordinate, new_coordinate)
        moved = old_coordinate != new_coordinate and self.is_valid_row_index(new_coordinate.row)
        if moved and not self._moving:
            self.post_message(self.Went(self.keys[new_coordinate.row]))

    def show(
        self,
        rows: Sequence[ReleaseStatus],
        cells: Sequence[tuple[str, ...]],
        columns: tuple[Column, ...],
        picked: str,
    ) -> str:
        """Show `rows` with the texts of their cells, the cursor on the row of the key `picked`, else on the first.

        Returns the key that is picked now: empty when that row is there no more.
        """
        self._moving = True
        try:
            if columns != self._shown_columns:
                self._head(columns)
            before, self.keys = self.keys, tuple(map(key_of, rows))
            for place, (row, texts) in enumerate(zip(rows, cells, strict=True)):
                line = self._line(row, texts, columns)
                if place == self.row_count:
                    self.add_row(line)
                elif self.get_cell_at(Coordinate(place, 0)) != line:
                    self.update_cell_at(Coordinate(place, 0), line)
            while self.row_count > len(rows):
                self.remove_row(self.ordered_rows[-1].key)
            picked = picked if picked in self.keys else ""
            if self.keys and before != self.keys:
                self._follow(before, picked)
        finally:
            self._moving = False
        return picked

    def _head(self, columns: tuple[Column, ...]) -> None:
        self.clear(columns=True)
        self._shown_columns = columns
        titles = [one.title.rjust(one.width) if one.right else one.title.ljust(one.width) for one in columns]
        self.add_column(Text(" ".join(titles)), width=sum(len(title) + PADDING for title in titles))

    def _follow(self, before: tuple[str, ...], picked: str) -> None:
        """Keep the chosen row chosen, and as far from the top of the table as it was."""
        place = self.keys.index(picked) if picked else 0
        moved = place - before.index(picked) if picked in before else 0
        self.move_cursor(row=place, animate=False, scroll=False)
        if moved:
            self.scroll_to(y=max(0, self.scroll_y + moved), animate=False)

    def _line(self, row: ReleaseStatus, texts: tuple[str, ...], columns: tuple[Column, ...]) -> Text:
        """A row: its state in colour, and grey when its numbers are old or it is not in use."""
        line = Text(no_wrap=True, end="")
        grey = "dim" if row.state in ("LOST", "IDLE") else ""
        bold = row.state in ("LOST", "CRITICAL")
        for column, text in zip(columns, texts, strict=True):
            line.append(text, state_style(self.app, row.state, bold=bold) if column.name == "state" else grey)
            line.append(" " * (PADDING + column.width - cell_len(text)))
        return line


def state_style(app: App[object], state: str, *, bold: bool = False) -> Style:
    """The theme's colour for a state, beside the word that says it."""
    found = app.theme_variables.get(STYLES.get(state, ""), "")
    return Style(color=found if found.startswith("#") else None, bold=bold)
