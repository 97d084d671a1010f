"""Prints events for people on stderr: bars and colours on a terminal, plain lines elsewhere.

Data goes to stdout and progress to stderr, so that `--json` and pipes contain data only.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from edgekit.base import events
from edgekit.base.clock import span

PLAIN_INTERVAL_S = 20.0  # without a terminal: seconds between two progress lines


class _Left(ProgressColumn):
    """The remaining time of a stage, once its speed is known."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None else f"{span(left)} left", style="cyan")


class Narrator:
    """An `emit` that prints events, and a context manager around the work that emits them."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self._quiet = quiet
        self._live = console.is_terminal and not quiet
        self._bars = Progress(
            TextColumn("  {task.description:<16}"), BarColumn(24), TextColumn("{task.percentage:>3.0f} %"), _Left(),
            TextColumn("{task.fields[note]}", style="dim"), console=console, transient=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._first: dict[tuple[str, str], tuple[float, float]] = {}
        self._done: dict[tuple[str, str], float] = {}
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def __call__(self, event: events.Event) -> None:
        """Print one event."""
        match event:
            case events.StageStarted(stage=stage):
                if self._live:
                    self._tasks[stage] = self._bars.add_task(stage, total=None, note="")
                else:
                    self._say(f"{stage}: started")
            case events.Progress():
                self._progress(event)
            case events.StageFinished(stage=stage, seconds=seconds, cached=cached):
                if stage in self._tasks:
                    self._bars.remove_task(self._tasks.pop(stage))
                self._say(f"  ✓ {stage:<16} " + ("kept from an earlier run" if cached else span(seconds)))
            case events.GateResult(passed=False):
                self._say(
                    f"  ✗ {event.name}: {event.value:.4g}, limit {event.limit:.4g}. {event.detail}", "red"
                )
            case events.Alert(level=level, message=message, hint=hint):
                mark = "·" if level == "info" else "!"
                self._say(f"  {mark} {message} {hint}".rstrip(), "yellow" if level == "warning" else None)
            case _:
                pass

    def _progress(self, event: events.Progress) -> None:
        if self._live:
            if event.stage not in self._tasks:
                self._tasks[event.stage] = self._bars.add_task(
                    event.stage, total=event.total, completed=int(event.done), note=""
                )
            self._bars.update(
                self._tasks[event.stage], completed=event.done, total=event.total, note=event.note
            )
            return
        now = time.monotonic()
        # A stage may load and calibrate first, so the speed is measured from the first count of this unit; a stage that
        # counts the same things twice begins again.
        what = event.stage, event.unit
        if event.done < self._done.get(what, event.done):
            del self._first[what]
        self._done[what] = event.done
        start, already = self._first.setdefault(what, (now, event.done))
        if now - self._last_line < PLAIN_INTERVAL_S:
            return
        self._last_line = now
        left = (
            f", {span((now - start) / (event.done - already) * (event.total - event.done))} left"
            if event.done > already
            else ""
        )
        done, total = (f"{n:.0f}" if n == round(n) else f"{n:.1f}" for n in (event.done, event.total))
        self._say(f"{event.stage}: {done}/{total} {event.unit}{left} {event.note}".rstrip())

    def _say(self, text: str, style: str | None = None) -> None:
        if not self._quiet or style == "red":
            self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
