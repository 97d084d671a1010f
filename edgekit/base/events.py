"""The typed events of all stages, which the command line, `events.jsonl` and the terminal app read.

A stage takes `emit`, a function of one event, and calls it; it neither prints nor exits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage started."""

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
    """One measured value, for plots and reports."""

    stage: str
    metric: str
    value: float
    unit: str = ""
    step: int | None = None
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class StageFinished:
    """A stage finished; `cached` when an earlier result was reused."""

    stage: str
    seconds: float
    cached: bool = False
    detail: str = ""
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class GateResult:
    """A check's measured value and its limit; `stage` is the one that causes a failure.

    `low` and `high` are the one-sided 95 % bounds of the value and `n` the size of the sample, where it has one.
    """

    name: str
    value: float
    limit: float
    passed: bool
    detail: str = ""
    stage: str = ""
    low: float | None = None
    high: float | None = None
    n: int | None = None
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Alert:
    """A message that a person should read now."""

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


LARGEST = 1e11  # limit for times and counts: larger times are not valid dates
TYPES: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}


def from_json(line: str, unknown: Callable[[str], None] | None = None) -> Event:
    """The event in one line of untrusted JSON; `unknown` is called with each unknown key.

    Raises `ValueError` for a line that is not an event: it is truncated, damaged, or of another version.
    """
    try:
        found = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply for an event") from error
    kind = TYPES.get(str(found.get("event"))) if isinstance(found, dict) else None
    if kind is None:
        raise ValueError("not an event that is known here")
    values: dict[str, Any] = {}
    for part in fields(kind):
        if part.name in found:
            values[part.name] = _checked(part.name, str(part.type), found.pop(part.name))
        elif part.default is MISSING and part.default_factory is MISSING:
            raise ValueError(f"{kind.__name__} without '{part.name}'")
    if unknown is not None:
        for key in found.keys() - {"event"}:
            unknown(key)
    return kind(**values)


def _checked(name: str, kind: str, value: Any) -> Any:
    """`value` if it has the type of the field `name`; integers are accepted for floats."""
    if kind == "float | None" and value is None:
        return None
    if kind.startswith("float") and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError as error:
            raise ValueError(f"'{name}' is beyond all numbers") from error
        if (
            name in ("value", "limit", "low", "high") or abs(number) < LARGEST
        ):  # what is measured may be infinite or no number
            return number
    elif kind == "int | None":
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53):
            return value
    elif kind == "bool":
        if isinstance(value, bool):
            return value
    elif isinstance(value, str) and (name != "level" or value in ("info", "warning", "error")):
        return value
    raise ValueError(f"'{name}' is no {kind}")


def fan_out(*targets: Emit) -> Emit:
    """An `emit` that passes each event to every target in turn."""

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
