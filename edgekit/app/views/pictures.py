"""The pictures of the results screen as numbers and lines: size against drift, and drift by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.app.views.results import Results, interval
from edgekit.app.views.symbols import Symbols
from edgekit.report.plots import SMALLEST_DRIFT, logarithmic
from edgekit.report.summary import figure

NEAR = 0.15  # of the plot's width and height


@dataclass(frozen=True)
class FilePoint:
    """A file's size, MiB, and its drift, nats; `best` when no other file is at most as large and lossy and better in one."""

    name: str
    size: float
    drift: float
    best: bool


@dataclass(frozen=True)
class SizeAgainstDrift:
    """The files as points, with the limits of the budget; `missing` names the files without a measured drift."""

    points: tuple[FilePoint, ...]
    size_limit: float | None
    drift_limit: float | None
    missing: tuple[str, ...]

    @property
    def size_range(self) -> tuple[float, float]:
        """The ends of the horizontal axis; the limit is inside."""
        return _range([point.size for point in self.points], self.size_limit)

    @property
    def drift_range(self) -> tuple[float, float]:
        """The ends of the vertical axis; zero and the limit are inside."""
        return _range([0.0, *(point.drift for point in self.points)], self.drift_limit)

    @property
    def labels(self) -> list[tuple[str, float, float]]:
        """Names and their places; points too close to be read apart share one label."""
        across, up = (high - low for low, high in (self.size_range, self.drift_range))
        labels: list[tuple[str, float, float]] = []
        for point in self.points:
            name, x, y = labels[-1] if labels else ("", 0.0, 0.0)
            if labels and abs(point.size - x) < NEAR * across and abs(point.drift - y) < NEAR * up:
                labels[-1] = (f"{name}, {point.name}", point.size, point.drift)
            else:
                labels.append((point.name, point.size, point.drift))
        return labels


def _range(values: Sequence[float], limit: float | None) -> tuple[float, float]:
    known = [*values, *([] if limit is None else [limit])] or [0.0]
    low, high = min(known), max(known)
    edge = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (low - edge if low else low), high + edge


def size_against_drift(results: Results) -> SizeAgainstDrift:
    """The exported files by size and mean KLD."""
    files = [row.variant for row in results.rows if row.variant.path]
    known = [
        (one.name, one.bytes / 2**20, float(drift))
        for one in files
        if one.bytes is not None and (drift := one.drift.get("mean_kld_nats")) is not None
    ]
    points = [
        FilePoint(name, a, b, not any(c <= a and d <= b and (c, d) != (a, b) for _, c, d in known))
        for name, a, b in known
    ]
    names = {name for name, _, _ in known}
    return SizeAgainstDrift(
        tuple(sorted(points, key=lambda point: (point.size, point.drift))),
        results.budget.get("size_mib"),
        results.budget.get("mean_kld_nats"),
        tuple(one.name for one in files if one.name not in names),
    )


def size_lines(found: SizeAgainstDrift, symbols: Symbols) -> list[str]:
    """The plot in words: each file with its figures, whether another one beats it, and the budget."""
    lines = [
        f"{point_sign(point, symbols)} {point.name}  {figure(point.size)} MiB, KLD {figure(point.drift)}"
        + ("" if point.best else "  another file is smaller and closer")
        for point in found.points
    ]
    lines += [f"{symbols.lost} {name}: not measured" for name in found.missing]
    limits = (("size, MiB", found.size_limit), ("mean KLD, nats", found.drift_limit))
    told = [f"{name} at most {figure(limit)}" for name, limit in limits if limit is not None]
    return [*lines, "budget: " + "; ".join(told) if told else "no budget for size and drift"]


def point_sign(point: FilePoint, symbols: Symbols) -> str:
    """A dot, or a cross where another file is better."""
    return symbols.dot if point.best else "x"


@dataclass(frozen=True)
class StageDrift:
    """A stage of the drift waterfall: how far from the tuned model after it, and from what entered it."""

    name: str
    drift: Mapping[str, Any]
    entered: Mapping[str, Any]
    over: bool
    """Whether it is over the budget."""


def waterfall(results: Results) -> list[StageDrift]:
    """The stages whose drift was measured, in order. The base is meant to be far from the tuned model: no limit holds it."""
    limit = results.budget.get("mean_kld_nats")
    return [
        StageDrift(
            stage["name"],
            stage["drift"],
            stage["drift_from_input"] or {},
            limit is not None and stage["drift"]["mean_kld_nats"] > limit and stage["name"] != "model",
        )
        for stage in results.stages
        if stage["drift"]
    ]


def waterfall_lines(results: Results, symbols: Symbols, width: int) -> list[tuple[str, str]]:
    """The waterfall as lines of at most `width`, each with its kind (`head`, `fact`, `failed`, `more`).

    Bars are on a log scale; what a stage alone added stands below its line where it differs.
    """
    steps = waterfall(results)
    if not steps:
        return [("fact", "No stage's drift is in this report. `edgekit build` measures it.")]
    limit = results.budget.get("mean_kld_nats")
    values = [part["mean_kld_nats"] for step in steps for part in (step.drift, step.entered) if part]
    names = max(len(step.name) for step in steps)
    texts = max(len(interval(step.drift)) for step in steps)
    apart = width < names + texts + 18  # no room for a bar beside the interval
    texts = max(len(figure(step.drift["mean_kld_nats"])) for step in steps) if apart else texts
    room = max(6, min(40, width - names - texts - 8))
    indent = " " * (2 if apart else names + 1)
    axis = logarithmic([*values, *([limit] if limit else [])], 0, room)
    lines = [("head", "mean KLD from the tuned model [95 %]")]
    for step in steps:
        sign = symbols.failed if step.over else " "
        words = figure(step.drift["mean_kld_nats"]) if apart else interval(step.drift)
        bar = symbols.bar(axis.at(step.drift["mean_kld_nats"]) / room, room)
        lines.append(
            (
                "failed" if step.over else "fact",
                f"{sign} {step.name:<{names}} {bar} {words}",
            )
        )
        if apart and step.drift.get("mean_kld_95"):
            lines.append(("more", f"{indent}{interval(step.drift).partition(' ')[2]}"))
        if step.entered and step.entered != step.drift:
            lines.append(("more", f"{indent}from its input {interval(step.entered)}"))
    none = f", no bar is {figure(SMALLEST_DRIFT)} or less" if min(values) <= SMALLEST_DRIFT else ""
    over = [step.name for step in steps if step.over]
    if limit is not None:
        lines.append(("failed" if over else "fact", f"budget {figure(limit)}: " + (
            f"{symbols.failed} over it after {', '.join(over)}" if over else f"{symbols.ok} no file's stage is over it")))  # fmt: skip
    return [*lines, ("more", f"nats, log scale{none}")]
