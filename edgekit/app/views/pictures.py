"""The pictures of the results screen as numbers and lines: Pareto front, drift by stage, reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.app.views.results import Results, interval
from edgekit.app.views.symbols import Symbols
from edgekit.proof.calibration import Bin, calibration_error
from edgekit.report.plots import SMALLEST_DRIFT, logarithmic
from edgekit.report.summary import Variant, figure, percent

NEAR = 0.15  # of the plot's width and height


@dataclass(frozen=True)
class Axis:
    """A measure of a variant; `limit` is the budget's name for it, less is better on all."""

    key: str
    label: str
    limit: str


X_AXES = (
    Axis("size", "size, MiB", "size_mib"),
    Axis("ttft", "first token, ms", "ttft_ms"),
    Axis("rss", "peak memory, MiB", "peak_rss_mib"),
)
Y_AXES = (
    Axis("kld", "mean KLD, nats", "mean_kld_nats"),
    Axis("loss", "accuracy lost, points", "accuracy_drop_points"),
)


@dataclass(frozen=True)
class Point:
    """One variant in the Pareto plot; `front` when no other is at most as large and lossy and better in one."""

    name: str
    x: float
    y: float
    front: bool


@dataclass(frozen=True)
class Pareto:
    """Points, axes and budget lines; `missing` names the variants that were not measured so."""

    x: Axis
    y: Axis
    points: tuple[Point, ...]
    x_limit: float | None
    y_limit: float | None
    missing: tuple[str, ...]

    @property
    def x_ends(self) -> tuple[float, float]:
        """The least and greatest x of the plot, the budget in it."""
        return _ends([point.x for point in self.points], self.x_limit)

    @property
    def y_ends(self) -> tuple[float, float]:
        """The least and greatest y of the plot, the budget and no loss at all in it."""
        return _ends([0.0, *(point.y for point in self.points)], self.y_limit)

    @property
    def labels(self) -> list[tuple[str, float, float]]:
        """Names where they stand; those of points too near each other to be read apart stand together."""
        across, up = (high - low for low, high in (self.x_ends, self.y_ends))
        labels: list[tuple[str, float, float]] = []
        for point in self.points:
            name, x, y = labels[-1] if labels else ("", 0.0, 0.0)
            if labels and abs(point.x - x) < NEAR * across and abs(point.y - y) < NEAR * up:
                labels[-1] = (f"{name}, {point.name}", point.x, point.y)
            else:
                labels.append((point.name, point.x, point.y))
        return labels


def _ends(values: Sequence[float], limit: float | None) -> tuple[float, float]:
    known = [*values, *([] if limit is None else [limit])] or [0.0]
    low, high = min(known), max(known)
    edge = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (low - edge if low else low), high + edge


def pareto(results: Results, x: int = 0, y: int = 0) -> Pareto:
    """The files by the `x`th and `y`th axis."""
    across, up = X_AXES[x % len(X_AXES)], Y_AXES[y % len(Y_AXES)]
    files = [row.variant for row in results.rows if row.variant.path]
    tuned = results.row("tuned")
    before = tuned.variant.accuracy if tuned else None
    measured = [(one.name, _measure(one, across.key, before), _measure(one, up.key, before)) for one in files]
    known = [(name, a, b) for name, a, b in measured if a is not None and b is not None]
    points = [
        Point(name, a, b, not any(c <= a and d <= b and (c, d) != (a, b) for _, c, d in known))
        for name, a, b in known
    ]
    return Pareto(
        across,
        up,
        tuple(sorted(points, key=lambda point: (point.x, point.y))),
        results.budget.get(across.limit),
        results.budget.get(up.limit),
        tuple(name for name, a, b in measured if a is None or b is None),
    )


def _measure(one: Variant, key: str, accuracy: float | None) -> float | None:
    match key:
        case "size":
            return None if one.bytes is None else one.bytes / 2**20
        case "ttft":
            return one.ttft
        case "rss":
            found: float | None = one.speed.get("peak_rss_mib")
            return found
        case "kld":
            drift: float | None = one.drift.get("mean_kld_nats")
            return drift
        case _:
            return None if accuracy is None or one.accuracy is None else 100 * (accuracy - one.accuracy)


def pareto_lines(found: Pareto, symbols: Symbols) -> list[str]:
    """The plot in words: each point with its figures, whether it is on the front, and the budget."""
    lines = [
        f"{point_sign(point, symbols)} {point.name}  {figure(point.x)}, {figure(point.y)}"
        + ("  on the front" if point.front else "  beaten by another file")
        for point in found.points
    ]
    lines += [f"{symbols.lost} {name} was not measured so" for name in found.missing]
    limits = [
        f"{axis.label} at most {figure(limit)}"
        for axis, limit in ((found.x, found.x_limit), (found.y, found.y_limit))
        if limit is not None
    ]
    return [*lines, "budget: " + "; ".join(limits) if limits else "no budget for these"]


def point_sign(point: Point, symbols: Symbols) -> str:
    """A dot on the front, a cross where another file beats it."""
    return symbols.dot if point.front else "x"


@dataclass(frozen=True)
class Step:
    """A stage of the drift waterfall: how far from the tuned model after it, and from what entered it."""

    name: str
    drift: Mapping[str, Any]
    entered: Mapping[str, Any]
    over: bool
    """Whether it is over the budget."""


def waterfall(results: Results) -> list[Step]:
    """The stages whose drift was measured, in order. The base is meant to be far from the tuned model: no limit holds it."""
    limit = results.budget.get("mean_kld_nats")
    return [
        Step(
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


def reliability(results: Results) -> list[Bin]:
    """The bins of the report, the least sure first; none where no confidence was recorded."""
    return [
        Bin(each["confidence"], each["accuracy"], int(each["n"])) for each in results.bins if each["n"] >= 1
    ]


def reliability_lines(bins: Sequence[Bin]) -> list[str]:
    """The diagram in words, or what is missing and how to get it."""
    if not bins:
        return [
            "No confidence was recorded with these answers, so how sure the model",
            "was cannot be held against how often it was right.",
            "",
            "`edgekit build` records it since report.json has `reliability`: build again.",
        ]
    total = sum(each.n for each in bins)
    return [
        f"expected calibration error {percent(calibration_error(bins))} over {total} answers",
        *(f"  sure {percent(each.confidence)}  right {percent(each.accuracy)}  n={each.n}" for each in bins),
    ]
