"""The numbers of one device over the window, side by side."""

from __future__ import annotations

from typing import Any

from textual.app import ComposeResult
from textual.containers import Horizontal

from edgekit.app.screens.chart import Chart, Series
from edgekit.field.status import ReleaseStatus, StatusSeries

CHARTS = (
    ("ttft_p95_s", "first token, p95 ms", 1000.0),
    ("tokens_per_s", "tokens/s", 1.0),
    ("rss_mib", "memory MiB", 1.0),
)


class RowCharts(Horizontal):
    """Time to first token, speed and memory of the chosen row."""

    DEFAULT_CSS = """
    RowCharts Chart { width: 1fr; height: 1fr; }
    """

    _drawn: tuple[Any, ...] = ()

    def compose(self) -> ComposeResult:
        """A chart for each."""
        for name, _, _ in CHARTS:
            yield Chart(id=f"chart-{name}")

    def show(self, row: ReleaseStatus | None, now: float, window_s: float) -> None:
        """Draw the series of `row`, when they have changed."""
        series = row.series if row is not None else StatusSeries()
        about = (row and (row.device, row.release), series, window_s, self.size)
        if about == self._drawn:
            return
        self._drawn = about
        unit_s, unit = (3600.0, "h") if window_s > 7200 else (60.0, "min")
        since = window_s / unit_s
        for name, title, factor in CHARTS:
            known = [
                ((series.start + (at + 0.5) * series.step_s - now) / unit_s, value * factor)
                for at, value in enumerate(getattr(series, name))
                if value is not None
            ]
            xs, ys = [x for x, _ in known], [y for _, y in known]
            # unseen points that stretch the axes: over the window, and from zero, so that 1 % more is no wall
            corners = Series("", [-since, 0.0], [0.0, max([1.0, *ys]) * 1.1], "scatter", " ")
            chart = self.query_one(f"#chart-{name}", Chart)
            chart.plt.xticks([-since, -since / 2, 0], [f"-{since:g} {unit}", f"-{since / 2:g}", "now"])
            chart.draw(
                [corners, Series("", xs, ys, "scatter", "hd")],
                title=title if known else f"{title}: nothing yet",
            )
