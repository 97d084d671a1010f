"""What was measured around an incident: a series of its rule's reading, minute by minute, or figures in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.base.clock import span
from edgekit.base.errors import EdgekitError
from edgekit.base.events import LARGEST
from edgekit.base.numbers import finite
from edgekit.base.texts import one_line
from edgekit.field.fleet.incidents import WholeIncident
from edgekit.field.incidents.defaults import HEARTBEAT_S
from edgekit.field.incidents.readings import reading_of
from edgekit.field.telemetry import reference
from edgekit.field.telemetry.minutes import Window
from edgekit.field.telemetry.store import FILE, Store

MINUTE = 60
BEFORE_S, AFTER_S = 1800.0, 12 * 3600.0
MOST_POINTS = 90
METRICS = {  # what it is called, its unit, and what it is shown in
    "ttft_p95_s": ("Time to first token (p95)", "s", 1.0),
    "tokens_per_s": ("Generation speed", "tokens/s", 1.0),
    "rss_mib": ("Memory", "MiB", 1.0),
    "temperature_c": ("Temperature", "°C", 1.0),
    "throttled_s": ("Throttled", "s", 1.0),
    "error_rate": ("Failed requests", "%", 100.0),
    "empty_rate": ("Empty answers", "%", 100.0),
    "confidence": ("Answer confidence", "%", 100.0),
    "entropy": ("Answer entropy", "nats", 1.0),
    "unknown_rate": ("Tokens not in the tuning data", "%", 100.0),
    "requests": ("Requests", "a minute", 1.0),
}
NAMES = {
    "drift_alarms": "Drift alarms", "confidence_gap": "Confidence gap to the build", "digest_mismatches": "Changed files",
    "heartbeat_age_s": "Seconds since the last heartbeat", "store_troubles": "Telemetry write errors",
}  # fmt: skip
FIGURES = (
    "requests", "errors", "empty", "ttft_p95_s", "tokens_per_s", "rss_mib", "temperature_c", "confidence", "entropy",
    "unknown_rate",
)  # fmt: skip
SIGNALS = ("confidence", "entropy", "unknown_rate")
Points = list[tuple[float, float]]  # Unix seconds, and the value
OF_DEVICE = frozenset({"rss_mib", "temperature_c", "throttled_s", "requests"})  # whichever release it runs


@dataclass(frozen=True)
class Plot:
    """A series to draw: `xs` are Unix seconds, a point for each `step_s`; `line` is a limit or a reference, if any.

    `earlier` are the points of the release before, where there are any. Without points at all, `figures` say what the
    evidence file holds and `note` why there is no series.
    """

    name: str
    unit: str
    xs: tuple[float, ...] = ()
    ys: tuple[float, ...] = ()
    earlier: tuple[tuple[float, float], ...] = ()
    step_s: int = MINUTE
    line: float | None = None
    line_name: str = ""
    opened: float = 0.0
    figures: tuple[str, ...] = ()
    note: str = ""


def plot(shown: WholeIncident, state: Path, now: float) -> Plot:
    """The plot of an incident of this device. Reads, and never raises for the store's sake."""
    metric, path = plotted(shown), state / FILE
    if metric not in METRICS:
        return figures(shown, f"{metric_name(shown)} has no time series.")
    if not path.is_file():
        return figures(shown, f"There is no telemetry in {state}.")
    name, unit, scale = METRICS[metric]
    points, earlier, step_s = _points(Store(path), shown, metric, now)
    if not points and not earlier:
        return figures(shown, "No telemetry was recorded at that time.")
    line, line_name = _line_of(shown, metric, state)
    return Plot(
        name,
        unit,
        xs=tuple(x for x, _ in points),
        ys=tuple(y * scale for _, y in points),
        earlier=tuple((x, y * scale) for x, y in earlier),
        step_s=step_s,
        line=None if line is None else line * scale,
        line_name=line_name,
        opened=shown.incident.opened,
    )


