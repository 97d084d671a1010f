"""The plots, but for that of the types, as inline SVG. The `aria-label` of every plot contains its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from edgekit.evaluation.statistics import wilson
from edgekit.report.summary import Variant, figure, mib, percent
from edgekit.report.svg import ROW, WIDTH, line, margin, svg, tag, text

SMALLEST_DRIFT = 1e-6  # nats; two fp32 evaluations of one model differ by about this much
MOST_POINTS = 300


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from data (`low` to `high`) to user units (`start` to `end`)."""

    ticks: Sequence[float]
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The position of `value`; values off the scale are placed at its end."""
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def linear(values: Sequence[float], start: float, end: float, steps: int = 4) -> Axis:
    """An axis from 0 to past the largest of `values`, ticked at 1, 2 or 5 times a power of ten."""
    rough = max([*values, 1e-9]) / steps
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    count = math.ceil(max([*values, 1e-9]) / step - 1e-9)
    return Axis([step * i for i in range(count + 1)], 0.0, step * count, start, end)


def logarithmic(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis of whole decades around `values` with at most seven ticks; a single decade also has ticks at 2 and 5."""
    kept = [max(value, SMALLEST_DRIFT) for value in values]
    low, high = math.floor(math.log10(min(kept))), math.ceil(math.log10(max(kept)))
    high = max(high, low + 1)
    every = math.ceil((high - low) / 6)
    ticks = [10.0**power for power in range(low, high + 1, every)]
    if high == low + 1:
        ticks = [factor * 10.0**low for factor in (1, 2, 5, 10)]
    return Axis(ticks, 10.0**low, 10.0**high, start, end, log=True)


def accuracy(variants: Sequence[Variant]) -> Markup:
    """Bars of the share of right answers with their 95 % Wilson intervals."""
    scored = [(v.name, v.accuracy, v.n) for v in variants if v.accuracy is not None and v.n]
    left = margin([name for name, _, _ in scored])
    axis = Axis([0, 0.25, 0.5, 0.75, 1], 0, 1, left, WIDTH - 64)
    parts, words = [_columns(axis, ROW * len(scored), [f"{100 * t:.0f} %" for t in axis.ticks])], []
    for row, (name, share, n) in enumerate(scored):
        y, (low, high) = ROW * row + ROW / 2, wilson(share * n, n)
        parts += [
            text(left - 10, y + 4, name, "name", "end"),
            tag("rect", class_="bar", x=left, y=y - 8, width=axis.at(share) - left, height=16),
            line(axis.at(low), y, axis.at(high), y, "whisker"),
            *(line(axis.at(edge), y - 4, axis.at(edge), y + 4, "whisker") for edge in (low, high)),
            text(WIDTH, y + 4, percent(share), "name", "end"),
        ]
        words.append(f"{name} {percent(share)}, 95 % interval {percent(low)} to {percent(high)}")
    return svg(ROW * len(scored) + 24, "Share of right answers: " + "; ".join(words), parts)


def robustness(
    names: Sequence[str], rows: Sequence[tuple[str, Sequence[Mapping[str, Any] | None]]]
) -> Markup:
    """Dots of the share of right answers of each model in each variant, the rows as they are first.

    `rows` hold the figures of the models `names`; the last model is the full dot and has its 95 % Wilson interval.
    """
    left, height = margin([name for name, _ in rows]), ROW * len(rows)
    axis = Axis([0, 0.25, 0.5, 0.75, 1], 0, 1, left + 8, WIDTH - 64)
    parts, words = [_columns(axis, height, [f"{100 * t:.0f} %" for t in axis.ticks])], []
    for place, (variant, found) in enumerate(rows):
        y = ROW * place + ROW / 2
        parts.append(text(left - 10, y + 4, variant, "name", "end"))
        told = [(name, one) for name, one in zip(names, found, strict=True) if one]
        for name, one in told:
            x, last = axis.at(one["accuracy"]), name == names[-1]
            if last:
                low, high = map(axis.at, one["wilson_95"])
                parts.append(line(low, y, high, y, "whisker"))
                parts.append(text(WIDTH, y + 4, percent(one["accuracy"]), "name", "end"))
            parts.append(tag("circle", class_="mark" if last else "hollow", cx=x, cy=y, r=4 if last else 6.5))
        words.append(f"{variant}: " + ", ".join(f"{name} {percent(one['accuracy'])}" for name, one in told))
    return svg(height + 24, "Right answers with noise and in other phrasings: " + "; ".join(words), parts)


Effect = tuple[str, float, tuple[float, float]]
"""What was measured, the change in percentage points, and its 95 % interval."""


