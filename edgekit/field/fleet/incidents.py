"""Incidents of a device, this one or another: those under way, and one of them whole, safe to show.

Both are read from the documents of `edgekit incident list|show --json`: of this device by the same functions that the
commands call, of another one by the commands themselves over SSH.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from edgekit.base.clock import span
from edgekit.base.errors import ConfigError, CorruptError, StageError, reason
from edgekit.base.numbers import moment, number
from edgekit.base.texts import one_line, plain
from edgekit.field.fleet.device import Device
from edgekit.field.incidents.account import account
from edgekit.field.incidents.audit import Audit
from edgekit.field.incidents.history import Switch
from edgekit.field.incidents.incidents import Incident, Incidents
from edgekit.field.incidents.runbook import Step

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
class ReleaseChange(Switch):
    """What was done to one release, one thing after the other; `mark` says how likely it is the cause, or is empty."""

    mark: str = ""


@dataclass(frozen=True)
class WholeIncident:
    """One incident with all that is known of it.

    `document` is what `edgekit incident show --json` prints of it, with null for numbers that JSON does not know.
    `warning` says what is wrong with the records themselves.
    """

    incident: Incident
    rule: Mapping[str, Any]
    changes: tuple[ReleaseChange, ...]
    meaning: str
    steps: tuple[Step, ...]
    timeline: tuple[Switch, ...]
    evidence: Mapping[str, Any]
    document: Mapping[str, Any]
    warning: str = ""


def read_list(device: Device, *, everything: bool = False) -> tuple[Incident, ...]:
    """The incidents under way, worst first, or all. Raises `EdgekitError`: what failed, and what to do next."""

    def here(state: Path) -> Any:
        return {"incidents": [one.to_dict() for one in Incidents(state).find(everything=everything)]}

    asked = ("incident", "list", *(("--all",) if everything else ()))
    return _understood(
        device, lambda: tuple(incident_of(one) for one in _document(device, here, *asked)["incidents"])
    )


def read_one(device: Device, number: int) -> WholeIncident:
    """One incident. Raises `EdgekitError` as `read_list`, and for a number that there is not."""

    def read() -> WholeIncident:
        document = _document(
            device, lambda state: account(state, number).to_dict(), "incident", "show", str(number)
        )
        return _shown(document, warning=_audited(device.folder) if device.is_here else "")

    return _understood(device, read)


def read_document(document: Any, device: Device) -> WholeIncident:
    """One incident from its document. Raises `CorruptError` for another document."""
    return _understood(device, lambda: _shown(document))


def _document(device: Device, here: Callable[[Path], Any], *arguments: str) -> Any:
    """What `edgekit ARGUMENTS` prints on a device; on this one it is what `here` finds in the state folder."""
    if device.host:
        command = device.command(*arguments)
        outcome = command.run(ANSWER_S)
        if outcome.code != 0:
            hint = one_line(outcome.hint) or f"Try it in a shell: {command.text}"
            raise StageError(one_line(outcome.message), hint)
        return outcome.document
    if not device.folder.is_dir():
        raise ConfigError(
            f"There is no state folder {device.folder}: nothing was served with it, or it was removed.",
            f"edgekit serve --state {device.folder} keeps one; or start the app with the --state of another.",
        )
    return here(device.folder)


def _understood(device: Device, read: Callable[[], Value]) -> Value:
    try:
        return read()
    except FOREIGN as error:
        path = device.folder / "incidents.sqlite"
        raise CorruptError(
            f"The incidents of {device.called} cannot be read: {type(error).__name__}: {error}.",
            f"Move them aside: mv {path} {path}.damaged"
            if device.is_here
            else "Install the same version of edgekit on both.",
        ) from error


def _shown(document: Any, warning: str = "") -> WholeIncident:
    incident = incident_of(document["incident"])
    rule, evidence = document.get("rule"), document.get("evidence")
    return WholeIncident(
        incident=incident,
        rule=rule if isinstance(rule, dict) else {},
        changes=changes(document.get("changed_before") or (), incident),
        meaning=one_line(document.get("meaning", "")),
        steps=tuple(Step(one_line(s["text"]), plain(s["command"])) for s in document.get("next_steps") or ()),
        timeline=_timeline(document, incident),
        evidence=evidence if isinstance(evidence, dict) else {},
        document=json.loads(json.dumps(document, default=str), parse_constant=lambda sign: None),
        warning=warning,
    )


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


def changes(switches: Sequence[Mapping[str, Any]], incident: Incident) -> tuple[ReleaseChange, ...]:
    """Switches of one release in a row put together, oldest first; the last before it began is marked as a cause.

    A rule that never suggests going back is one that another release would not help: nothing is marked for it.
    """
    rows: list[tuple[Switch, list[str]]] = []
    for values in switches:
        switch = _switch(values)
        follows = switch.what not in ENTERS_USE - {"good"}
        if rows and rows[-1][0].release == switch.release and follows:
            rows[-1][1].append(switch.what)
        else:
            rows.append((switch, [switch.what]))
    causes = [one for one, done in rows if one.time <= incident.since and ENTERS_USE & set(done)]
    cause = causes[-1] if causes and incident.action != "never" else None
    return tuple(
        ReleaseChange(
            one.time,
            one.who,
            _done(done),
            one.release,
            one.why,
            mark=_mark(incident.since - one.time) if one is cause else "",
        )
        for one, done in rows
    )


def _switch(values: Mapping[str, Any]) -> Switch:
    texts = (one_line(values[name]) for name in ("who", "what", "release", "why"))
    return Switch(moment(values, "time"), *texts)


def _done(steps: Sequence[str]) -> str:
    """What was done, in words; that a promoted version started and was marked good goes without saying."""
    accepted = {"promote", "good"} <= set(steps)
    said = [one for one in dict.fromkeys(steps) if not (accepted and one in ("try", "good"))]
    on_trial = ", on trial" if "promote" in steps and not accepted else ""
    return ", ".join(DONE.get(one, one) for one in said) + on_trial


def _mark(before_s: float) -> str:
    return f"{'likely' if before_s <= LIKELY_S else 'possible'} cause: {span(before_s)} before"


def _timeline(document: Mapping[str, Any], incident: Incident) -> tuple[Switch, ...]:
    """What people and the watcher did, and the switches of releases since, oldest first."""
    events = [_switch({**one, "release": incident.release}) for one in document.get("timeline") or ()]
    # the sentence of the incident stands above already
    events = [replace(one, why="" if one.why == incident.what else one.why) for one in events]
    after = map(_switch, document.get("changed_after") or ())  # an older edgekit does not send it
    events += [
        replace(one, what=f"{one.release} {DONE[one.what]}") for one in after if one.what in ENTERS_USE
    ]
    return tuple(sorted(events, key=lambda event: event.time))


def _audited(state: Path) -> str:
    """What does not hold in the audit log, in words; empty when it is whole."""
    log = Audit(state)
    try:
        if log.path.stat().st_size > AUDIT_BYTES:
            return f"The audit log is too large to be checked here: edgekit incident audit --state {state}"
        faults = log.check()
    except FileNotFoundError:
        return "The audit log is missing: changes can no longer be proven. Look for a copy kept elsewhere."
    except OSError as error:
        return f"The audit log cannot be read: {reason(error)}. Check the rights of {log.path}."
    if not faults:
        return ""
    first, more = faults[0], f", and {len(faults) - 1} more" if len(faults) > 1 else ""
    return (
        f"The audit log was changed: line {first.line}: {one_line(first.what)}{more}. "
        f"Compare it with a copy kept elsewhere: edgekit incident audit --state {state}"
    )
