"""Every device at once: asked side by side, each at its own pace, and shown as last heard of, worst first.

A device that does not answer is LOST, with its last numbers, and delays no other: each has at most one question under
way, its own limit of time, and a worker that waits for it while there are not more than `MOST_WORKERS` devices.
"""

from __future__ import annotations

import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekit.app.views.devices import Device, check_names, parse_device, read_fleet
from edgekit.app.views.history import SERIES, History
from edgekit.app.views.reach import Way, way_to
from edgekit.app.views.rows import Row, Trouble, Unheard
from edgekit.base.clock import span
from edgekit.field.status import STATES

__all__ = ["Device", "Fleet", "Glance", "Row", "Trouble", "parse_device", "read_fleet"]

MOST_WORKERS = 64
SHARE = 100  # a look takes at most one part in so many of a core
GRACE_S = 0.5
PULSE_S = 0.25
GONE = "its records are gone", "see whether its state folder was moved, or its disk unmounted"
LATE = "see whether it is switched on, and reachable from here"
SPARK = 24  # values of a sparkline
SPARK_S = 30.0  # they are counted anew at least so often
CHART = 96
SPARKS = ("ttft_p95_s", "tokens_per_s")
HERE = "here"

Values = list[float | None]


@dataclass(frozen=True)
class Glance:
    """Every row at one time, worst first; finished, so that drawing it takes no more than drawing.

    `sparks` holds the values of each row's sparklines by its key and number, `chart` those of the row that was asked for,
    with the times they belong to in `chart_times`. `empty` says why there is nothing to see, if there is nothing.
    """

    time: float
    window_s: float
    every_s: float
    devices: int = 0
    rows: tuple[Row, ...] = ()
    sparks: dict[str, dict[str, Values]] = field(default_factory=dict)
    chart_key: str = ""
    chart_times: list[float] = field(default_factory=list)
    chart: dict[str, Values] = field(default_factory=dict)
    empty: str = ""

    def count(self, state: str) -> int:
        """How many rows are in a state."""
        return sum(row.state == state for row in self.rows)

    @property
    def silenced(self) -> int:
        """How many incidents are silenced."""
        return sum(row.silenced for row in self.rows)

    @property
    def worst(self) -> Row | None:
        """The row to look at first: one that nobody silenced, if there is one; None when all is well."""
        bad = [row for row in self.rows if row.state in STATES[:3]]
        return next((row for row in bad if not hushed(row)), bad[0] if bad else None)

    @property
    def alert(self) -> str:
        """The worst of all in a sentence with what to do next; empty when all is well."""
        row = self.worst
        if row is None:
            return self.empty
        number = row.troubles[0].number if row.troubles and row.state != "LOST" else 0
        who = row.device + (f" #{number}" if number else "")
        why = row.why.rstrip(".")
        next_step = f" Next: {row.hint.rstrip('.')}" if row.hint else ""
        return f"{who}: {'silenced: ' if hushed(row) else ''}{why}.{next_step}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "schema": "edgekit.fleet/1",
            "time": self.time,
            "window_s": self.window_s,
            "rows": [asdict(row) for row in self.rows],
        }


def hushed(row: Row) -> bool:
    """Whether all that is wrong with a row was silenced; a lost device never is."""
    return row.state != "LOST" and bool(row.troubles) and row.silenced >= len(row.troubles)


class _Watched:
    """A device, and what is known of it."""

    def __init__(self, device: Device, way: Way, due: float) -> None:
        self.device, self.way, self.due = device, way, due
        self.rows: list[Row] = []
        self.asked = False  # whether it was ever asked to the end
        self.unheard: Unheard | None = None
        self.asking: float | None = None
        self.late = False  # whether what is being asked was given up
        self.histories: dict[str, History] = {}
        self.sparks: dict[str, tuple[float, dict[str, Values]]] = {}


