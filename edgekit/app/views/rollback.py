"""Going back to the release before: what would happen, and whether it is well in the minute after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgekit.app.views.incident import FOREIGN
from edgekit.base.clock import span
from edgekit.base.command import Command, Outcome
from edgekit.base.errors import ConfigError, CorruptError, StageError
from edgekit.base.numbers import number
from edgekit.base.texts import one_line
from edgekit.field.fleet.connection import NoStatus, connect
from edgekit.field.fleet.device import Device
from edgekit.field.incidents.defaults import HEARTBEAT_S

WATCH_S = 60.0
ERRORS_MOST = 0.05  # of the requests; the limit of the rule that a device has by default


@dataclass(frozen=True)
class Version:
    """A release as `edgekit releases list` tells of it; its name begins the SHA-256 of its manifest."""

    name: str
    model: str
    place: str
    size_mib: float

    def words(self) -> str:
        """Its name, and what it is."""
        return f"{self.name}  {self.model}  {self.size_mib:.0f} MiB  {self.place}"


@dataclass(frozen=True)
class Plan:
    """From which release to which; `typed` is the word that confirms it."""

    leaving: Version
    back_to: Version
    typed: str

    def lines(self) -> tuple[str, ...]:
        """What is left, what answers then, and what happens."""
        what = (
            f"The files of {self.back_to.name} are checked first; if they do not hold, nothing changes. Then it answers "
            f"again at once, a server that runs follows, and {self.leaving.name} is marked bad. A health watch of "
            f"{WATCH_S:.0f} s follows."
        )
        return f"from  {self.leaving.words()}", f"to    {self.back_to.words()}", what


def plan(listed: Outcome, device: Device) -> Plan:
    """The way back that `edgekit releases list` shows. Raises `EdgekitError` where there is none."""
    if listed.code != 0:
        raise StageError(one_line(listed.message), one_line(listed.hint))
    try:
        versions = {str(one["place"]): _version(one) for one in reversed(listed.document)}
    except FOREIGN as error:
        raise CorruptError(
            f"The releases of {device.called} are not understood: {error}.", "edgekit doctor"
        ) from error
    leaving = versions.get("pending") or versions.get("current")
    if leaving is None:
        raise ConfigError(
            f"No release is in use on {device.called}, so there is none to go back from; nothing changed.",
            device.command("releases", "list").text,
        )
    places = (*(("current",) if "pending" in versions else ()), "previous", "good")
    back_to = next((versions[place] for place in places if place in versions), None)
    if back_to is None:
        raise ConfigError(
            f"No earlier release than {leaving.name} is kept on {device.called} to go back to; nothing changed.",
            f"{device.command('releases', 'import', 'BUNDLE').text} brings one, `releases promote` puts it to use.",
        )
    return Plan(leaving, back_to, device.name if device.host else back_to.name)


def rollback(device: Device, leaving: Version, why: str) -> Command:
    """The command that goes back from that version, and changes nothing where another one is in use by then."""
    return device.change("releases", "rollback", "--release", leaving.name, "--why", why)


def in_use_now(rolled: Outcome) -> str:
    """The release that answers again, from what the command printed."""
    document = rolled.document
    return one_line(document.get("name", "")) if isinstance(document, dict) else ""


@dataclass(frozen=True)
class Health:
    """What one look saw: the release that answers, how long ago the server was heard of, and what was counted.

    `incidents` are those under way on what answers, by number; `trouble` says why the look failed.
    """

    in_use: str = ""
    silent_s: float | None = None
    requests: int = 0
    errors: int = 0
    ttft_p95_s: float | None = None
    incidents: tuple[tuple[int, str], ...] = ()
    trouble: str = ""


@dataclass(frozen=True)
class Verdict:
    """HEALTHY, STILL BAD or NOT PROVEN, why, and what to do next."""

    word: str
    why: str
    next: str = ""

    @property
    def words(self) -> str:
        """All of it in words."""
        return f"{self.word}: {self.why.rstrip('.')}.{f' {self.next}' if self.next else ''}"


@dataclass(frozen=True)
class Recovery:
    """A minute's watch over the release that answers again since `began`, Unix seconds."""

    device: Device
    release: str
    began: float
    first: Health | None = None
    last: Health | None = None

    def taking(self, look: Health) -> Recovery:
        """The watch with one more look."""
        first = self.first or (None if look.trouble else look)
        return replace(self, first=first, last=look)

    def left_s(self, now: float) -> float:
        """Seconds until its end."""
        return max(0.0, self.began + WATCH_S - now)

    @property
    def requests(self) -> int:
        """Requests since the first look."""
        return max(0, self.last.requests - self.first.requests) if self.last and self.first else 0

    @property
    def errors(self) -> int:
        """Those of them that failed."""
        return max(0, self.last.errors - self.first.errors) if self.last and self.first else 0

    def figures(self) -> tuple[str, ...]:
        """What the last look saw, line by line."""
        last = self.last
        if last is None or last.trouble:
            return (last.trouble if last else "Waiting for the first reading...",)
        heard = "never" if last.silent_s is None else f"{span(last.silent_s)} ago"
        wait = "not known" if last.ttft_p95_s is None else f"{last.ttft_p95_s:.2f} s"
        told = [f"incident {number}: {what}" for number, what in last.incidents] or ["no open incident"]
        return (
            f"release         {last.in_use or 'unknown'}",
            f"last heartbeat  {heard}",
            f"requests        {self.requests}, {self.errors} of them failed",
            f"first token     {wait} (p95)",
            *told,
        )

    def trouble(self) -> Verdict | None:
        """What is wrong so far."""
        found = self._trouble()
        return Verdict("STILL BAD", *found) if found else None

    def _trouble(self) -> tuple[str, str] | None:
        last, device = self.last, self.device
        serve = device.command("serve").text
        if last is None:
            return f"{device.called} has not answered yet", "Health again in a moment."
        if last.trouble:
            return last.trouble, "Check whether the device can be reached."
        if last.silent_s is None:
            return "no server is running: it was never heard from", f"Start it: {serve}"
        if last.silent_s > HEARTBEAT_S:
            heard = span(last.silent_s)
            return f"no server is running: it was last heard from {heard} ago", f"Start it: {serve}"
        if last.incidents:
            number, what = last.incidents[0]
            return f"incident {number} is open: {what}", f"Open incident {number}."
        if last.in_use != self.release:
            seen = last.in_use or "a model file without a name"
            return f"{seen} answers, and not {self.release}", f"Start the server anew: {serve}"
        if self.requests and self.errors / self.requests > ERRORS_MOST:
            why = f"{self.errors} of {self.requests} requests failed"
            return why, f"See the numbers: {device.command('monitor', '--once').text}"
        return None

    def verdict(self, now: float) -> Verdict | None:
        """How it ended; None while the minute is not over. What nobody asked is not known to be well."""
        if now < self.began + WATCH_S:
            return None
        if bad := self.trouble():
            return bad
        if not self.requests:
            why = f"{self.release} is in use and its server is running, but it received no requests in {span(WATCH_S)}"
            return Verdict("NOT PROVEN", why, "Send a request and check the monitor.")
        why = f"{self.release} answered {self.requests} requests, {self.errors} of them failed"
        return Verdict("HEALTHY", why)


def read_health(device: Device, release: str, elapsed_s: float, now: float) -> Health:
    """Health once, at what happened in the last `elapsed_s`. Never raises."""
    try:
        status = connect(device).ask(now, float(max(1, round(elapsed_s))))
    except NoStatus as error:
        return Health(trouble=f"{error.why}. {error.hint}".strip())
    used = next((row for row in status.releases if row.in_use), None)
    mine = next((row for row in status.releases if row.release == release), None)
    heard = used.last_seen if used else None
    return Health(
        in_use=used.release if used else "",
        silent_s=None if heard is None else max(0.0, status.time - heard),
        requests=mine.requests if mine else 0,
        errors=mine.errors if mine else 0,
        ttft_p95_s=mine.ttft_p95_s if mine else None,
        incidents=tuple((one.id, one.what) for one in used.incidents) if used else (),
    )


def _version(values: Mapping[str, Any]) -> Version:
    model = "-".join(one_line(values[name]) for name in ("model", "target") if values.get(name))
    return Version(one_line(values["name"]), model, one_line(values["place"]), number(values, "size_mib"))
