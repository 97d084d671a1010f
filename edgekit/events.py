"""The one typed event stream that the command line, `events.jsonl` and the terminal app consume.

A stage takes `emit`, a function of one event, and calls it; it neither prints nor exits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage began."""

    stage: str
    detail: str = ""
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` units of work; `note` is a short live reading such as `loss 0.31`."""

    stage: str
    done: float
    total: float
    unit: str = ""
    note: str = ""
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Measured:
    """One measured number, for plots and reports."""

    stage: str
    metric: str
    value: float
    unit: str = ""
    step: int | None = None
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class StageFinished:
    """A stage ended well; `cached` when an earlier result was taken."""

    stage: str
    seconds: float
    cached: bool = False
    detail: str = ""
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class GateResult:
    """A check's measured value against its limit; `stage` is the one to blame when it fails."""

    name: str
    value: float
    limit: float
    passed: bool
    detail: str = ""
    stage: str = ""
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Alert:
    """Something a person should know now."""

    level: Literal["info", "warning", "error"]
    message: str
    hint: str = ""
    time: float = field(default_factory=time.time)


Event = StageStarted | Progress | Measured | StageFinished | GateResult | Alert
Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An `emit` that drops every event."""


def to_json(event: Event) -> str:
    """One line of JSON for `event`, its type under `event`."""
    return json.dumps({"event": type(event).__name__, **asdict(event)}, ensure_ascii=False)


def fan_out(*targets: Emit) -> Emit:
    """An `emit` that hands each event to every target in turn."""

    def emit(event: Event) -> None:
        for target in targets:
            target(event)

    return emit


def jsonl_writer(path: Path) -> Emit:
    """An `emit` that appends each event to the JSONL file `path`, flushed line by line."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def emit(event: Event) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(to_json(event) + "\n")

    return emit
