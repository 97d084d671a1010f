"""The terminal app: bindings and a table of screens over the same commands, events and stores as the shell."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, cast

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.driver import Driver
from textual.events import Resize
from textual.filter import LineFilter
from textual.screen import Screen

from edgekit.app.screens.ascii import Ascii
from edgekit.app.screens.base import NAMES, WIDE, View
from edgekit.app.screens.commands import Keys
from edgekit.app.screens.dialogs import Confirm
from edgekit.app.screens.host import Host
from edgekit.app.screens.output import outliving
from edgekit.app.views.settings import Settings

WRITE_S = 600.0
SETTLED_S = 5.0
RESIZED_S = 0.2
OLDEST = 50  # looks at younger objects to one at the oldest


def _screen(name: str) -> View:
    """The screen `name`, imported when it is first shown."""
    found: View = getattr(import_module(f"edgekit.app.screens.{name}"), f"{name.title()}Screen")()
    return found


class EdgekitApp(Host):
    """Five screens; read-only until `w`."""

    TITLE = "edgekit"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS = App.COMMANDS | {Keys}
    SCREENS: ClassVar[dict[str, Callable[[], Screen[Any]]]] = {name: partial(_screen, name) for name in NAMES}

    CSS = "Toast { padding: 0 1; margin-top: 0; width: 64; max-width: 80%; }"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012 (Textual's own form)
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(n), f"go('{name}')", name, id=f"go-{name}", show=False) for n, name in enumerate(NAMES, 1)),
        Binding("question_mark", "command_palette", "Help", id="help", key_display="?", show=False),
        Binding("w", "write", "Write mode", id="write", tooltip="Allow changes for ten minutes", show=False),
        Binding("y", "copy", "Copy", id="copy", tooltip="Copy the shell command of this screen", show=False),
        Binding("o", "export", "Export", id="export", tooltip="Write this view to a JSON file", show=False),
        Binding("escape", "back", "Back", id="back", tooltip="Back to the previous screen", show=False),
        Binding("q", "leave", "Quit", id="quit", tooltip="Quit; builds and servers continue"),
    ]  # fmt: skip

    def __init__(self, settings: Settings | None = None, first: str = "build", **what: Any) -> None:
        super().__init__(settings)
        self._first, self._what = first, what
        self._path: list[str] = []
        self._thresholds: tuple[int, ...] = ()
        if "SSH_CONNECTION" in os.environ:
            self.animation_level = "none"

    def on_mount(self) -> None:
        """Open the first screen; a terminal that is closed ends the app as `q` does."""
        with contextlib.suppress(AttributeError, NotImplementedError, ValueError, RuntimeError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.exit)  # not on every system
        self.go(self._first, **self._what)
        self.set_interval(1.0, self._end_write)
        self.set_timer(SETTLED_S, self._settled)

    def get_driver_class(self) -> type[Driver]:
        """The terminal's driver, which survives the closing of the terminal."""
        return outliving(super().get_driver_class())

    def get_line_filters(self) -> Sequence[LineFilter]:
        """In ASCII alone where that is asked for, whatever drew it."""
        return [*super().get_line_filters(), *([Ascii()] if self.settings.ascii else [])]

    def _settled(self) -> None:
        """Look for garbage less often, and not in what was loaded: all of it stops every key for a tenth of a second."""
        self._thresholds = gc.get_threshold()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*self._thresholds[:2], OLDEST)

    def on_resize(self, event: Resize) -> None:
        """See that the screen gets its new size: Textual's timer for it does not fire when it begins 8 ms late."""
        self.set_timer(RESIZED_S, self._resized)

    def _resized(self) -> None:
        if self.screen_stack and self.screen.outer_size != self.size:
            self.screen.post_message(Resize(self.size, self.size))

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Of Textual's own commands those that are of use beside ours."""
        return (
            found for found in super().get_system_commands(screen) if found.title in ("Theme", "Screenshot")
        )

    def go(self, name: str, **what: Any) -> None:
        """Show the screen `name`, and its subject; a question that is open there is left without an answer."""
        screen = cast("View", self.get_screen(name))
        while len(self.screen_stack) > 2:
            self.pop_screen()
        if len(self.screen_stack) == 1:
            self.push_screen(screen)
        elif self.screen is not screen:
            self.switch_screen(screen)
        if not self._path or self._path[-1] != name:
            self._path.append(name)
        if what:
            self.call_later(screen.show, **what)

    def action_go(self, name: str) -> None:
        """Show a screen."""
        self.go(name)

    async def action_back(self) -> None:
        """The screen before, of those that were gone to; notes are taken away."""
        self.clear_notifications()
        if len(self._path) > 1:
            self._path.pop()
            self.go(self._path[-1])

    def action_write(self) -> None:
        """Turn write mode on for ten minutes after a question, or off."""

        def answered(yes: bool | None) -> None:
            if yes:
                self._write_until = self.now() + WRITE_S
                self._draw_mode()

        if self.writing:
            self._write_until = 0.0
            self._draw_mode()
        else:
            text = (
                "Allow changes for ten minutes? Each change is confirmed first and shown as a shell command."
            )
            self.push_screen(Confirm(text), answered)

    def action_copy(self) -> None:
        """Copy the shell command."""
        if isinstance(self.screen, View) and (text := self.screen.shell_command):
            self.copy_to_clipboard(text)
            self.notify(text, markup=False, title="Copied")

    def action_export(self) -> None:
        """Write the view to a new JSON file here."""
        if not isinstance(self.screen, View) or (document := self.screen.document()) is None:
            self.notify("Nothing to export yet.", severity="warning")
            return
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(self.now()))
        path = Path(f"edgekit-{self.screen.NAME}-{stamp}.json")
        try:
            text = json.dumps(document, indent=2, default=str)  # in ASCII: any text of a store can be written
            with path.open("x", encoding="utf-8") as file:
                file.write(text + "\n")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            self.notify(f"{path} could not be written: {why}.", markup=False, severity="error")
        else:
            self.notify(str(path), markup=False, title="Written")

    def action_help_quit(self) -> None:
        """What ctrl+c says."""
        self.notify("Press q to quit; builds and servers continue.", title="ctrl+c")

    def action_leave(self) -> None:
        """Quit; while a build runs, say first that it goes on."""
        from edgekit.build import runs

        run = None if self.settings.demo else runs.read(self.settings.cache_dir)
        if run is None or run.state != "RUNNING":
            self.exit()
            return
        text = "A build is running. It continues after you quit; `edgekit tui run` shows it again."
        self.push_screen(Confirm(text), lambda yes: self.exit() if yes else None)

    def on_unmount(self) -> None:
        """Give garbage collection its settings back."""
        if self._thresholds:
            gc.unfreeze()
            gc.set_threshold(*self._thresholds)

    def _end_write(self) -> None:
        if not self.screen_stack:  # the app ends
            return
        if self._write_until and isinstance(self.screen, View):
            self._draw_mode()
            if not self.writing:
                self._write_until = 0.0

    def _draw_mode(self) -> None:
        for screen in self.screen_stack:
            if isinstance(screen, View) and screen.is_mounted:
                screen.draw_mode()
