"""Incidents of a device as the app shows them: those under way, and one of them whole.

Both are read from the documents of `edgekit incident list|show --json`: of this device by the same functions that the
commands call, of another one by the commands themselves over SSH.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from edgekit.app.views.command import Command
from edgekit.app.views.devices import Device
from edgekit.base.clock import clock, span
from edgekit.base.errors import ConfigError, CorruptError, EdgekitError, StageError
from edgekit.base.numbers import moment, number
from edgekit.base.texts import one_line, plain
from edgekit.field.incidents.history import Switch
from edgekit.field.incidents.incidents import Incident, Incidents
from edgekit.field.incidents.runbook import Step
from edgekit.field.incidents.words import LABELS

Value = TypeVar("Value")
ANSWER_S = 30.0  # for a device over SSH
LIKELY_S = 3600.0  # a switch so soon before is the likely cause, one in the day before a possible one
AUDIT_BYTES = 16 * 2**20  # an audit log that is larger is checked by its own command
FOREIGN = (
    OSError, sqlite3.Error, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip
DONE = {
    "promote": "promoted", "try": "started", "good": "marked good", "rollback": "rolled back", "verdict": "taken out",
    "gc": "old versions removed", "refuse": "refused",
}  # fmt: skip
ENTERS_USE = frozenset({"promote", "good", "rollback", "verdict"})


@dataclass(frozen=True)
class Source:
    """Where incidents are: the state folder of this device, or another `device`."""

    state: Path
    device: Device | None = None

    @property
    def host(self) -> str:
        """What ssh takes; empty for this device."""
        return self.device.host if self.device else ""

    @property
    def folder(self) -> Path | None:
        """The state folder on the device; None for where it usually is."""
        return (
            self.device.state
            if self.device and self.host
            else (self.device and self.device.state) or self.state
        )

    @property
    def by_url(self) -> bool:
        """Whether only the status of the device can be read: its timeline and evidence stay there."""
        return bool(self.device and self.device.url)

    @property
    def name(self) -> str:
        """The device's name."""
        return self.device.name if self.device else "this device"

    def command(self, *arguments: str) -> Command:
        """`edgekit ARGUMENTS` on the device, with its state folder."""
        return Command((*arguments, *(("--state", str(self.folder)) if self.folder else ())), self.host)


@dataclass(frozen=True)
class Change(Switch):
    """What was done to one release, one thing after the other; `mark` says how likely it is the cause, or is empty."""

    mark: str = ""


@dataclass(frozen=True)
class Shown:
    """One incident whole; `document` is what `edgekit incident show --json` prints of it, with null for numbers that JSON
    does not know, `warning` what is wrong with the records themselves."""

    incident: Incident
    rule: Mapping[str, Any]
    changes: tuple[Change, ...]
    meaning: str
    steps: tuple[Step, ...]
    timeline: tuple[Switch, ...]
    evidence: Mapping[str, Any]
    document: Mapping[str, Any]
    warning: str = ""


def label(incident: Incident) -> str:
    """The kind of an incident in words."""
    return LABELS.get(incident.kind, incident.kind)


def is_over(incident: Incident) -> bool:
    """Whether an incident has ended."""
    return incident.state == "RESOLVED"


def state_words(incident: Incident, now: float) -> str:
    """The state of an incident, and until when it is silenced."""
    until = incident.silenced_until
    silent = until is not None and now < until and not is_over(incident)
    return incident.state + (f", silenced until {clock(until or 0.0, now)}" if silent else "")


def length(incident: Incident, now: float) -> str:
    """How long an incident has lasted."""
    return span(max(0.0, (now if incident.resolved is None else incident.resolved) - incident.since))


def duration(incident: Incident, now: float) -> str:
    """Since when an incident has lasted and how long; for one that is over also until when."""
    until = "" if incident.resolved is None else f" to {clock(incident.resolved, now)}"
    return f"since {clock(incident.since, now)}{until} ({length(incident, now)})"


def read_list(source: Source, *, everything: bool = False) -> tuple[Incident, ...]:
    """The incidents under way, worst first, or all. Raises `EdgekitError`: what failed, and what to do next."""
    if source.host:
        document = _asked(source.command("incident", "list", *(("--all",) if everything else ())))
    else:
        document = _here(source.state, lambda state: _listed(state, everything))
    return _understood(lambda: tuple(incident_of(one) for one in document["incidents"]), source)


def read_one(source: Source, number: int) -> Shown:
    """One incident. Raises `EdgekitError` as `read_list`, and for a number that there is not."""
    if source.host:
        return read_document(_asked(source.command("incident", "show", str(number))), source)
    from edgekit.field.incidents.account import account

    document = _here(source.state, lambda state: account(state, number).to_dict())
    return read_document(document, source, warning=_audited(source.state))


def read_document(document: Any, source: Source, warning: str = "") -> Shown:
    """One incident from its document. Raises `CorruptError` for another document."""

    def read() -> Shown:
        incident = incident_of(document["incident"])
        rule = document.get("rule") or {}
        evidence = document.get("evidence")
        return Shown(
            incident=incident,
            rule=rule if isinstance(rule, dict) else {},
            changes=changes(document.get("changed_before") or (), incident),
            meaning=one_line(document.get("meaning", "")),
            steps=tuple(
                Step(one_line(s["text"]), plain(s["command"])) for s in document.get("next_steps") or ()
            ),
            timeline=_timeline(document, incident),
            evidence=evidence if isinstance(evidence, dict) else {},
            document=json.loads(json.dumps(document, default=str), parse_constant=lambda sign: None),
            warning=warning,
        )

    return _understood(read, source)