def _points(store: Store, shown: WholeIncident, metric: str, now: float) -> tuple[Points, Points, int]:
    """The points of the incident's release, those of whatever answered before its first, and the seconds of each."""
    incident = shown.incident
    release = None if metric in OF_DEVICE else incident.release
    since = incident.since - max(BEFORE_S, 2 * (finite(shown.rule.get("window_s"), LARGEST) or 0.0))
    until = min(now, incident.since + AFTER_S)
    if incident.resolved is not None:
        until = min(until, incident.resolved + BEFORE_S / 3)
    step_s = MINUTE * max(1, math.ceil((until - since) / MINUTE / MOST_POINTS))

    def read(release: str | None) -> Points:
        first = int(since // step_s) * step_s
        found = {one.since: one for one in store.series(first, until, release, step_s=step_s)}
        starts = range(first, int(until) + 1, step_s)
        values = ((float(at), finite(_value(found.get(at), metric, at + step_s))) for at in starts)
        return [(at, value) for at, value in values if value is not None]

    points = read(release)
    before = [] if release is None else read(None)
    return points, [(at, y) for at, y in before if not points or at < points[0][0]], step_s


def unheard(state: Path, now: float) -> str:
    """Why no incident may mean that nobody looks: nothing was heard of the server, or nothing can be; else empty."""
    try:
        told = Store(state / FILE).window(now, now, strict=True).last_seen
    except EdgekitError as error:
        return f"Unknown whether alert rules are being evaluated: {error.message} {error.hint}"
    last = finite(told, LARGEST)
    if last is not None and now - last <= HEARTBEAT_S:
        return ""
    if last is not None:
        heard = f"was last heard from {span(now - last)} ago"
    else:
        heard = "was never heard from" if told is None else "reported a time that cannot be read"
    return f"The server {heard}: no alert rules are evaluated while it is stopped. Start it: edgekit serve --state {state}"


def plotted(shown: WholeIncident) -> str:
    """The reading that shows best what the rule saw: its metric, or a signal or a count that stands for it."""
    metric = str(shown.rule.get("metric", ""))
    if metric == "confidence_gap":
        return "confidence"
    if metric == "heartbeat_age_s":
        return "requests"
    if metric == "drift_alarms":
        told = [alarm.get("signal") for alarm in _alarms(shown)]
        return next((str(signal) for signal in told if signal in SIGNALS), metric)
    return metric


def metric_name(shown: WholeIncident) -> str:
    """What the rule's metric is called."""
    metric = str(shown.rule.get("metric", ""))
    names = {**NAMES, **{key: name for key, (name, _, _) in METRICS.items()}}
    return names.get(metric, one_line(metric) or "The rule's reading")


def rule_words(shown: WholeIncident) -> str:
    """When the rule tells: what is above or below which limit, for how long, over which stretch of time."""
    rule, name = shown.rule, metric_name(shown)
    above, below = finite(rule.get("above")), finite(rule.get("below"))
    limit = below if above is None else above
    if limit is None:
        return name
    _, unit, scale = METRICS.get(str(rule.get("metric", "")), ("", "", 1.0))
    words = f"{name} {'below' if above is None else 'above'} {limit * scale:.4g} {unit}".rstrip()
    held, window = finite(rule.get("for_s"), LARGEST), finite(rule.get("window_s"), LARGEST)
    return words + (f" for {span(held)}" if held else "") + (f", over {span(window)}" if window else "")


def figures(shown: WholeIncident, note: str) -> Plot:
    """What the evidence file holds, in words: the figures before and while it went on, and the alarms."""
    metric = plotted(shown)
    name, unit, _ = METRICS.get(metric, (metric_name(shown), "", 1.0))
    if not shown.evidence:
        what = f"{note} There is no evidence file either." if note else "There is no evidence file."
        return Plot(name, unit, opened=shown.incident.opened, note=what)
    during, before = _part(shown, "during"), _part(shown, "before")
    told = []
    for field in FIGURES:
        now, then = finite(during.get(field)), finite(before.get(field))
        if now is None:
            continue
        called, its_unit, scale = METRICS.get(field, (field.capitalize(), "", 1.0))
        its_unit = "" if field == "requests" else its_unit
        was = "not known" if then is None else f"{then * scale:.4g}"
        told.append(f"{called}: {now * scale:.4g} {its_unit}".rstrip() + f" (before: {was})")
    told += [one_line(alarm.get("words", "")) for alarm in _alarms(shown)]
    left = shown.evidence.get("left_out")
    if isinstance(left, dict):
        told += [one_line(f"{part} was left out: {why}") for part, why in left.items()]
    return Plot(name, unit, opened=shown.incident.opened, figures=tuple(told), note=note)


def _value(window: Window | None, metric: str, now: float) -> float | None:
    if window is None:
        return 0.0 if metric == "requests" else None
    if metric in SIGNALS:
        value: float | None = getattr(window, metric)
        return value
    if metric == "requests":
        return float(window.requests)
    if metric == "throttled_s" and window.rss_mib is None:
        return None  # nobody looked at the machine in that minute
    return reading_of(window).value(metric, now)


def _line_of(shown: WholeIncident, metric: str, state: Path) -> tuple[float | None, str]:
    """The limit of the rule, or the reference that the build recorded where the limit is in another unit."""
    rule = shown.rule
    if rule.get("metric") == metric:
        limit = finite(rule.get("above"))
        limit = finite(rule.get("below")) if limit is None else limit
        return limit, "limit"
    bundle = state / "releases" / "versions" / shown.incident.release
    if metric not in SIGNALS or not shown.incident.release or not bundle.is_dir():
        return None, ""
    for format_ in ("gguf", "onnx"):
        with suppress(EdgekitError, OSError, ValueError):
            signals = reference.load(bundle, format_)
            number = signals.numbers.get(metric) if signals else None
            if number and (mean := finite(number.mean)) is not None:
                return mean, "at the build"
    return None, ""


def _alarms(shown: WholeIncident) -> list[Mapping[str, Any]]:
    found = _part(shown, "during").get("alarms")
    return [alarm for alarm in found if isinstance(alarm, dict)] if isinstance(found, list) else []


def _part(shown: WholeIncident, name: str) -> Mapping[str, Any]:
    part = shown.evidence.get(name)
    return part if isinstance(part, dict) else {}
