"""A model in service: the model that answers, its telemetry, its watcher, and the switch to another release.

Without releases, one bundle answers until the end. With releases, a thread reads the slots every second. Another version
is opened beside the one that answers, asked one of its golden questions, and only then replaces it; the old one finishes
its requests. A version that cannot be opened or gives another answer is judged bad, and the previous one continues.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgekit
from edgekit.base import hardware
from edgekit.base.errors import (
    ConfigError,
    CorruptError,
    EdgekitError,
    MissingPartError,
    StageError,
    in_words,
)
from edgekit.device.confidence import HINT as CALIBRATION_HINT
from edgekit.device.confidence import Refusal, read_calibration
from edgekit.device.manifest import MANIFEST, read_manifest
from edgekit.field.incidents.defaults import rules_of
from edgekit.field.incidents.readings import expected_confidence
from edgekit.field.incidents.watcher import Reactions, Watched, Watcher
from edgekit.field.releases import Releases
from edgekit.field.status import ServerStatus, device_status
from edgekit.field.telemetry.collector import Telemetry, release_of
from edgekit.proof.golden import prompt_ids, read_golden

if TYPE_CHECKING:
    from edgekit.device.answer import Answer, Records
    from edgekit.device.loaded import LoadedModel
    from edgekit.field.incidents.incidents import Incident
    from edgekit.field.incidents.webhook import Webhook
    from edgekit.field.serving.engine import Engine
    from edgekit.field.telemetry.metrics import Metrics
    from edgekit.field.telemetry.observation import Observation
    from edgekit.field.telemetry.store import Window

RELEASES = "releases"
EVERY_S = 1.0
GRACE_S = 2.0  # for the current answer of a release that was judged bad
WHO = "serve"


@dataclass(frozen=True)
class Opened:
    """An opened model with its telemetry."""

    model: LoadedModel
    telemetry: Telemetry
    bundle: Path
    release: str


@dataclass(frozen=True)
class OpenOptions:
    """How each release is opened; `keep_texts` is how many redacted texts are kept, none by default.

    With `refusal`, some answers are not given, and a bundle without a calibration, or a threshold of it that this takes, is not
    opened.
    """

    format: str | None = None
    threads: int | None = None
    allow_failed: bool = False
    keep_texts: int = 0
    refusal: Refusal | None = None


class Both:
    """`Records` that pass each answer to two others."""

    def __init__(self, one: Records, other: Records) -> None:
        self._one, self._other = one, other

    def record(self, answer: Answer) -> None:
        """Pass the answer to both."""
        self._one.record(answer)
        self._other.record(answer)


class Deployment:
    """Serves one state folder; call `start` once its engine exists, and `close` at the end.

    `bundle` is a bundle or plain model that answers until the end; with None, it serves the release in use and follows
    changes. `say` gets a sentence when another release answers or one is refused.
    Raises what `Releases.boot` and `edgekit.load` raise when nothing can be opened.
    """

    def __init__(
        self,
        state: Path,
        bundle: Path | None,
        *,
        options: OpenOptions = OpenOptions(),
        webhook: Webhook | None = None,
        shadow: Records | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.state = state
        self._say = say
        self._refused = ""
        self.releases = Releases(state / RELEASES) if bundle is None else None
        self.switch_trouble = ""
        """Why another release than the one in use answers; empty when they are the same."""
        self.metrics: Metrics | None = None
        """Receives every answer and alarm, once it is set."""
        self._options = options
        self._shadow = shadow
        self._stop = threading.Event()
        self._follower: threading.Thread | None = None
        self.opened = self._boot() if bundle is None else self._open(bundle)
        self.watcher = Watcher(
            state,
            rules_of(self._bundle(), self.opened.model.format),
            Watched(
                self,
                release=lambda: self.opened.release,
                bundle=self._bundle,
                store_trouble=lambda: self.trouble,
                drift_over=lambda: self.opened.telemetry.drift_over,
                confidence_expected=self._expected(),
            ),
            Reactions(webhook, self._roll_back if self.releases else None, self._count_alarm),
        )

    def start(self, engine: Engine) -> None:
        """Start the watcher and follow the releases with `engine`, which also accepts the names of earlier releases."""
        if self.releases is not None:
            with contextlib.suppress(EdgekitError, OSError, KeyError):
                for release in self.releases.journal.read().good:
                    folder = self.state / RELEASES / "versions" / release
                    engine.earlier_names |= {model_name(folder)} if folder.is_dir() else set()
        self.opened.telemetry.beat()
        self.watcher.start()
        self._follower = threading.Thread(target=self._follow, args=(engine,), name="follow", daemon=True)
        self._follower.start()

    def close(self) -> None:
        """Stop both threads; the engine closes the model."""
        self._stop.set()
        if self._follower is not None:
            self._follower.join()
        self.watcher.close()
        self.opened.telemetry.close()

    def window(self, since: float, until: float, release: str | None = None) -> Window:
        """The telemetry of a period, of whichever release answered."""
        return self.opened.telemetry.store.window(since, until, release)

    def status(self, engine: Engine, window_s: float) -> dict[str, Any]:
        """The document of schema `edgekit.monitor/1` of this device and of `engine`, which serves it."""
        server = ServerStatus(
            os.getpid(),
            float(engine.started),
            engine.name,
            engine.waiting,
            engine.running,
            self.switch_trouble or self.trouble or self.watcher.trouble,
        )
        store = self.opened.telemetry.store
        return device_status(self.state, store, time.time(), window_s, server=server).to_dict()

    @property
    def trouble(self) -> str:
        """Why telemetry cannot be saved now; empty when it can."""
        return self.opened.telemetry.trouble

    def _bundle(self) -> Path | None:
        return self.opened.bundle if (self.opened.bundle / MANIFEST).is_file() else None

    def _expected(self) -> float | None:
        return expected_confidence(self._bundle(), self.opened.model.format)

    def _open(self, bundle: Path) -> Opened:
        self._check_calibration(bundle)
        model = edgekit.load(
            bundle,
            self._options.format,
            threads=self._options.threads,
            allow_failed=self._options.allow_failed,
        )
        model.refusal = self._options.refusal
        telemetry = Telemetry.open(
            self.state,
            bundle,
            model.format,
            keep_texts=self._options.keep_texts,
            decode=model.runtime.decode,
            beat_s=None,  # started once it answers alone: with two open models the memory reading would be wrong
        )
        telemetry.listeners.append(self._count)
        model.telemetry = Both(telemetry, self._shadow) if self._shadow else telemetry
        return Opened(model, telemetry, bundle, release_of(bundle))

    def _count(self, seen: Observation) -> None:
        if self.metrics:
            self.metrics.observe(seen)

    def _count_alarm(self, kind: str) -> None:
        if self.metrics:
            self.metrics.alarm(kind)

    def _show(self) -> None:
        """Update the release in use and the open incidents in the metrics."""
        if self.metrics is None:
            return
        from edgekit.field.telemetry.metrics import UnderWay

        now, under_way = time.time(), None
        with contextlib.suppress(EdgekitError, OSError):  # the watcher reports why they cannot be read
            under_way = [
                UnderWay(one.kind, one.severity, one.since, one.silenced(now))
                for one in self.watcher.incidents.find()
            ]
        self.metrics.stand(self.opened.release, under_way)

    def _boot(self) -> Opened:
        """Open the release in use; one that cannot be opened is judged bad, and the previous one is tried."""
        assert self.releases is not None
        while True:
            folder = self.releases.boot()
            name = release_of(folder)
            try:
                opened = self._open_held(folder)
            except (ConfigError, MissingPartError):
                raise  # a usage or installation error, so the release is not judged
            except EdgekitError as error:
                if self.releases.verdict(error.message, release=name) in (None, folder):
                    raise
                self._say(f"{name} is not served: {error.message}")
            else:
                self.releases.mark_good(name)
                return opened

    def _open_held(self, folder: Path) -> Opened:
        """Open a release that answers one question as at build time; raises `EdgekitError` for any other."""
        opened = self._open(folder)
        try:
            _hold(opened.model, folder)
        except EdgekitError:
            opened.telemetry.close()
            opened.model.close()
            raise
        return opened

    def _follow(self, engine: Engine) -> None:
        """Every second: follow the release in use, and report what cannot be saved or evaluated."""
        said = ""
        self._show()
        while not self._stop.wait(EVERY_S):
            try:
                self._look(engine)
                self.switch_trouble = ""
            except Exception as error:  # noqa: BLE001 - the version in use must continue to answer
                self.switch_trouble = in_words(error)
            self._show()
            words = self.switch_trouble or self.trouble or self.watcher.trouble
            if words != said:
                said = words
                self._say(words or "Recovered.")

    def _look(self, engine: Engine) -> None:
        if self.releases is None:
            return
        folder = self.releases.current()
        name = release_of(folder) if folder is not None else ""
        if name and name == self.opened.release:
            self._refused = ""
            self.releases.mark_good(name)  # takes one `stat` when nothing is on trial
        elif folder is not None and name and name != self._refused:
            self._check_memory(folder)
            self._check_calibration(folder)
            folder = self.releases.boot()  # uses one try, as a start does
            if release_of(folder) == self.opened.release:
                self._refused = name
            else:
                self._switch(engine, self.releases, folder)

    def _check_memory(self, folder: Path) -> None:
        """Raise `StageError` when memory does not suffice for a second model; no try is used then."""
        needed, free = _model_mib(folder, self._options.format), hardware.available_memory_mib()
        if needed > free:
            raise StageError(
                f"{release_of(folder)} needs about {needed} MiB of memory in addition to the model in use, and "
                f"{free} MiB are free. The model in use continues to answer.",
                "Free memory, or restart the server, which then opens only the new model.",
            )

    def _check_calibration(self, bundle: Path) -> None:
        """Raise `ConfigError` for a bundle whose calibration, if any, lacks what the refusal takes; no try is used then."""
        if (asked := self._options.refusal) is None:
            return
        found = None
        if (bundle / MANIFEST).is_file():
            manifest = read_manifest(bundle)
            format = self._options.format or next(iter(manifest["formats"]))
            found = read_calibration(bundle, manifest, format)
        if found is None:
            raise ConfigError(
                f"{bundle} has no calibration, so neither the confidence of its answers nor its scope is known.",
                CALIBRATION_HINT,
            )
        found.limits(asked)

    def _switch(self, engine: Engine, releases: Releases, folder: Path) -> None:
        name = release_of(folder)
        try:
            opened = self._open_held(folder)
        except Exception as error:
            self._refused = name  # do not try again, whether or not the verdict can be written
            releases.verdict(in_words(error), release=name)
            raise
        before, self.opened = self.opened, opened
        self.watcher.use(rules_of(self._bundle(), opened.model.format), self._expected())
        judged = releases.get(before.release).place == "bad"
        engine.swap(
            opened.model,
            source=folder,
            release=name,
            name=model_name(folder),
            grace_s=GRACE_S if judged else None,
        )
        if self.metrics:
            self.metrics.model = engine.name
        before.telemetry.close()
        opened.telemetry.beat()
        releases.mark_good(name)
        self._refused = ""
        self._say(f"{name} now answers instead of {before.release}")

    def _roll_back(self, incident: Incident) -> str:
        """Roll back for an automatic rule; the follower switches the model within a second."""
        assert self.releases is not None
        back = self.releases.rollback(who="watcher", why=incident.what, release=incident.release)
        return f"rolled back to {back.name}"


def model_name(bundle: Path) -> str:
    """The model's name for clients: the name of the bundle, else of the file."""
    return str(read_manifest(bundle)["name"]) if (bundle / MANIFEST).is_file() else bundle.stem


