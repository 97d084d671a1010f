"""Monitor: every device in one table, worst first, with the worst in a sentence above it and its numbers over time below."""

from __future__ import annotations

import shlex
import textwrap
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.timer import Timer
from textual.widgets import DataTable, Static

from edgekit.app.screens.base import View
from edgekit.app.screens.dialogs import Ask
from edgekit.app.screens.monitor_charts import RowCharts
from edgekit.app.screens.monitor_table import FleetTable, state_style
from edgekit.app.screens.threads import in_thread
from edgekit.app.views import fleet_table as view
from edgekit.app.views.fleet_table import SORTS, Column
from edgekit.app.views.symbols import Symbols
from edgekit.base.clock import short, span
from edgekit.field.fleet.device import HERE, Device
from edgekit.field.fleet.fleet import Fleet, FleetView, key_of
from edgekit.field.status import ReleaseStatus

WINDOWS = (300.0, 900.0, 3600.0, 21600.0, 86400.0)
PACES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
UNSEEN_S = 5.0  # between two looks while another screen is shown, at least
BENEATH_S = 2.0  # between two looks while a question is open, at least
ALERT_LINES = 3


@dataclass(frozen=True)
class Drawn:
    """A glance made ready in a thread: the rows in their order and the text of each cell."""

    number: int  # of the look: an earlier one is not drawn over a later one
    fleet: FleetView
    rows: tuple[ReleaseStatus, ...]
    cells: tuple[tuple[str, ...], ...]
    columns: tuple[Column, ...]


