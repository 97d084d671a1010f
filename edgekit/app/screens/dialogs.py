"""Questions that a screen asks before it goes on."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

Answer = TypeVar("Answer")


class Dialog(ModalScreen[Answer], Generic[Answer]):
    """A box in the middle of the screen; esc leaves it without an answer."""

    DEFAULT_CSS = """
    Dialog { align: center middle; }
    Dialog > * { width: 76; max-width: 95%; height: auto; max-height: 95%; border: round $primary;
        background: $surface; padding: 0 1; }
    Dialog VerticalScroll { height: auto; max-height: 14; }
    Dialog Horizontal { height: auto; align-horizontal: right; }
    Dialog Button { margin-left: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Cancel")]

    def buttons(self, disabled: bool = False) -> ComposeResult:
        """The two answers."""
        with Horizontal():
            yield Button("Cancel", id="no", compact=True)
            yield Button("Go on", id="yes", variant="primary", compact=True, disabled=disabled)


class Confirm(Dialog[bool]):
    """Whether to go on with what `text` says; with `typed` that word must be typed first."""

    AUTO_FOCUS = "#typed, #yes"

    def __init__(self, text: str, typed: str = "") -> None:
        super().__init__()
        self._text, self._typed = text, typed

    def compose(self) -> ComposeResult:
        """The text, the word to type, and the two answers."""
        with Vertical():
            with VerticalScroll(can_focus=False):
                yield Static(Text(self._text))
            if self._typed:
                yield Static(Text(f"Type {self._typed} to go on:"))
                yield Input(id="typed")
                yield Static(id="other")
            yield from self.buttons(disabled=bool(self._typed))

    def action_leave(self) -> None:
        """No."""
        self.dismiss(False)

    @on(Input.Changed)
    def _typing(self, event: Input.Changed) -> None:
        self.query_one("#yes", Button).disabled = event.value.strip() != self._typed

    @on(Input.Submitted)
    def _typed_enter(self, event: Input.Submitted) -> None:
        if event.value.strip() == self._typed:
            self.dismiss(True)
        else:
            self.query_one("#other", Static).update("That word does not match; nothing was changed.")

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")


class Sheet(Dialog[None]):
    """A page of text over the screen."""

    DEFAULT_CSS = "Sheet > VerticalScroll { max-height: 90%; }"
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


class Ask(Dialog[str | None]):
    """One line of text, such as a reason; None when the person leaves, `value` stands there at first."""

    def __init__(self, text: str, placeholder: str = "", value: str = "") -> None:
        super().__init__()
        self._text, self._placeholder, self._value = text, placeholder, value

    def compose(self) -> ComposeResult:
        """The question and the line."""
        with Vertical():
            yield Static(Text(self._text))
            yield Input(self._value, placeholder=self._placeholder, id="answer")
            yield from self.buttons()

    def action_leave(self) -> None:
        """Without an answer."""
        self.dismiss(None)

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip())

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.dismiss(self.query_one(Input).value.strip() if event.button.id == "yes" else None)