def changes(switches: Sequence[Mapping[str, Any]], incident: Incident) -> tuple[Change, ...]:
    """Switches of one release in a row put together, oldest first; the last before it began is marked as a cause.

    A rule that never suggests going back is one that another release would not help: nothing is marked for it.
    """
    found: list[tuple[Mapping[str, Any], list[str]]] = []
    for switch in switches:
        if (
            found
            and found[-1][0]["release"] == switch["release"]
            and switch["what"] not in ENTERS_USE - {"good"}
        ):
            found[-1][1].append(str(switch["what"]))
        else:
            found.append((switch, [str(switch["what"])]))
    causes = [
        place
        for place, (switch, done) in enumerate(found)
        if moment(switch, "time") <= incident.since and ENTERS_USE & set(done)
    ]
    cause = causes[-1] if causes and incident.action != "never" else None
    return tuple(
        Change(
            time=moment(switch, "time"),
            release=one_line(switch["release"]),
            what=_done(done),
            who=one_line(switch["who"]),
            why=one_line(switch["why"]),
            mark=_mark(incident.since - moment(switch, "time")) if place == cause else "",
        )
        for place, (switch, done) in enumerate(found)
    )


def _done(steps: Sequence[str]) -> str:
    """What was done, in words; that a promoted version started and was marked good goes without saying."""
    said = [
        one
        for one in dict.fromkeys(steps)
        if not ("promote" in steps and "good" in steps and one in ("try", "good"))
    ]
    on_trial = ", on trial" if "promote" in steps and "good" not in steps else ""
    return ", ".join(DONE.get(one, one_line(one)) for one in said) + on_trial


def _mark(before_s: float) -> str:
    return f"{'likely' if before_s <= LIKELY_S else 'possible'} cause: {span(before_s)} before"


def _timeline(document: Mapping[str, Any], incident: Incident) -> tuple[Switch, ...]:
    """What people and the watcher did, and the switches of releases since, oldest first."""
    events = [
        Switch(
            time=moment(one, "time"),
            who=one_line(one["who"]),
            what=one_line(one["what"]),
            release=incident.release,
            why="" if (why := one_line(one["why"])) == incident.what else why,  # it stands above already
        )
        for one in document.get("timeline") or ()
    ]
    for one in document.get("changed_after") or ():  # an older edgekit on the device does not send it
        if one["what"] in ENTERS_USE:
            release = one_line(one["release"])
            what = f"{release} {DONE[one['what']]}"
            events.append(
                Switch(moment(one, "time"), one_line(one["who"]), what, release, one_line(one["why"]))
            )
    return tuple(sorted(events, key=lambda event: event.time))


def incident_of(values: Mapping[str, Any]) -> Incident:
    """An incident from its values in a document, safe to show. Raises `ValueError` and others for invalid values."""

    def if_any(name: str) -> float | None:
        return None if values.get(name) is None else moment(values, name)

    needed = {name: one_line(values[name]) for name in ("kind", "what", "state", "severity")}
    optional = {name: one_line(values.get(name) or "") for name in ("rule", "subject", "action", "release")}
    return Incident(
        id=int(number(values, "id")),
        since=moment(values, "since"),
        opened=moment(values, "opened"),
        silenced_until=if_any("silenced_until"),
        resolved=if_any("resolved"),
        acted=bool(values.get("acted")),
        **cast("dict[str, Any]", {**needed, **optional}),
    )


def _listed(state: Path, everything: bool) -> dict[str, Any]:
    return {"incidents": [incident.to_dict() for incident in Incidents(state).find(everything=everything)]}


def _here(state: Path, read: Callable[[Path], Value]) -> Value:
    """What `read` finds in this device's state folder."""
    if not state.is_dir():
        raise ConfigError(
            f"There is no state folder {state}: nothing was served with it, or it was removed.",
            f"edgekit serve --state {state} keeps one; or start the app with the --state of another.",
        )
    try:
        return read(state)
    except EdgekitError:
        raise
    except FOREIGN as error:
        raise CorruptError(
            f"The incidents in {state} cannot be read: {type(error).__name__}: {error}.",
            f"Move them aside: mv {state}/incidents.sqlite {state}/incidents.sqlite.damaged",
        ) from error


def _asked(command: Command) -> Any:
    outcome = command.run(ANSWER_S)
    if outcome.code != 0:
        raise StageError(
            one_line(outcome.message), one_line(outcome.hint) or f"Try it in a shell: {command.text}"
        )
    return outcome.document


def _understood(read: Callable[[], Value], source: Source) -> Value:
    try:
        return read()
    except FOREIGN as error:
        raise CorruptError(
            f"The incidents of {source.name} cannot be read: {type(error).__name__}: {error}.",
            "Install the same version of edgekit on both." if source.host else "edgekit doctor",
        ) from error


def _audited(state: Path) -> str:
    """What does not hold in the audit log, in words; empty when it is whole."""
    from edgekit.field.incidents.audit import Audit

    log = Audit(state)
    try:
        if log.path.stat().st_size > AUDIT_BYTES:
            return f"The audit log is too large to be checked here: edgekit incident audit --state {state}"
        faults = log.check()
    except FileNotFoundError:
        return "The audit log is missing: changes can no longer be proven. Look for a copy kept elsewhere."
    except OSError as error:
        return f"The audit log cannot be read: {error.strerror or error}. Check the rights of {log.path}."
    if not faults:
        return ""
    first, more = faults[0], f", and {len(faults) - 1} more" if len(faults) > 1 else ""
    return (
        f"The audit log was changed: line {first.line}: {one_line(first.what)}{more}. "
        f"Compare it with a copy kept elsewhere: edgekit incident audit --state {state}"
    )
