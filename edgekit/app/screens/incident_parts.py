"""The parts of the incident screen as text and plot, and the list of next steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from edgekit.app.screens.chart import Chart
from edgekit.app.screens.chart import Series as Line
from edgekit.app.views.evidence import Plot, figures, rule_words
from edgekit.app.views.incident import duration, is_over, label, length, state_words
from edgekit.app.views.incident_reader import Found, Wanted
from edgekit.app.views.symbols import Symbols
from edgekit.base.clock import clock, span
from edgekit.field.fleet.incidents import WholeIncident
from edgekit.field.incidents.incidents import Incident
from edgekit.field.incidents.runbook import Step

TICKS = 5
AGED_S = 120.0
LONG = 150  # a sentence of more than two lines
MARKER = "|"  # of the moment at which it was told


def shell_command(wanted: Wanted) -> str:
    """The shell command that shows the same."""
    if wanted.number is not None:
        return wanted.device.command("incident", "show", str(wanted.number)).text
    return wanted.device.command("incident", "list", *(("--all",) if wanted.everything else ())).text


def title(wanted: Wanted, shown: WholeIncident | None) -> str:
    """What is shown, and of which device."""
    device = wanted.device.called
    if wanted.number is not None:
        return f"INCIDENT {wanted.number}{f'  {label(shown.incident)}' if shown else ''}  on {device}"
    return f"INCIDENTS of {device}, {'including resolved' if wanted.everything else 'open'}, worst first"


def said(found: Found | None, words: str) -> str:
    """What went wrong or was done last, and what is wrong with the records."""
    told = [words] if words else []
    if found is not None:
        told += [f"{found.trouble} {found.hint}".strip()] if found.trouble else []
        told += [found.shown.warning] if found.shown and found.shown.warning else []
        told += [found.note] if found.note and found.incidents else []
    return "\n".join(told)


def empty(found: Found | None, wanted: Wanted) -> str:
    """What to say where there is nothing to list."""
    if found is None:
        return f"Reading the incidents of {wanted.device.called}..."
    if found.trouble or wanted.device.url:
        return found.note
    everything = "No incidents recorded."
    none = everything if wanted.everything else "No open incidents. Press A to show resolved ones."
    return f"{none}\n{found.note}".strip()


def row(incident: Incident, now: float) -> Text:
    """An incident in the list."""
    words = (_severity(incident), state_words(incident, now), length(incident, now))
    first = f"{incident.id}  {'  '.join(words)}\n"
    return Text.assemble(first, (f"{label(incident)}: ", "bold"), incident.what)


def state(incident: Incident, now: float) -> Text:
    """Mark, severity, state, since when and for how long, and of which release."""
    words = (
        _severity(incident),
        state_words(incident, now),
        duration(incident, now),
        f"release {incident.release}" if incident.release else "a model file without a manifest",
    )
    return Text("  ".join(words))


def what(incident: Incident, now: float, *, short: bool) -> Text:
    """What happened, as of when it was told; on a `short` terminal the first part of a long sentence."""
    first, *more = incident.what.split("; ")
    words = incident.what
    if short and more and len(incident.what) > LONG:
        words = f"{first}; and {len(more)} more, in full below."
    aged = now - incident.opened > AGED_S  # its figures are those of that time, and not of now
    return Text(f"Opened {clock(incident.opened, now)}: {words}" if aged else words)


def facts(shown: WholeIncident, now: float, *, short: bool) -> Text:
    """The whole sentence where it was shortened, the rule, when it was told, and what it means."""
    told = Text()
    if short and len(shown.incident.what) > LONG:
        told += Text(f"{shown.incident.what}\n")
    told += Text(f"Rule: {rule_words(shown)}; opened {clock(shown.incident.opened, now)}.\n")
    return told + Text(shown.meaning)


def caption(plot: Plot | None, now: float) -> Text:
    """What the plot shows and its signs mean; or the figures in words."""
    if plot is None:
        return Text("")
    if not plot.xs and not plot.earlier:
        return Text(
            "\n".join(
                ["Evidence", *(f"  {line}" for line in plot.figures), *([plot.note] if plot.note else [])]
            )
        )
    told = [f"{plot.name}, {plot.unit}" + ("" if plot.step_s == 60 else f", each {span(plot.step_s)}")]
    if plot.ys:
        told.append(f"last {plot.ys[-1]:.4g}")
    if plot.line is not None:
        told.append(f"{Symbols.line}{Symbols.line} {plot.line_name} {plot.line:.4g}")
    told.append(f"{MARKER} opened {clock(plot.opened, now)}")
    if plot.earlier:
        told.append("o previous release")
    return Text("   ".join(told))


def draw(chart: Chart, plot: Plot, now: float) -> None:
    """Draw the plot: its line, what answered before, the limit, and when it was told."""
    xs, ys = list(plot.xs), list(plot.ys)
    before = [y for _, y in plot.earlier]
    times = [*xs, *(x for x, _ in plot.earlier), plot.opened]
    heights = [*ys, *before, *([] if plot.line is None else [plot.line])]
    low, high = min(heights), max(heights)
    if low == high:
        low, high = low - max(1.0, abs(low)) / 10, high + max(1.0, abs(high)) / 10
    steps = max(2, chart.size.height or 6)
    lines = [Line("", xs, ys, "line" if len(xs) > 2 else "scatter", "*" if len(xs) <= 2 else "")]
    if plot.earlier:
        lines.append(Line("", [x for x, _ in plot.earlier], before, "scatter", "o"))
    told = [low + (high - low) * step / (steps - 1) for step in range(steps)]
    lines.append(Line("", [plot.opened] * steps, told, "scatter", MARKER))
    first, last = min(times), max(max(times), min(times) + plot.step_s)
    if plot.line is not None:  # a series of its own: a line across takes the colour of the theme before
        lines.append(Line("", [first, last], [plot.line] * 2, "line", Symbols.line))
    chart.plt.frame(False)
    chart.draw(lines)
    chart.plt.xlim(first, last)
    chart.plt.ylim(low, high)
    every = 60 * max(1, math.ceil((last - first) / 60 / TICKS))
    ticks = [float(tick) for tick in range(math.ceil(first / 60) * 60, int(last) + 1, every)]
    chart.plt.xticks(ticks, [clock(tick, now)[-5:] for tick in ticks])
    chart.refresh()


def changes(shown: WholeIncident, now: float) -> Text:
    """The switches of releases in the day before, the newest last, the likely cause said in words."""
    told = Text.assemble(("Release changes in the day before", "bold"))
    for change in shown.changes:
        told += Text(f"\n {clock(change.time, now)}  {change.release} {change.what}")
        told += Text(f"  {change.who}: {change.why}".rstrip(": "), "dim")
        if change.mark:
            told += Text(f"  <- {change.mark}", "bold")
    if not shown.changes:
        told += Text("\n No release change. Check other causes: the requests, the load, the temperature.")
    return told


def timeline(shown: WholeIncident, plot: Plot | None, now: float) -> Text:
    """Who did what, when and why, and what was measured, where that does not stand in place of a plot."""
    told = Text.assemble(("Timeline", "bold"))
    for event in shown.timeline:
        told += Text(f"\n {clock(event.time, now)}  {event.what}")
        told += Text(f"  {event.who}{f': {event.why}' if event.why else ''}", "dim")
    told_already = plot is not None and plot.figures
    if not told_already and (measured := figures(shown, "").figures):
        told += Text.assemble("\n\n", ("Measured when it was opened", "bold"))
        told += Text("".join(f"\n {line}" for line in measured))
    return told


def step(number: int, todo: Step, *, wide: bool) -> Text:
    """One of the next steps, with its command where there is room."""
    told = Text(f"{number}  {todo.text}")
    if wide and todo.command:
        told += Text(f"\n   $ {todo.command}", "dim")
    return told


class Lines(OptionList):
    """Lines to choose from by their keys; the chosen one stays chosen while others come and go."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id, markup=False)

    @property
    def chosen(self) -> str | None:
        """The key of the line under the cursor."""
        return None if self.highlighted is None else self.get_option_at_index(self.highlighted).id

    def fill(self, lines: Mapping[str, Text]) -> bool:
        """Show `lines`; whether others than before. Only what differs is drawn."""
        shown = {option.id: option.prompt for option in self.options}
        if list(shown) == list(lines):
            for place, (key, line) in enumerate(lines.items()):
                if shown[key] != line:
                    self.replace_option_prompt_at_index(place, line)
            return shown != lines
        here = self.chosen
        self.set_options([Option(line, id=key) for key, line in lines.items()])
        places = {key: place for place, key in enumerate(lines)}
        self.highlighted = places.get(here or "")
        return True


class Steps(Lines):
    """The next steps, numbered; a number or enter copies the step's command."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(str(number), f"step({number})", f"Copy the command of step {number}", show=False)
        for number in range(1, 10)
    ]  # fmt: skip

    def action_step(self, number: int) -> None:
        """Take a step by its number."""
        if number <= self.option_count:
            self.highlighted = number - 1
            self.action_select()


def _severity(incident: Incident) -> str:
    mark = Symbols.of("RESOLVED" if is_over(incident) else incident.severity)
    return f"{mark} {incident.severity.upper()}"
