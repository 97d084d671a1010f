"""Alerts as a state machine without clock or disk: the same readings at the same times give the same changes.

    quiet ──bad──► pending ──bad for for_s──► open ──well for for_s──► quiet

A reading is bad beyond the rule's limit, and well at its `clear` value or better; between the two, neither clock runs.
An unknown reading is neither: it opens and closes nothing. A missing heartbeat is a reading of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from edgekit.field.incidents.readings import OF_ANSWERS, Reading
from edgekit.targets.rules import Rule

DEVICE = "device"  # the subject of rules on the machine, whichever release it runs
OF_DEVICE = frozenset({"temperature", "heartbeat", "store"})
GAP_S = 60.0  # after a longer gap between two evaluations, no state counts as continuous


@dataclass(frozen=True)
class AlertState:
    """The state of one rule for one subject. Times are Unix seconds, None for a clock that does not run.

    `since` is when the reading became bad, `opened` when the alert was opened, `well_since` when the reading became
    well again, `seen` the time of the last evaluation, and `value` the reading at that time.
    """

    rule: str
    subject: str
    since: float | None = None
    opened: float | None = None
    well_since: float | None = None
    seen: float = 0.0
    value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON; `AlertState(**document)` reads it again."""
        return asdict(self)


@dataclass(frozen=True)
class Change:
    """An alert that opened or ended: its rule, its subject, since when, and the reading."""

    kind: Literal["opened", "resolved"]
    rule: Rule
    subject: str
    release: str
    time: float
    since: float
    value: float | None
    reading: Reading | None = None
    why: str = ""


class Evaluator:
    """Evaluates rules on readings; at most one alert is open for each rule and subject."""

    def __init__(self, rules: Iterable[Rule], states: Iterable[AlertState] = ()) -> None:
        self.rules = {rule.key: rule for rule in rules}
        self._states = {(state.rule, state.subject): state for state in states if state.rule in self.rules}

    @property
    def states(self) -> list[AlertState]:
        """The state of every rule, to continue from after a restart."""
        return list(self._states.values())

    def evaluate(self, now: float, reading: Reading) -> list[Change]:
        """The changes that a reading at `now`, in Unix seconds, brings."""
        changes = []
        for rule in self.rules.values():
            subject = subject_of(rule, reading.release)
            state = self._states.get((rule.key, subject), AlertState(rule.key, subject, seen=now))
            state, kind = _step(rule, state, _value(rule, reading, now), now)
            self._states[rule.key, subject] = state
            if kind:
                since = _since(rule, reading, state.since if state.since is not None else now)
                changes.append(Change(kind, rule, subject, reading.release, now, since, state.value, reading))
            if kind == "resolved":
                self._states[rule.key, subject] = replace(state, since=None, opened=None, well_since=None)
        return changes

    def retire(self, now: float, release: str, why: str = "it is no longer in use") -> list[Change]:
        """End the alerts of every release except `release`, because no more readings of them will come."""
        changes = []
        for key, state in list(self._states.items()):
            if state.subject in (DEVICE, release):
                continue
            del self._states[key]
            if state.opened is not None:
                since = state.since if state.since is not None else state.opened
                rule = self.rules[state.rule]
                changes.append(
                    Change("resolved", rule, state.subject, state.subject, now, since, None, None, why)
                )
        return changes

    def sync(self, open_: Iterable[AlertState]) -> None:
        """Follow the open incidents: drop alerts that a person closed, and add those that another process opened."""
        told = {(state.rule, state.subject): state for state in open_ if state.rule in self.rules}
        for key, state in list(self._states.items()):
            if state.opened is not None and key not in told:
                del self._states[key]
        for key, state in told.items():
            if key not in self._states or self._states[key].opened is None:
                self._states[key] = state


def subject_of(rule: Rule, release: str) -> str:
    """The subject of a rule's alert: the device or the release."""
    return DEVICE if rule.kind in OF_DEVICE else release


def _since(rule: Rule, reading: Reading, since: float) -> float:
    """When the trouble began, which may be earlier than its detection."""
    if rule.metric == "heartbeat_age_s" and reading.last_seen is not None:
        return min(since, reading.last_seen)
    if rule.metric == "drift_alarms":
        return min([since, *(float(alarm["since"]) for alarm in reading.alarms if alarm.get("since"))])
    return since


def _value(rule: Rule, reading: Reading, now: float) -> float | None:
    if rule.metric in OF_ANSWERS and reading.requests < rule.min_requests:
        return None
    return reading.value(rule.metric, now)


def _step(
    rule: Rule, state: AlertState, value: float | None, now: float
) -> tuple[AlertState, Literal["opened", "resolved"] | None]:
    if (
        not 0 <= now - state.seen <= GAP_S
    ):  # there was no evaluation, or the clock was set: the time in between is unknown
        state = replace(state, well_since=None, since=state.since if state.opened is not None else None)
    state = replace(state, seen=now, value=value)
    bad = value is not None and (value > rule.limit if rule.above is not None else value < rule.limit)
    if state.opened is None:
        since = (state.since if state.since is not None else now) if bad else None
        state = replace(state, since=since)
        if since is not None and now - since >= rule.for_s:
            return replace(state, opened=now, well_since=None), "opened"
        return state, None
    clear = rule.clear if rule.clear is not None else rule.limit
    well = value is not None and not bad and (value <= clear if rule.above is not None else value >= clear)
    well_since = (state.well_since if state.well_since is not None else now) if well else None
    state = replace(state, well_since=well_since)
    if well_since is not None and now - well_since >= rule.for_s:
        return state, "resolved"
    return state, None
