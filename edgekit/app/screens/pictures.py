"""The pictures beside the table of variants: Pareto plot, drift by stage, reliability diagram."""

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
from edgekit.proof.calibration import Bin

NAMES = ("Pareto", "drift", "reliability")
ROOM_FOR_TWO = 40  # rows from which the drift stands below the Pareto plot
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
        self.picture, self.x, self.y = 0, 0, 0

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
    def front(self) -> set[str]:
        """The variants on the Pareto front by the axes chosen."""
        if self._results is None:
            return set()
        return {point.name for point in view.pareto(self._results, self.x, self.y).points if point.front}

    @property
    def is_last(self) -> bool:
        """Whether no picture comes after this one."""
        return self.picture == len(NAMES) - 1

    def next_picture(self) -> None:
        """The next picture, the first after the last."""
        self.picture = (self.picture + 1) % len(NAMES)
        self.draw()

    def turn_axis(self, *, x: int = 0, y: int = 0) -> None:
        """Other measures across or up; shows the Pareto plot."""
        self.picture = 0
        self.x, self.y = (self.x + x) % len(view.X_AXES), (self.y + y) % len(view.Y_AXES)
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
        which.append("v next" if self.picture else "x k axes  v next", "dim")
        self.query_one("#which", Static).update(which)
        told = self.query_one("#told", Static)
        if self.picture == 0:
            found = view.pareto(self._results, self.x, self.y)
            self._plot_pareto(found)
            lines = [("fact", line) for line in view.pareto_lines(found, self._symbols)]
            if self.size.height >= ROOM_FOR_TWO:
                lines += [("fact", ""), *self._waterfall()]
            told.update(styled(lines))
        elif self.picture == 1:
            self.query_one("#chart").display = False
            told.update(styled(self._waterfall()))
        else:
            sure = view.reliability(self._results)
            self._plot_reliability(sure)
            told.update("\n".join(view.reliability_lines(sure)))

    def _waterfall(self) -> list[Line]:
        room = max(30, self.size.width - 4)
        return view.waterfall_lines(self._results, self._symbols, room) if self._results else []

    def _plot_pareto(self, found: view.Pareto) -> None:
        chart = self.query_one("#chart", Chart)
        chart.display = bool(found.points)
        if not found.points:
            return
        x_ends, y_ends = found.x_ends, found.y_ends
        series, limit = [], "." if self._symbols.ascii else ""
        if found.y_limit is not None:
            series.append(Series("", x_ends, [found.y_limit] * 2, mark=limit))
        if found.x_limit is not None:
            series.append(Series("", [found.x_limit] * 2, y_ends, mark=limit))
        for point in found.points:
            sign = view.point_sign(point, self._symbols)
            series.append(Series("", [point.x], [point.y], "scatter", sign))
        chart.draw(series, x_label=found.x.label, y_label=found.y.label)
        chart.plt.xlim(*x_ends)
        chart.plt.ylim(*y_ends)
        for names, x, y in found.labels:
            left = x > sum(x_ends) / 2
            aside = (-ASIDE if left else ASIDE) * (x_ends[1] - x_ends[0])
            chart.plt.text(names, x + aside, y, alignment="right" if left else "left")

    def _plot_reliability(self, bins: Sequence[Bin]) -> None:
        chart = self.query_one("#chart", Chart)
        chart.display = bool(bins)
        if not bins:
            return
        sure, right = [each.confidence for each in bins], [each.accuracy for each in bins]
        low = max(0.0, min(*sure, *right) - 0.05)
        chart.draw(
            [Series("", [low, 1.0], [low, 1.0]), Series("", sure, right, "scatter")],
            x_label="sure",
            y_label="right",
        )
