"""Lines and lists that enter goes on from, and suggestions for paths."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.suggester import Suggester
from textual.widgets import DataTable, Input

from edgekit.app.views.paths import suggest


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


class Paths(Suggester):
    """Known names, then files with a suffix and folders."""

    def __init__(self, names: tuple[str, ...], suffix: str | tuple[str, ...]) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._names, self._suffix = names, suffix

    async def get_suggestion(self, value: str) -> str | None:
        """How `value` may go on."""
        return await asyncio.to_thread(suggest, value, self._names, self._suffix)
