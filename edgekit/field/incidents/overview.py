"""One row for each release of a device: what it does now, how it fares, and what is wrong with it, worst first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.base.errors import CorruptError
from edgekit.field.incidents.defaults import HEARTBEAT_S
from edgekit.field.incidents.incidents import Incident, Incidents
from edgekit.field.incidents.rules import DEVICE

if TYPE_CHECKING:
    from edgekit.field.telemetry.store import Store, Window

RECENT_MINUTES = 2
STATES = ("LOST", "CRITICAL", "WARNING", "OK", "IDLE")


@dataclass(frozen=True)
class Row:
    """A release in a window of time. What nothing is known of is None; times are Unix seconds.

    `state` is LOST when nothing is heard of the device, whose last numbers these are then, or nothing ever was of what is
    in use, CRITICAL or WARNING after its incidents, OK, or IDLE for a release that is not in use and was asked nothing in
    the window, or whose device is lost.
    """

    release: str
    state: str
    in_use: bool
    since: float
    until: float
    requests: int
    errors: int
    empty: int
    ttft_p95_s: float | None
    tokens_per_s: float | None
    rss_mib: float | None
    temperature_c: float | None
    confidence: float | None
    alarms: list[dict[str, Any]]
    last_seen: float | None
    incidents: list[Incident] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def overview(
    state: Path, store: Store, now: float, window_s: float, *, lost_after_s: float = HEARTBEAT_S
) -> list[Row]:
    """Every release that answered in the window, that is in use, or that has incidents under way, worst first.

    When the device is lost, the window is the last one before it was, of the release that was in use then. Raises
    `CorruptError` and `StageError` when telemetry or incidents cannot be read.
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
            incident
            for incident in open_
            if incident.release == release or (incident.subject == DEVICE and release == current)
        ]
        window = store.window(until - window_s, until, release, strict=True)
        rows.append(_row(release, window, mine, in_use=release == current, lost=lost, seen=last_seen))
    return sorted(rows, key=lambda row: (STATES.index(row.state), not row.in_use))


def in_use(state: Path) -> tuple[str, Path] | None:
    """The release that answers on this device and its bundle; None where releases are not kept, or cannot be read."""
    from edgekit.field.releases.slots import Journal

    root = state / "releases"
    try:
        name = Journal(root).read().active
    except (CorruptError, OSError, TypeError):
        return None
    return None if name is None else (name, root / "versions" / name)


def current_release(state: Path, store: Store, *, strict: bool = False) -> str | None:
    """The release that answers, or answered last: what is kept in use, unless telemetry heard only of others of late.

    A bundle that is served from another place is in telemetry alone. None when nothing was ever served. With `strict`
    raises `CorruptError` for telemetry that cannot be read.
    """
    heard = store.latest_releases(RECENT_MINUTES, strict=strict)
    kept = in_use(state)
    return kept[0] if kept and (kept[0] in heard or not heard) else heard[0] if heard else None


def _row(
    release: str,
    window: Window,
    incidents: Sequence[Incident],
    *,
    in_use: bool,
    lost: bool,
    seen: float | None,
) -> Row:
    if lost and in_use:
        state = "LOST"
    elif incidents:
        state = "CRITICAL" if any(incident.severity == "critical" for incident in incidents) else "WARNING"
    else:
        state = "OK" if in_use or (window.requests and not lost) else "IDLE"
    return Row(
        release=release,
        state=state,
        in_use=in_use,
        since=window.since,
        until=window.until,
        requests=window.requests,
        errors=window.errors,
        empty=window.empty,
        ttft_p95_s=window.ttft_p95_s,
        tokens_per_s=window.tokens_per_s,
        rss_mib=window.rss_mib,
        temperature_c=window.temperature_c,
        confidence=window.confidence,
        alarms=list(window.alarms),
        last_seen=seen,
        incidents=list(incidents),
    )
