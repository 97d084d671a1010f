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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.app.views.connection import Connection, NoStatus, connect
from edgekit.app.views.devices import Device, check_names
from edgekit.base.clock import span
from edgekit.field.status import STATES, DeviceStatus, ReleaseStatus, fleet_document

MOST_WORKERS = 64
SHARE = 100  # a look takes at most one part in so many of a core
GRACE_S = 0.5
PULSE_S = 0.25
GONE = "its records are gone", "check whether its state folder was moved, or its disk unmounted"
LATE = "check that it is switched on and can be reached from here"
HERE = "here"


@dataclass(frozen=True)
class FleetView:
    """Every release of every device at one time, worst first. `empty` says why there is nothing to see."""

    time: float
    window_s: float
    every_s: float
    devices: tuple[DeviceStatus, ...] = ()
    rows: tuple[ReleaseStatus, ...] = ()
    empty: str = ""

    def count(self, state: str) -> int:
        """How many rows are in a state."""
        return sum(row.state == state for row in self.rows)

    @property
    def silenced(self) -> int:
        """How many incidents are silenced."""
        return sum(row.silenced(self.time) for row in self.rows)

    @property
    def worst(self) -> ReleaseStatus | None:
        """The row to look at first: one that is not silenced, if there is one; None when nothing is wrong."""
        bad = [row for row in self.rows if row.state in STATES[:3]]
        return next((row for row in bad if not row.is_silenced(self.time)), bad[0] if bad else None)

    @property
    def alert(self) -> str:
        """The worst of all in a sentence with what to do next; empty when nothing is wrong."""
        row = self.worst
        if row is None:
            return self.empty
        number = f" #{row.incidents[0].id}" if row.incidents and row.state != "LOST" else ""
        silenced = "silenced: " if row.is_silenced(self.time) else ""
        next_step = f" Next: {row.hint.rstrip('.')}" if row.hint else ""
        return f"{row.device}{number}: {silenced}{row.why.rstrip('.')}.{next_step}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return fleet_document([device.to_dict() for device in self.devices], self.time, self.window_s)


def key_of(row: ReleaseStatus) -> str:
    """What a row is known by."""
    return f"{row.device} {row.release}".rstrip()


class _Watched:
    """A device and its last status; `heard` is when it came, `failure` why there is no newer one."""

    def __init__(self, device: Device, connection: Connection, due: float) -> None:
        self.device, self.connection, self.due = device, connection, due
        self.status: DeviceStatus | None = None
        self.heard = 0.0
        self.failure: NoStatus | None = None
        self.asked = False  # whether a question was ever finished
        self.asking: float | None = None
        self.late = False  # whether the question under way was given up


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
        connection: Callable[[Device, Path], Connection] = connect,
    ) -> None:
        check_names(devices)
        whole = [*(() if any(map(_is_here, devices)) else (this_device(devices),)), *devices]
        self.every_s, self.window_s = every_s, window_s
        self._now = now
        begin = time.monotonic()
        self._watched = [
            # spread over the time between two looks, so that no two answers have to be read at once
            _Watched(device, connection(device, state), begin + place / len(whole) * min(every_s, 1.0))
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
            watched.connection.stop()

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

    def view(self) -> FleetView:
        """What is known now."""
        now = self._now()
        devices: list[DeviceStatus] = []
        empty = ""
        with self._lock:
            several = len(self._watched) > 1
            for watched in self._watched:
                if watched.failure is not None and watched.failure.empty and watched.status is None:
                    empty = "" if several else _sentence(watched.failure)
                elif watched.asked or several:
                    devices.append(_shown(watched, now, self.window_s))
        rows = [row for device in devices for row in device.releases]
        rows.sort(key=lambda row: (STATES.index(row.state), row.is_silenced(now), not row.in_use, row.device))
        return FleetView(now, self.window_s, self.every_s, tuple(devices), tuple(rows), empty)

    def settled(self) -> FleetView:
        """What is known once every device was asked; each answers, or is given up, within its own time."""
        with self._wake:
            self._wake.wait_for(lambda: self._closed or all(one.asked for one in self._watched))
        return self.view()

    def device(self, name: str) -> Device | None:
        """The device of that name."""
        return next((one.device for one in self._watched if one.device.name == name), None)

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
                    elif moment - watched.asking > watched.connection.limit_s + GRACE_S and not watched.late:
                        watched.asked = watched.late = True
                        watched.failure = NoStatus(f"no answer within {watched.connection.limit_s:g} s", LATE)
                        late.append(watched)
                waits = [one.due for one in self._watched if one.asking is None]
                pause = min([PULSE_S, *(max(0.01, due - moment) for due in waits)])
            for watched in late:
                watched.connection.stop()
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
                status = watched.connection.ask(now, window_s)
            except NoStatus as error:
                self._failed(watched, error)
            except Exception as error:  # noqa: BLE001 - whatever it was, the row says so and the others go on
                # not its text, which may hold a token
                why = f"its answer could not be read ({type(error).__name__})"
                self._failed(watched, NoStatus(why, "install the same version of edgekit there and here"))
            else:
                with self._lock:
                    watched.status, watched.heard, watched.failure, watched.asked = status, now, None, True
            least = max(self.every_s, watched.connection.every_s, SHARE * (time.thread_time() - spent))
            with self._wake:
                watched.asking, watched.late = None, False
                again = window_s != self.window_s  # asked about another window meanwhile
                # in step with the looks before, so that the devices stay spread over the time
                step = max(watched.due + least, began) if watched.due else began + least
                watched.due = 0.0 if again else step if least == self.every_s else began + least
                self._wake.notify_all()

    def _failed(self, watched: _Watched, error: NoStatus) -> None:
        with self._lock:
            if error.empty and watched.status is not None:
                error = NoStatus(*GONE)
            if not (watched.late and watched.failure):  # then this is only how giving it up ended
                watched.failure, watched.asked = error, True


def _shown(watched: _Watched, now: float, window_s: float) -> DeviceStatus:
    """A device as it is to be seen: as heard, LOST with its last numbers, or LOST with none."""
    name, failure, status = watched.device.name, watched.failure, watched.status
    if status is None:
        row = ReleaseStatus("", "IDLE", True, device=name, why="waiting for the first answer")
        if failure is not None:
            row = replace(row, state="LOST", why=f"never heard: {failure.why}", hint=failure.hint)
        return DeviceStatus(name, now, window_s, row.state, releases=[row])
    rows = [replace(row, device=name) for row in status.releases]
    if failure is not None:
        rows = [
            replace(row, state="LOST", why=failure.why, hint=failure.hint, trouble_since=watched.heard)
            for row in [row for row in rows if row.in_use] or rows[:1]
        ]
    rows = [
        replace(row, why=f"last heard {span(max(0.0, now - row.trouble_since))} ago; {row.why}")
        if row.state == "LOST" and row.trouble_since is not None
        else row
        for row in rows
    ]
    return replace(status, device=name, state=rows[0].state, releases=rows)


def this_device(others: Sequence[Device] = ()) -> Device:
    """This device, by its host name, or `here` where that is no name or another's."""
    name = re.sub(r"[^A-Za-z0-9.-]", "", socket.gethostname()).strip(".-")[:64] or HERE
    return Device(HERE if name in {other.name for other in others} else name)


def _sentence(failure: NoStatus) -> str:
    return f"{failure.why[0].upper()}{failure.why[1:]}. {failure.hint}".strip()


def _is_here(device: Device) -> bool:
    return not (device.url or device.host)
