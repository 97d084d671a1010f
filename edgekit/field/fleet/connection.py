"""Connections to devices: each is asked for its status (`edgekit.monitor/1`), by HTTP, by SSH, or from the stores of this one.

What comes from another machine is bounded in time and size, and `read_status` makes it safe to show.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from abc import ABC, abstractmethod
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from edgekit.base.clock import short
from edgekit.base.command import OUT_OF_TIME, Command
from edgekit.base.errors import CorruptError, EdgekitError
from edgekit.base.http import NoRedirect
from edgekit.base.texts import one_line
from edgekit.field.fleet.device import TOKEN, Device, private
from edgekit.field.status import DeviceStatus, device_status, read_status
from edgekit.field.telemetry.store import FILE, Store

URL_S = 3.0  # for one answer by HTTP
SSH_S = 15.0
SSH_EVERY_S = 10.0  # a login and a Python start are expensive on a device
LARGEST = 4 * 2**20


class NoStatus(Exception):
    """A device gave no status that can be shown: the reason in words, and what to do.

    `empty` says that nothing is wrong: nothing was recorded yet.
    """

    def __init__(self, why: str, hint: str = "", *, empty: bool = False) -> None:
        super().__init__(why)
        self.why, self.hint, self.empty = why, hint, empty


class Connection(ABC):
    """A connection to one device, used by one thread at a time.

    `limit_s` is the longest time for one answer, `every_s` the shortest time between two questions.
    """

    limit_s: float
    every_s = 0.0

    @abstractmethod
    def ask(self, now: float, window_s: float) -> DeviceStatus:
        """The device's status over the window until `now`. Raises `NoStatus`."""

    def stop(self) -> None:  # noqa: B027 (most need not be stopped: they end by themselves)
        """Give up what `ask` waits for; called from another thread."""


def connect(device: Device) -> Connection:
    """The connection to `device`."""
    if device.url:
        return UrlConnection(device)
    return SshConnection(device) if device.host else LocalConnection(device.folder)


class LocalConnection(Connection):
    """This device: the status is built from its stores."""

    limit_s = 30.0

    def __init__(self, state: Path) -> None:
        self._state, self._store = state, Store(state / FILE)

    def ask(self, now: float, window_s: float) -> DeviceStatus:
        """Read the stores."""
        try:
            found = device_status(self._state, self._store, now, window_s) if self._state.is_dir() else None
        except EdgekitError as error:
            raise NoStatus(error.message.rstrip("."), error.hint) from error
        except OSError as error:
            raise NoStatus(
                f"{self._state} cannot be read: {error}", "check the rights of the folder"
            ) from error
        if found is None or not found.releases:
            raise NoStatus("nothing is recorded yet", "Start `edgekit serve BUNDLE` to record.", empty=True)
        return found


class SshConnection(Connection):
    """A device that is asked by `edgekit monitor --once --json` over SSH, at most every 10 s."""

    limit_s = SSH_S
    every_s = SSH_EVERY_S

    def __init__(self, device: Device) -> None:
        self._device = device
        self._command: Command | None = None

    def ask(self, now: float, window_s: float) -> DeviceStatus:
        """Run the command once."""
        self._command = self._device.command("monitor", "--once", "--window", short(window_s))
        outcome = self._command.run(timeout_s=SSH_S)
        if outcome.code == OUT_OF_TIME:
            raise NoStatus(f"no answer within {SSH_S:g} s", f"try it by hand: ssh {self._device.host}")
        if outcome.code == 127:
            raise NoStatus("edgekit is not found there", "install it there, on the PATH of ssh's shell")
        if outcome.code:
            raise NoStatus(one_line(outcome.message).rstrip("."), one_line(outcome.hint))
        return _read(outcome.document, f"compare the versions: ssh {self._device.host} edgekit --version")

    def stop(self) -> None:
        """End the ssh."""
        if self._command is not None:
            self._command.stop()


