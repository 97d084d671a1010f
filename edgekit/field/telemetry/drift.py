"""Drift on the device: whether questions and answers still resemble those that the bundle was proven on.

Three methods test each signal of an answer:
- `psi` compares the distribution of the last requests with the bundle's reference, and finds lasting changes;
- `page-hinkley` and `adwin` find a change within the stream itself, before a window is full.
The mix of answered classes is tested by PSI only. Page-Hinkley and ADWIN read the rank of a value in the reference
instead of the value. A rank lies between 0 and 1 for every signal, so one set of limits holds for all signals, and an
outlier counts no more than any other unusual answer.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from edgekit.device.answer import WHOLE
from edgekit.field.telemetry.detectors import Adwin, PageHinkley
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.psi import SlidingPsi
from edgekit.field.telemetry.reference import CLASSES, OTHER, ClassMix, Distribution, Signals

METHODS = ("psi", "page-hinkley", "adwin")
TOLERATED = 0.1  # of a rank, by Page-Hinkley
THRESHOLD = 6.0  # of Page-Hinkley, in ranks
CONFIDENCE = 2e-5  # of one of ADWIN's comparisons
CLOCK = 8  # requests between two of ADWIN's readings
CALM = 0.5  # of PSI's limit: below it a signal has returned to normal
SHARE = frozenset({"confidence", "unknown_rate"})
NAMES = {
    "confidence": "The confidence of answers",
    "entropy": "The entropy of answers",
    "prompt_tokens": "The length of prompts",
    "unknown_rate": "The share of tokens that the tuning rows never use",
}


@dataclass(frozen=True, slots=True)
class DriftAlarm:
    """A signal that has changed: the method's `value` exceeded its `limit`.

    `time` is the time of detection and `since` the estimated time of the change, in Unix seconds. `words` describes
    the change for people.
    """

    time: float
    signal: str
    method: str
    value: float
    limit: float
    since: float
    words: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


class DriftDetector:
    """Tests a stream of answers for drift from `signals`, with the named `methods`.

    After an alarm, a signal raises no other until it has returned to normal: a whole window without a finding, and PSI
    below half its limit. To accept a change as normal, create a new detector with new signals. Not thread-safe.
    """

    def __init__(self, signals: Signals, methods: Collection[str] = METHODS) -> None:
        self.signals = signals
        self._watched: dict[str, _Watched] = {
            name: _Number(name, number, signals.window, methods) for name, number in signals.numbers.items()
        }
        if signals.classes is not None and "psi" in methods:
            self._watched[CLASSES] = _Classes(signals.classes, signals.window)

    def update(self, observation: Observation) -> list[DriftAlarm]:
        """Add one answer and return the alarms it raises, usually none. Failed and cancelled answers are ignored."""
        if observation.finish not in WHOLE:
            return []
        alarms = []
        for name, watched in self._watched.items():
            value = getattr(observation, name)
            if value is not None and (alarm := watched.update(value, observation.time)):
                alarms.append(alarm)
        return alarms

    @property
    def drifting(self) -> list[str]:
        """The signals that raised an alarm and have not returned to normal."""
        return [name for name, watched in self._watched.items() if watched.told]

    @property
    def full(self) -> bool:
        """Whether the window of every signal is full."""
        return len(self.psi) == len(self._watched)

    @property
    def psi(self) -> dict[str, float]:
        """The last PSI of each signal, once its window is full."""
        return {name: watched.level for name, watched in self._watched.items() if watched.level is not None}


class _Watched:
    """One signal: its PSI, the times of its requests, and whether it has raised an alarm."""

    def __init__(self, name: str, psi: SlidingPsi, limit: float, methods: Collection[str]) -> None:
        self.name = name
        self.level: float | None = None
        self.told = False
        self._psi, self._limit, self._on = psi, limit, "psi" in methods
        self._times: deque[float] = deque(maxlen=psi.window)
        self._uncalm_since: float | None = None
        self._calm_for = 0

    def update(self, value: Any, at: float) -> DriftAlarm | None:
        """Add one value."""
        self._times.append(at)
        self._calm_for += 1
        found = self._found(value, at)
        if found:
            self._calm_for = 0
        if self.told and self._calm_for >= self._psi.window and (self.level or 0.0) < CALM * self._limit:
            self.told = False
        if not found or self.told:
            return None
        self.told = True
        method, reached, limit, since = found
        return DriftAlarm(at, self.name, method, reached, limit, since, self._words())

    def _found(self, value: Any, at: float) -> tuple[str, float, float, float] | None:
        """The finding of a method: its name, its value, its limit, and the time at which the change began."""
        level = self._psi.update(self._bin(value))
        if level is None:
            return None
        self.level = level
        if level < CALM * self._limit:
            self._uncalm_since = None
        elif self._uncalm_since is None:
            self._uncalm_since = at
        if self._on and level > self._limit:
            return "psi", level, self._limit, self._uncalm_since or at
        return None

    def _ago(self, requests: int) -> float:
        """The time of the request `requests` ago, 1 for the last one; at the earliest the start of the window."""
        return self._times[-min(requests, len(self._times))]

    def _bin(self, value: Any) -> int:
        raise NotImplementedError

    def _words(self) -> str:
        raise NotImplementedError


class _Number(_Watched):
    """A numeric signal, tested by all methods."""

    def __init__(self, name: str, reference: Distribution, window: int, methods: Collection[str]) -> None:
        super().__init__(name, SlidingPsi(reference.shares, window), reference.psi_limit, methods)
        self._reference = reference
        self._values: deque[float] = deque(maxlen=window)
        self._page = (
            PageHinkley(delta=TOLERATED, threshold=THRESHOLD, alpha=1.0)
            if "page-hinkley" in methods
            else None
        )
        self._adwin = Adwin(delta=CONFIDENCE, clock=CLOCK) if "adwin" in methods else None

    def _found(self, value: float, at: float) -> tuple[str, float, float, float] | None:
        self._values.append(value)
        found = super()._found(value, at)
        rank = self._reference.rank(value)
        if self._page and (began := self._page.update(rank)):
            found = found or ("page-hinkley", self._page.reached, THRESHOLD, self._ago(began))
        if self._adwin and (began := self._adwin.update(rank)):
            found = found or ("adwin", abs(self._adwin.shift), self._adwin.allowed, self._ago(began))
            self._adwin.reset()  # the new state counts as one window, so it raises one alarm
        return found

    def _bin(self, value: float) -> int:
        return self._reference.bin(value)

    def _words(self) -> str:
        here, there = sum(self._values) / len(self._values), self._reference.mean
        form = ".1%" if self.name in SHARE else ".3g"
        apart = abs(here - there) > self._reference.spread / 10
        way = "has another distribution" if not apart else "rose" if here > there else "fell"
        return (
            f"{NAMES[self.name]} {way}: {here:{form}} on average over the last {len(self._values)} requests, "
            f"{there:{form}} in the reference."
        )


class _Classes(_Watched):
    """The mix of answered classes."""

    def __init__(self, mix: ClassMix, window: int) -> None:
        super().__init__(CLASSES, SlidingPsi(list(mix.shares.values()), window), mix.psi_limit, ("psi",))
        self._mix = mix
        self._place = {name: index for index, name in enumerate(mix.shares)}

    def _bin(self, value: str) -> int:
        return self._place.get(value, self._place[OTHER])

    def _words(self) -> str:
        counts = Counter(dict(zip(self._place, self._psi.counts, strict=True)))
        here = {name: count / self._psi.window for name, count in counts.items()}
        most = max(here, key=lambda name: abs(here[name] - self._mix.shares[name]))
        return (
            f"The mix of answered classes changed: '{most}' is {here[most]:.0%} of the last {self._psi.window} requests, "
            f"{self._mix.shares[most]:.0%} in the reference."
        )
