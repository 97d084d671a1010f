"""How a device is asked how it fares: its metrics by HTTP, its own `edgekit monitor` by SSH, or the stores of this one.

Each way gives rows as this device's overview has them, or raises `Unheard` with the reason in words. What comes from
another machine is bounded in time and size, and is text of strangers: control characters are taken out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from edgekit.app.views.command import OUT_OF_TIME, Command
from edgekit.app.views.devices import Device
from edgekit.app.views.history import Point
from edgekit.app.views.reach_url import Metrics
from edgekit.app.views.rows import Row, Unheard, row_of
from edgekit.base.errors import EdgekitError
from edgekit.base.numbers import finite
from edgekit.base.texts import one_line
from edgekit.field.incidents.runbook import runbook
from edgekit.field.status import ReleaseStatus as Seen
from edgekit.field.status import overview
from edgekit.field.telemetry.store import FILE, Store

SSH_S = 15.0  # for one answer
SSH_EVERY_S = 10.0  # a login and a Python start are no small thing on a device
SCHEMA = "edgekit.monitor/1"
OPTIONS = {60.0: "m", 3600.0: "h", 86400.0: "d"}
_ROWS = TypeAdapter(list[Seen])


class Way(Protocol):
    """A way to ask one device, used by one thread at a time.

    `limit_s` is how long one answer may take, `every_s` the least time between two, and a point of history stands for
    `hold_s`.
    """

    limit_s: float
    every_s: float
    hold_s: float

    def ask(self, now: float, window_s: float) -> list[Row]:
        """How the device fares in the window until `now`. Raises `Unheard`."""

    def points(self, rows: Sequence[Row], now: float) -> dict[str, list[Point]]:
        """What to add to the histories, by the rows' keys; the first time all that is known of the last day."""

    def stop(self) -> None:
        """Give up what `ask` waits for; called from another thread."""


def way_to(device: Device, state: Path) -> Way:
    """The way to ask `device`; `state` is this device's own state folder."""
    if device.url:
        return Metrics(device)
    return Ssh(device) if device.host else Here(device.name, device.state or state)


def span_option(seconds: float) -> str:
    """A window as the command line takes it: `15m`, `1h`, `1d`."""
    for unit, letter in sorted(OPTIONS.items(), reverse=True):
        if seconds % unit == 0:
            return f"{seconds / unit:g}{letter}"
    return f"{seconds:g}s"


