"""Evidence of an incident: the measurements before and during it, the release that ran, and the machine.

Numbers, names of classes and versions only; prompts and answers are never in telemetry, and fields that this module
does not name are left out, whatever telemetry comes to hold.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.base.artifacts import write_json
from edgekit.field.incidents import history
from edgekit.field.incidents.incidents import Incident

if TYPE_CHECKING:
    from edgekit.field.telemetry.store import Window

SCHEMA = "edgekit.evidence/1"
FOLDER = "evidence"
LIMIT_S = 2.0
WINDOW = (
    "since", "until", "release", "requests", "errors", "error_kinds", "empty", "truncated", "cancelled", "ttft_p50_s", "ttft_p95_s",
    "duration_p95_s", "queue_p95_s", "tokens_per_s", "prompt_tokens", "answer_tokens", "rss_mib", "temperature_c",
    "throttled_s", "confidence", "entropy", "unknown_rate", "classes", "last_seen",
)  # fmt: skip
ALARM = ("signal", "method", "value", "limit", "since", "words")
MANIFEST = ("name", "target", "edgekit", "versions", "base_model", "recipe", "formats", "threads", "verdict")


class Windows(Protocol):
    """Where windows of telemetry are read; `edgekit.field.telemetry.store.Store` is one."""

    def window(self, since: float, until: float, release: str | None = None) -> Window:
        """What was recorded from `since` to `until`, Unix seconds, of one release or of all."""


def path_of(state: Path, number: int) -> Path:
    """Where the evidence of an incident is kept."""
    return state / FOLDER / f"{number}.json"


def capture(
    state: Path,
    incident: Incident,
    rule: Mapping[str, Any],
    windows: Windows,
    *,
    bundle: Path | None = None,
    now: float | None = None,
) -> Path:
    """Write the evidence of an incident that was opened and return its path.

    A part that cannot be read, or that 2 s leave no time for, is named under `left_out`; the rest is there all the
    same. Raises `OSError` when nothing can be written.
    """
    moment = time.time() if now is None else now
    span_s = float(rule.get("window_s", 300.0))
    parts: dict[str, Callable[[], Any]] = {
        "during": lambda: plain(windows.window(min(incident.since, moment - span_s), moment, _of(incident))),
        "before": lambda: plain(
            windows.window(incident.since - 2 * span_s, incident.since - span_s, _of(incident))
        ),
        "switches": lambda: [
            vars(switch) for switch in history.switches(state, incident.since - history.BEFORE_S, moment)
        ],
        "versions": lambda: _versions(bundle),
        "machine": _machine,
    }
    document: dict[str, Any] = {
        "schema": SCHEMA, "incident": incident.to_dict(), "rule": dict(rule), "captured": moment, "left_out": {},
    }  # fmt: skip
    _fill(document, parts)
    path = path_of(state, incident.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, document)
    return path


def complete(state: Path, incident: Incident, rule: Mapping[str, Any], windows: Windows, now: float) -> None:
    """Add the window in which an incident ended to its evidence. Raises `OSError` when it cannot be written."""
    path = path_of(state, incident.id)
    document = read(path) or {"schema": SCHEMA, "rule": dict(rule), "left_out": {}}
    document["incident"] = incident.to_dict()
    span_s = float(rule.get("window_s", 300.0))
    _fill(document, {"after": lambda: plain(windows.window(now - span_s, now, _of(incident)))})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, document)


def read(path: Path) -> dict[str, Any] | None:
    """Evidence as it was written, None where there is none."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document


def plain(window: Window) -> dict[str, Any]:
    """A window as JSON: the fields that are known to hold no words of prompts and answers."""
    found = {name: getattr(window, name, None) for name in WINDOW}
    alarms = [{name: alarm.get(name) for name in ALARM} for alarm in window.alarms]
    return {**found, "alarms": alarms}


def _fill(document: dict[str, Any], parts: Mapping[str, Callable[[], Any]]) -> None:
    end = time.monotonic() + LIMIT_S
    for name, part in parts.items():
        if time.monotonic() > end:
            document["left_out"][name] = f"no time was left of {LIMIT_S:g} s"
            continue
        try:
            document[name] = part()
        except Exception as error:  # noqa: BLE001 - the other parts are worth having
            document["left_out"][name] = f"{type(error).__name__}: {error}"


def _of(incident: Incident) -> str | None:
    return incident.release if incident.subject == incident.release else None


def _versions(bundle: Path | None) -> dict[str, Any]:
    from edgekit import __version__
    from edgekit.device.manifest import read_manifest

    if bundle is None:
        return {"running": __version__}
    manifest = read_manifest(bundle)
    found = {name: manifest.get(name) for name in MANIFEST}
    recipe = found.get("recipe")
    found["recipe"] = recipe.get("digest") if isinstance(recipe, dict) else None
    return {"running": __version__, "bundle": found}


def _machine() -> dict[str, Any]:
    from edgekit.base import hardware

    return {**hardware.fingerprint(), "memory_available_mib": hardware.available_memory_mib()}
