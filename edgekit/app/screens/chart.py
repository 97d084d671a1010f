"""A plot that keeps to the app's theme and signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from textual_plotext import PlotextPlot

LINE = "braille"


@dataclass(frozen=True)
class Series:
    """One line or cloud of points; `mark` is a character for each point, dots of braille when empty."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    kind: Literal["line", "scatter"] = "line"
    mark: str = ""


class Chart(PlotextPlot):
    """A chart of `Series`; what is drawn is replaced by each `draw`."""

    def draw(self, series: Sequence[Series], *, title: str = "") -> None:
        """Draw `series`; what is not finite is left out."""
        plot = self.plt
        plot.clear_data()
        plot.title(title)
        for one in series:
            points = [
                (x, y) for x, y in zip(one.xs, one.ys, strict=True) if math.isfinite(x) and math.isfinite(y)
            ]
            if points:
                draw = plot.scatter if one.kind == "scatter" else plot.plot
                draw(
                    [x for x, _ in points],
                    [y for _, y in points],
                    label=one.label or None,
                    marker=one.mark or LINE,
                )
        self.refresh()
