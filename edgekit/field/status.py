"""The status of a device: one document of schema `edgekit.monitor/1`. This module writes it and reads it.

`edgekit serve` offers it at `/status`, `edgekit monitor --once --json` prints it, and the terminal app draws it. Its
keys are listed in docs/status.md.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from edgekit import __version__
from edgekit.base.errors import ConfigError, CorruptError, EdgekitError
from edgekit.base.events import LARGEST
from edgekit.base.numbers import MOST, finite
from edgekit.base.texts import one_line
from edgekit.field.incidents.defaults import HEARTBEAT_S, rules_of
from edgekit.field.incidents.incidents import Incident, Incidents
from edgekit.field.incidents.rules import DEVICE
from edgekit.field.incidents.runbook import Step, runbook

if TYPE_CHECKING:
    from edgekit.field.telemetry.store import Store, Window

SCHEMA = "edgekit.monitor/1"
STATES = ("LOST", "CRITICAL", "WARNING", "OK", "IDLE")
RECENT_MINUTES = 2
MINUTE_S = 60
MOST_POINTS = 96  # of a series
LEAST_S, LONGEST_S, DEFAULT_S = 60.0, 86_400.0, 900.0  # windows that /status accepts
MEASURED = ("ttft_p95_s", "tokens_per_s", "rss_mib", "temperature_c", "confidence")


@dataclass(frozen=True)
class OpenIncident(Incident):
    """An incident that is not resolved, with what to do next."""

    next_steps: list[Step] = field(default_factory=list)


@dataclass(frozen=True)
class StatusSeries:
    """Measurements of a release in equal steps of the window. `start` is the Unix time at which the first step begins.

    A step lasts `step_s` seconds, a whole number of minutes. None means that nothing was measured in the step.
    """

    start: float = 0.0
    step_s: float = MINUTE_S
    requests: list[int] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)
    ttft_p95_s: list[float | None] = field(default_factory=list)
    tokens_per_s: list[float | None] = field(default_factory=list)
    rss_mib: list[float | None] = field(default_factory=list)
    temperature_c: list[float | None] = field(default_factory=list)
    confidence: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class ReleaseStatus:
    """A release on a device in a window of time. Unknown values are None; times are Unix seconds.

    `state` is LOST when the device has stopped sending heartbeats (the numbers are then its last) or never sent one,
    CRITICAL or WARNING by its open incidents, OK, or IDLE for a release that is not in use and got no requests.
    `why` says what is wrong and `hint` what to do; both are empty when nothing is wrong.
    """

    release: str
    state: str
    in_use: bool
    since: float = 0.0
    until: float = 0.0
    requests: int = 0
    errors: int = 0
    empty: int = 0
    ttft_p95_s: float | None = None
    tokens_per_s: float | None = None
    rss_mib: float | None = None
    temperature_c: float | None = None
    confidence: float | None = None
    alarms: list[dict[str, Any]] = field(default_factory=list)
    last_seen: float | None = None
    incidents: list[OpenIncident] = field(default_factory=list)
    device: str = ""
    model: str = ""
    why: str = ""
    hint: str = ""
    trouble_since: float | None = None
    series: StatusSeries = StatusSeries()

    @property
    def error_rate(self) -> float | None:
        """Share of the requests that failed; None without requests."""
        return self.errors / self.requests if self.requests else None

    @property
    def drift(self) -> int:
        """The number of drift alarms in the window."""
        return len(self.alarms)

    def silenced(self, now: float) -> int:
        """The number of its incidents that are silenced."""
        return sum(one.silenced(now) for one in self.incidents)

    def is_silenced(self, now: float) -> bool:
        """Whether every incident is silenced; a lost device never is."""
        return self.state != "LOST" and bool(self.incidents) and self.silenced(now) == len(self.incidents)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ServerStatus:
    """The serving process. `trouble` says what does not work now; it is empty when everything works."""

    pid: int
    started: float
    model: str
    waiting: int = 0
    running: int = 0
    trouble: str = ""


@dataclass(frozen=True)
class DeviceStatus:
    """One device: its releases, worst first, its alert rules, and the serving process if it is known."""

    device: str
    time: float
    window_s: float
    state: str
    edgekit: str = ""
    release: str | None = None
    model: str = ""
    releases: list[ReleaseStatus] = field(default_factory=list)
    rules: list[dict[str, Any]] = field(default_factory=list)
    server: ServerStatus | None = None

    def to_dict(self) -> dict[str, Any]:
        """The document of schema `edgekit.monitor/1`."""
        return {"schema": SCHEMA, **asdict(self)}


_READER = TypeAdapter(DeviceStatus)
T = TypeVar("T")


def device_status(
    state: Path, store: Store, now: float, window_s: float, *, server: ServerStatus | None = None
) -> DeviceStatus:
    """The status of this device over the `window_s` seconds until `now`.

    Raises `CorruptError` and `StageError` when telemetry or incidents cannot be read.
    """
    device = socket.gethostname()
    releases = [
        replace(row, device=device, series=_series(store, row.release, row.until, window_s))
        for row in overview(state, store, now, window_s)
    ]
    used = next((row for row in releases if row.in_use), None)
    bundle = None if used is None else _bundle_of(state, used.release)
    return DeviceStatus(
        device=device,
        time=now,
        window_s=window_s,
        state=releases[0].state if releases else "IDLE",
        edgekit=__version__,
        release=used.release if used else None,
        model=used.model if used else "",
        releases=releases,
        rules=[{"key": rule.key, **rule.model_dump()} for rule in rules_of(bundle)],
        server=server,
    )


def window_option(text: str | None) -> float:
    """The window of a `/status?window=SECONDS` request. Raises `ConfigError` for a window out of range."""
    if text is None:
        return DEFAULT_S
    try:
        window_s = float(text)
    except ValueError:
        window_s = 0.0
    if not LEAST_S <= window_s <= LONGEST_S:
        raise ConfigError(
            f"'window' must be {LEAST_S:.0f} to {LONGEST_S:.0f} seconds, not '{one_line(text, 40)}'."
        )
    return window_s


def overview(
    state: Path, store: Store, now: float, window_s: float, *, lost_after_s: float = HEARTBEAT_S
) -> list[ReleaseStatus]:
    """Every release that answered in the window, is in use, or has open incidents, worst first.

    When the device is lost, the window is the last one before that, for the release that was in use then. Series are
    left out. Raises `CorruptError` and `StageError` when telemetry or incidents cannot be read.
    """
    open_ = Incidents(state).find()
    last_seen = store.window(now - window_s, now, strict=True).last_seen
    lost = last_seen is None or now - last_seen > lost_after_s
    until = last_seen if lost and last_seen is not None else now
    seen = store.releases(until - window_s, strict=True)
    current = current_release(state, store, strict=True)
    names = dict.fromkeys(
        [*([] if current is None else [current]), *seen, *(incident.release for incident in open_)]
    )
    rows = []
    for release in names:
        mine = [
            OpenIncident(**vars(one), next_steps=_steps(one, state))
            for one in open_
            if one.release == release or (one.subject == DEVICE and release == current)
        ]
        window = store.window(until - window_s, until, release, strict=True)
        row = _row(release, window, mine, in_use=release == current, lost=lost, seen=last_seen)
        rows.append(explained(replace(row, model=_model_of(state, release)), now))
    return worst_first(rows, now)


def worst_first(rows: Iterable[ReleaseStatus], now: float) -> list[ReleaseStatus]:
    """`rows` by their state, those whose incidents are silenced last in it, and the release in use first."""
    return sorted(
        rows, key=lambda row: (STATES.index(row.state), row.is_silenced(now), not row.in_use, row.device)
    )


def explained(row: ReleaseStatus, now: float) -> ReleaseStatus:
    """`row` with `why`, `hint` and `trouble_since` set from its state, its last heartbeat and its worst incident."""
    incidents = sorted(
        row.incidents, key=lambda one: (one.silenced(now), one.severity != "critical", -one.opened)
    )
    row = replace(row, incidents=incidents, why="", hint="", trouble_since=None)
    if row.state == "LOST":
        if row.last_seen is None:
            return replace(
                row, why="no heartbeat yet: no server has run there", hint="start `edgekit serve` there"
            )
        return replace(
            row,
            why="heartbeat stopped: no server is running there",
            hint="start `edgekit serve` there",
            trouble_since=row.last_seen,
        )
    if not incidents:
        return row
    worst = incidents[0]
    steps = [f"{step.text}: {step.command}" if step.command else step.text for step in worst.next_steps[:1]]
    return replace(row, why=worst.what, hint="".join(steps), trouble_since=worst.since)


def read_status(document: object) -> DeviceStatus:
    """A status from another machine, made safe to display: numbers are bounded and texts have no control characters.

    Documents of earlier versions, without the newer keys, are accepted. Raises `CorruptError` for any other document.
    """
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise CorruptError(f"The response is not a document of schema {SCHEMA}.")
    releases = document.get("releases")
    rows = [row for row in releases if isinstance(row, dict)] if isinstance(releases, list) else []
    known = {"time": 0.0, "window_s": 0.0, "state": "IDLE", "device": ""}
    try:
        status = _READER.validate_python({**known, **document, "releases": releases})
        now = finite(status.time, LARGEST)
        if now is None:
            raise CorruptError(f"The time in the {SCHEMA} document is not valid.")
        told_badly = [row.get("last_seen") is not None for row in rows]
        read = [
            _safe(row, status.device, now or time.time(), told)
            for row, told in zip(status.releases, told_badly, strict=True)
        ]
    except (ValidationError, TypeError, ValueError, OverflowError) as error:
        raise CorruptError(f"The {SCHEMA} document cannot be read ({type(error).__name__}).") from error
    clean: DeviceStatus = _clean(status)
    return replace(clean, releases=read, time=now or time.time())


def current_release(state: Path, store: Store, *, strict: bool = False) -> str | None:
    """The release that answers or answered last: the one in use, unless recent telemetry is only of others.

    A bundle that is served from outside the state folder appears in telemetry only. None when nothing was ever served.
    With `strict`, raises `CorruptError` for telemetry that cannot be read.
    """
    heard = store.latest_releases(RECENT_MINUTES, strict=strict)
    kept = in_use(state)
    return kept[0] if kept and (kept[0] in heard or not heard) else heard[0] if heard else None


def in_use(state: Path) -> tuple[str, Path] | None:
    """The release that answers on this device and its bundle; None when there are no releases or they cannot be read."""
    from edgekit.field.releases.slots import Journal

    try:
        name = Journal(state / "releases").read().active
    except (CorruptError, OSError, TypeError):
        return None
    return None if name is None else (name, _folder(state, name))


def _folder(state: Path, release: str) -> Path:
    return state / "releases" / "versions" / release


def _bundle_of(state: Path, release: str) -> Path | None:
    folder = _folder(state, release)
    return folder if release and folder.is_dir() else None


def _model_of(state: Path, release: str) -> str:
    from edgekit.device.manifest import read_manifest

    bundle = _bundle_of(state, release)
    with contextlib.suppress(EdgekitError, OSError, KeyError):
        return "" if bundle is None else str(read_manifest(bundle)["name"])
    return ""


def _steps(incident: Incident, state: Path) -> list[Step]:
    try:
        return runbook(incident, state).steps
    except OSError:  # opened by another version of edgekit, with a kind that has no runbook here
        return []


def _series(store: Store, release: str, until: float, window_s: float) -> StatusSeries:
    minutes = max(1, round(window_s / MINUTE_S))
    each = -(-minutes // MOST_POINTS)
    step_s = each * MINUTE_S
    count = -(-minutes // each)
    start = (until // step_s - count + 1) * step_s
    found: dict[int, Window] = {
        int((one.since - start) // step_s): one
        for one in store.series(start, until, release, step_s=step_s, strict=True)
    }
    steps = [found.get(place) for place in range(count)]
    return StatusSeries(
        start,
        step_s,
        [one.requests if one else 0 for one in steps],
        [one.errors if one else 0 for one in steps],
        *([getattr(one, name) if one else None for one in steps] for name in MEASURED),
    )


def _row(
    release: str,
    window: Window,
    incidents: Sequence[OpenIncident],
    *,
    in_use: bool,
    lost: bool,
    seen: float | None,
) -> ReleaseStatus:
    if lost and in_use:
        state = "LOST"
    elif incidents:
        state = "CRITICAL" if any(incident.severity == "critical" for incident in incidents) else "WARNING"
    else:
        state = "OK" if in_use or (window.requests and not lost) else "IDLE"
    counted = ("since", "until", "requests", "errors", "empty", *MEASURED)
    return ReleaseStatus(
        release=release,
        state=state,
        in_use=in_use,
        alarms=list(window.alarms),
        last_seen=seen,
        incidents=list(incidents),
        **{name: getattr(window, name) for name in counted},
    )


def _safe(row: ReleaseStatus, device: str, now: float, told: bool) -> ReleaseStatus:
    """A release as another machine describes it; the explanation is generated on this machine."""
    state = row.state
    clean: ReleaseStatus = replace(
        _clean(row), device=one_line(device), incidents=[_clean(one) for one in row.incidents]
    )
    last_seen = finite(row.last_seen, LARGEST)
    counts = {name: min(max(0, getattr(row, name)), int(MOST)) for name in ("requests", "errors", "empty")}
    clean = replace(clean, **counts, last_seen=last_seen, series=_clean(row.series))
    if state not in STATES:
        return replace(clean, state="LOST", why=f"reported an unknown state: {one_line(state)}", hint="")
    if told and last_seen is None:
        why = "reported an invalid timestamp"
        return replace(clean, state="LOST", why=why, hint="check its clock")
    if row.in_use and last_seen is None:
        clean = replace(clean, state="LOST")
    return explained(clean, now)


def _clean(value: T) -> T:
    """A dataclass with one-line texts and finite numbers, also in lists; other numbers become None."""
    changes: dict[str, Any] = {}
    for one in fields(value):  # type: ignore[arg-type]
        found = getattr(value, one.name)
        if isinstance(found, str):
            changes[one.name] = one_line(found)
        elif isinstance(found, float):
            least = None if "None" in str(one.type) else 0.0
            limit = (
                LARGEST
                if one.name in ("since", "until", "opened", "silenced_until", "resolved", "time")
                else MOST
            )
            changes[one.name] = least if finite(found, limit) is None else found
        elif isinstance(found, list) and found and isinstance(found[0], int | float | None):
            changes[one.name] = [finite(item) for item in found]
        elif isinstance(found, list) and found and isinstance(found[0], Step):
            changes[one.name] = [Step(one_line(step.text), one_line(step.command)) for step in found]
    return replace(value, **changes)  # type: ignore[type-var]


def fleet_document(devices: Sequence[Mapping[str, Any]], now: float, window_s: float) -> dict[str, Any]:
    """One document for several devices, with the status of each under `devices`, worst first."""
    states = [str(device.get("state", "LOST")) for device in devices]
    worst = min(states, key=lambda state: STATES.index(state) if state in STATES else 0, default="IDLE")
    return {"schema": SCHEMA, "time": now, "window_s": window_s, "state": worst, "devices": list(devices)}