class MonitorScreen(View):
    """One row for each release of a device."""

    NAME = "monitor"
    DEFAULT_CSS = """
    MonitorScreen #strip { height: 1; padding: 0 1; }
    MonitorScreen #alert { height: auto; max-height: 3; padding: 0 1; }
    MonitorScreen #why { height: auto; max-height: 3; padding: 0 1; color: $text-muted; }
    MonitorScreen #charts { display: none; height: 35%; min-height: 7; max-height: 14; }
    MonitorScreen.-wide.-charts #charts { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", id="monitor-filter", key_display="/", tooltip="Show only matching rows"),
        Binding("S", "sort", "Sort", id="monitor-sort", key_display="S", tooltip="Sort by the next column"),
        Binding("t", "window", "Window", id="monitor-window", tooltip="Time window: 5m, 15m, 1h, 6h or 1d"),
        Binding("enter", "incident", "Open", id="monitor-open", key_display="enter", tooltip="Open the worst incident of the row", priority=True),
        Binding("a", "incident('acknowledge')", "Ack", id="monitor-ack", tooltip="Acknowledge the worst incident of the row"),
        Binding("z", "incident('silence')", "Silence", id="monitor-silence", tooltip="Silence the worst incident of the row"),
        Binding("R", "incident('roll_back')", "Roll back", id="monitor-rollback", key_display="R", tooltip="Roll back to the previous release"),
        Binding("plus,equals_sign", "pace(-1)", "Refresh more often", id="monitor-faster", key_display="+", show=False),
        Binding("minus", "pace(1)", "Refresh less often", id="monitor-slower", key_display="-", show=False),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._timer: Timer | None = None
        self._every_s, self._window_s = 1.0, 900.0
        self._sort, self._filter = SORTS[0], ""
        self._drawn = Drawn(0, FleetView(0.0, 0.0), (), (), ())
        self._looks = self._ticks = 0
        self._picked = ""  # the row that the person went to; until then the first one stays chosen

    def compose_view(self) -> ComposeResult:
        """Counts, the worst in a sentence, the table, why the chosen row is as it is, and its charts."""
        settings = self.edgekit.settings
        self._every_s, self._window_s = max(PACES[0], settings.every_s), settings.window_s
        self._fleet = Fleet(
            settings.state,
            settings.devices,
            every_s=self._every_s,
            window_s=self._window_s,
            now=self.edgekit.now,
        )
        yield Static(id="strip", markup=False)
        yield Static(id="alert", markup=False)
        yield FleetTable(id="fleet", cursor_type="row", cell_padding=0, zebra_stripes=True)
        yield Static(id="why", markup=False)
        yield RowCharts(id="charts")

    def on_mount(self) -> None:
        """Begin to ask the devices."""
        self._fleet.start()
        self._set_timer()
        self._say()
        self.query_one(FleetTable).focus()

    def on_unmount(self) -> None:
        """Stop asking."""
        self._fleet.close()

    def on_screen_suspend(self) -> None:
        """Go on more slowly, so that the histories have no hole."""
        self._fleet.every_s = max(UNSEEN_S, self._every_s)

    def on_screen_resume(self) -> None:
        """Look at once."""
        self._fleet.every_s = self._every_s
        self._fleet.hurry()
        self._look()

    def on_resize(self, event: Resize) -> None:
        """Other columns fit."""
        self.call_after_refresh(self._look)

    def document(self) -> Any:
        """What is shown, as JSON."""
        return self._drawn.fleet.to_dict() if self._drawn.number else None

    @property
    def chosen(self) -> ReleaseStatus | None:
        """The row under the cursor."""
        rows = self._drawn.rows
        return next((row for row in rows if key_of(row) == self._picked), rows[0] if rows else None)

    def action_filter(self) -> None:
        """Ask for the words that rows must hold."""

        def answered(words: str | None) -> None:
            if words is not None:
                self._filter = words
                self._say()
                self._look()

        self.app.push_screen(
            Ask("Leave in the rows whose device, model, release, state or trouble holds:", "lost, line-3, @7f3a", self._filter),
            answered,
        )  # fmt: skip

    def action_sort(self) -> None:
        """Sort by the next column that is there."""
        there = {column.name for column in view.columns(self.size.width)} | {SORTS[0]}
        ways = [name for name in SORTS if name in there]
        place = ways.index(self._sort) if self._sort in ways else 0
        self._sort = ways[(place + 1) % len(ways)]
        self._say()
        self._look()

    def action_window(self) -> None:
        """The next window."""
        later = [window for window in WINDOWS if window > self._window_s]
        self._window_s = later[0] if later else WINDOWS[0]
        self._fleet.look_at(self._window_s)
        self._say()
        self._look()

    def action_pace(self, by: int) -> None:
        """Look more or less often."""
        place = min(range(len(PACES)), key=lambda n: abs(PACES[n] - self._every_s)) + by
        self._every_s = PACES[max(0, min(len(PACES) - 1, place))]
        self._fleet.every_s = self._every_s
        self._fleet.hurry()
        self._set_timer()
        self._say()

    @on(DataTable.RowSelected)
    def action_incident(self, then: str = "") -> None:
        """Show the worst incident of the chosen row, and ask there what the action `then` asks."""
        row = self.chosen
        if row is None:
            return
        if not row.incidents:
            self.notify(f"{row.device}: no incident is under way. {row.why}".strip(), markup=False)
            return
        device = self._device(row)
        other = None if device.is_here and device.state == self.edgekit.settings.state else device
        self.edgekit.go("incident", number=row.incidents[0].id, device=other, then=then)

    @on(FleetTable.Went)
    def _went(self, event: FleetTable.Went) -> None:
        self._picked = event.key
        self._tell()
        self._look()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_interval(self._every_s, self._tick)
        self.call_after_refresh(self._look)

    def _tick(self) -> None:
        self._ticks += 1
        beneath = self.app.screen is not self  # a question: each row beneath it is drawn twice
        if self.is_current and (not beneath or self._ticks % max(1, round(BENEATH_S / self._every_s)) == 0):
            self._look()

    def _look(self) -> None:
        if self.is_mounted:
            self._looks += 1
            asked = (self._looks, view.columns(self.size.width), self._sort, self._filter)
            in_thread(self, partial(self._view, *asked), self._draw)

    def _view(self, number: int, columns: tuple[Column, ...], sort: str, words: str) -> Drawn:
        """Prepare what is drawn; only the drawing is left to the app's thread."""
        found = self._fleet.view()
        rows = tuple(view.ordered(view.matching(found.rows, words, found.time), sort))
        cells = tuple(tuple(view.cells(row, columns, found.time)) for row in rows)
        return Drawn(number, found, rows, cells, columns)

    def _draw(self, drawn: Drawn) -> None:
        if not self.is_mounted or drawn.number < self._drawn.number:
            return
        self._drawn = drawn
        self._picked = self.query_one(FleetTable).show(drawn.rows, drawn.cells, drawn.columns, self._picked)
        self._draw_head(drawn)
        self._tell()
        self.set_class(bool(drawn.rows), "-charts")
        if "-wide" in self.classes:
            self.query_one(RowCharts).show(self.chosen, drawn.fleet.time, drawn.fleet.window_s)

    def _draw_head(self, drawn: Drawn) -> None:
        """How many there are in each state, and the worst in a sentence."""
        fleet = drawn.fleet
        whole = Text(no_wrap=True, overflow="ellipsis")
        for words, state in view.strip(fleet):
            whole.append(words, state_style(self.app, state, bold=True) if state else "")
            whole.append("   ")
        if len(drawn.rows) < len(fleet.rows):
            whole.append(f"{len(drawn.rows)} of {len(fleet.rows)} rows left in by the filter", "italic")
        self.put("strip", whole)
        worst = fleet.worst
        mark = f"{Symbols.of(worst.state)} {worst.state}  " if worst else ""
        told = _fitted(f"{mark}{fleet.alert}", self.size.width - 2)
        self.put("alert", Text(told, style=state_style(self.app, worst.state) if worst else ""))

    def _tell(self) -> None:
        """Why the chosen row is as it is, and the shell's line for it."""
        row = self.chosen
        self.put("why", Text(_about(row, told=row is self._drawn.fleet.worst) if row else ""))
        self.shell_command = self._shell_command(row)

    def _say(self) -> None:
        words = [
            f"refresh {span(self._every_s)}",
            f"window {short(self._window_s)}",
            f"sort {self._sort}",
        ]
        if self._filter:
            words.append(f"filter '{self._filter}'")
        self.title_text = "   ".join(words)

    def _device(self, row: ReleaseStatus | None) -> Device:
        return self._fleet.device(row.device) if row else Device(HERE, state=self.edgekit.settings.state)

    def _shell_command(self, row: ReleaseStatus | None) -> str:
        device = self._device(row)
        if device.url:
            token = ' -H "authorization: Bearer $EDGEKIT_TOKEN"' if device.token else ""
            address = f"{device.url}{'&' if '?' in device.url else '?'}window={self._window_s:.0f}"
            return f"curl {shlex.quote(address)}{token}"
        return device.command("monitor", "--once", "--window", short(self._window_s)).text


def _fitted(told: str, width: int) -> str:
    """A sentence in the lines that there are; half a command is of no use, and what is left out is seen to be."""
    if len(textwrap.wrap(told, width)) > ALERT_LINES and ": edgekit " in told:
        told = f"{told.partition(': edgekit ')[0]}. Press enter."
    lines = textwrap.wrap(told, width, max_lines=ALERT_LINES, placeholder=f" {Symbols.ellipsis}")
    return "\n".join(lines)


def _about(row: ReleaseStatus, *, told: bool) -> str:
    """A row in a few words: what is wrong and what to do, unless that is `told` above the table, and its counts."""
    parts = [f"{row.device}: {row.why.rstrip('.')}."] if row.why and not told else [f"{row.device}:"]
    if row.hint and not told:
        parts.append(f"Next: {row.hint.rstrip('.')}.")
    if len(row.incidents) > 1:
        parts.append(f"{len(row.incidents)} incidents are under way.")
    if told or not row.why:
        many = f"{row.requests} request{'' if row.requests == 1 else 's'}"
        alarms = f"{row.drift} drift alarm{'' if row.drift == 1 else 's'}"
        parts.append(f"{many} in the window, {row.errors} failed, {alarms}.")
    return " ".join(parts)
