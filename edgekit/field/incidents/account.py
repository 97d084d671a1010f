"""Everything that is shown of one incident, collected in one place for the shell and the terminal app."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.field.incidents import evidence, history
from edgekit.field.incidents.history import Switch
from edgekit.field.incidents.incidents import Incident, Incidents
from edgekit.field.incidents.runbook import Runbook, runbook


@dataclass(frozen=True)
class Account:
    """An incident, the rule that opened it, and the release changes from a day before it began until now.

    `timeline` says who changed it, when and why. `evidence` is what was measured; None when nothing was captured.
    """

    incident: Incident
    rule: dict[str, Any]
    before: list[Switch]
    after: list[Switch]
    book: Runbook
    timeline: list[dict[str, Any]]
    evidence: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "incident": self.incident.to_dict(),
            "rule": self.rule,
            "changed_before": [vars(switch) for switch in self.before],
            "changed_after": [vars(switch) for switch in self.after],
            "meaning": self.book.meaning,
            "next_steps": [vars(step) for step in self.book.steps],
            "timeline": self.timeline,
            "evidence": self.evidence,
        }


def account(state: Path, number: int) -> Account:
    """The account of incident `number` in a state folder; raises as `Incidents.get` does."""
    incidents = Incidents(state)
    incident = incidents.get(number)
    end = incident.opened + history.BEFORE_S if incident.resolved is None else incident.resolved
    return Account(
        incident=incident,
        rule=incidents.rule(number),
        before=history.switches(state, incident.since - history.BEFORE_S, incident.opened),
        after=[s for s in history.switches(state, incident.opened, end) if s.time > incident.opened],
        book=runbook(incident, state),
        timeline=incidents.timeline(number),
        evidence=evidence.read(evidence.path_of(state, number)),
    )
