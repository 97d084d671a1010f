"""Devices: this one, others by the URL of their status, or by SSH; named on the command line or in a file."""

from __future__ import annotations

import difflib
import getpass
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgekit.base.command import Command
from edgekit.base.errors import ConfigError, reason
from edgekit.field.state import DEFAULT_STATE, state_option

NAME = re.compile(r"[^\W_][\w.-]{0,63}")
HOST = re.compile(r"(?:[\w.][\w.+-]*@)?[\w\[][\w.:%\[\]-]*", re.ASCII)  # never an option of ssh
KEYS = {"name", "url", "host", "state", "token", "token_env"}  # of a table in the file
HERE = "here"
TOKEN = "EDGEKIT_TOKEN"  # of the environment: what `edgekit serve` reads too
LARGEST = 2**20
EXAMPLES = "line-3=http://10.0.0.3:8080/status, line-4=ssh:user@host or line-4=ssh:user@host:/var/lib/edgekit"


@dataclass(frozen=True)
class Device:
    """A device: `url` where its status is, or `host` as ssh takes it, or neither for a state folder on this one.

    `state` is its state folder, None where it usually is; `token` is sent to `url` as a bearer token, without the white
    space around it.
    """

    name: str
    url: str = ""
    host: str = ""
    state: Path | None = None
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", self.token.strip())
        if told := "; ".join(_wrong(self.name, self.url, self.host, self.token)):
            raise ConfigError(f"The device {self.name!r} cannot be read: {told}.", f"Try {EXAMPLES}.")

    @property
    def is_here(self) -> bool:
        """Whether its state folder is on this device."""
        return not (self.url or self.host)

    @property
    def called(self) -> str:
        """Its name in a sentence."""
        return "this device" if self.name == HERE else self.name

    @property
    def folder(self) -> Path:
        """The state folder, where it is on this device."""
        return self.state or DEFAULT_STATE

    def command(self, *arguments: str) -> Command:
        """`edgekit ARGUMENTS` on the device, with its state folder where that is not the usual one."""
        given = () if self.state is None else ("--state", str(self.state))
        return Command((*arguments, *(given if self.host else state_option(self.folder))), self.host)

    def change(self, *arguments: str) -> Command:
        """A command that changes something: another device, which knows only the login of ssh, is told who makes it."""
        who = ("--who", os.environ.get("EDGEKIT_WHO") or getpass.getuser()) if self.host else ()
        return self.command(*arguments, *who)


def parse_device(text: str) -> Device:
    """A device as it is typed: `NAME=http://HOST:PORT/status`, `NAME=ssh:HOST` or `NAME=ssh:HOST:STATE`.

    The bearer token of URLs that are `private` is that of the environment's EDGEKIT_TOKEN. Raises `ConfigError` for
    anything else.
    """
    name, equals, rest = text.strip().partition("=")
    if not equals or not rest:
        raise ConfigError(f"{text!r} names no device; nothing was started.", f"Try {EXAMPLES}.")
    if rest.startswith("ssh:"):
        host, _, folder = rest.removeprefix("ssh:").partition(":")
        if not host:
            raise ConfigError(f"{text!r} names no host; nothing was started.", f"Try {EXAMPLES}.")
        return Device(name, host=host, state=Path(folder) if folder else None)
    url = _whole(rest)
    return Device(name, url=url, token=os.environ.get(TOKEN, "") if private(url) else "")


