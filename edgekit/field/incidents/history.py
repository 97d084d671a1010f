"""Changes of the release in use before an incident, read from the log of releases."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOG = Path("releases", "log.jsonl")
BEFORE_S = 24 * 3600.0  # a change more than a day ago is rarely the cause


@dataclass(frozen=True)
class Switch:
    """One change of the release in use: when (Unix seconds), who, what was done, to which release, and why."""

    time: float
    who: str
    what: str
    release: str
    why: str


def switches(state: Path, since: float, until: float) -> list[Switch]:
    """The changes from `since` to `until`, oldest first; none when there are no releases. Never raises."""
    try:
        text = (state / LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = [
        switch for line in text.splitlines() if (switch := _switch(line)) and since <= switch.time <= until
    ]
    return sorted(found, key=lambda switch: switch.time)


def _switch(line: str) -> Switch | None:
    try:
        entry: dict[str, Any] = json.loads(line)
        if entry.get("what") == "import":  # a version that was only stored answers no requests
            return None
        names = (str(entry.get(key) or "") for key in ("who", "what", "release", "why"))
        return Switch(float(entry["time"]), *names)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
