"""Every device at once: asked side by side, each at its own pace, and shown as last heard of, worst first.

A device that does not answer is LOST, with its last numbers, and delays no other: each has a thread of its own, which
asks it again and again, and a limit of time for each answer.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.base.clock import span
from edgekit.field.fleet.connection import Connection, NoStatus, connect
from edgekit.field.fleet.device import HERE, Device, check_names
from edgekit.field.status import STATES, DeviceStatus, ReleaseStatus, fleet_document, worst_first

SHARE = 100  # a look takes at most one part in so many of a core
GRACE_S = 0.5
POLL_S = 0.02
GONE = "its records are gone", "check whether its state folder was moved, or its disk unmounted"
LATE = "check that it is switched on and can be reached from here"


@dataclass(frozen=True)
class FleetView:
    """Every release of every device at one time, worst first. `empty` says why there is nothing to see."""

    time: float
    window_s: float
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

    def __init__(self, device: Device, connection: Connection) -> None:
        self.device, self.connection = device, connection
        self.status: DeviceStatus | None = None
        self.heard = 0.0
        self.failure: NoStatus | None = None
        self.asking: float | None = None
        """Since when an answer is waited for."""
        self.wake = threading.Event()

    @property
    def late(self) -> NoStatus | None:
        """The failure of a question that is not answered in time."""
        limit_s = self.connection.limit_s
        if self.asking is None or time.monotonic() - self.asking <= limit_s + GRACE_S:
            return None
        return NoStatus(f"no answer within {limit_s:g} s", LATE)


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
        connection: Callable[[Device], Connection] = connect,
    ) -> None:
        check_names(devices)
        whole = (this_device(state, devices), *devices)
        self.every_s, self.window_s = every_s, window_s
        self._now = now
        self._watched = [_Watched(device, connection(device)) for device in whole]
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Begin to ask, in threads that do not hold up the end of the process."""
        for place, watched in enumerate(self._watched):
            # spread over the time between two looks, so that no two answers have to be read at once
            delay_s = place / len(self._watched) * min(self.every_s, 1.0)
            name = f"fleet-{watched.device.name}"
            threading.Thread(target=self._watch, args=(watched, delay_s), name=name, daemon=True).start()

    def close(self) -> None:
        """Stop asking; who still waits for a device is cut off."""
        self._closed = True
        for watched in self._watched:
            watched.wake.set()
            watched.connection.stop()

    def look_at(self, window_s: float) -> None:
        """Ask about another window from now on, and at once."""
        self.window_s = window_s
        self.hurry()

    def hurry(self) -> None:
        """Ask every device as soon as can be."""
        for watched in self._watched:
            watched.wake.set()

    def view(self) -> FleetView:
        """What is known now."""
        now, several = self._now(), len(self._watched) > 1
        devices: list[DeviceStatus] = []
        empty = ""
        for watched in self._watched:
            with self._lock:
                status, heard, failure = watched.status, watched.heard, watched.late or watched.failure
            if failure is not None and failure.empty and status is None:
                empty = "" if several else f"{failure.why[0].upper()}{failure.why[1:]}. {failure.hint}"
            elif status is not None:
                devices.append(_heard(replace(status, device=watched.device.name), failure, heard, now))
            elif failure is not None or several:
                devices.append(_unheard(watched.device.name, failure, now, self.window_s))
        rows = worst_first((row for device in devices for row in device.releases), now)
        return FleetView(now, self.window_s, tuple(devices), tuple(rows), empty)

    def settled(self) -> FleetView:
        """What is known once every device was asked; each answers, or is given up, within its own time."""
        while not self._closed and not all(one.status or one.failure or one.late for one in self._watched):
            time.sleep(POLL_S)
        return self.view()

    def device(self, name: str) -> Device:
        """The device of that name."""
        return next(one.device for one in self._watched if one.device.name == name)

    def _watch(self, watched: _Watched, delay_s: float) -> None:
        watched.wake.wait(delay_s)
        while not self._closed:
            watched.wake.clear()
            began, spent = time.monotonic(), time.thread_time()
            watched.asking = began
            try:
                self._have(watched, watched.connection.ask(self._now(), self.window_s))
            except NoStatus as error:
                self._failed(watched, error)
            except Exception as error:  # noqa: BLE001 - whatever it was, the row says so and the others go on
                # not its text, which may hold a token
                why = f"its answer could not be read ({type(error).__name__})"
                self._failed(watched, NoStatus(why, "install the same version of edgekit there and here"))
            least_s = max(self.every_s, watched.connection.every_s, SHARE * (time.thread_time() - spent))
            watched.wake.wait(began + least_s - time.monotonic())

    def _have(self, watched: _Watched, status: DeviceStatus) -> None:
        with self._lock:
            watched.status, watched.heard = status, self._now()
            watched.failure = watched.asking = None

    def _failed(self, watched: _Watched, error: NoStatus) -> None:
        with self._lock:
            if error.empty and watched.status is not None:
                error = NoStatus(*GONE)
            watched.failure = watched.late or error
            watched.asking = None


def _unheard(name: str, failure: NoStatus | None, now: float, window_s: float) -> DeviceStatus:
    """A device that never answered."""
    row = ReleaseStatus("", "IDLE", True, device=name, why="waiting for the first answer")
    if failure is not None:
        row = replace(row, state="LOST", why=f"never heard: {failure.why}", hint=failure.hint)
    return DeviceStatus(name, now, window_s, row.state, releases=[row])


def _heard(status: DeviceStatus, failure: NoStatus | None, heard: float, now: float) -> DeviceStatus:
    """A device as it is to be seen: as heard, or LOST with its last numbers."""
    rows = [replace(row, device=status.device) for row in status.releases]
    if failure is not None:
        rows = [
            replace(row, state="LOST", why=failure.why, hint=failure.hint, trouble_since=heard)
            for row in [row for row in rows if row.in_use] or rows[:1]
        ]
    rows = [
        replace(row, why=f"last heard {span(max(0.0, now - row.trouble_since))} ago; {row.why}")
        if row.state == "LOST" and row.trouble_since is not None
        else row
        for row in rows
    ]
    return replace(status, state=rows[0].state, releases=rows)


def this_device(state: Path, others: Sequence[Device] = ()) -> Device:
    """This device, by its host name, or `here` where that is no name or another's."""
    name = re.sub(r"[^A-Za-z0-9.-]", "", socket.gethostname()).strip(".-")[:64] or HERE
    return Device(HERE if name in {other.name for other in others} else name, state=state)
