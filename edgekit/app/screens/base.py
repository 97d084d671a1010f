"""What the five screens share: the title line, the shell command, the key hints, and looking again while they are shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Container
from textual.events import Resize
from textual.reactive import reactive
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Static

from edgekit.app.screens.host import Host
from edgekit.app.screens.threads import Found, in_thread
from edgekit.app.views.symbols import Symbols
from edgekit.base.command import Command
from edgekit.base.errors import EdgekitError
from edgekit.field.state import state_option

NAMES = ("build", "run", "results", "monitor", "incident")
WIDE = 100  # columns from which pictures and answers stand beside each other
SMALLEST = (60, 16)  # columns and rows; below that there is only a sentence


class View(Screen[None]):
    """One of the five screens; a subclass composes its body in `compose_view`."""

    NAME: ClassVar[str]
    DEFAULT_CSS = """
    View { layout: vertical; }
    View > #tabs { height: 1; background: $panel; }
    View > #tabs > #names { width: auto; }
    View > #tabs > #mode { width: 1fr; content-align-horizontal: right; }
    View > #tabs { layout: horizontal; }
    View > #tabs Static { link-style: none; link-color: $foreground; link-background: transparent; }
    View > #title, View > #shell-command { height: 1; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    View > #title { text-style: bold; }
    View > #body { height: 1fr; }
    View > #shell-command { color: $text-muted; }
    View > #tiny { display: none; }
    View.-tiny > * { display: none; }
    View.-tiny > #tiny { display: block; }
    """

    shell_command: reactive[str] = reactive("")
    title_text: reactive[str] = reactive("")
    _focus_before: Widget | None = None

    def compose(self) -> ComposeResult:
        """Title, body, shell command and key hints."""
        with Container(id="tabs"):
            yield Static(id="names")
            yield Static(id="mode")
        yield Static(id="title", markup=False)
        with Container(id="body"):
            yield from self.compose_view()
        yield Static(id="shell-command", markup=False)
        yield Footer(show_command_palette=False, compact=True)
        yield Static(id="tiny", markup=False)

    def compose_view(self) -> ComposeResult:
        """The body of the screen."""
        raise NotImplementedError

    def document(self) -> Any:
        """What `o` exports, as JSON."""
        return None

    def show(self, **what: Any) -> None:
        """Turn to a subject, such as an incident's number."""

    @property
    def edgekit(self) -> Host:
        """The app."""
        return cast("Host", self.app)

    def every(self, look: Callable[[], object]) -> None:
        """Call `look` now and every `settings.every_s` seconds, but only while this screen is the one shown."""

        def tick() -> None:
            if self.is_current:
                look()

        self.set_interval(self.edgekit.settings.every_s, tick)
        self.call_after_refresh(look)

    def every_read(self, read: Callable[[], Found], done: Callable[[Found], object]) -> Callable[[], None]:
        """As `every`, but `read` runs in a thread, once at a time, and `done` gets what it found; returns the look."""
        reading = False

        def look() -> None:
            nonlocal reading
            if not reading:
                reading = True
                in_thread(self, read, have)

        def have(found: Found) -> None:
            nonlocal reading
            reading = False
            done(found)

        self.every(look)
        return look

    def on_mount(self) -> None:
        """Draw the title line."""
        self.draw_mode()

    def on_screen_resume(self) -> None:
        """Draw what may have changed while another screen was shown."""
        self.draw_mode()

    def draw_mode(self) -> None:
        """The names of the screens, this one marked, and whether anything can be changed."""
        if not self.query("#names"):
            return  # the app is being closed
        app = self.edgekit
        mode = f"{app.mode_words} {Symbols.dot} demo" if app.settings.demo else app.mode_words
        free = self.size.width - len(f" {mode}  ? help ")  # the names give way, never the mode
        full = sum(len(f" {number} {name} ") for number, name in enumerate(NAMES, 1))
        brand = " edgekit " if full + len(" edgekit ") <= free else ""
        short = full > free
        names = "".join(
            f"[@click=app.go('{name}')]{'[reverse]' if name == self.NAME else ''} {number}"
            f"{'' if short and name != self.NAME else f' {name}'} {'[/reverse]' if name == self.NAME else ''}[/]"
            for number, name in enumerate(NAMES, 1)
        )
        self.query_one("#names", Static).update(f"[b]{brand}[/b]{names}")
        style = "bold $warning" if app.writing else "$text-muted"
        self.query_one("#mode", Static).update(
            f"[{style}]{mode}[/]  [@click=app.command_palette()]? help[/] "
        )

    def put(self, name: str, text: Text) -> bool:
        """Show `text` in the line called `name`; whether another one was there."""
        line = self.query_one(f"#{name}", Static)
        changed = line.content != text
        if changed:
            line.update(text)
        return changed

    def watch_shell_command(self, shell_command: str) -> None:
        """Show the shell's line."""
        for line in self.query("#shell-command").results(Static):
            line.update(
                Text(f"$ {shell_command}" if shell_command else "", no_wrap=True, overflow="ellipsis")
            )

    def watch_title_text(self, text: str) -> None:
        """Show the title."""
        for line in self.query("#title").results(Static):
            line.update(Text(text, no_wrap=True, overflow="ellipsis"))

    def on_resize(self, event: Resize) -> None:
        """A terminal too small for any screen gets a sentence."""
        width, height = event.size.width, event.size.height
        self._hide(width < SMALLEST[0] or height < SMALLEST[1])
        self.draw_mode()
        verb = ("incident", "list") if self.NAME == "incident" else ("monitor", "--once")
        command = Command((*verb, *state_option(self.edgekit.settings.state)))
        self.query_one("#tiny", Static).update(
            f"This terminal is {width}x{height}; edgekit needs {SMALLEST[0]}x{SMALLEST[1]}. "
            f"Make it larger, or type: {command.text}"
        )

    def _hide(self, tiny: bool) -> None:
        """Hide all but the sentence, also from keys; what had them has them again after it."""
        if tiny == self.has_class("-tiny"):
            return
        body, before = self.query_one("#body"), self._focus_before
        self._focus_before = self.focused if tiny else None
        self.set_class(tiny, "-tiny")
        body.disabled = tiny
        if not tiny and self.focused is None:
            self.set_focus(before) if before is not None else self.focus_next("#body *")
        self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that are there: none while only a sentence can be seen."""
        return not self.has_class("-tiny") and self.offers(action)

    def offers(self, action: str) -> bool:
        """Whether the key of an action does something now."""
        return True

    def complain(self, error: EdgekitError) -> None:
        """Tell an error in words: what failed, and what to do next."""
        self.notify(
            f"{error.message}\n{error.hint}".strip(),
            markup=False,
            title="Failed",
            severity="error",
            timeout=15,
        )