def effects(parts: Mapping[str, Sequence[Effect]]) -> Markup:
    """What each part buys, with intervals, against a line at 0; a full dot where the interval leaves out 0."""
    rows = [effect for found in parts.values() for effect in found]
    left, height = margin([name for name, _, _ in rows]), ROW * (len(rows) + len(parts))
    most = max((abs(end) for _, _, ends in rows for end in ends), default=1.0)
    half = linear([most], 0, 1, steps=2)
    ticks = [*(-tick for tick in reversed(half.ticks[1:])), *half.ticks]
    axis = Axis(ticks, ticks[0], ticks[-1], left + 8, WIDTH - 64)
    drawn, words = [_columns(axis, height, [f"{tick:+g}" if tick else "0" for tick in ticks])], []
    drawn.append(line(axis.at(0), 0, axis.at(0), height, "limit"))
    y = -ROW / 2
    for part, found in parts.items():
        y += ROW
        drawn.append(text(0, y + 4, part, "name", "start"))
        for name, points, (low, high) in found:
            y += ROW
            drawn += [
                text(left - 10, y + 4, name, "name", "end"),
                line(axis.at(low), y, axis.at(high), y, "whisker"),
                *(line(axis.at(edge), y - 4, axis.at(edge), y + 4, "whisker") for edge in (low, high)),
                tag("circle", class_="hollow" if low <= 0 <= high else "mark", cx=axis.at(points), cy=y, r=4),
                text(WIDTH, y + 4, f"{points:+.1f}", "name", "end"),
            ]
            words.append(f"{part}, {name} {points:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}")
    return svg(height + 24, "What each part buys: " + "; ".join(words), drawn)


STYLE = (
    "svg{background:#fff;font:12px sans-serif}.mark{fill:#1f5c99}.hollow{fill:#fff;stroke:#1f5c99;stroke-width:1.75}"
    ".whisker{stroke:#1a1a1a;stroke-width:1.25}.grid{stroke:#ddd}.limit{stroke:#1a1a1a;stroke-dasharray:3 3}"
    ".tick,.name{fill:#1a1a1a}"
)


def standalone(picture: Markup) -> str:
    """A plot as the text of an SVG file, with a style of its own."""
    style = Markup("<style>{}</style>").format(Markup(STYLE))
    start = Markup('<svg xmlns="http://www.w3.org/2000/svg" ')
    head, close, rest = str(picture).removeprefix("<svg ").partition(">")
    return f"{start}{head}{close}{style}{rest}\n"


def drift(stages: Sequence[Mapping[str, Any]], limit: float | None = None) -> Markup:
    """A waterfall of the mean KL divergence (nats, log scale), stage by stage, with 95 % intervals.

    A full dot is the divergence from the tuned model after the stage, a hollow one that from the input of the stage; a
    stepped line comes from the previous stage.
    """
    rows = [(stage["name"], stage["drift"], stage.get("drift_from_input") or {}) for stage in stages]
    left = margin([name for name, _, _ in rows])
    values = [part["mean_kld_nats"] for _, *parts in rows for part in parts if part]
    axis = logarithmic(values + ([limit] if limit else []), left + 8, WIDTH - 64)
    height = ROW * len(rows)
    parts, words = [_columns(axis, height, [_power(tick) for tick in axis.ticks])], []
    if limit:
        parts.append(line(axis.at(limit), 0, axis.at(limit), height, "limit"))
    for row, (name, found, entered) in enumerate(rows):
        y, x = ROW * row + ROW / 2, axis.at(found["mean_kld_nats"])
        if (before := _stage_before(row, [name for name, _, _ in rows])) is not None:
            x_before, y_before = axis.at(rows[before][1]["mean_kld_nats"]), ROW * before + ROW / 2
            parts += [line(x_before, y_before + 5, x_before, y, "grid"), line(x_before, y, x, y, "soft")]
        if interval := found.get("mean_kld_95"):
            low, high = map(axis.at, interval)
            parts += [
                line(low, y, high, y, "whisker"),
                *(line(edge, y - 4, edge, y + 4, "whisker") for edge in (low, high)),
            ]
        if entered:
            parts.append(tag("circle", class_="hollow", cx=axis.at(entered["mean_kld_nats"]), cy=y, r=6.5))
        parts += [
            text(left - 10, y + 4, name, "name", "end"),
            tag("circle", class_="mark", cx=x, cy=y, r=4),
            text(WIDTH, y + 4, figure(found["mean_kld_nats"]), "name", "end"),
        ]
        words.append(
            f"{name} {figure(found['mean_kld_nats'])}"
            + (f", {figure(entered['mean_kld_nats'])} from its input" if entered else "")
        )
    return svg(height + 24, f"Mean KL divergence from the tuned model in nats: {'; '.join(words)}", parts)


def _stage_before(row: int, names: Sequence[str]) -> int | None:
    """The row of the previous stage: of the same format, or the last stage common to all formats."""
    format = names[row].partition(".")[2]
    for before in range(row - 1, -1, -1):
        of = names[before].partition(".")[2]
        if of in ("", format):
            return before
    return None