def private(url: str) -> bool:
    """Whether nobody on the way can read what is sent to `url`: it is https, or an address of this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        return parts.scheme == "https" or host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_fleet(path: Path) -> tuple[Device, ...]:
    """The devices of a TOML file of `[[device]]` tables. Raises `ConfigError` with every fault of it.

    Keys: `name` and one of `url` and `host`; with a host `state`, with a URL `token`, or `token_env`, the name of the
    environment's variable that holds it.
    """
    hint = 'A device is [[device]] name = "line-3" url = "http://10.0.0.3:8080/status" (or host = "user@line-3").'
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(
                f"{path} is larger than {LARGEST:,} bytes, too large for a list of devices; nothing was started.",
                hint,
            )
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The devices in {path} cannot be read: {reason(error)}.", "Check the path."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} is not valid TOML; nothing was started.", "Fix that line.", [f"{path}: {error}"]
        ) from error
    entries = values.get("device")
    if not isinstance(entries, list) or not entries or values.keys() - {"device"}:
        raise ConfigError(f"{path} is not a list of [[device]] tables; nothing was started.", hint)
    devices, faults = [], []
    for number, entry in enumerate(entries, 1):
        told = _entry_faults(entry)
        if told:
            name = entry.get("name") if isinstance(entry, dict) else None
            which = f"device {number}" + (f" ({name})" if isinstance(name, str) else "")
            faults += [f"{path.name}: {which}: {fault}" for fault in told]
        else:
            devices.append(_device(entry))
    if faults:
        many = f"{len(faults)} faults" if len(faults) > 1 else "a fault"
        raise ConfigError(f"{path} has {many}; nothing was started.", hint, faults)
    check_names(devices)
    return tuple(devices)


def _entry_faults(entry: Any) -> list[str]:
    """What is wrong with one table of the file, in words that never hold its token."""
    if not isinstance(entry, dict):
        return ["this must be a table"]
    faults = []
    for key in sorted(entry.keys() - KEYS):
        near = difflib.get_close_matches(key, KEYS, 1)
        faults.append(f"{key}: unknown key" + (f"; did you mean '{near[0]}'?" if near else ""))
    faults += [
        f"{key}: this must be a string"
        for key in sorted(KEYS & entry.keys())
        if not isinstance(entry[key], str)
    ]
    if faults:
        return faults
    given = {key for key in KEYS if entry.get(key)}
    if "name" not in given:
        faults.append("name: this key is required")
    if not given & {"url", "host"}:
        faults.append("this device needs url or host")
    if "state" in given and "host" not in given:
        faults.append("state can only be used with host")
    if given & {"token", "token_env"} and "url" not in given:
        faults.append("token and token_env can only be used with url")
    if "token_env" in given and not _bearer(entry):
        faults.append(f"{entry['token_env']} is not set in the environment")
    name = entry.get("name", "unnamed")
    return faults + _wrong(name, _whole(entry.get("url", "")), entry.get("host", ""), _bearer(entry))


def _bearer(entry: Mapping[str, str]) -> str:
    variable = entry.get("token_env")
    return (os.environ.get(variable, "") if variable else entry.get("token", "")).strip()


def _device(entry: Mapping[str, str]) -> Device:
    state = Path(entry["state"]) if entry.get("state") else None
    return Device(entry["name"], _whole(entry.get("url", "")), entry.get("host", ""), state, _bearer(entry))


def check_names(devices: Sequence[Device]) -> None:
    """Raise `ConfigError` when two devices share a name: their rows could not be told apart."""
    names = [device.name for device in devices]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"Two devices have the same name: {', '.join(twice)}.", "Rename one of them.")


def _wrong(name: str, url: str, host: str, token: str) -> list[str]:
    """What is wrong with a device, in words that never hold its token."""
    faults = []
    if not NAME.fullmatch(name):
        faults.append("its name must consist of at most 64 letters, digits, dots, dashes and underscores")
    if url and host:
        faults.append("give url or host, not both")
    if url:
        faults += _wrong_url(url)
    if host and not HOST.fullmatch(host):
        faults.append(f"{host!r} is not a host name that ssh accepts")
    if not (token.isascii() and token.isprintable()) or " " in token:
        faults.append("its token contains white space, a control character or a character that is not ASCII")
    return faults


def _wrong_url(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or not url.isascii() or any(sign.isspace() or not sign.isprintable() for sign in url):
        return [f"{url!r} is not an http:// or https:// address"]
    return ["put the token into EDGEKIT_TOKEN, not into the address"] if "@" in parts.netloc else []


def _whole(url: str) -> str:
    """The address of the status, where only the server's address or that of its metrics is given."""
    bare = re.fullmatch(r"(https?://[^/?#]+)(/|/metrics)?", url)
    return f"{bare[1]}/status" if bare else url
