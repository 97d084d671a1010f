"""The incident screen: which there are, and of one what happened, since when, the evidence, what changed, what to do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import OptionList, Static

from edgekit.app.screens import incident_parts as parts
from edgekit.app.screens.chart import Chart
from edgekit.app.screens.incident_changes import Changing
from edgekit.app.screens.threads import in_thread
from edgekit.app.views.evidence import Plot
from edgekit.app.views.incident import is_over
from edgekit.app.views.incident_reader import Found, Reader, Wanted
from edgekit.field.fleet.device import Device
from edgekit.field.fleet.incidents import WholeIncident


class IncidentScreen(Changing):
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
    IncidentScreen #list { height: 1fr; border: none; padding: 0 1; background: transparent; }
    IncidentScreen #list:focus { border: none; }
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
        self._everything = False
        self._then = ""
        self._said = ""
        self._reader = Reader()
        self._reading: Wanted | None = None
        self._plot: Plot | None = None
        self._mode: tuple[bool, ...] = ()

    # What is shown

    @property
    def chosen(self) -> int | None:
        """The incident that is shown, or the one under the cursor."""
        listed = self.query_one("#list", parts.Lines).chosen
        return self.number if self.number is not None else int(listed) if listed else None

    @property
    def wanted(self) -> Wanted:
        """What is to be read."""
        return Wanted(self.device, self.number, self._everything)

    def compose_view(self) -> ComposeResult:
        """The list, one incident, and beside it its timeline."""
        with Horizontal():
            with Vertical(id="main"):
                yield Static(id="said", markup=False)
                yield Static(id="empty", markup=False)
                yield parts.Lines(id="list")
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
        """Whoever leaves no longer asks for what was to follow."""
        self._then = ""

    def show(
        self, number: int | None = None, device: Device | None = None, then: str = "", **what: Any
    ) -> None:
        """Turn to an incident of a device, this one by default; the action `then` follows once it is there."""
        self._turn(number, device)
        self._then = then
        self._look()

    def document(self) -> Any:
        """The incident, or the list, as JSON."""
        if self.found is None:
            return None
        if self.found.shown is not None:
            return self.found.shown.document
        return {"device": self.device.called, "incidents": [asdict(one) for one in self.found.incidents]}

    def _turn(self, number: int | None, other: Device | None) -> None:
        if (number, other) == self.subject:
            return
        self.number, self.other, self.found, self._said, self._then = number, other, None, "", ""
        if self.is_mounted:
            self.query_one("#one", VerticalScroll).scroll_home(animate=False)
            self._draw()

    # Looking

    def _look(self) -> None:
        wanted = self.wanted
        if self.is_mounted and wanted != self._reading:
            self._reading = wanted
            now = self.edgekit.now()
            in_thread(self, lambda: self._reader.read(wanted, now), lambda found: self._have(wanted, found))

    def _have(self, wanted: Wanted, found: Found) -> None:
        if wanted == self._reading:
            self._reading = None
        if wanted != self.wanted:
            self._look()  # another one was asked for meanwhile
            return
        self.found = found
        self._draw()
        then, self._then = self._then, ""
        if then:
            getattr(self, f"action_{then}")()

    def again(self) -> None:
        """What is known is old."""
        self._reader.forget()
        self._look()

    def say(self, words: str) -> None:
        """Show a sentence that stays until the next one."""
        self._said = words
        self._draw()

    # Drawing

    def _draw(self) -> None:
        if not self.query("#beside"):
            return  # not composed yet, or being taken down
        found, now = self.found, self.edgekit.now()
        shown = found.shown if found else None
        self.shell_command = "" if self.device.url else parts.shell_command(self.wanted)
        self.title_text = parts.title(self.wanted, shown)
        listed = self.number is None and found is not None and bool(found.incidents)
        said = parts.said(found, self._said)
        empty = "" if shown or listed else parts.empty(found, self.wanted)
        for name, words in (("said", said), ("empty", empty)):
            self._put(name, Text(words))
            self.query_one(f"#{name}").display = bool(words)
        self.query_one("#one").display = shown is not None
        # a style of its own would be above the width's
        self.query_one("#side").set_class(shown is None, "gone")
        self.query_one("#list").display = listed
        if found is not None and shown is not None:
            self._draw_one(shown, found.plot, now)
        elif found is not None and listed:
            lines = self.query_one("#list", parts.Lines)
            lines.fill({str(one.id): parts.row(one, now) for one in found.incidents})
            lines.highlighted = lines.highlighted or 0
        self._settle_focus()
        if (mode := (self.number is None, listed, shown is None)) != self._mode:
            self._mode = mode
            self.refresh_bindings()

    def offers(self, action: str) -> bool:
        """Keys are there where they do something."""
        one = self.number is not None
        subject = self.found is not None and (self.found.shown is not None or bool(self.found.incidents))
        if action in ("acknowledge", "silence", "close"):
            return subject
        return {"everything": not one, "open": not one and subject, "steps": one and subject}.get(
            action, True
        )

    def _draw_one(self, shown: WholeIncident, plot: Plot | None, now: float) -> None:
        short = self.has_class("-short")
        timeline = parts.timeline(shown, plot, now)
        texts = {
            "state": parts.state(shown.incident, now),
            "what": parts.what(shown.incident, now, short=short),
            "facts": parts.facts(shown, now, short=short),
            "caption": parts.caption(plot, now),
            "changes": parts.changes(shown, now),
            "timeline": timeline,
            "beside": timeline,
        }
        for name, text in texts.items():
            self._put(name, text)
        colour = "over" if is_over(shown.incident) else shown.incident.severity
        self.query_one("#state").set_classes(colour)
        chart = self.query_one("#plot", Chart)
        chart.display = bool(plot and (plot.xs or plot.earlier))
        if chart.display and plot is not None and self._plot != plot:
            self._plot = plot
            parts.draw(chart, plot, now)
        steps = self.query_one(parts.Steps)
        wide = self.has_class("-wide")
        if steps.fill({str(n): parts.step(n, step, wide=wide) for n, step in enumerate(shown.steps, 1)}):
            self._lay_out(steps)

    def _put(self, name: str, text: Text) -> None:
        if self.put(name, text):
            self._lay_out(self.query_one(f"#{name}"))

    def _lay_out(self, widget: Widget) -> None:
        """Give a widget its height once more: two updates before it was ever laid out leave it that of the first."""
        self.call_after_refresh(widget.refresh, layout=True)

    def _settle_focus(self) -> None:
        """Keys scroll or choose in what is shown; a focus that a person moved inside it stays."""
        if self.focused is None or not self.focused.is_on_screen or not self.focused.display:
            target = self.query_one("#list" if self.number is None else "#one")
            if target.display:
                target.focus(scroll_visible=False)

    def on_resize(self, event: Resize) -> None:
        """Columns and steps are as wide as there is room."""
        self.call_after_refresh(self._draw)

    # Going about

    @on(OptionList.OptionSelected, "#list")
    def action_open(self) -> None:
        """Open the incident under the cursor."""
        if self.number is None and self.chosen is not None:
            self._turn(self.chosen, self.other)
            self._look()

    async def action_to_list(self) -> None:
        """From one incident to the list, from the list to the screen before."""
        if self.number is None:
            await self.app.run_action("app.back")
            return
        self._turn(None, self.other)
        self._look()

    def action_everything(self) -> None:
        """Those that are over too, or only those under way."""
        self._everything = not self._everything
        self._look()

    def action_steps(self) -> None:
        """To the next steps."""
        self.query_one(parts.Steps).focus()

    @on(OptionList.OptionSelected, "#steps")
    def _step(self, event: OptionList.OptionSelected) -> None:
        steps = self.found.shown.steps if self.found and self.found.shown else ()
        if event.option_index >= len(steps):
            return
        step = steps[event.option_index]
        if not step.command:
            self.say(f"{event.option_index + 1}. {step.text}: there is no command for this, do it by hand.")
            return
        self.app.copy_to_clipboard(step.command)
        self.say(f"$ {step.command}")
        self.shell_command = step.command