def pareto(
    files: Sequence[Variant], size_limit: float | None = None, drift_limit: float | None = None
) -> Markup:
    """Size (MiB) against drift (nats, log scale); filled when no other file is both smaller and closer."""
    height, left = 220, 52
    points = [(v.name, v.bytes or 0, v.drift["mean_kld_nats"]) for v in files]
    x = linear([size / 2**20 for _, size, _ in points] + [size_limit or 0], left, WIDTH - 24)
    y = logarithmic([nats for _, _, nats in points] + ([drift_limit] if drift_limit else []), height, 8)
    parts = [_frame(x, y, "MiB", [_power(tick) for tick in y.ticks])]
    if size_limit:
        parts.append(line(x.at(size_limit), y.end, x.at(size_limit), y.start, "limit"))
    if drift_limit:
        parts.append(line(x.start, y.at(drift_limit), x.end, y.at(drift_limit), "limit"))
    words, taken = [], -99.0
    for name, size, nats in sorted(points, key=lambda point: -point[2]):
        beaten = any(s <= size and d <= nats and (s, d) != (size, nats) for _, s, d in points)
        px, py = x.at(size / 2**20), y.at(nats)
        taken = max(py + 4, taken + 15)  # labels of close neighbours are stacked
        parts.append(tag("circle", class_="hollow" if beaten else "mark", cx=px, cy=py, r=5))
        side = "end" if px > WIDTH * 0.6 else "start"
        label = f"{name}  {mib(size)} MiB, {figure(nats)}"
        parts.append(text(px - 10 if side == "end" else px + 10, taken, label, "name", side))
        words.append(
            f"{name} {mib(size)} MiB at {figure(nats)} nats" + (", beaten by another file" if beaten else "")
        )
    return svg(height + 38, "Size against drift: " + "; ".join(words), parts)


def loss(training: Sequence[Sequence[float]], validation: Sequence[Sequence[float]]) -> Markup:
    """Training loss as a line, validation loss as a line with dots, against the step."""
    height, left = 200, 40
    both = [*training, *validation]
    x = linear([step for step, _ in both], left, WIDTH - 24)
    y = linear([value for _, value in both], height, 8)
    parts, words = [_frame(x, y, "step", [f"{tick:g}" for tick in y.ticks])], []
    for name, series, style in (("training", training, "soft"), ("validation", validation, "line")):
        if not series:
            continue
        shown = [*series[:: math.ceil(len(series) / MOST_POINTS)], series[-1]]
        places = [(x.at(step), y.at(value)) for step, value in shown]
        parts.append(
            tag("polyline", class_=style, points=" ".join(f"{px:.1f},{py:.1f}" for px, py in places))
        )
        if name == "validation":
            parts += [tag("circle", class_="mark", cx=px, cy=py, r=3.5) for px, py in places]
        words.append(f"{name} from {figure(series[0][1])} to {figure(series[-1][1])}")
    return svg(height + 38, "Loss: " + "; ".join(words), parts)


def reliability(bins: Sequence[Mapping[str, float]]) -> Markup:
    """Accuracy against confidence; on the diagonal the model is calibrated (areas are proportional to `n`)."""
    height, left = 220, 52
    x, y = (
        Axis([0, 0.25, 0.5, 0.75, 1], 0, 1, left, left + 212),
        Axis([0, 0.25, 0.5, 0.75, 1], 0, 1, height, 8),
    )
    filled, most = [b for b in bins if b["n"]], max([b["n"] for b in bins], default=1)
    parts = [
        _frame(x, y, "confidence", [f"{tick:g}" for tick in y.ticks]),
        line(x.start, y.start, x.end, y.end, "limit"),
        *(
            tag(
                "circle",
                class_="mark",
                cx=x.at(b["confidence"]),
                cy=y.at(b["accuracy"]),
                r=2 + 6 * math.sqrt(b["n"] / most),
            )
            for b in filled
        ),
    ]
    words = [f"confidence {percent(b['confidence'])}, accuracy {percent(b['accuracy'])}" for b in filled]
    return svg(height + 38, "Reliability: " + "; ".join(words), parts)


def _columns(axis: Axis, height: float, labels: Sequence[str]) -> Markup:
    """Vertical grid lines under rows, labelled below."""
    return Markup("").join(
        line(axis.at(tick), 0, axis.at(tick), height, "grid")
        + text(axis.at(tick), height + 17, label, "tick", "middle")
        for tick, label in zip(axis.ticks, labels, strict=True)
    )


def _frame(x: Axis, y: Axis, unit: str, labels: Sequence[str]) -> Markup:
    """Horizontal grid lines labelled at the left; x ticks labelled below, with their unit under them."""
    rows = [
        line(x.start, y.at(tick), x.end, y.at(tick), "grid")
        + text(x.start - 8, y.at(tick) + 4, label, "tick", "end")
        for tick, label in zip(y.ticks, labels, strict=True)
    ]
    columns = [text(x.at(tick), y.start + 17, f"{tick:,g}", "tick", "middle") for tick in x.ticks]
    columns.append(text(x.end, y.start + 33, unit, "tick", "end"))
    return Markup("").join([*rows, *columns])


def _power(value: float) -> str:
    """A tick of a log scale as text: `0.01`, `10⁻⁶`, and `≤ 10⁻⁶` where all smaller values are drawn."""
    if value >= 1e-3:
        return f"{value:g}"
    factor, _, exponent = f"{value:.0e}".partition("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return ("≤ " if value <= SMALLEST_DRIFT else "") + (power if factor == "1" else f"{factor}·{power}")
