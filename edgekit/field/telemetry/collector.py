"""Telemetry: receives every answer, counts it, and tests for drift, without delaying answers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from edgekit.base.errors import CorruptError
from edgekit.device.answer import WHOLE, Answer
from edgekit.device.manifest import MANIFEST, release_name
from edgekit.field.telemetry import reference
from edgekit.field.telemetry.drift import DriftAlarm, DriftDetector
from edgekit.field.telemetry.machine import MachineWatch
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.reservoir import FILE as RESERVOIR
from edgekit.field.telemetry.reservoir import Reservoir
from edgekit.field.telemetry.store import FILE, Store

BEAT_S = 5.0  # between two heartbeats and between two readings of the machine


class Telemetry:
    """Records the answers of one release; pass it to `edgekit.load(path, telemetry=...)`.

    `listeners` are called with each observation and `alarm_listeners` with each drift alarm, in the thread of the
    answer. Their errors are kept in `fault` and do not interrupt the answer. `record` may be called from any thread.
    """

    def __init__(
        self,
        store: Store,
        release: str,
        format: str,
        signals: reference.Signals | None = None,
        *,
        reservoir: Reservoir | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
        beat_s: float | None = BEAT_S,
    ) -> None:
        self.store = store
        self.release = release
        self.format = format
        self.signals = signals
        self.detector = DriftDetector(signals) if signals else None
        self.listeners: list[Callable[[Observation], None]] = []
        self.alarm_listeners: list[Callable[[DriftAlarm], None]] = []
        self.note = "" if signals else "The bundle has no reference for drift, so drift is not detected."
        self.fault = ""
        self.reservoir = reservoir
        self.decode = decode
        """Text of a prompt's token ids; only the reservoir needs it."""
        self._lock = threading.RLock()  # garbage collection may end a cancelled answer within `record`
        self._stop = threading.Event()
        self._pulse: threading.Thread | None = None
        if beat_s is not None:
            self.beat(beat_s)

    def beat(self, every_s: float = BEAT_S) -> None:
        """Start the heartbeat and the readings of the machine; with `beat_s=None` the caller does it."""
        self._pulse = threading.Thread(
            target=self._beat, args=(every_s,), name="telemetry-pulse", daemon=True
        )
        self._pulse.start()

    @classmethod
    def open(
        cls,
        state: Path,
        bundle: Path | None,
        format: str,
        *,
        cap_mib: float = 16,
        keep_texts: int = 0,
        decode: Callable[[Sequence[int]], str] | None = None,
        beat_s: float | None = BEAT_S,
    ) -> Self:
        """Telemetry of `bundle` in the state folder `state`; None or a plain model file has no drift reference.

        `keep_texts` above zero keeps that many redacted texts. If the reference cannot be read, `note` says so; drift is
        then not detected, but answers are still served.
        """
        note, signals = "", None
        if bundle is not None and bundle.is_dir():
            try:
                signals = reference.load(bundle, format)
            except CorruptError as error:
                note = f"{error.message} Drift is not detected."
        reservoir = Reservoir(state / RESERVOIR, keep_texts) if keep_texts else None
        store = Store(state / FILE, cap_mib)
        opened = cls(
            store, release_of(bundle), format, signals, reservoir=reservoir, decode=decode, beat_s=beat_s
        )
        opened.note = note or opened.note
        return opened

    @property
    def trouble(self) -> str:
        """Why some telemetry cannot be saved now; empty when all is well."""
        texts = self.reservoir.trouble if self.reservoir else ""
        return self.store.trouble or texts or self.fault

    @property
    def drift_over(self) -> bool | None:
        """Whether every signal matches the reference; None until there are enough answers to tell."""
        if self.detector is None or not self.detector.full:
            return None
        return not self.detector.drifting

    def record(self, answer: Answer) -> None:
        """Record a finished answer; never raises."""
        try:
            with self._lock:
                seen = self._observed(answer)
                self.store.add(seen)
                alarms = self.detector.update(seen) if self.detector else []
            for alarm in alarms:
                self.store.alarm(alarm, self.release)
        except Exception as error:  # noqa: BLE001 (the answer was given, whatever fails here)
            self.fault = f"An answer was not counted: {type(error).__name__}: {error}"
            return
        self.fault = ""
        for listener in self.listeners:
            self._tell(listener, seen)
        for alarm in alarms:
            for alarm_listener in self.alarm_listeners:
                self._tell(alarm_listener, alarm)
        if self.reservoir and self.decode and answer.finish in WHOLE:
            decode, reservoir = self.decode, self.reservoir
            self._tell(lambda ended: reservoir.offer(decode(ended.prompt), ended.text), answer)

    def close(self) -> None:
        """Write pending data and stop; later answers are not recorded."""
        self._stop.set()
        if self._pulse is not None:
            self._pulse.join()
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _observed(self, answer: Answer) -> Observation:
        certainty, signals = answer.certainty, self.signals
        whole = answer.finish in WHOLE
        return Observation(
            time=time.time(),
            release=self.release,
            format=self.format,
            operation=answer.operation,
            prompt_tokens=len(answer.prompt),
            answer_tokens=len(answer.ids),
            queue_s=answer.queue_s,
            ttft_s=answer.ttft_s,
            duration_s=answer.duration_s,
            confidence=certainty.confidence if certainty else None,
            entropy=certainty.entropy if certainty else None,
            unknown_rate=signals.unknown_rate(answer.prompt) if signals else None,
            label=signals.class_of(answer.text) if signals and whole else None,
            finish=answer.finish or "cancelled",
            error=answer.error,
        )

    def _tell(self, listener: Callable[[Any], None], what: Any) -> None:
        try:
            listener(what)
        except Exception as error:  # noqa: BLE001 (a listener's error must not affect the answer)
            self.fault = f"A listener of telemetry failed: {type(error).__name__}: {error}"

    def _beat(self, every_s: float) -> None:
        watch = MachineWatch()
        while True:
            with contextlib.suppress(Exception):  # a failing sensor must not stop the heartbeat
                self.store.sample(watch.read(), self.release)
            self.store.heartbeat()
            if self._stop.wait(every_s):
                return


def release_of(bundle: Path | None) -> str:
    """The name of a bundle's release; empty for a plain file."""
    manifest = bundle / MANIFEST if bundle is not None else None
    return release_name(manifest.read_bytes()) if manifest is not None and manifest.is_file() else ""