class Fleet:
    """Asks this device, whose state folder is `state`, and `devices`, every `every_s` seconds, about a window of time.

    `start` begins and `close` ends; `every_s` may be changed at any time, the window by `look_at`. `now` gives Unix seconds.
    Raises `ConfigError` when two devices have one name.
    """

    def __init__(
        self,
        state: Path,
        devices: Sequence[Device] = (),
        *,
        every_s: float = 1.0,
        window_s: float = 900.0,
        now: Callable[[], float] = time.time,
        way: Callable[[Device, Path], Way] = way_to,
    ) -> None:
        check_names(devices)
        whole = [*(() if any(map(_is_here, devices)) else (this_device(devices),)), *devices]
        self.every_s, self.window_s = every_s, window_s
        self._now = now
        begin = time.monotonic()
        self._watched = [
            # spread over the time between two looks, so that no two answers have to be read at once
            _Watched(device, way(device, state), begin + place / len(whole) * min(every_s, 1.0))
            for place, device in enumerate(whole)
        ]
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._closed = False
        self._queue: queue.SimpleQueue[_Watched | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to ask, in threads that do not hold up the end of the process."""
        works = [self._work] * min(len(self._watched), MOST_WORKERS)
        for number, target in enumerate([self._schedule, *works]):
            thread = threading.Thread(target=target, name=f"fleet-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Stop asking; who still waits for a device is cut off."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        for _ in self._threads:
            self._queue.put(None)
        for watched in self._watched:
            watched.way.stop()

    def look_at(self, window_s: float) -> None:
        """Ask about another window from now on, and at once."""
        self.window_s = window_s
        self.hurry()

    def hurry(self) -> None:
        """Ask every device as soon as can be."""
        with self._wake:
            for watched in self._watched:
                watched.due = 0.0
            self._wake.notify_all()

    def glance(self, selected: str = "") -> Glance:
        """What is known now; `chart` is that of the row whose key is `selected`."""
        now = self._now()
        rows: list[Row] = []
        sparks: dict[str, dict[str, Values]] = {}
        empty, chart, times = "", {}, []
        with self._lock:
            several = len(self._watched) > 1
            for watched in self._watched:
                if watched.unheard is not None and watched.unheard.nothing and not watched.rows:
                    empty = "" if several else _sentence(watched.unheard)
                    continue
                if not (watched.asked or several):
                    continue
                for row in _shown(watched, now):
                    rows.append(row)
                    sparks[row.key] = self._sparks(watched, row.key, now)
                    if row.key == selected and selected in watched.histories:
                        since = now - self.window_s
                        step = self.window_s / CHART
                        times = [since + (place + 0.5) * step for place in range(CHART)]
                        history = watched.histories[selected]
                        chart = {name: history.bins(name, since, now, CHART) for name in SERIES}
        rows.sort(key=lambda row: (STATES.index(row.state), hushed(row), not row.in_use, row.device))
        return Glance(
            now, self.window_s, self.every_s, len({row.device for row in rows}), tuple(rows), sparks, selected,
            times, chart, empty,
        )  # fmt: skip

    def settled(self) -> Glance:
        """What is known once every device was asked; each answers, or is given up, within its own time."""
        with self._wake:
            self._wake.wait_for(lambda: self._closed or all(one.asked for one in self._watched))
        return self.glance()

    def device(self, name: str) -> Device | None:
        """The device of that name."""
        return next((one.device for one in self._watched if one.device.name == name), None)

    def _sparks(self, watched: _Watched, key: str, now: float) -> dict[str, Values]:
        """The values of a row's sparklines, counted anew when they may have moved by a quarter of a value."""
        step = min(SPARK_S, max(1.0, self.window_s / SPARK / 4))
        due, values = watched.sparks.get(key, (0.0, {}))
        history = watched.histories.get(key)
        if history is not None and not due - step <= now < due:
            values = {name: history.bins(name, now - self.window_s, now, SPARK) for name in SPARKS}
            watched.sparks[key] = (now + step, values)
        return values

    def _schedule(self) -> None:
        while True:
            with self._wake:
                if self._closed:
                    return
                moment = time.monotonic()
                late = []
                for watched in self._watched:
                    if watched.asking is None:
                        if watched.due <= moment:
                            watched.asking = moment
                            self._queue.put(watched)
                    elif moment - watched.asking > watched.way.limit_s + GRACE_S and not watched.late:
                        watched.asked = watched.late = True
                        watched.unheard = Unheard(f"no answer within {watched.way.limit_s:g} s", LATE)
                        late.append(watched)
                waits = [one.due for one in self._watched if one.asking is None]
                pause = min([PULSE_S, *(max(0.01, due - moment) for due in waits)])
            for watched in late:
                watched.way.stop()
            with self._wake:
                if late:
                    self._wake.notify_all()
                if not self._closed:
                    self._wake.wait(pause)

    def _work(self) -> None:
        while (watched := self._queue.get()) is not None:
            began, spent = time.monotonic(), time.thread_time()
            window_s, now = self.window_s, self._now()
            try:
                rows = watched.way.ask(now, window_s)
                points = watched.way.points(rows, now)
            except Unheard as error:
                self._failed(watched, error)
            except Exception as error:  # noqa: BLE001 - whatever it was, the row says so and the others go on
                # not its text, which may hold a token
                why = f"its answer could not be read ({type(error).__name__})"
                self._failed(watched, Unheard(why, "see whether edgekit is as new there as here"))
            else:
                with self._lock:
                    watched.rows, watched.unheard, watched.asked = rows, None, True
                    for key, more in points.items():
                        watched.histories.setdefault(key, History(watched.way.hold_s)).add(more)
            least = max(self.every_s, watched.way.every_s, SHARE * (time.thread_time() - spent))
            with self._wake:
                watched.asking, watched.late = None, False
                again = window_s != self.window_s  # asked about another window meanwhile
                # in step with the looks before, so that the devices stay spread over the time
                step = max(watched.due + least, began) if watched.due else began + least
                watched.due = 0.0 if again else step if least == self.every_s else began + least
                self._wake.notify_all()

    def _failed(self, watched: _Watched, error: Unheard) -> None:
        with self._lock:
            if error.nothing and watched.rows:
                error = Unheard(*GONE)
            if not (watched.late and watched.unheard):  # then this is only how giving it up ended
                watched.unheard, watched.asked = error, True


def _shown(watched: _Watched, now: float) -> list[Row]:
    """The rows of a device as they are to be seen: as heard, or LOST with the last numbers, or LOST and nothing known."""
    name, unheard = watched.device.name, watched.unheard
    if unheard is None and not watched.asked:
        return [Row(name, name, state="IDLE", why="asked for the first time", in_use=True)]
    rows = watched.rows
    if unheard is not None:
        if not rows:
            return [Row(name, name, why=f"never heard: {unheard.why}", hint=unheard.hint)]
        rows = [
            replace(row, state="LOST", since=row.heard, why=unheard.why, hint=unheard.hint)
            for row in rows
            if row.in_use
        ] or [replace(rows[0], state="LOST", since=rows[0].heard, why=unheard.why, hint=unheard.hint)]
    return [
        replace(row, why=f"last heard {span(max(0.0, now - row.heard))} ago; {row.why}")
        if row.state == "LOST" and row.heard is not None
        else row
        for row in rows
    ]


def this_device(others: Sequence[Device] = ()) -> Device:
    """This device, by its host name, or `here` where that is no name or another's."""
    name = re.sub(r"[^A-Za-z0-9.-]", "", socket.gethostname()).strip(".-")[:64] or HERE
    return Device(HERE if name in {other.name for other in others} else name)


def _sentence(unheard: Unheard) -> str:
    return f"{unheard.why[0].upper()}{unheard.why[1:]}. {unheard.hint}".strip()


def _is_here(device: Device) -> bool:
    return not (device.url or device.host)
