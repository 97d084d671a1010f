"""The build in a cache as the run screen shows it: what its record, its processes and its events add up to."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgekit.app.views.stages import Stage, counted, total_s
from edgekit.app.views.tail import MIB, Tail
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
from edgekit.base.hardware import available_memory_mib
from edgekit.base.texts import one_line
from edgekit.build import runs
from edgekit.build.runs import Run

LOG_LINES = 2000
LOG_TEXT = 400  # characters of one line
MOST = 200  # names of stages or gates: a build has some 60
MOST_POINTS = 512  # of a curve that are drawn: more than a terminal has columns
STALE_S = 1.0  # a fact that is older than its run comes from a stage that was kept
DRIFT_METRIC = "mean_kld_nats"


@dataclass(frozen=True)
class Points:
    """A curve."""

    xs: tuple[float, ...] = ()
    ys: tuple[float, ...] = ()


NO_POINTS = Points()


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


class Fold:
    """What the events of one run add up to."""

    def __init__(self) -> None:
        self.unread = 0
        self.skipped_bytes = 0
        self._unknown_keys: list[str] = []
        self._stages: dict[str, Stage] = {}
        self._curves: dict[str, list[tuple[float, float]]] = {"loss": [], "validation_loss": []}
        self._drift: dict[str, DriftPoint] = {}
        self._failed: dict[str, GateResult] = {}
        self._alerts: deque[Alert] = deque(maxlen=50)
        self._log: deque[LogLine] = deque(maxlen=LOG_LINES)
        self._told: dict[str, float] = {}  # when the log last told of a stage's progress
        self._broken = False
        self._newest = 0.0

    def add_line(self, line: str) -> None:
        """Add the event in a line of `events.jsonl`; what is none is counted."""
        if not line.strip():
            return
        try:
            self.add(from_json(line, self._unknown_keys.append))
        except ValueError:
            self.unread += 1
        del self._unknown_keys[1:]

    def add(self, event: Event) -> None:
        """Add one event."""
        event = _cleaned(event)
        self._newest = max(self._newest, event.time)
        match event:
            case StageStarted(stage=name, detail=detail):
                stage = self._stage(name)
                stage.state, stage.started, stage.latest, stage.fraction = "RUNNING", event.time, None, None
                self._say(event, "STARTED", name, detail)
            case Progress():
                self._stage(event.stage).count(event)
                if event.time - self._told.get(event.stage, 0.0) >= PLAIN_INTERVAL_S:
                    if len(self._told) < MOST:
                        self._told[event.stage] = event.time
                    self._say(event, "RUNNING", event.stage, f"{counted(event)} {event.note}")
            case Measured():
                self._measured(event)
            case StageFinished(stage=name, seconds=seconds, cached=cached):
                word = "KEPT" if cached else "DONE"
                self._stage(name).end(word, seconds)
                self._say(event, word, name, "" if cached else f"in {span(seconds)}")
            case GateResult():
                self._gate(event)
            case Alert(level=level, message=message, hint=hint):
                self._alerts.append(event)
                self._say(event, level.upper(), "", f"{message} {hint}")

    def _stage(self, name: str) -> Stage:
        """The stage that an event is of: a part such as `merge.proof` belongs to the stage `merge` under way."""
        whole = name.rpartition(".")[0]
        if name not in self._stages and whole in self._stages:
            return self._stages[whole]
        return self._stages.setdefault(name, Stage(name)) if len(self._stages) < MOST else Stage(name)

    def _measured(self, event: Measured) -> None:
        if event.metric == DRIFT_METRIC and len(self._drift) < MOST:
            name = f"{event.stage}.{event.metric}"
            self._drift[name] = DriftPoint(event.stage.partition(".")[0], name, event.value, None)
        curve = self._curves.get(event.metric)
        if curve is None or event.step is None:
            return
        if math.isfinite(event.value):
            curve.append((event.step, event.value))
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
        self._say(event, "PASSED" if event.passed else "FAILED", event.stage, text)
        if not event.passed and len(self._failed) < MOST:
            self._failed[event.name] = event
            if event.stage:
                self._stage(event.stage).failed += (event.name,)

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
        state = run.state if run is not None else "UNKNOWN" if self._stages else "NONE"
        until = now if state == "RUNNING" else (run.ended if run else None) or self._newest
        stages = self._stages_at(run, state, until)
        started = run.started if run is not None else 0.0
        spent = max(0.0, until - started) if started else 0.0
        return RunView(
            state=state,
            sentence=run.ending if run else "This log has no run record: another program wrote it.",
            run=run,
            stages=stages,
            spent_s=spent,
            total_s=total_s(stages, run, spent) if run is not None and state == "RUNNING" else None,
            loss=_thinned(self._curves["loss"]),
            validation=_thinned(self._curves["validation_loss"]),
            drift=tuple(self._drift.values()),
            failed=tuple(self._failed.values()),
            alerts=tuple(self._alerts),
            log=tuple(line for line in self._log if line.time >= started - STALE_S or line.word == "FAILED"),
            notices=tuple(self._notices()),
        )

    def _stages_at(self, run: Run | None, state: str, until: float) -> tuple[Stage, ...]:
        known = dict.fromkeys([*(run.stages if run else ()), *self._stages])
        stages = [self._stages.get(name, Stage(name)) for name in known]
        last = max((n for n, stage in enumerate(stages) if stage.state != "WAITING"), default=-1)
        whole = state in ("PASSED", "FAILED")
        ended_as = "FAILED" if run and run.outcome == "error" else "STOPPED"
        return tuple(
            stage.at(
                until,
                "" if state == "RUNNING" else ended_as,
                passed_by=whole or (self.skipped_bytes > 0 and n < last),
            )
            for n, stage in enumerate(stages)
        )

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


class RunReader:
    """Looks at the run in a cache again and again; every look reads what is new. One thread at a time."""

    def __init__(self, cache_dir: Path) -> None:
        self.cache_dir = cache_dir
        self._of: tuple[int, float] | None = None
        self._begin()

    def read(self, now: float) -> RunView:
        """The run as it is now. Raises nothing: what cannot be read is said in the view."""
        run = runs.read(self.cache_dir)
        of = None if run is None else (run.pid, run.started)
        if of != self._of:
            self._of = of
            self._begin()
        found = self._tail.read()
        if found.anew:
            self._fold = Fold()
        for line in found.lines:
            self._fold.add_line(line)
        self._fold.unread += found.dropped_lines
        self._fold.skipped_bytes += found.skipped_bytes
        view = self._fold.view(run, now)
        if found.trouble:
            view = replace(view, notices=(*view.notices, found.trouble))
        if run is not None and view.state == "RUNNING":
            rss, free = runs.rss_mib(run), float(available_memory_mib())
            return replace(view, rss_mib=rss, available_mib=free, ours=runs.is_ours(run))
        if run is None and not view.stages:
            return replace(view, sentence=f"No build has run in {self.cache_dir} yet.")
        return view

    def _begin(self) -> None:
        self._tail, self._fold = Tail(self.cache_dir / runs.EVENTS), Fold()


def _thinned(points: Sequence[tuple[float, float]]) -> Points:
    """A curve of at most `MOST_POINTS` points and the newest."""
    shown = [*points[: -1 : 1 + len(points) // MOST_POINTS], *points[-1:]]
    return Points(tuple(x for x, _ in shown), tuple(y for _, y in shown))


def _cleaned(event: Event) -> Event:
    """An event with each of its texts on one line."""
    values = {each.name: getattr(event, each.name) for each in fields(event)}
    texts: dict[str, Any] = {
        name: one_line(value) for name, value in values.items() if isinstance(value, str)
    }
    return replace(event, **texts)
