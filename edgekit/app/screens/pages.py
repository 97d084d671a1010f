"""A page of text over a screen: a plan, a target's values, or why there is neither."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from edgekit.app.screens.base import View
from edgekit.app.screens.dialogs import Dialog
from edgekit.app.screens.threads import in_thread
from edgekit.app.views import wizard, wizard_page
from edgekit.app.views.command import Outcome


class Sheet(Dialog[None]):
    """A page of text over the screen."""

    DEFAULT_CSS = """
    Sheet > VerticalScroll { max-height: 90%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q", "dismiss", "Close")]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        """The page."""
        with VerticalScroll() as page:
            # as it is: a `str` would be read as markup
            page.border_title = Text(self._title)
            page.border_subtitle = "esc close"
            yield Static(Text(self._text))


def show_failure(screen: View, outcome: Outcome) -> None:
    """Why a command failed, and what to do."""
    text = "\n".join([outcome.message, *outcome.faults, outcome.hint]).strip()
    screen.app.push_screen(Sheet(outcome.command.text, text or "It printed nothing."))


def show_target(screen: View, outcome: Outcome) -> None:
    """Every value of a target, with the file it comes from."""
    if outcome.code != 0 or not isinstance(outcome.document, dict):
        show_failure(screen, outcome)
        return
    width = max(map(len, outcome.document), default=0)
    lines = [f"{key:<{width}}  {v['value']}   # {v['origin']}" for key, v in outcome.document.items()]
    screen.app.push_screen(Sheet(f"{outcome.command.text} --resolved", "\n".join(lines)))


def show_plan(screen: View, outcome: Outcome) -> None:
    """A plan as a table; it is drawn in a thread, for what it imports."""
    if wizard.planned(outcome) is None:
        show_failure(screen, outcome)
        return

    def drawn(text: str) -> None:
        screen.app.push_screen(Sheet(outcome.command.text, text))

    in_thread(screen, partial(wizard_page.plan_text, outcome), drawn)
