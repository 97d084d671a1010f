"""Whether a device is well in the minute after a rollback."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgekit.base.clock import span
from edgekit.field.fleet.connection import NoStatus, connect
from edgekit.field.fleet.device import Device
from edgekit.field.incidents.defaults import HEARTBEAT_S

WATCH_S = 60.0
ERRORS_MOST = 0.05  # of the requests; the limit of the rule that a device has by default


@dataclass(frozen=True)
class DeviceHealth:
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
    first: DeviceHealth | None = None
    last: DeviceHealth | None = None

    def taking(self, look: DeviceHealth) -> Recovery:
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
            return f"{device.called} has not answered yet", "Check again in a moment."
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


def read_health(device: Device, release: str, elapsed_s: float, now: float) -> DeviceHealth:
    """The health of the device now, with the counts of the last `elapsed_s`. Never raises."""
    try:
        status = connect(device).ask(now, float(max(1, round(elapsed_s))))
    except NoStatus as error:
        return DeviceHealth(trouble=f"{error.why}. {error.hint}".strip())
    used = next((row for row in status.releases if row.in_use), None)
    mine = next((row for row in status.releases if row.release == release), None)
    heard = used.last_seen if used else None
    return DeviceHealth(
        in_use=used.release if used else "",
        silent_s=None if heard is None else max(0.0, status.time - heard),
        requests=mine.requests if mine else 0,
        errors=mine.errors if mine else 0,
        ttft_p95_s=mine.ttft_p95_s if mine else None,
        incidents=tuple((one.id, one.what) for one in used.incidents) if used else (),
    )
