"""An incident in words: its kind, its state, since when and for how long."""

from __future__ import annotations

from edgekit.base.clock import clock, span
from edgekit.field.incidents.incidents import Incident
from edgekit.field.incidents.words import LABELS


def label(incident: Incident) -> str:
    """The kind of an incident in words."""
    return LABELS.get(incident.kind, incident.kind)


def is_over(incident: Incident) -> bool:
    """Whether an incident has ended."""
    return incident.state == "RESOLVED"


def state_words(incident: Incident, now: float) -> str:
    """The state of an incident, and until when it is silenced."""
    if is_over(incident) or not incident.silenced(now):
        return incident.state
    return f"{incident.state}, silenced until {clock(incident.silenced_until or 0.0, now)}"


def length(incident: Incident, now: float) -> str:
    """How long an incident has lasted."""
    return span(max(0.0, (now if incident.resolved is None else incident.resolved) - incident.since))


def duration(incident: Incident, now: float) -> str:
    """Since when an incident has lasted and how long; for one that is over also until when."""
    until = "" if incident.resolved is None else f" to {clock(incident.resolved, now)}"
    return f"since {clock(incident.since, now)}{until} ({length(incident, now)})"
