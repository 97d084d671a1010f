"""The stages of a build: what each is doing, how far it is, and how long it and the whole will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekit.base.events import Progress
from edgekit.build.runs import Run


@dataclass
class Stage:
    """One stage: WAITING, RUNNING, DONE, KEPT from an earlier build, FAILED (a gate, or its work) or STOPPED.

    `seconds` is what it took, or takes so far; `counted` is its progress in its own unit; `first` and `latest` are the
    first and the latest progress in this unit.
    """

    name: str
    state: str = "WAITING"
    started: float = 0.0
    seconds: float | None = None
    fraction: float | None = None
    counted: str = ""
    note: str = ""
    left_s: float | None = None
    failed: tuple[str, ...] = ()
    first: Progress | None = None
    latest: Progress | None = None

    def count(self, event: Progress) -> None:
        """Take in progress: a stage may load and calibrate before it counts, so its speed is that of this unit."""
        if self.state != "RUNNING":
            self.state, self.started = "RUNNING", event.time
        at = self.latest
        if at is None or (at.stage, at.unit) != (event.stage, event.unit) or event.done < at.done:
            self.first = event
        self.latest = event
        if event.total > 0:
            self.counted, self.note = counted(event), event.note
            self.fraction = min(1.0, max(0.0, event.done / event.total))

    def end(self, state: str, seconds: float) -> None:
        """It is done."""
        self.state, self.seconds, self.fraction = state, seconds, 1.0
        self.counted, self.note, self.first, self.latest = "", "", None, None

    def at(self, now: float, ended_as: str, passed_by: bool) -> Stage:
        """The stage at a moment; `ended_as` is what a stage under way has become with its run, empty while that runs.

        With `passed_by` later stages have begun, so this one is done, whatever is known of it.
        """
        state, seconds, left = self.state, self.seconds, None
        if state == "RUNNING":
            seconds = max(0.0, now - self.started)
            first, latest = self.first, self.latest
            if ended_as:
                state = "DONE" if passed_by else ended_as
            elif first and latest and latest.done > first.done:
                pace = (latest.time - first.time) / (latest.done - first.done)
                left = max(0.0, pace * (latest.total - latest.done) - max(0.0, now - latest.time))
        elif state == "WAITING" and passed_by:
            state = "DONE"
        if self.failed and state != "RUNNING":
            state = "FAILED"
        return replace(self, state=state, seconds=seconds, left_s=left)


def total_s(stages: Sequence[Stage], run: Run, spent: float) -> float | None:
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


def counted(event: Progress) -> str:
    """`6/11 steps`: how far something is."""
    done, total = (f"{n:.0f}" if n == round(n) else f"{n:.1f}" for n in (event.done, event.total))
    return f"{done}/{total} {event.unit}".rstrip()
