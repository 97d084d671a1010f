"""A log that follows its end, and draws only the lines that are seen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from textual.events import MouseScrollUp
from textual.geometry import Size
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

STYLES = {
    "FAILED": Style(bold=True, color="red"),
    "ERROR": Style(bold=True, color="red"),
    "WARNING": Style(color="yellow"),
    "DONE": Style(color="green"),
    "PASSED": Style(color="green"),
    "KEPT": Style(color="green"),
}


class LogPane(ScrollView, can_focus=True):
    """Lines of text with the word that decides on their colour; scrolling up ends the following."""

    DEFAULT_CSS = "LogPane { scrollbar-size-horizontal: 0; }"

    following: reactive[bool] = reactive(True)

    def __init__(self, id: str, ellipsis: str) -> None:
        super().__init__(id=id)
        self._ellipsis = ellipsis
        self._lines: Sequence[tuple[str, str]] = ()

    def put(self, lines: Sequence[tuple[str, str]]) -> None:
        """Show `lines`, each a word and its text, in place of those before."""
        self._lines = lines
        self.virtual_size = Size(max((len(text) for _, text in lines), default=0), len(lines))
        self.refresh()
        if self.following:
            self.scroll_end(animate=False, force=True, x_axis=False)

    def render_line(self, y: int) -> Strip:
        """One line of what is seen."""
        x, top = self.scroll_offset
        width = self.scrollable_content_region.width
        if not 0 <= top + y < len(self._lines):
            return Strip.blank(width, self.rich_style)
        word, text = self._lines[top + y]
        style = self.rich_style + STYLES.get(word, Style.null())
        if len(text) > x + width:
            text = text[: max(0, x + width - len(self._ellipsis))] + self._ellipsis
        return Strip([Segment(text, style)]).crop_extend(x, x + width, self.rich_style)

    def watch_following(self, following: bool) -> None:
        """Back to the end when it is turned on."""
        if following:
            self.scroll_end(animate=False, force=True, x_axis=False)

    def action_scroll_up(self) -> None:
        """A line up, and stay there."""
        self.following = False
        super().action_scroll_up()

    def action_page_up(self) -> None:
        """A page up, and stay there."""
        self.following = False
        super().action_page_up()

    def action_scroll_home(self) -> None:
        """To the beginning, and stay there."""
        self.following = False
        super().action_scroll_home()

    def on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        """The wheel does the same."""
        self.following = False
