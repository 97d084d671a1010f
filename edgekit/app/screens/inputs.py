"""Lines and lists that enter goes on from, and suggestions for paths."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.coordinate import Coordinate
from textual.suggester import Suggester
from textual.widgets import DataTable, Input

from edgekit.app.views.paths import suggest

Columns = tuple[tuple[str, int], ...]  # labels and widths
# The last column of each is beyond the edge of a narrow terminal.
TARGET_COLUMNS: Columns = (
    ("  target", 13),
    ("      MiB", 10),
    (" memory", 7),
    ("  runs here", 20),
    ("what it is for", 70),
)
LIMIT_COLUMNS: Columns = (("  limit", 24), ("value", 12), ("", 14), ("what it says", 96))


class Line(Input):
    """One line of text; enter goes on."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Next", key_display="enter", tooltip="The next step")
    ]


class Choices(DataTable[str | Text]):
    """A list to choose from; enter goes on."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Next", key_display="enter", tooltip="The next step")
    ]

    @property
    def max_scroll_x(self) -> int:
        """It never scrolls sideways: the last column is for those who have the room."""
        return 0

    def __init__(self, columns: Columns, mark: str, id: str) -> None:
        super().__init__(cursor_type="row", cell_padding=0, id=id)
        self._columns, self._mark = columns, mark

    def on_mount(self) -> None:
        """Name the columns."""
        for label, width in self._columns:
            self.add_column(label, width=width)

    def fill(self, keys: Sequence[str], rows: Sequence[Sequence[Text]]) -> None:
        """Show these rows, this one marked; only cells that differ are drawn."""
        for number, (key, cells) in enumerate(zip(keys, rows, strict=True)):
            if number >= self.row_count:
                self.add_row(*[""] * len(cells), key=key)
            first = Text(f"{self._mark if number == self.cursor_row else ' '} ").append_text(cells[0])
            for column, cell in enumerate([first, *cells[1:]]):
                at = Coordinate(number, column)
                if self.get_cell_at(at) != cell:
                    self.update_cell_at(at, cell)


class Paths(Suggester):
    """Known names, then files with a suffix and folders."""

    def __init__(self, names: tuple[str, ...], suffix: str) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._names, self._suffix = names, suffix

    async def get_suggestion(self, value: str) -> str | None:
        """How `value` may go on."""
        return await asyncio.to_thread(suggest, value, self._names, self._suffix)
