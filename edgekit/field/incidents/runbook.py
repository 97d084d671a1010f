"""Runbooks: what each kind of incident means and what to do, for a person who did not build the model."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from edgekit.field.incidents.incidents import Incident
from edgekit.field.state import DEFAULT_STATE

STEP = re.compile(r"^\d+\. ")
COMMAND = re.compile(r"`([^`]+)`$")


@dataclass(frozen=True)
class Step:
    """One step, and the command to type for it; empty when there is none."""

    text: str
    command: str


@dataclass(frozen=True)
class Runbook:
    """The text of a kind, in Markdown, its first paragraph, and its numbered steps."""

    text: str
    meaning: str
    steps: list[Step]


def runbook(incident: Incident, state: Path | None = None) -> Runbook:
    """The runbook of an incident, with its number, its release and `state` (None for the default) in the commands.

    The rollback step comes first, and is left out for a rule with `action = "never"`.
    """
    text = (
        resources.files("edgekit.field.incidents")
        .joinpath("runbooks", f"{incident.kind}.md")
        .read_text("utf-8")
    )
    state = state or DEFAULT_STATE
    option = "" if state == DEFAULT_STATE else f" --state {shlex.quote(str(state))}"
    kept = state / "releases" / "versions" / incident.release
    values = {
        "id": str(incident.id),
        "state": option,
        "folder": shlex.quote(str(state)),
        "bundle": shlex.quote(str(kept)) if incident.release and kept.is_dir() else "BUNDLE",
    }
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    steps = [Step(COMMAND.sub("", step).rstrip(" :."), _command(step)) for step in _numbered(text)]
    if incident.action == "never":
        steps = [step for step in steps if "releases rollback" not in step.command]
    else:
        steps.sort(key=lambda step: "releases rollback" not in step.command)
    paragraphs = [part for part in text.split("\n\n") if part and not part.startswith("#")]
    return Runbook(text, " ".join(paragraphs[0].split()), steps)


def _numbered(text: str) -> list[str]:
    steps: list[str] = []
    for line in text.splitlines():
        if STEP.match(line):
            steps.append(STEP.sub("", line).strip())
        elif steps and line.startswith("   "):
            steps[-1] += " " + line.strip()
    return steps


def _command(step: str) -> str:
    found = COMMAND.search(step)
    return found[1] if found else ""
