"""The pictures of the results screen as lines: size against drift, and drift by stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.app.views.lines import Line
from edgekit.app.views.results import Results, interval
from edgekit.app.views.symbols import Symbols
from edgekit.report.plots import SMALLEST_DRIFT, logarithmic
from edgekit.report.summary import Variant, figure

SHORT, LONG = 6, 40  # cells of a bar


def size_lines(results: Results, width: int) -> list[Line]:
    """Each file's size and drift as shares of what is allowed, and whether another file beats it in both."""
    files = [row.variant for row in results.rows if row.variant.path]
    measured = {one.name: point for one in files if (point := _point(one)) is not None}
    limits = (results.budget.get("size_mib"), results.budget.get("mean_kld_nats"))
    # without a limit, a bar is a share of the largest file's
    most = [
        limit or max((point[at] for point in measured.values()), default=0.0)
        for at, limit in enumerate(limits)
    ]
    lines: list[Line] = [("head", "size and drift, as shares of what is allowed")]
    for name, point in measured.items():
        beaten = any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in measured.values())
        sign = "x" if beaten else Symbols.dot
        lines.append(("fact", f"{sign} {name}{'  another file is smaller and closer' if beaten else ''}"))
        for value, limit, whole, unit in zip(point, limits, most, ("MiB", "nats"), strict=True):
            over = limit is not None and value > limit
            said = f"{figure(value)} {unit}, limit {'none' if limit is None else figure(limit)}"
            bar = Symbols.bar(value / whole if whole else None, _room(width, 28))
            lines.append(
                ("failed" if over else "fact", f"  {bar} {said}{f' {Symbols.failed}' if over else ''}")
            )
    lines += [
        ("fact", f"{Symbols.lost} {one.name}: not measured") for one in files if one.name not in measured
    ]
    return lines


def _point(one: Variant) -> tuple[float, float] | None:
    """A file's size, MiB, and its drift, nats."""
    drift = one.drift.get("mean_kld_nats")
    return None if one.bytes is None or drift is None else (one.bytes / 2**20, float(drift))


def _room(width: int, taken: int) -> int:
    return max(SHORT, min(LONG, width - taken))


def over_budget(results: Results, stage: Mapping[str, Any]) -> bool:
    """Whether a stage's drift is over the budget; the base is meant to be far from the tuned model, so no limit holds it."""
    limit = results.budget.get("mean_kld_nats")
    return limit is not None and stage["name"] != "model" and bool(stage["drift"]["mean_kld_nats"] > limit)


def waterfall_lines(results: Results, width: int) -> list[Line]:
    """The drift after each stage on a log scale, with its interval and what the stage alone added below its bar."""
    steps = [stage for stage in results.stages if stage["drift"]]
    if not steps:
        return [("fact", "No stage's drift is in this report. `edgekit build` measures it.")]
    limit = results.budget.get("mean_kld_nats")
    values = [
        part["mean_kld_nats"] for step in steps for part in (step["drift"], step["drift_from_input"]) if part
    ]
    names = max(len(step["name"]) for step in steps)
    room = _room(width, names + 14)
    axis = logarithmic([*values, *([limit] if limit else [])], 0, room)
    lines: list[Line] = [("head", "mean KLD from the tuned model, nats [95 %]")]
    for step in steps:
        drift, entered, over = step["drift"], step["drift_from_input"], over_budget(results, step)
        bar = Symbols.bar(axis.at(drift["mean_kld_nats"]) / room, room)
        said = f"{step['name']:<{names}} {bar} {figure(drift['mean_kld_nats'])}"
        lines.append(("failed" if over else "fact", f"{Symbols.failed if over else ' '} {said}"))
        more = [interval(drift).partition(" ")[2]] if drift["mean_kld_95"] else []
        if entered and entered != drift:
            more.append(f"from its input {interval(entered)}")
        lines += [("more", words) for words in more]
    over_it = ", ".join(step["name"] for step in steps if over_budget(results, step))
    if limit is not None:
        end = (
            f"{Symbols.failed} over it after {over_it}"
            if over_it
            else f"{Symbols.ok} no file's stage is over it"
        )
        lines.append(("failed" if over_it else "fact", f"budget {figure(limit)}: {end}"))
    none = f"; no bar: {figure(SMALLEST_DRIFT)} or less" if min(values) <= SMALLEST_DRIFT else ""
    return [*lines, ("more", f"log scale{none}")]
