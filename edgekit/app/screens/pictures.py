"""The pictures beside the table of variants: size against drift, and drift by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.events import Resize
from textual.widgets import Static

from edgekit.app.screens.chart import Chart, Series
from edgekit.app.views import pictures as view
from edgekit.app.views.results import Line, Results
from edgekit.app.views.symbols import Symbols

NAMES = ("size and drift", "drift by stage")
ROOM_FOR_TWO = 40  # rows from which the drift by stage stands below the plot
ASIDE = 0.03  # of the plot's width, from a point to its name
STYLES = {"head": "bold", "failed": "bold red", "more": "dim", "fact": ""}


def styled(lines: Sequence[Line]) -> Text:
    """Lines with their kinds as styles; each kind is told by a sign or a word too."""
    said = Text()
    for kind, line in lines:
        said.append(f"{'  ' if kind == 'more' else ''}{line}\n", STYLES[kind])
    said.rstrip()
    return said


class PicturesPane(Vertical):
    """One picture at a time, with its figures in words below it."""

    DEFAULT_CSS = """
    PicturesPane #which { height: 1; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    PicturesPane #chart { height: 1fr; min-height: 7; max-height: 22; }
    PicturesPane #words { height: auto; max-height: 100%; padding: 0 1; }
    """

    def __init__(self, symbols: Symbols, **more: Any) -> None:
        super().__init__(**more)
        self._symbols = symbols
        self._results: Results | None = None
        self.picture = 0

    def compose(self) -> ComposeResult:
        """Which picture, the plot, and its figures."""
        yield Static(id="which", markup=False)
        yield Chart(id="chart")
        with VerticalScroll(id="words", can_focus=False):
            yield Static(id="told", markup=False)

    def put(self, results: Results) -> None:
        """Draw the pictures of these."""
        self._results = results
        self.draw()

    @property
    def best(self) -> set[str]:
        """The files that no other file beats in size and drift."""
        if self._results is None:
            return set()
        return {point.name for point in view.size_against_drift(self._results).points if point.best}

    @property
    def is_last(self) -> bool:
        """Whether no picture comes after this one."""
        return self.picture == len(NAMES) - 1

    def next_picture(self) -> None:
        """The next picture, the first after the last."""
        self.picture = (self.picture + 1) % len(NAMES)
        self.draw()

    def on_resize(self, event: Resize) -> None:
        """Lines are as long as there is room."""
        self.draw()

    def draw(self) -> None:
        """Draw the picture that is chosen."""
        if self._results is None:
            return
        which = Text()
        for at, name in enumerate(NAMES):
            here = at == self.picture
            which.append(f"[{name}] " if here else f" {name}  ", "bold" if here else "dim")
        which.append("v next", "dim")
        self.query_one("#which", Static).update(which)
        told = self.query_one("#told", Static)
        if self.picture == 0:
            found = view.size_against_drift(self._results)
            self._plot(found)
            lines = [("fact", line) for line in view.size_lines(found, self._symbols)]
            if self.size.height >= ROOM_FOR_TWO:
                lines += [("fact", ""), *self._waterfall()]
            told.update(styled(lines))
        else:
            self.query_one("#chart").display = False
            told.update(styled(self._waterfall()))

    def _waterfall(self) -> list[Line]:
        room = max(30, self.size.width - 4)
        return view.waterfall_lines(self._results, self._symbols, room) if self._results else []

    def _plot(self, found: view.SizeAgainstDrift) -> None:
        chart = self.query_one("#chart", Chart)
        chart.display = bool(found.points)
        if not found.points:
            return
        across, up = found.size_range, found.drift_range
        series, limit = [], "." if self._symbols.ascii else ""
        if found.drift_limit is not None:
            series.append(Series("", across, [found.drift_limit] * 2, mark=limit))
        if found.size_limit is not None:
            series.append(Series("", [found.size_limit] * 2, up, mark=limit))
        for point in found.points:
            sign = view.point_sign(point, self._symbols)
            series.append(Series("", [point.size], [point.drift], "scatter", sign))
        chart.draw(series, x_label="size, MiB", y_label="mean KLD, nats")
        chart.plt.xlim(*across)
        chart.plt.ylim(*up)
        for names, x, y in found.labels:
            left = x > sum(across) / 2
            aside = (-ASIDE if left else ASIDE) * (across[1] - across[0])
            chart.plt.text(names, x + aside, y, alignment="right" if left else "left")