def _model_mib(bundle: Path, format: str | None) -> int:
    """The size of one format's files, an estimate of the memory it needs; 0 when the manifest has no sizes."""
    with contextlib.suppress(CorruptError, KeyError, TypeError, StopIteration):
        manifest = read_manifest(bundle)
        path = manifest["formats"][format or next(iter(manifest["formats"]))]["path"]
        sizes = (
            entry["bytes"] for entry in manifest["files"] if entry["path"].split("/")[0] == path.split("/")[0]
        )
        return math.ceil(sum(map(int, sizes)) / 2**20)
    return 0


def _hold(model: LoadedModel, bundle: Path) -> None:
    """Ask the opened model one golden question; raises `CorruptError` when its answer differs from build time.

    All of them were asked when the version was imported and promoted; this one shows that it answers in this process.
    """
    golden = read_golden(bundle).get(model.format)
    if not golden or not golden["answers"]:
        raise CorruptError(f"{bundle} has no golden answers of '{model.format}'.", "Build the bundle again.")
    first = golden["answers"][0]
    ids = list(model.runtime.generate(prompt_ids(model.runtime, first), golden["max_tokens"]))
    if ids != first["ids"]:
        raise CorruptError(
            f"{bundle.name} does not answer a golden question as at build time: {model.runtime.decode(ids)!r} "
            f"instead of {first['text']!r}.",
            "Import the bundle again.",
        )