class Ssh:
    """A device that is asked by `edgekit monitor --once --json` over SSH, at most every 10 s."""

    limit_s = SSH_S
    every_s = SSH_EVERY_S
    hold_s = 2.5 * SSH_EVERY_S

    def __init__(self, device: Device) -> None:
        self._device = device
        self._command: Command | None = None

    def ask(self, now: float, window_s: float) -> list[Row]:
        """Ask once."""
        place = ("--state", str(self._device.state)) if self._device.state else ()
        arguments = ("monitor", "--once", "--window", span_option(window_s), *place)
        self._command = Command(arguments, host=self._device.host)
        outcome = self._command.run(timeout_s=SSH_S)
        if outcome.code == OUT_OF_TIME:
            raise Unheard(f"no answer within {SSH_S:g} s", f"try it by hand: ssh {self._device.host}")
        if outcome.code == 127:
            raise Unheard("edgekit is not found there", "install it there, on the PATH of ssh's shell")
        if outcome.code:
            raise Unheard(one_line(outcome.message).rstrip("."), one_line(outcome.hint))
        return self._rows(outcome.document, now)

    def points(self, rows: Sequence[Row], now: float) -> dict[str, list[Point]]:
        """The windows that were told."""
        return {row.key: [_point(row, now)] for row in rows if row.state != "LOST"}

    def stop(self) -> None:
        """End the ssh."""
        if self._command is not None:
            self._command.stop()

    def _rows(self, document: Any, now: float) -> list[Row]:
        hint = f"see whether edgekit is as new there as here: ssh {self._device.host} edgekit --version"
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise Unheard(f"its answer is no {SCHEMA} document", hint)
        releases = document.get("releases")
        try:
            seen = _ROWS.validate_python(releases)
            steps = [[entry.get("next_steps") or () for entry in one["incidents"]] for one in releases or ()]
            first = [
                {
                    incident.id: _step(*(str(step[0][part]) for part in ("text", "command")))
                    for incident, step in zip(row.incidents, told, strict=True)
                    if step
                }
                for row, told in zip(seen, steps, strict=True)
            ]
        except (ValidationError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise Unheard(f"its {SCHEMA} document cannot be read", hint) from error
        if not seen:
            raise Unheard("nothing is recorded there yet", "`edgekit serve BUNDLE` records.")
        return [row_of(self._device.name, row, now, told) for row, told in zip(seen, first, strict=True)]


class Here:
    """This device: the same rows as `edgekit monitor`, and the minutes of its last day."""

    limit_s = 30.0
    every_s = 0.0
    hold_s = 60.0

    def __init__(self, name: str, state: Path) -> None:
        self._name, self._state = name, state
        self._store = Store(state / FILE)
        self._models: dict[str, str] = {}
        self._told: dict[str, float] = {}

    def ask(self, now: float, window_s: float) -> list[Row]:
        """Look into the stores."""
        try:
            if not self._state.is_dir():
                raise Unheard("nothing is recorded yet", "`edgekit serve BUNDLE` records.", nothing=True)
            seen = overview(self._state, self._store, now, window_s)
        except EdgekitError as error:
            raise Unheard(error.message.rstrip("."), error.hint) from error
        except OSError as error:
            raise Unheard(
                f"{self._state} cannot be read: {error}", "check the rights of the folder"
            ) from error
        if not seen:
            raise Unheard("nothing is recorded yet", "`edgekit serve BUNDLE` records.", nothing=True)
        return [
            row_of(self._name, row, now, self._steps(row), self._model(row.release)) for row in seen
        ]  # fmt: skip

    def points(self, rows: Sequence[Row], now: float) -> dict[str, list[Point]]:
        """The minutes that ended since the last time, at first those of a day."""
        found: dict[str, list[Point]] = {}
        for row in rows:
            since = self._told.get(row.release, now - 86_400)
            if now - since < 60:
                continue
            try:
                windows = self._store.series(since, now - 60, row.release, strict=True)
            except EdgekitError:  # `ask` says what is wrong with the file
                continue
            self._told[row.release] = now // 60 * 60
            found[row.key] = [
                Point(
                    one.until,
                    finite(one.tokens_per_s),
                    finite(one.ttft_p95_s),
                    finite(one.rss_mib),
                    finite(one.confidence),
                    one.errors / one.requests if one.requests else None,
                )
                for one in windows
            ]
        return found

    def stop(self) -> None:
        """Nothing waits for a disk."""

    def _steps(self, row: Seen) -> dict[int, str]:
        found = {}
        for incident in row.incidents:
            with contextlib.suppress(OSError):  # a kind of another edgekit has no runbook here
                for step in runbook(incident, self._state).steps[:1]:
                    found[incident.id] = _step(step.text, step.command)
        return found

    def _model(self, release: str) -> str:
        from edgekit.device.manifest import read_manifest

        if release and release not in self._models:
            self._models[release] = ""
            with contextlib.suppress(EdgekitError, OSError, KeyError):
                folder = self._state / "releases" / "versions" / release
                self._models[release] = str(read_manifest(folder)["name"]) if folder.is_dir() else ""
        return self._models.get(release, "")


def _point(row: Row, now: float) -> Point:
    return Point(now, row.tokens_per_s, row.ttft_p95_s, row.rss_mib, row.confidence, row.error_rate)


def _step(text: str, command: str) -> str:
    return f"{text}: {command}" if command else text
