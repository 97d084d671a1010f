"""A plot that keeps to the app's theme and signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from textual_plotext import PlotextPlot

MARKS = ("*", "o", "x", "+")
LINE = "braille"


@dataclass(frozen=True)
class Series:
    """One line or cloud of points; `mark` is a character for each point, chosen by the chart when empty."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    kind: Literal["line", "scatter"] = "line"
    mark: str = ""


class Chart(PlotextPlot):
    """A chart of `Series`; what is drawn is replaced by each `draw`."""

    def draw(
        self,
        series: Sequence[Series],
        *,
        title: str = "",
        x_label: str = "",
        y_label: str = "",
        hlines: Sequence[float] = (),
    ) -> None:
        """Draw `series` with horizontal lines such as limits at `hlines`; what is not finite is left out."""
        plot = self.plt
        plot.clear_data()
        plot.title(title)
        plot.xlabel(x_label)
        plot.ylabel(y_label)
        for number, one in enumerate(series):
            mark = one.mark or (MARKS[number % len(MARKS)] if one.kind == "scatter" else LINE)
            points = [
                (x, y) for x, y in zip(one.xs, one.ys, strict=True) if math.isfinite(x) and math.isfinite(y)
            ]
            if points:
                draw = plot.scatter if one.kind == "scatter" else plot.plot
                draw([x for x, _ in points], [y for _, y in points], label=one.label or None, marker=mark)
        for line in filter(math.isfinite, hlines):
            plot.hline(line)
        self.refresh()
