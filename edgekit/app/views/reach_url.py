"""A device that is asked over HTTP: its `/metrics`, with its own limit of time and size for each look."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from edgekit.app.views.devices import TOKEN, Device, private
from edgekit.app.views.history import THIN_EVERY, Point, thinned
from edgekit.app.views.rows import Row, Trouble, Unheard
from edgekit.app.views.scrape import Key, Totals, added, read_page
from edgekit.base.clock import clock, span
from edgekit.base.errors import CorruptError
from edgekit.base.texts import one_line
from edgekit.field.incidents.defaults import default_rules
from edgekit.field.incidents.words import LABELS
from edgekit.field.telemetry.metrics import UnderWay

URL_S = 3.0  # for one answer
LARGEST = 4 * 2**20
SMOOTH_S = 15.0  # what a point of the history of counters is taken over
PER_WINDOW = 60
SEE = "see it on the device, or name the device as ssh:HOST: edgekit incident list"
UNREADABLE = "Its incidents cannot be read, so whether any is under way is not known."
CRITICAL = frozenset(rule.kind for rule in default_rules() if rule.severity == "critical")


@dataclass(frozen=True)
class _Look:
    """Totals at a time, in little memory: hundreds are kept of each device, and all looks share their `keys`."""

    time: float
    keys: tuple[Key, ...]
    values: array[float]

    @property
    def totals(self) -> dict[Key, float]:
        return dict(zip(self.keys, self.values, strict=True))


class Metrics:
    """A device whose `/metrics` is read; windows are differences of pages, so they begin with the first page read."""

    limit_s = URL_S
    every_s = 0.0
    hold_s = SMOOTH_S

    def __init__(self, device: Device) -> None:
        self._device = device
        self._totals = Totals()
        self._looks: list[_Look] = []
        self._asked = 0
        self._connection: http.client.HTTPConnection | None = None
        self._point: Point | None = None
        self._blind: float | None = None  # since when its incidents cannot be read

    def ask(self, now: float, window_s: float) -> list[Row]:
        """Read the page once."""
        try:
            page = read_page(self._page())
        except CorruptError as error:
            raise Unheard(one_line(error.message).rstrip("."), error.hint) from error
        except ValueError:  # of a request that cannot be made: its text may hold the token
            self._close()
            raise Unheard("it cannot be asked at this address", "check the address and the token") from None
        totals = self._totals.add(page)
        keys = self._looks[-1].keys if self._looks else ()
        keys = keys if keys == tuple(totals) else tuple(totals)
        self._looks.append(_Look(now, keys, array("d", totals.values())))
        self._asked += 1
        if self._asked % THIN_EVERY == 0:
            self._looks[:-1] = thinned(
                self._looks[:-1], now, lambda one: one.time, lambda first, _: first, PER_WINDOW
            )
        window, short = (added(self._since(now - back).totals, totals) for back in (window_s, SMOOTH_S))
        troubles = [
            Trouble(one_line(one.kind), one_line(one.severity), _what(one), one.since, next_step=SEE)
            for one in page.under_way
        ]
        if page.incidents is None:  # an older edgekit tells only that an alarm went off
            troubles = [
                Trouble(
                    one_line(kind),
                    "critical" if kind in CRITICAL else "warning",
                    f"{_label(kind)}: {count} alarm{'s' if count > 1 else ''} in the last {span(window_s)}.",
                    self._since(now - window_s).time,
                    next_step=SEE,
                )
                for kind, count in window.alarms.items()
            ]
        blind = page.incidents is None and bool(page.release)  # which are told together
        self._blind = (self._blind or now) if blind else None
        if self._blind is not None:
            troubles.append(Trouble("store", "warning", UNREADABLE, self._blind, next_step=SEE))
        troubles.sort(key=lambda one: (one.severity != "critical", one.since))
        row = Row(
            device=self._device.name,
            key=self._device.name,
            release=one_line(page.release),
            model=one_line(page.model),
            state=_state(troubles, page.incidents or {}),
            heard=now,
            requests=window.requests,
            errors=window.errors,
            tokens_per_s=window.tokens_per_s,
            ttft_p95_s=window.ttft_p95_s,
            rss_mib=page.rss_mib,
            temperature_c=page.temperature_c,
            confidence=window.confidence,
            drift=window.alarms.get("drift", 0),
            since=troubles[0].since if troubles else None,
            why=troubles[0].what if troubles else "",
            hint=SEE if troubles else "",
            troubles=tuple(troubles),
            silenced=page.silenced,
        )
        numbers = (short.tokens_per_s, short.ttft_p95_s, page.rss_mib, short.confidence, short.error_rate)
        self._point = Point(now, *numbers)
        return [row]

    def points(self, rows: Sequence[Row], now: float) -> dict[str, list[Point]]:
        """The point of the last page."""
        return {row.key: [self._point] for row in rows if self._point is not None}

    def stop(self) -> None:
        """Cut the connection, so that whoever reads from it goes on."""
        connection = self._connection
        sock = connection.sock if connection is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _since(self, moment: float) -> _Look:
        """The first look not before `moment`, the newest but one at most: a difference needs two."""
        found = next((look for look in self._looks if look.time >= moment), self._looks[-1])
        return self._looks[-2] if found is self._looks[-1] and len(self._looks) > 1 else found

    def _page(self) -> bytes:
        fresh = self._connection is None
        try:
            return self._get()
        except (http.client.HTTPException, OSError) as error:
            self._close()
            # a connection that was kept may have been closed by the device since
            if not fresh and isinstance(error, (ConnectionError, http.client.HTTPException)):
                try:
                    return self._get()
                except (http.client.HTTPException, OSError) as second:
                    self._close()
                    raise Unheard(*_words(second)) from second
            raise Unheard(*_words(error)) from error

    def _get(self) -> bytes:
        parts = urlsplit(self._device.url)
        if self._connection is None:
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            self._connection = kind(parts.hostname or "", parts.port, timeout=URL_S)
        connection, end = self._connection, time.monotonic() + URL_S
        headers = {"accept": "text/plain"}
        if self._device.token:
            headers["authorization"] = f"Bearer {self._device.token}"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        if answer.status != 200:
            self._close()
            raise Unheard(*_status(answer.status, self._device))
        body = bytearray()
        while part := answer.read1(65_536):
            body += part
            if len(body) > LARGEST:
                self._close()
                raise Unheard(f"its page is larger than {LARGEST // 2**20} MiB", "check the address")
            if time.monotonic() > end:
                raise TimeoutError
        answer.close()  # of the answer, not of the connection: that is asked again
        return bytes(body)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _state(troubles: Sequence[Trouble], incidents: dict[str, int]) -> str:
    severities = {one.severity for one in troubles} | {name for name, count in incidents.items() if count}
    return "CRITICAL" if "critical" in severities else "WARNING" if severities else "OK"


def _what(one: UnderWay) -> str:
    return f"{_label(one.kind)} ({one_line(one.severity)}), since {clock(one.since)}."


def _label(kind: str) -> str:
    return LABELS.get(kind, one_line(kind) or "An alarm")


def _status(status: int, device: Device) -> tuple[str, str]:
    told: dict[int, tuple[str, str]] = {
        401: _refused(device),
        403: ("403: it answers only requests to its own address", "give its `edgekit serve` a token"),
        404: ("404: there is no such page", "ask for /metrics, the page of `edgekit serve`"),
    }
    return told.get(status, (f"it answers with HTTP {status}", "check the address"))


def _refused(device: Device) -> tuple[str, str]:
    if device.token:
        return "401: the token is wrong", "give that of its `edgekit serve`"
    given = f'in the --fleet file: token_env = "{TOKEN}"'
    if private(device.url):
        return "401: a token is needed", f"set {TOKEN} to that of its `edgekit serve`, or name it {given}"
    return "401: a token is needed", f"{TOKEN} is not sent by plain http: take https://, or name it {given}"


REASONS: tuple[tuple[type[Exception], str, str], ...] = (
    (socket.gaierror, "its name is unknown", "check the name, or the network here"),
    (
        ConnectionRefusedError,
        "connection refused: nothing listens there",
        "see whether `edgekit serve` runs there",
    ),
    (TimeoutError, f"no answer within {URL_S:g} s", "see whether it is switched on, and reachable from here"),
    (
        ssl.SSLCertVerificationError,
        "its certificate is not trusted",
        "add its authority to those that this machine trusts",
    ),
    (ssl.SSLError, "it does not speak TLS as asked", "try http:// instead of https://"),
    (ConnectionError, "it cut the connection", "see whether `edgekit serve` runs there"),
    (http.client.HTTPException, "its answer is not HTTP", "check the address and the port"),
)


def _words(error: Exception) -> tuple[str, str]:
    """Why there was no answer, and what to do."""
    for kind, why, hint in REASONS:
        if isinstance(error, kind):
            return why, hint
    reason = getattr(error, "strerror", None) or type(error).__name__  # not its text: it may hold the token
    return f"it cannot be reached: {one_line(reason).lower()}", "check the network"
