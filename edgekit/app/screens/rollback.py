"""Going back to the release before: the question with its typed word, and the minute's watch after it."""

from __future__ import annotations

from typing import ClassVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static

from edgekit.app.screens.base import View
from edgekit.app.screens.dialogs import Ask, Confirm, Dialog
from edgekit.app.screens.host import Host
from edgekit.app.screens.threads import in_thread
from edgekit.app.views import rollback
from edgekit.app.views.command import Outcome
from edgekit.app.views.incident import Source
from edgekit.app.views.rollback import Health, Plan, Recovery, Verdict
from edgekit.base.clock import span
from edgekit.base.errors import EdgekitError

BAR = 40


class RollingBack(View):
    """A screen from which a device can go back to its release before."""

    @property
    def source(self) -> Source:
        """The device that is looked at."""
        raise NotImplementedError

    @property
    def subject(self) -> object:
        """What is shown: a question that was asked for while this was is not put while another is."""
        return self.source

    def reason(self) -> str:
        """What stands in the question for the reason at first."""
        return ""

    def say(self, words: str) -> None:
        """Show a sentence that stays until the next one."""
        raise NotImplementedError

    def changed(self, outcome: Outcome) -> None:
        """Called when a command has ended that changes something."""
        raise NotImplementedError

    def action_roll_back(self) -> None:
        """Read the releases of the device, then ask."""
        source, subject = self.source, self.subject
        if source.by_url:
            self.say(
                "A device that is read by URL cannot be rolled back from here. Name it as NAME=ssh:USER@HOST, or roll back on the device."
            )
        elif self.edgekit.may_change():
            self.say(f"Reading the releases of {source.name}...")
            self.edgekit.ask(
                source.command("releases", "list"), lambda outcome: self._planned(source, subject, outcome)
            )

    def _planned(self, source: Source, subject: object, outcome: Outcome) -> None:
        if subject != self.subject:
            return  # the person is looking at something else by now
        self.say("")
        if not self.is_current:
            return
        try:
            plan = rollback.plan(outcome, source)
        except EdgekitError as error:
            self.say(f"{error.message} {error.hint}".strip())
            return

        def reasoned(why: str | None) -> None:
            if why is None:
                return
            if not why:
                self.say("A rollback needs a reason for the release log; nothing changed.")
                return
            self._confirm(plan, source, why)

        self.app.push_screen(
            Ask("Why roll back? The reason is written to the release log.", "why", self.reason()), reasoned
        )

    def _confirm(self, plan: Plan, source: Source, why: str) -> None:
        command = rollback.rollback(source, plan.leaving, why)

        def confirmed(yes: bool | None) -> None:
            if yes:
                self.edgekit.act(command, lambda outcome: self._rolled(source, outcome))

        lines = plan.lines()  # the command before what it does: a small terminal shows the first lines
        text = "\n".join(
            [f"Roll back {source.name}", "", *lines[:2], "", f"$ {command.text}", "", *lines[2:]]
        )
        self.app.push_screen(Confirm(text, plan.typed), confirmed)

    def _rolled(self, source: Source, outcome: Outcome) -> None:
        self.changed(outcome)
        if outcome.code == 0:
            release = rollback.in_use_now(outcome)
            self.app.push_screen(HealthWatch(source, release), lambda words: self.say(words or ""))


class HealthWatch(Dialog[str]):
    """A minute after a rollback: is the release before in use, and does it answer? Ends with its verdict in words."""

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

    def __init__(self, source: Source, release: str) -> None:
        super().__init__()
        self._source, self._release = source, release
        self._watch: Recovery | None = None
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
        self._watch = Recovery(self._source, self._release, self._app.now())
        self._tick()
        self.set_interval(1.0, self._tick)

    @property
    def _app(self) -> Host:
        return cast("Host", self.app)

    def _tick(self) -> None:
        assert self._watch is not None
        if self._verdict is None and not self._looking:
            self._looking = True
            self._look(self._watch, self._app.now())
        self._draw()

    def _look(self, watch: Recovery, now: float) -> None:
        elapsed_s = now - watch.began
        in_thread(self, lambda: rollback.read_health(watch.source, watch.release, elapsed_s, now), self._have)

    def _have(self, seen: Health) -> None:
        self._looking = False
        if self._watch is not None and self._verdict is None:
            self._watch = self._watch.taking(seen)
            self._verdict = self._watch.verdict(self._app.now())
            self._draw()

    def _draw(self) -> None:
        watch, sign = self._watch, self._app.symbols
        if watch is None or len(self.query("#count, #keys")) < 2:
            return  # not composed yet, or being taken down
        left = watch.left_s(self._app.now())
        done = 1.0 - left / rollback.WATCH_S
        end = "over" if self._verdict else f"{left:.0f} s left"
        self.query_one("#count", Static).update(
            f"HEALTH WATCH of {watch.release or 'the release before'} on {watch.source.name}\n{sign.bar(done, BAR)}  {end}"
        )
        self.query_one("#figures", Static).update(Text("\n".join(watch.figures())))
        line = self.query_one("#verdict", Static)
        if self._verdict is not None:
            mark = {"HEALTHY": sign.ok, "NOT PROVEN": sign.lost}.get(self._verdict.word, sign.failed)
            line.set_class(self._verdict.word == "HEALTHY", "well").set_class(
                self._verdict.word == "STILL BAD", "bad"
            )
            line.update(Text(f"{mark} {self._verdict.words}"))
        else:
            so_far = watch.trouble()
            line.update(Text(f"So far: {so_far.why if so_far else 'no problem found'}"))
        self.query_one("#keys", Static).update(
            "enter or esc closes this window"
            if self._verdict
            else "esc ends the health watch early; the release stays in use"
        )

    def action_leave_at_end(self) -> None:
        """Close it, once the verdict is there."""
        if self._verdict is not None:
            self.action_leave()

    def action_leave(self) -> None:
        """Close it; a watch that was left proves nothing, and says so."""
        if self._verdict is not None:
            self.dismiss(self._verdict.words)
        elif self._watch is not None:
            gone = span(rollback.WATCH_S - self._watch.left_s(self._app.now()))
            self.dismiss(f"NOT PROVEN: the health watch of {self._release} was ended after {gone}.")
