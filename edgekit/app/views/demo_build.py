"""The recorded build, written as a build that runs here writes it: to its events and its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgekit.app.views.settings import Settings
from edgekit.base.artifacts import remove
from edgekit.base.events import Alert, StageFinished, StageStarted, from_json, jsonl_writer
from edgekit.build import runs
from edgekit.device.manifest import MANIFEST

REST_S = 10.0  # between two builds


class RecordedBuild:
    """A build of `recorded` events and the files of the `bundle` that it made, `speed` times as fast as it was.

    It belongs to this process, so that it counts as under way.
    """

    def __init__(
        self, settings: Settings, recorded: Mapping[str, Any], bundle: Mapping[str, Any], speed: float = 1.0
    ) -> None:
        self._speed, self.seconds = speed, recorded["seconds"] / speed
        self._events = [(line["time"] / speed, from_json(json.dumps(line))) for line in recorded["events"]]
        self._report: dict[str, Any] = json.loads(bundle["files"]["report.json"])
        self._run = replace(
            runs.of_this_process(settings.cache_dir.absolute()),
            model=self._report["model"],
            target=self._report["target"],
            data=json.loads(bundle["files"][MANIFEST])["data"]["name"],
            out=(settings.bundles / bundle["name"]).absolute(),
            stages=tuple(event.stage for _, event in self._events if isinstance(event, StageStarted)),
            seconds={  # as played, for the time that is left
                event.stage: event.seconds / speed
                for _, event in self._events
                if isinstance(event, StageFinished)
            },
            seconds_expected=self.seconds,
        )
        self._log = settings.cache_dir / runs.EVENTS
        self._write = jsonl_writer(self._log)
        self._recorder: runs.Recorder | None = None
        self._told = 0

    def write_whole(self, began: float) -> None:
        """Write it as one that began then, Unix seconds, and has ended."""
        for at, event in self._events:
            self._write(replace(event, time=began + at))
        ended = replace(self._run, started=began, ended=began + self.seconds, outcome=self._report["verdict"])
        runs.Recorder(ended).expect(self.seconds)

    def play(self, now: float) -> None:
        """Write what is due; a while after its end it begins anew."""
        if self._recorder is None:
            self._recorder = self._begun(now)
        began = self._recorder.run.started
        while self._told < len(self._events) and self._events[self._told][0] <= now - began:
            at, event = self._events[self._told]
            self._told += 1
            event = replace(event, time=began + at)
            self._write(event)
            self._recorder.emit(event)
        if self._told == len(self._events):
            self._recorder.judge(self._report)  # writes once
            if now - began > self.seconds + REST_S:
                self._recorder = None

    def _begun(self, now: float) -> runs.Recorder:
        remove(self._log)
        self._told = 0
        recorder = runs.Recorder(replace(self._run, started=now, seconds=dict(self._run.seconds)))
        recorder.expect(self.seconds)
        words = f"A recorded build, played {self._speed:g} times as fast; what it measured is as it was."
        self._write(Alert("info", words, time=now))
        return recorder
