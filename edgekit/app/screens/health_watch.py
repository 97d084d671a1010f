"""The minute after a rollback: is the release before in use, and does it answer?"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static

from edgekit.app.screens.dialogs import Dialog
from edgekit.app.screens.host import Host
from edgekit.app.screens.threads import in_thread
from edgekit.app.views.symbols import Symbols
from edgekit.base.clock import span
from edgekit.field.fleet import recovery
from edgekit.field.fleet.recovery import DeviceHealth, Recovery, Verdict

BAR = 40


class HealthWatch(Dialog[str]):
    """Watches a recovery for a minute; ends with its verdict in words."""

    DEFAULT_CSS = """
    HealthWatch VerticalScroll { max-height: 16; }
    HealthWatch #verdict { text-style: bold; margin-top: 1; }
    HealthWatch #verdict.well { color: $text-success; }
    HealthWatch #verdict.bad { color: $text-error; }
    HealthWatch #keys { color: $text-muted; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "End the watch"),
        Binding("enter", "leave_at_end", "Close", show=False),
    ]

    def __init__(self, watch: Recovery) -> None:
        super().__init__()
        self._watch = watch
        self._verdict: Verdict | None = None
        self._looking = False

    def compose(self) -> ComposeResult:
        """Countdown, figures, verdict."""
        with Vertical():
            yield Static(id="count", markup=False)
            with VerticalScroll(can_focus=False):
                yield Static(id="figures", markup=False)
                yield Static(id="verdict", markup=False)
            yield Static(id="keys", markup=False)

    def on_mount(self) -> None:
        """Begin."""
        self._tick()
        self.set_interval(1.0, self._tick)

    @property
    def _app(self) -> Host:
        return cast("Host", self.app)

    def _tick(self) -> None:
        if self._verdict is None and not self._looking:
            self._looking = True
            watch, now = self._watch, self._app.now()
            look = partial(recovery.read_health, watch.device, watch.release, now - watch.began, now)
            in_thread(self, look, self._have)
        self._draw()

    def _have(self, seen: DeviceHealth) -> None:
        self._looking = False
        if self._verdict is None:
            self._watch = self._watch.taking(seen)
            self._verdict = self._watch.verdict(self._app.now())
            self._draw()

    def _draw(self) -> None:
        if not self.query("#keys"):
            return  # being taken down
        watch, verdict = self._watch, self._verdict
        left_s = watch.left_s(self._app.now())
        end = "over" if verdict else f"{left_s:.0f} s left"
        bar = Symbols.bar(1.0 - left_s / recovery.WATCH_S, BAR)
        self.query_one("#count", Static).update(
            f"HEALTH WATCH of {watch.release or 'the release before'} on {watch.device.called}\n{bar}  {end}"
        )
        self.query_one("#figures", Static).update(Text("\n".join(watch.figures())))
        line = self.query_one("#verdict", Static)
        if verdict is None:
            so_far = watch.trouble()
            words = f"So far: {so_far.why if so_far else 'no problem found'}"
        else:
            mark = {"HEALTHY": Symbols.ok, "NOT PROVEN": Symbols.lost}.get(verdict.word, Symbols.failed)
            words = f"{mark} {verdict.words}"
            line.set_class(verdict.word == "HEALTHY", "well").set_class(verdict.word == "STILL BAD", "bad")
        line.update(Text(words))
        keys = "enter or esc closes this window"
        self.query_one("#keys", Static).update(
            keys if verdict else "esc ends the health watch early; the release stays in use"
        )

    def action_leave_at_end(self) -> None:
        """Close it, once the verdict is there."""
        if self._verdict is not None:
            self.action_leave()

    def action_leave(self) -> None:
        """Close it; a watch that was left proves nothing, and says so."""
        watch = self._watch
        gone = span(recovery.WATCH_S - watch.left_s(self._app.now()))
        left = f"NOT PROVEN: the health watch of {watch.release} was ended after {gone}."
        self.dismiss(self._verdict.words if self._verdict else left)
