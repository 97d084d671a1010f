"""Alerts as a state machine without clock or disk: the same readings at the same times give the same changes.

    quiet ──bad──► pending ──bad for for_s──► open ──well for for_s──► quiet

Bad is beyond the rule's limit, well is at its `clear` value or beyond; between them neither clock runs. What is not
known is neither: it opens nothing, and closes nothing. A heartbeat that does not come is a reading of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from edgekit.field.incidents.readings import OF_ANSWERS, Reading
from edgekit.targets.rules import Rule

DEVICE = "device"  # the subject of rules on the machine, whichever release it runs
OF_DEVICE = frozenset({"temperature", "heartbeat", "store"})
GAP_S = 60.0  # after so long without a look, nothing is known to have held meanwhile


@dataclass(frozen=True)
class AlertState:
    """Where one rule stands for one subject. Times are Unix seconds, None for a clock that does not run.

    `since` is when it became bad, `opened` when that was told, `well_since` when it became well again, `seen` the last
    look, and `value` the reading then.
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
    """An alert that opened or is over: which rule, on what, since when, and the reading that told."""

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
    """Holds readings against rules; at most one alert is open for each rule and subject."""

    def __init__(self, rules: Iterable[Rule], states: Iterable[AlertState] = ()) -> None:
        self.rules = {rule.key: rule for rule in rules}
        self._states = {(state.rule, state.subject): state for state in states if state.rule in self.rules}

    @property
    def states(self) -> list[AlertState]:
        """Where every rule stands, to go on from after a restart."""
        return list(self._states.values())

    def evaluate(self, now: float, reading: Reading) -> list[Change]:
        """What changes with a reading at `now`, Unix seconds."""
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
        """End the alerts of every release but `release`: nothing more will be heard of them."""
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
        """Hold what is open to what people were told: drop what a person closed, take up what was told elsewhere."""
        told = {(state.rule, state.subject): state for state in open_ if state.rule in self.rules}
        for key, state in list(self._states.items()):
            if state.opened is not None and key not in told:
                del self._states[key]
        for key, state in told.items():
            if key not in self._states or self._states[key].opened is None:
                self._states[key] = state


def subject_of(rule: Rule, release: str) -> str:
    """What a rule's alert is about: the device, or the release."""
    return DEVICE if rule.kind in OF_DEVICE else release


def _since(rule: Rule, reading: Reading, since: float) -> float:
    """When it began, which may be before anything could tell."""
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
    if not 0 <= now - state.seen <= GAP_S:  # nobody looked, or the clock was set: no stretch of time is known
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
