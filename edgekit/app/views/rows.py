"""What is shown of a release on a device, whichever way the device was asked, and why one could not be."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.base.events import LARGEST
from edgekit.base.numbers import MOST, finite
from edgekit.base.texts import one_line
from edgekit.field.status import STATES
from edgekit.field.status import ReleaseStatus as Seen


class Unheard(Exception):
    """A device that could not be asked, or whose answer cannot be read: the reason in words, and what to do.

    `nothing` says that there is nothing wrong, and nothing to see either.
    """

    def __init__(self, why: str, hint: str = "", *, nothing: bool = False) -> None:
        super().__init__(why)
        self.why, self.hint, self.nothing = why, hint, nothing


@dataclass(frozen=True)
class Trouble:
    """An incident under way. `number` is 0 where only its kind is known; `next_step` is what to do, with its command."""

    kind: str
    severity: str
    what: str
    since: float
    number: int = 0
    acknowledged: bool = False
    silenced_until: float = 0.0
    next_step: str = ""


@dataclass(frozen=True)
class Row:
    """A release on a device as it was last heard of, in the window until `heard`; what is not known is None.

    `state` is one of `edgekit.field.status.STATES`. `ttft_p95_s` is the wait for a first token, `drift` counts drift
    alarms in the window. `key` is what the row is known by as long as it is there. `why` says what is wrong, empty when nothing is; `hint` what to do, `since` when it began, Unix seconds.
    """

    device: str
    key: str = ""
    release: str = ""
    model: str = ""
    state: str = "LOST"
    in_use: bool = True
    heard: float | None = None
    requests: int = 0
    errors: int = 0
    tokens_per_s: float | None = None
    ttft_p95_s: float | None = None
    rss_mib: float | None = None
    temperature_c: float | None = None
    confidence: float | None = None
    drift: int = 0
    since: float | None = None
    why: str = ""
    hint: str = ""
    troubles: tuple[Trouble, ...] = ()
    silenced: int = 0

    @property
    def error_rate(self) -> float | None:
        """Share of the requests that failed."""
        return self.errors / self.requests if self.requests else None


def count_of(value: int) -> int:
    """A count from elsewhere, within what one can be."""
    return min(max(0, value), int(MOST))


def row_of(device: str, seen: Seen, now: float, steps: dict[int, str], model: str = "") -> Row:
    """A row of an overview, of this device or another."""
    troubles = tuple(
        Trouble(
            one_line(one.kind), one_line(one.severity), one_line(one.what), finite(one.since, LARGEST) or now, one.id,
            one.state == "ACKNOWLEDGED", finite(one.silenced_until, LARGEST) or 0.0, one_line(steps.get(one.id, "")),
        )
        for one in sorted(seen.incidents, key=lambda one: (one.silenced(now), one.severity != "critical", -one.opened))
    )  # fmt: skip
    state, since, why, hint = seen.state, None, "", ""
    last_seen = finite(seen.last_seen, LARGEST)
    if state not in STATES:
        state, why = "LOST", f"it tells a state that is not known here: {one_line(state)}"
    elif seen.last_seen is not None and last_seen is None:
        state, why, hint = "LOST", "it tells a time that is none", "see whether its clock is right"
    elif seen.in_use and last_seen is None:
        state, why, hint = "LOST", "never heard: nothing serves it yet", "serve it: edgekit serve"
    elif state == "LOST":
        since, why, hint = (
            last_seen,
            "its heartbeat stopped: nothing serves there",
            "start `edgekit serve` there",
        )
    elif troubles:
        since, why, hint = troubles[0].since, troubles[0].what, troubles[0].next_step
    return Row(
        device=device,
        key=f"{device} {one_line(seen.release)}",
        release=one_line(seen.release),
        model=one_line(model),
        state=state,
        in_use=seen.in_use,
        heard=last_seen if state == "LOST" else now,
        requests=count_of(seen.requests),
        errors=count_of(seen.errors),
        tokens_per_s=finite(seen.tokens_per_s),
        ttft_p95_s=finite(seen.ttft_p95_s),
        rss_mib=finite(seen.rss_mib),
        temperature_c=finite(seen.temperature_c),
        confidence=finite(seen.confidence),
        drift=len(seen.alarms),
        since=since,
        why=why,
        hint=hint,
        troubles=troubles,
        silenced=sum(one.silenced_until > now for one in troubles),
    )
