"""The numbers of one device over the window, side by side."""

from __future__ import annotations

import math
from typing import Any

from textual.app import ComposeResult
from textual.containers import Horizontal

from edgekit.app.screens.chart import Chart, Series
from edgekit.app.views.fleet import CHART, Glance

CHARTS = (
    ("ttft_p95_s", "first token, p95 ms", 1000.0),
    ("tokens_per_s", "tokens/s", 1.0),
    ("rss_mib", "memory MiB", 1.0),
)
SLOWEST_S = 10.0  # between two drawings of the same row


class RowCharts(Horizontal):
    """Time to first token, speed and memory of the row that a glance was asked for."""

    DEFAULT_CSS = """
    RowCharts Chart { width: 1fr; height: 1fr; }
    """

    _about: tuple[Any, ...] = ()
    _drawn_at = 0.0

    def __init__(self, *, ascii: bool, id: str) -> None:
        super().__init__(id=id)
        self._ascii = ascii

    def compose(self) -> ComposeResult:
        """A chart for each."""
        for name, _, _ in CHARTS:
            yield Chart(id=f"chart-{name}")

    def show(self, glance: Glance) -> None:
        """Draw the charts of a glance, no sooner than a point of them can have changed."""
        about = (glance.chart_key, glance.window_s, self.size, any(map(any, glance.chart.values())))
        step = min(SLOWEST_S, max(1.0, glance.window_s / CHART / 2))
        if about == self._about and 0 <= glance.time - self._drawn_at < step:
            return
        self._about, self._drawn_at = about, glance.time
        unit_s, unit = (3600.0, "h") if glance.window_s > 7200 else (60.0, "min")
        for name, title, factor in CHARTS:
            values = [math.nan if one is None else one * factor for one in glance.chart.get(name, [])]
            xs = [(moment - glance.time) / unit_s for moment in glance.chart_times]
            self._draw(
                self.query_one(f"#chart-{name}", Chart), title, xs, values, (glance.window_s / unit_s, unit)
            )

    def _draw(
        self, chart: Chart, title: str, xs: list[float], values: list[float], window: tuple[float, str]
    ) -> None:
        since, unit = window
        known = [value for value in values if math.isfinite(value)]
        # unseen points that stretch the axes: over the window, and from zero, so that 1 % more is no wall
        corners = Series("", [-since, 0.0], [0.0, max([1.0, *known]) * 1.1], "scatter", " ")
        chart.plt.xticks([-since, -since / 2, 0], [f"-{since:g} {unit}", f"-{since / 2:g}", "now"])
        mark = "" if self._ascii else "hd"
        points = [Series("", xs, values, "scatter", mark)] if known else []
        chart.draw([corners, *points], title=title if known else f"{title}: nothing yet")
