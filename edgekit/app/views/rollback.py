"""Going back to the release before: what would happen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.base.command import Command, Outcome
from edgekit.base.errors import ConfigError, CorruptError, StageError
from edgekit.base.numbers import number
from edgekit.base.texts import one_line
from edgekit.field.fleet.device import Device
from edgekit.field.fleet.incidents import FOREIGN
from edgekit.field.fleet.recovery import WATCH_S


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


def _version(values: Mapping[str, Any]) -> Version:
    model = "-".join(one_line(values[name]) for name in ("model", "target") if values.get(name))
    return Version(one_line(values["name"]), model, one_line(values["place"]), number(values, "size_mib"))