OPENER = build_opener(ProxyHandler({}), NoRedirect)


class UrlConnection(Connection):
    """A device whose `edgekit serve` is asked for `/status`."""

    limit_s = URL_S

    def __init__(self, device: Device) -> None:
        self._device = device

    def ask(self, now: float, window_s: float) -> DeviceStatus:
        """Get the document once."""
        url = self._device.url
        headers = {"accept": "application/json"}
        if self._device.token:
            headers["authorization"] = f"Bearer {self._device.token}"
        request = Request(f"{url}{'&' if '?' in url else '?'}window={window_s:g}", headers=headers)
        try:
            body = _body(request)
        except HTTPError as error:
            with error:
                raise NoStatus(*_status(error.code, self._device)) from error
        except (http.client.HTTPException, OSError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise NoStatus(*_words(reason if isinstance(reason, Exception) else error)) from error
        except ValueError:  # its text may hold the token
            raise NoStatus("it cannot be asked at this address", "check the address and the token") from None
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            raise NoStatus(
                "its answer is not JSON", "check the address: /status of `edgekit serve`"
            ) from None
        return _read(document, "install the same version of edgekit there and here")


def _body(request: Request) -> bytes:
    """What is answered, within the limits of time and size."""
    end = time.monotonic() + URL_S
    body = bytearray()
    with OPENER.open(request, timeout=URL_S) as answer:
        while part := answer.read1(65_536):
            body += part
            if len(body) > LARGEST:
                raise NoStatus(f"its answer is larger than {LARGEST // 2**20} MiB", "check the address")
            if time.monotonic() > end:
                raise TimeoutError
    return bytes(body)


def _read(document: object, hint: str) -> DeviceStatus:
    try:
        status = read_status(document)
    except CorruptError as error:
        raise NoStatus(error.message.rstrip("."), hint) from error
    if not status.releases:
        raise NoStatus("nothing is recorded there yet", "Start `edgekit serve BUNDLE` there to record.")
    return status


def _status(status: int, device: Device) -> tuple[str, str]:
    match status:
        case 401 if device.token:
            return "401: the token is wrong", "use the token of its `edgekit serve`"
        case 401:
            given = f'in the --fleet file: token_env = "{TOKEN}"'
            if private(device.url):
                hint = f"set {TOKEN} to that of its `edgekit serve`, or name it {given}"
            else:
                hint = f"{TOKEN} is not sent by plain http: use https://, or name it {given}"
            return "401: a token is needed", hint
        case 403:
            return "403: it answers only requests to its own address", "give its `edgekit serve` a token"
        case 404:
            hint = "give the address of `edgekit serve`; an older one has no /status"
            return "404: there is no such page", hint
    return f"it answers with HTTP {status}", "check the address"


REASONS: tuple[tuple[type[Exception], str, str], ...] = (
    (socket.gaierror, "its name is unknown", "check the name, or the network here"),
    (ConnectionRefusedError, "connection refused: nothing listens there", "check that `edgekit serve` runs there"),
    (TimeoutError, f"no answer within {URL_S:g} s", "check that it is switched on and can be reached from here"),
    (ssl.SSLCertVerificationError, "its certificate is not trusted", "add its authority to those that this machine trusts"),
    (ssl.SSLError, "the TLS connection failed", "try http:// instead of https://"),
    (ConnectionError, "it closed the connection", "check that `edgekit serve` runs there"),
    (http.client.HTTPException, "its answer is not HTTP", "check the address and the port"),
)  # fmt: skip


def _words(error: Exception) -> tuple[str, str]:
    """Why there was no answer, and what to do."""
    for kind, why, hint in REASONS:
        if isinstance(error, kind):
            return why, hint
    reason = getattr(error, "strerror", None) or type(error).__name__  # not its text: it may hold the token
    return f"it cannot be reached: {one_line(reason).lower()}", "check the network"
