"""Which bundle to look at, and two of anything beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import OptionList, Static

from edgekit.app.screens.dialogs import Dialog
from edgekit.app.views.bundles import Found
from edgekit.app.views.differences import Difference
from edgekit.app.views.symbols import Symbols
from edgekit.base.clock import clock


class Bundles(Dialog[tuple[str, Path] | None]):
    """The bundles, newest first; gives what to do, `open` or `compare`, and with which."""

    DEFAULT_CSS = """
    Bundles > Vertical { width: 100; max-width: 98%; }
    Bundles OptionList, Bundles OptionList:focus { height: auto; max-height: 16; border: none; padding: 0; }
    Bundles #where { text-wrap: nowrap; text-overflow: ellipsis; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "compare", "Compare"),
        Binding("escape,b,q", "dismiss", "Cancel"),
    ]

    def __init__(self, found: Sequence[Found], folder: Path, now: float) -> None:
        super().__init__()
        self._found, self._folder, self._now = found, folder, now

    def compose(self) -> ComposeResult:
        """The list and its keys."""
        with Vertical():
            yield Static(f"Bundles in {self._folder}, the newest first", id="where", markup=False)
            yield OptionList(*map(self._line, self._found))
            yield Static("enter open  d compare with the one that is shown  esc cancel")

    def action_compare(self) -> None:
        """Give the one under the cursor, to compare."""
        if (at := self.query_one(OptionList).highlighted) is not None:
            self.dismiss(("compare", self._found[at].path))

    @on(OptionList.OptionSelected)
    def _opened(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(("open", self._found[event.option_index].path))

    def _line(self, found: Found) -> Text:
        word = {"pass": "PASS", "fail": "FAIL"}.get(found.verdict, "UNKNOWN")
        more = f"  {found.fault.rpartition('/')[2]}" if found.fault else ""
        said = f"{Symbols.of(word)} {word:<7} {clock(found.written, self._now):<16} {found.name}{more}"
        line = Text(said, no_wrap=True)
        line.truncate(max(20, min(100, self.app.size.width) - 8), overflow="ellipsis")
        return line


class Beside(Dialog[None]):
    """Tables of the differences of two variants or bundles."""

    DEFAULT_CSS = "Beside > VerticalScroll { width: 100; max-width: 98%; max-height: 95%; }"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,d,q", "dismiss", "Close")]

    def __init__(self, names: tuple[str, str], tables: Sequence[tuple[str, Sequence[Difference]]]) -> None:
        super().__init__()
        self._names, self._tables = names, tables

    def compose(self) -> ComposeResult:
        """The tables, one below the other."""
        with VerticalScroll() as page:
            page.border_subtitle = "esc close"
            yield Static(self._drawn())

    def _drawn(self) -> Group:
        parts: list[RenderableType] = []
        for name, rows in self._tables:
            table = Table(box=None, padding=(0, 1), pad_edge=False, expand=True, header_style="bold")
            for at, head in enumerate((name, *self._names, "second from first")):
                table.add_column(
                    Text(head),
                    overflow="fold",
                    ratio=1 if at == 3 else None,
                    min_width=14,
                    max_width=24,
                )
            for row in rows:
                cells = (row.name, row.first, row.second, row.change)
                table.add_row(*(Text(cell) for cell in cells))
            parts += [table, ""]
        return Group(*parts[:-1])
