"""What the events of one run add up to: stages, curves, drift, gates and log."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from edgekit.app.views.curve import NO_POINTS, Curve, Points
from edgekit.app.views.tail import MIB
from edgekit.base.clock import clock, span
from edgekit.base.console import PLAIN_INTERVAL_S
from edgekit.base.events import (
    Alert,
    Event,
    GateResult,
    Measured,
    Progress,
    StageFinished,
    StageStarted,
    from_json,
)
from edgekit.base.texts import one_line
from edgekit.build.runs import Run

LOG_LINES = 2000
LOG_TEXT = 400  # signs of one line
MOST = 200  # names of stages or gates: a build has some 60
STALE_S = 1.0  # a fact that is older than its run comes from a stage that was kept
DRIFT_METRIC = "mean_kld_nats"


@dataclass(frozen=True)
class Stage:
    """One stage: WAITING, RUNNING, DONE, KEPT from an earlier build, FAILED (a gate, or its work) or STOPPED.

    `seconds` is what it took, or takes so far; `counted` is its progress in its own unit.
    """

    name: str
    state: str
    seconds: float | None = None
    fraction: float | None = None
    counted: str = ""
    note: str = ""
    left_s: float | None = None
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class DriftPoint:
    """The mean KL divergence that a check found, nats, and its limit if it has one; `stage` is the one that caused it."""

    stage: str
    check: str
    value: float
    limit: float | None


@dataclass(frozen=True)
class LogLine:
    """One line of the log: when, a word such as DONE or WARNING, of which stage, and what."""

    time: float
    word: str
    stage: str
    text: str

    def words(self, now: float) -> str:
        """The line as people read it."""
        return f"{clock(self.time, now)}  {self.word:<8} {self.stage:<14} {self.text}".rstrip()


@dataclass(frozen=True)
class RunView:
    """All that the screen shows of a run. `state` is that of the record, NONE without a run, or UNKNOWN without a record."""

    state: str = "NONE"
    sentence: str = ""
    run: Run | None = None
    stages: tuple[Stage, ...] = ()
    spent_s: float = 0.0
    total_s: float | None = None
    loss: Points = NO_POINTS
    validation: Points = NO_POINTS
    speed: Points = NO_POINTS
    drift: tuple[DriftPoint, ...] = ()
    failed: tuple[GateResult, ...] = ()
    alerts: tuple[Alert, ...] = ()
    log: tuple[LogLine, ...] = ()
    rss_mib: float | None = None
    available_mib: float | None = None
    notices: tuple[str, ...] = ()
    ours: bool = False
    """Whether this program started it."""

    @property
    def current(self) -> Stage | None:
        """The stage that runs."""
        return next((stage for stage in self.stages if stage.state == "RUNNING"), None)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"schema": "edgekit.run-view/1", **asdict(self)}


def matching(log: Sequence[LogLine], text: str, now: float) -> list[LogLine]:
    """The lines of a log that hold `text`, whatever its case; all for an empty one."""
    wanted = text.casefold()
    return [line for line in log if wanted in line.words(now).casefold()]


@dataclass
class _Live:
    """What is known of a stage while it runs."""

    started: float | None = None
    finished_s: float | None = None
    cached: bool = False
    first: tuple[float, float] = (0.0, 0.0)  # time and count of the first progress in this unit
    progress: Progress | None = None
    told: float = -math.inf
    failed: list[str] = field(default_factory=list)


class Fold:
    """What the events of one run add up to."""

    def __init__(self) -> None:
        self.unread = 0
        self.skipped_bytes = 0
        self._unknown_keys = 0
        self._stages: dict[str, _Live] = {}
        self._curves = {name: Curve() for name in ("loss", "validation_loss", "tokens_per_s")}
        self._drift: dict[str, DriftPoint] = {}
        self._failed: dict[str, GateResult] = {}
        self._alerts: deque[Alert] = deque(maxlen=50)
        self._log: deque[LogLine] = deque(maxlen=LOG_LINES)
        self._broken = False
        self._newest = 0.0

    def add_line(self, line: str) -> None:
        """Add the event in a line of `events.jsonl`; what is none is counted."""
        if not line.strip():
            return
        try:
            self.add(from_json(line, self._unknown_key))
        except ValueError:
            self.unread += 1

    def _unknown_key(self, key: str) -> None:
        self._unknown_keys += 1

    def add(self, event: Event) -> None:
        """Add one event."""
        event = _cleaned(event)
        self._newest = max(self._newest, event.time)
        match event:
            case StageStarted(stage=stage, detail=detail):
                live = self._live(stage)
                live.started, live.finished_s, live.progress = event.time, None, None
                self._say(event, "STARTED", stage, detail)
            case Progress():
                self._progress(event)
            case Measured():
                self._measured(event)
            case StageFinished(stage=stage, seconds=seconds, cached=cached):
                live = self._live(stage)
                live.finished_s, live.cached, live.progress = seconds, cached, None
                self._say(event, "KEPT" if cached else "DONE", stage, "" if cached else f"in {span(seconds)}")
            case GateResult():
                self._gate(event)
            case Alert(level=level, message=message, hint=hint):
                self._alerts.append(event)
                self._say(event, level.upper(), "", f"{message} {hint}")

    def _live(self, stage: str) -> _Live:
        """The stage that an event is of: a part such as `merge.proof` belongs to the stage `merge` under way."""
        whole = stage.rpartition(".")[0]
        if stage not in self._stages and whole in self._stages:
            return self._stages[whole]
        return self._stages.setdefault(stage, _Live()) if len(self._stages) < MOST else _Live()

    def _progress(self, event: Progress) -> None:
        live = self._live(event.stage)
        before, live.progress = live.progress, event
        if (
            before is None
            or (before.stage, before.unit) != (event.stage, event.unit)
            or event.done < before.done
        ):
            # a stage may load and calibrate before it counts, so speed is that since the first count of this unit
            live.first = (event.time, event.done)
        if event.time - live.told >= PLAIN_INTERVAL_S:
            live.told = event.time
            self._say(event, "RUNNING", event.stage, f"{_counted(event)} {event.note}")

    def _measured(self, event: Measured) -> None:
        if event.metric == DRIFT_METRIC and len(self._drift) < MOST:
            name = f"{event.stage}.{event.metric}"
            self._drift[name] = DriftPoint(event.stage.partition(".")[0], name, event.value, None)
        curve = self._curves.get(event.metric)
        if curve is None or event.step is None:
            return
        if math.isfinite(event.value):
            curve.add(event.step, event.value)
        elif not self._broken:
            self._broken = True
            text = f"The {event.metric} is {event.value} at step {event.step}."
            self.add(Alert("error", text, "A smaller tune.learning_rate may help.", event.time))
        if event.metric == "validation_loss":
            self._say(event, "MEASURED", event.stage, f"validation loss {event.value:.4f}, step {event.step}")

    def _gate(self, event: GateResult) -> None:
        if event.name.endswith(DRIFT_METRIC) and len(self._drift) < MOST:
            self._drift[event.name] = DriftPoint(event.stage, event.name, event.value, event.limit)
        text = f"{event.name}: {event.value:.4g}, limit {event.limit:.4g}. {event.detail}"
        if event.passed:
            self._say(event, "PASSED", event.stage, text)
            return
        if len(self._failed) < MOST:
            self._failed[event.name] = event
        if event.stage and len(self._live(event.stage).failed) < MOST:
            self._live(event.stage).failed.append(event.name)
        self._say(event, "FAILED", event.stage, text)

    def _say(self, event: Event, word: str, stage: str, text: str) -> None:
        self._log.append(LogLine(event.time, word, stage, one_line(text, LOG_TEXT)))

    def view(self, run: Run | None, now: float) -> RunView:
        """All of it, at a moment, of the run whose record is `run`."""
        if run is not None:
            run = replace(
                run,
                model=one_line(run.model),
                target=one_line(run.target),
                message=one_line(run.message),
                hint=one_line(run.hint),
                stages=tuple(map(one_line, run.stages)),
            )
        seen = bool(self._stages)
        state = run.state if run is not None else "UNKNOWN" if seen else "NONE"
        until = now if state == "RUNNING" else (run.ended if run else None) or self._newest
        names = [*dict.fromkeys([*(run.stages if run else ()), *self._stages])]
        furthest = max((n for n, name in enumerate(names) if self._begun(name)), default=-1)
        whole = state in ("PASSED", "FAILED")
        stages = tuple(
            self._stage(name, run, state, until, passed_by=whole or (self.skipped_bytes > 0 and n < furthest))
            for n, name in enumerate(names)
        )
        started = run.started if run is not None else 0.0
        spent = max(0.0, until - started) if started else 0.0
        return RunView(
            state=state,
            sentence=run.ending if run else "This log has no run record: another program wrote it.",
            run=run,
            stages=stages,
            spent_s=spent,
            total_s=_total(stages, run, spent) if run is not None and state == "RUNNING" else None,
            loss=self._curves["loss"].points(),
            validation=self._curves["validation_loss"].points(),
            speed=self._curves["tokens_per_s"].points(),
            drift=tuple(self._drift.values()),
            failed=tuple(self._failed.values()),
            alerts=tuple(self._alerts),
            log=tuple(line for line in self._log if line.time >= started - STALE_S or line.word == "FAILED"),
            notices=tuple(self._notices()),
        )

    def _begun(self, name: str) -> bool:
        live = self._stages.get(name)
        return live is not None and (live.started is not None or live.finished_s is not None)

    def _stage(self, name: str, run: Run | None, state: str, until: float, *, passed_by: bool) -> Stage:
        live = self._stages.get(name, _Live())
        failed = tuple(live.failed)
        if live.finished_s is not None:
            word = "FAILED" if failed else "KEPT" if live.cached else "DONE"
            return Stage(name, word, live.finished_s, 1.0, failed=failed)
        if live.started is None and live.progress is None:
            return Stage(name, "FAILED" if failed else "DONE" if passed_by else "WAITING", failed=failed)
        word = "RUNNING"
        if state != "RUNNING":
            word = "DONE" if passed_by else "FAILED" if run and run.outcome == "error" else "STOPPED"
        begun = live.started if live.started is not None else live.first[0]
        seconds, at = max(0.0, until - begun), live.progress
        if at is None or not at.total > 0:
            return Stage(name, word, seconds, failed=failed)
        first_time, first_done = live.first
        left = None
        if word == "RUNNING" and at.done > first_done:
            pace = (at.time - first_time) / (at.done - first_done)
            left = max(0.0, pace * (at.total - at.done) - max(0.0, until - at.time))
        fraction = min(1.0, max(0.0, at.done / at.total))
        return Stage(name, word, seconds, fraction, _counted(at), at.note, left, failed)

    def _notices(self) -> list[str]:
        found = []
        if self.skipped_bytes:
            found.append(f"The log is long: the first {self.skipped_bytes / MIB:.0f} MiB were skipped.")
        if self.unread:
            found.append(
                f"{self.unread} lines of the log are damaged or from another version and were skipped."
            )
        elif self._unknown_keys:
            found.append("The log has values that this version does not know; they were skipped.")
        return found


def _total(stages: Sequence[Stage], run: Run, spent: float) -> float | None:
    """How long the whole run takes, from the speed of the stage under way and what the others took before."""
    left, known = 0.0, True
    for stage in stages:
        before = run.seconds.get(stage.name)
        if stage.state == "RUNNING" and stage.left_s is not None:
            left += stage.left_s
        elif stage.state == "RUNNING" and before is not None:
            left += max(0.0, before - (stage.seconds or 0.0))
        elif stage.state in ("RUNNING", "WAITING"):
            left, known = left + (before or 0.0), known and before is not None
    if known:
        return spent + left
    return None if run.seconds_expected is None else max(spent + left, run.seconds_expected)


def _counted(event: Progress) -> str:
    done, total = (f"{n:.0f}" if n == round(n) else f"{n:.1f}" for n in (event.done, event.total))
    return f"{done}/{total} {event.unit}".rstrip()


def _cleaned(event: Event) -> Event:
    """An event with each of its texts on one line."""
    values = {each.name: getattr(event, each.name) for each in fields(event)}
    texts: dict[str, Any] = {
        name: one_line(value) for name, value in values.items() if isinstance(value, str)
    }
    return replace(event, **texts)
