"""Evaluates a device's rules every few seconds, opens and resolves incidents, sends notifications, and runs actions.

One watcher works on a state folder at a time, within the serving process or beside it. When it ends, the next one takes
over with the saved state of the rules. A failure here never affects an answer.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError, CorruptError, EdgekitError, in_words
from edgekit.base.locks import locked
from edgekit.device.manifest import MANIFEST, check_files, read_manifest
from edgekit.field.incidents import evidence
from edgekit.field.incidents.evidence import Windows
from edgekit.field.incidents.incidents import Incident, Incidents
from edgekit.field.incidents.readings import Reading, reading_of
from edgekit.field.incidents.rules import GAP_S, AlertState, Change, Evaluator
from edgekit.field.incidents.webhook import Webhook
from edgekit.targets.rules import Rule

WHO = "watcher"
LOCK = "watcher.lock"
EVERY_S = 5.0
INTEGRITY_S = 600.0  # between two checks of a release's files; files that look unchanged are not read
REREAD_S = 24 * 3600.0  # after which all files are read, changed or not, because disks lose bits
Action = Callable[[Incident], str]
Stamps = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Watched:
    """The inputs of a watcher: telemetry, and the release in use; each is None (or "") when unknown."""

    windows: Windows
    release: Callable[[], str] = lambda: ""
    bundle: Callable[[], Path | None] = lambda: None
    store_trouble: Callable[[], str | None] = lambda: None
    """Why telemetry cannot be saved; empty when it can."""
    drift_over: Callable[[], bool | None] = lambda: None
    """Whether every signal matches the reference again."""
    confidence_expected: float | None = None


@dataclass(frozen=True)
class Reactions:
    """The receivers of incidents: `webhook` gets each change, `opened` the kind of each incident that opens.

    `act` performs the action of a rule with `action = "auto"`, once for each incident, and returns a description of it.
    """

    webhook: Webhook | None = None
    act: Action | None = None
    opened: Callable[[str], None] = lambda kind: None


class Watcher:
    """Evaluates `rules` on a device's telemetry.

    A watcher outside the serving process is not the `owner`: it leaves incidents of rules other than its own alone.
    `trouble` says why the last evaluation failed; it is empty when all is well.
    """

    def __init__(
        self,
        state: Path,
        rules: Sequence[Rule],
        watched: Watched,
        reactions: Reactions = Reactions(),
        *,
        owner: bool = True,
        every_s: float = EVERY_S,
    ) -> None:
        self.state = state
        self.incidents = Incidents(state)
        self.trouble = ""
        self.webhook = reactions.webhook
        self.confidence_expected = watched.confidence_expected
        self._watched, self._reactions, self._owner = watched, reactions, owner
        self._every_s = every_s
        self._rules = list(rules)
        self._evaluators: dict[float, Evaluator] = {}
        self._kept: Any = None
        self._kept_at = 0.0
        self._told = 0
        self._began: float | None = None
        self._files: tuple[Path | None, float, bool | None] = (None, 0.0, None)
        self._read_files: tuple[float, Stamps] = (0.0, ())
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def use(self, rules: Sequence[Rule], confidence_expected: float | None = None) -> None:
        """Continue with the rules of another release, and the confidence that its build recorded."""
        self.confidence_expected = confidence_expected
        self._rules = list(rules)
        self._began = None

    def tick(self, now: float) -> list[Change]:
        """Evaluate once, at `now` in Unix seconds, and return the changes. Raises `EdgekitError` and `OSError`."""
        if self._began is None:
            self._resume(now)
        release, bundle = self._watched.release(), self._watched.bundle()
        told = [
            AlertState(incident.rule, incident.subject, incident.since, incident.opened, seen=incident.opened)
            for incident in self.incidents.find()
        ]
        changes: list[Change] = []
        for window_s, evaluator in self._evaluators.items():
            evaluator.sync(told)
            changes += evaluator.retire(now, release)
            changes += evaluator.evaluate(now, self._reading(now, window_s, release, bundle))
        for change in changes:
            self._take(change, bundle)
        self._keep(now)
        self.incidents.end_silences(now, who=WHO)
        self._do(now, release)
        self._tell(now)
        return changes

    def run(self) -> None:
        """Evaluate every few seconds until `close`, while no other watcher does; never raises."""
        with contextlib.ExitStack() as stack:
            held = False
            while not self._stop.is_set():
                try:
                    held = held or _locked(self.state, stack)
                    if held:
                        self.tick(time.time())
                        self.trouble = ""
                except CorruptError as error:
                    with contextlib.suppress(OSError):
                        aside = self.incidents.set_aside()
                        self.trouble = f"{error.message} It was moved to {aside}, and a new one was created."
                    self._began, self._told, self._kept = None, 0, None
                except Exception as error:  # noqa: BLE001 - a watcher that stops is worse than one that misses an evaluation
                    self.trouble = in_words(error)
                self._stop.wait(self._every_s)

    def once(self, now: float) -> list[Change]:
        """Evaluate once, unless another watcher is at work. Raises as `tick` does."""
        with contextlib.ExitStack() as stack:
            return self.tick(now) if _locked(self.state, stack) else []

    def start(self) -> None:
        """Run in a thread of its own."""
        self._thread = threading.Thread(target=self.run, name="watcher", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop; open incidents are kept."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self.webhook is not None:
            self.webhook.close()

    def _states(self) -> list[AlertState]:
        """The state of every rule."""
        return [state for evaluator in self._evaluators.values() for state in evaluator.states]

    def _resume(self, now: float) -> None:
        states = self._states() or list(self.incidents.alert_states())
        lengths = dict.fromkeys(rule.window_s for rule in self._rules)
        self._evaluators = {
            length: Evaluator([rule for rule in self._rules if rule.window_s == length], states)
            for length in lengths
        }
        for incident in self.incidents.find() if self._owner else ():  # of a rule that no longer exists
            if incident.rule not in {rule.key for rule in self._rules}:
                self.incidents.close(incident.id, who=WHO, why="its rule is no longer in use", now=now)
        self._told = self._told or self.incidents.last_change()
        self._began = now

    def _reading(self, now: float, window_s: float, release: str, bundle: Path | None) -> Reading:
        return reading_of(
            self._watched.windows.window(now - window_s, now, release),
            digest_ok=self._whole(now, bundle),
            trouble=self._watched.store_trouble(),
            confidence_expected=self.confidence_expected,
            last_seen=self._began,
            told_until=self.incidents.last_end("drift", release),
            drift_over=self._watched.drift_over(),
        )

    def _whole(self, now: float, bundle: Path | None) -> bool | None:
        """Whether the files match the manifest, checked every ten minutes; None without a bundle.

        They are read when the size, time or inode of one has changed since the last successful check, and once a day.
        """
        if bundle is None:
            return None
        before, at, whole = self._files
        if bundle != before or not 0 <= now - at < INTEGRITY_S:
            try:
                manifest = read_manifest(bundle)
                stamps = _stamps(bundle, manifest["files"])
                read, seen = self._read_files
                if not (bundle == before and whole and stamps == seen and 0 <= now - read < REREAD_S):
                    check_files(bundle, manifest)
                    self._read_files = (now, stamps)
                whole = True
            except (CorruptError, OSError):
                whole = False
            self._files = (bundle, now, whole)
        return whole

    def _take(self, change: Change, bundle: Path | None) -> None:
        began = change.kind == "opened"
        put = self.incidents.open if began else self.incidents.resolve
        incident = put(change, who=WHO)
        if incident is None:
            return
        if began:
            self._reactions.opened(change.rule.kind)
        rule = change.rule.model_dump()
        with contextlib.suppress(OSError):  # a full disk: the incident itself matters more
            if began:
                evidence.capture(
                    self.state, incident, rule, self._watched.windows, bundle=bundle, now=change.time
                )
            else:
                evidence.complete(self.state, incident, rule, self._watched.windows, change.time)

    def _keep(self, now: float) -> None:
        """Save the state of the rules when it changed or a clock runs; rarely, to save disk writes."""
        states = [state for state in self._states() if state.since is not None]
        clocks = {(s.rule, s.subject): (s.since, s.opened, s.well_since) for s in states}
        if clocks != self._kept or (clocks and not 0 <= now - self._kept_at < GAP_S / 2):
            self.incidents.keep(states)
            self._kept, self._kept_at = clocks, now

    def _do(self, now: float, release: str) -> None:
        """Perform the automatic actions of incidents on the release in use, unless they are silenced."""
        if self._reactions.act is None:
            return
        for incident in self.incidents.find():
            if (
                incident.action != "auto"
                or incident.acted
                or incident.silenced(now)
                or incident.release != release
            ):
                continue
            try:
                what, why = "acted", self._reactions.act(incident)
            except Exception as error:  # noqa: BLE001 - a person must learn of any failure
                what, why = "could not act", error.message if isinstance(error, EdgekitError) else str(error)
            self.incidents.acted(incident.id, who=WHO, what=what, why=why, now=now)
            return  # another release may be in use now

    def _tell(self, now: float) -> None:
        for number, incident, change in self.incidents.changes_after(self._told):
            self._told = number
            if self.webhook is not None and not (incident.silenced(now) and change["what"] == "opened"):
                self.webhook.send(
                    {
                        "schema": "edgekit.incident-change/1",
                        "device": socket.gethostname(),
                        "change": change,
                        "incident": incident.to_dict(),
                    }
                )


def _stamps(bundle: Path, entries: Sequence[Mapping[str, Any]]) -> Stamps:
    """Inode, size and time of the last change of each file of a manifest, and of the manifest itself."""
    found = (os.stat(bundle / path) for path in (MANIFEST, *(entry["path"] for entry in entries)))
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found)


def _locked(state: Path, stack: contextlib.ExitStack) -> bool:
    """Take the watcher lock of the state folder until `stack` ends; False while another process holds it."""
    try:
        stack.enter_context(locked(state / LOCK, wait=False))
    except ConfigError:
        return False
    return True
