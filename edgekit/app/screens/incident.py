"""The incident screen: which there are, and of one what happened, since when, the evidence, what changed, what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import DataTable, OptionList, Static

from edgekit.app.screens import incident_parts as parts
from edgekit.app.screens.chart import Chart
from edgekit.app.screens.dialogs import Ask
from edgekit.app.screens.rollback import RollingBack
from edgekit.app.screens.threads import in_thread
from edgekit.app.views.command import Outcome, who
from edgekit.app.views.devices import Device
from edgekit.app.views.incident import Source, is_over, label
from edgekit.app.views.incident_reader import Found, Reader, Wanted
from edgekit.app.views.symbols import Symbols
from edgekit.base.clock import seconds
from edgekit.base.errors import EdgekitError
from edgekit.field.incidents.incidents import Incident


class IncidentScreen(RollingBack):
    """The incidents of a device, or one of them."""

    NAME = "incident"
    VERTICAL_BREAKPOINTS = [(0, "-short"), (36, "-tall")]  # noqa: RUF012 (Textual's own form)
    DEFAULT_CSS = """
    IncidentScreen #said { display: none; padding: 0 1; color: $text-warning; text-style: bold; }
    IncidentScreen #main { width: 1fr; }
    IncidentScreen #side { width: 38%; max-width: 70; border-left: solid $panel-lighten-2; padding: 0 1; }
    IncidentScreen #side.gone, IncidentScreen.-narrow #side { display: none; }
    IncidentScreen.-wide #timeline { display: none; }
    IncidentScreen #empty { padding: 1 1; }
    IncidentScreen #list { height: 1fr; }
    IncidentScreen #one > Static { padding: 0 1; }
    IncidentScreen #state { text-style: bold; }
    IncidentScreen #state.critical { color: $text-error; }
    IncidentScreen #state.warning { color: $text-warning; }
    IncidentScreen #state.over { color: $text-muted; }
    IncidentScreen #facts, IncidentScreen #caption { color: $text-muted; }
    IncidentScreen Chart { height: 6; padding: 0 1; }
    IncidentScreen.-tall Chart { height: 14; }
    IncidentScreen.-tall #one > .part { margin-top: 1; }
    IncidentScreen Steps { height: auto; max-height: 100; border: none; padding: 0 1; background: transparent; }
    IncidentScreen Steps:focus { border: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "acknowledge", "Ack", id="acknowledge", tooltip="Acknowledge: record that you work on this incident"),
        Binding("z", "silence", "Silence", id="silence", tooltip="Send no notifications about this incident for some time"),
        Binding("c", "close", "Close", id="close", tooltip="Close this incident"),
        Binding("R", "roll_back", "Roll back", id="roll-back", tooltip="Roll back to the previous release"),
        Binding("n", "steps", "Next steps", id="steps", tooltip="Go to the next steps; 1 to 9 copies a command"),
        Binding("A", "everything", "All", id="everything", tooltip="Include resolved incidents, or show only open ones"),
        Binding("enter", "open", "Open", id="open", tooltip="Open the incident", show=False),
        Binding("escape", "to_list", "Back", id="to-list", tooltip="Back to the list of incidents or the previous screen"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._device: Device | None = None
        self._number: int | None = None
        self._everything = False
        self._roll_back_next = False
        self._said = ""
        self._found: Found | None = None
        self._reader = Reader()
        self._drawn: dict[str, Any] = {}
        self._reading: Wanted | None = None

    # What is shown

    @property
    def source(self) -> Source:
        """Where the incidents are read."""
        return Source(self.edgekit.settings.state, self._device)

    @property
    def subject(self) -> object:
        """The incident, or the list, of its device."""
        return self._number, self._device

    def compose_view(self) -> ComposeResult:
        """The list, one incident, and beside it its timeline."""
        with Horizontal():
            with Vertical(id="main"):
                yield Static(id="said", markup=False)
                yield Static(id="empty", markup=False)
                yield parts.Listed(id="list")
                with VerticalScroll(id="one"):
                    yield Static(id="state")
                    yield Static(id="what")
                    yield Static(id="caption", classes="part")
                    yield Chart(id="plot")
                    yield Static(id="changes", classes="part")
                    yield Static("[b]Next steps[/b]  (n, then its number, copies a command)", classes="part")
                    yield parts.Steps(id="steps")
                    yield Static(id="facts", classes="part")
                    yield Static(id="timeline", classes="part")
            with VerticalScroll(id="side", can_focus=False):
                yield Static(id="beside")

    def on_mount(self) -> None:
        """Begin to look."""
        self._draw()
        self.every(self._look)

    def on_screen_resume(self) -> None:
        """Look at once."""
        self._look()

    def on_screen_suspend(self) -> None:
        """Whoever leaves no longer asks for the way back."""
        self._roll_back_next = False

    def show(
        self, number: int | None = None, device: Device | None = None, rollback: bool = False, **what: Any
    ) -> None:
        """Turn to an incident of a device, this one by default; with `rollback` the way back is asked for at once."""
        self._turn(number, device)
        self._roll_back_next = rollback
        self._look()

    def document(self) -> Any:
        """The incident, or the list, as JSON."""
        if self._found is None:
            return None
        if self._found.shown is not None:
            return self._found.shown.document
        return {
            "device": self.source.name,
            "incidents": [asdict(incident) for incident in self._found.incidents],
        }

    def _turn(self, number: int | None, device: Device | None) -> None:
        if (number, device) == self.subject:
            return
        self._number, self._device, self._found, self._said = number, device, None, ""
        self._roll_back_next = False
        if self.is_mounted:
            self.query_one("#one", VerticalScroll).scroll_home(animate=False)
            self._draw()

    # Looking

    def _look(self) -> None:
        wanted = Wanted(self.source, self._number, self._everything)
        if self.is_mounted and wanted != self._reading:
            self._reading = wanted
            now = self.edgekit.now()
            in_thread(self, lambda: self._reader.read(wanted, now), lambda found: self._have(wanted, found))

    def _have(self, wanted: Wanted, found: Found) -> None:
        if wanted == self._reading:
            self._reading = None
        if wanted != Wanted(self.source, self._number, self._everything):
            self._look()  # another one was asked for meanwhile
            return
        self._found = found
        self._draw()
        if self._roll_back_next:
            self._roll_back_next = False
            self.action_roll_back()

    def _again(self) -> None:
        """Something was changed: what is known is old."""
        self._reader.forget()
        self._look()

    # Drawing

    def _draw(self) -> None:
        if len(self.query("#said, #beside")) < 2:
            return  # not composed yet, or being taken down
        found, source, now, sign = self._found, self.source, self.edgekit.now(), self.edgekit.symbols
        number = self._number
        shown = found.shown if found else None
        self.shell_command = "" if source.by_url else parts.shell_command(source, number, self._everything)
        self.title_text = parts.title(source, number, shown, self._everything)
        words = parts.said(found, self._said)
        self._put("said", Text(words))
        self.query_one("#said").display = bool(words)
        listed = number is None and found is not None and bool(found.incidents)
        self.query_one("#one").display = shown is not None
        self.query_one("#side").set_class(
            shown is None, "gone"
        )  # a style of its own would be above the width's
        self.query_one("#list").display = listed
        empty = parts.empty(found, source, self._everything) if shown is None and not listed else ""
        self.query_one("#empty").display = bool(empty)
        self._put("empty", Text(empty))
        if shown is not None and found is not None:
            self._draw_one(found, now, sign)
        elif listed and found is not None:
            self.query_one(parts.Listed).fill(found.incidents, now, sign, self.size.width)
        self._settle_focus()
        if (mode := (number is None, listed, shown is None)) != self._drawn.get("mode"):
            self._drawn["mode"] = mode
            self.refresh_bindings()

    def offers(self, action: str) -> bool:
        """Keys are there where they do something."""
        one = self._number is not None
        subject = self._found is not None and (self._found.shown is not None or bool(self._found.incidents))
        if action in ("acknowledge", "silence", "close"):
            return subject
        return {"everything": not one, "open": not one and subject, "steps": one and subject}.get(
            action, True
        )

    def _draw_one(self, found: Found, now: float, sign: Symbols) -> None:
        shown, plot = found.shown, found.plot
        assert shown is not None
        short = self.has_class("-short")
        self._put("state", parts.state(shown.incident, now, sign))
        line = self.query_one("#state")
        for name in ("critical", "warning", "over"):
            line.set_class(name == ("over" if is_over(shown.incident) else shown.incident.severity), name)
        self._put("what", parts.what(shown.incident, now, short=short))
        self._put("facts", parts.facts(shown, now, short=short))
        self._put("caption", parts.caption(plot, now, sign))
        chart = self.query_one("#plot", Chart)
        chart.display = bool(plot and (plot.xs or plot.earlier))
        if chart.display and plot is not None and self._drawn.get("plot") != plot:
            self._drawn["plot"] = plot
            parts.draw(chart, plot, now, sign)
        self._put("changes", parts.changes(shown, now))
        steps = self.query_one(parts.Steps)
        if steps.fill(shown.steps, wide=self.has_class("-wide")):
            self._lay_out(steps)
        timeline = parts.timeline(shown, plot, now)
        self._put("timeline", timeline)
        self._put("beside", timeline)

    def _put(self, name: str, what: Text) -> None:
        before: Text | None = self._drawn.get(name)
        if before == what:
            return
        self._drawn[name] = what
        line = self.query_one(f"#{name}", Static)
        line.update(what)
        if before is None or len(before) != len(what):
            self._lay_out(line)

    def _lay_out(self, widget: Widget) -> None:
        """Give a widget its height once more: two updates before it was ever laid out leave it that of the first."""
        self.call_after_refresh(widget.refresh, layout=True)

    def _settle_focus(self) -> None:
        """Keys scroll or choose in what is shown; a focus that a person moved inside it stays."""
        if self.focused is None or not self.focused.is_on_screen or not self.focused.display:
            place = "#one" if self._number is not None else "#list"
            if (target := self.query_one(place)).display:
                target.focus(scroll_visible=False)

    def on_resize(self, event: Resize) -> None:
        """Columns and steps are as wide as there is room."""
        self.call_after_refresh(self._draw)

    # Going about

    @on(DataTable.RowSelected)
    def _chosen(self, event: DataTable.RowSelected) -> None:
        self._turn(int(str(event.row_key.value)), self._device)
        self._look()

    def action_open(self) -> None:
        """Open the incident under the cursor."""
        if self._number is None and (number := self.query_one(parts.Listed).number) is not None:
            self._turn(number, self._device)
            self._look()

    async def action_to_list(self) -> None:
        """From one incident to the list, from the list to the screen before."""
        if self._number is None:
            await self.app.run_action("app.back")
            return
        self._turn(None, self._device)
        self._look()

    def action_everything(self) -> None:
        """Those that are over too, or only those under way."""
        self._everything = not self._everything
        self._look()

    def action_steps(self) -> None:
        """To the next steps."""
        steps = self.query_one(parts.Steps)
        if self._found is not None and self._found.shown is not None:
            steps.focus()

    @on(OptionList.OptionSelected)
    def _step(self, event: OptionList.OptionSelected) -> None:
        steps = self._found.shown.steps if self._found and self._found.shown else ()
        if event.option_index >= len(steps):
            return
        step = steps[event.option_index]
        if not step.command:
            self.say(f"{event.option_index + 1}. {step.text}: there is no command for this, do it by hand.")
            return
        self.app.copy_to_clipboard(step.command)
        self.say(f"$ {step.command}")
        self.shell_command = step.command

    # Changing

    def _subject(self) -> Incident | None:
        """The incident that a key is about: the one shown, or the one under the cursor."""
        if self.source.by_url:
            self.say("A device that is read by URL is changed on the device or over SSH.")
            return None
        found, number = (
            self._found,
            self._number if self._number is not None else self.query_one(parts.Listed).number,
        )
        incidents = (
            *(found.incidents if found else ()),
            *((found.shown.incident,) if found and found.shown else ()),
        )
        incident: Incident | None = next((one for one in incidents if one.id == number), None)
        if incident is None:
            self.say("No incident is selected.")
        elif is_over(incident):
            self.say(f"Incident {incident.id} is already resolved; nothing changed.")
        elif not self.edgekit.may_change():
            return None
        else:
            return incident
        return None

    def action_acknowledge(self) -> None:
        """Say that you work on it."""
        if incident := self._subject():
            self._why(
                f"Acknowledge incident {incident.id}: what are you doing about it?",
                lambda why: self._change("ack", incident, why),
            )

    def action_close(self) -> None:
        """End it by hand."""
        if incident := self._subject():
            text = (
                f"Close incident {incident.id}. If its rule still applies, a new incident is opened. Reason?"
            )
            self._why(text, lambda why: self._change("close", incident, why))

    def action_silence(self) -> None:
        """Tell nobody for a time."""
        incident = self._subject()
        if incident is None:
            return

        def timed(length: str | None) -> None:
            if length is None:
                return
            try:
                seconds(length or "1h")
            except EdgekitError as error:
                self.complain(error)
                return
            what = f"Silence incident {incident.id} for {length or '1h'}: why?"
            self._why(what, lambda why: self._change("silence", incident, why, "--for", length or "1h"))

        text = f"Silence incident {incident.id} for how long? For example 30m, 1h or 1d."
        self.app.push_screen(Ask(text, "1h", "1h"), timed)

    def _why(self, text: str, then: Callable[[str], None]) -> None:
        def answered(why: str | None) -> None:
            if why is None:
                return
            if not why:
                self.say("Every change needs a reason for the audit log; nothing changed.")
                return
            then(why)

        self.app.push_screen(Ask(text, "reason, for the audit log"), answered)

    def _change(self, verb: str, incident: Incident, why: str, *more: str) -> None:
        command = self.source.command(
            "incident", verb, str(incident.id), "--why", why, *more, *who(self.source.host)
        )
        self.edgekit.act(command, self.changed)

    def reason(self) -> str:
        """The incident, as the reason of a rollback."""
        shown = self._found.shown if self._found else None
        return f"incident {shown.incident.id}: {label(shown.incident).lower()}" if shown else ""

    def changed(self, outcome: Outcome) -> None:
        """A command has ended: say what failed, and look anew."""
        self.say("" if outcome.code == 0 else f"{outcome.message} {outcome.hint}".strip())
        self._again()

    def say(self, words: str) -> None:
        """Show a sentence that stays until the next one."""
        self._said = words
        self._draw()
