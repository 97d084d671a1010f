"""Record what `edgekit tui --demo` shows: `python tools/record_demo.py` (some 12 minutes, once a bundle is built).

Two recordings go to `tools/demo/`, with the reports of the bundle and without its model:
- A real build, from its log: every measurement, gate and time is as recorded. Build into an empty `--cache-dir` first, as
  stages that come from the cache have no progress in the log.
- A real day. The bundle answers some 650 requests through the product's own serving, telemetry, rules and releases; only
  the clock is set forward between them, so that 24 hours pass in minutes. Readings of the machine are this machine's. A
  new release takes over in the 15th hour, people begin to mistype in the 19th, and the detector reports it.
No prompt is kept, as none is in any store.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from story import next_release, typos

from edgekit.app.views.demo import RECORDING
from edgekit.data.dataset import load_dataset
from edgekit.device.loaded import load
from edgekit.field.releases import Releases
from edgekit.field.releases.lifecycle import check_golden
from edgekit.field.serving.deployment import Deployment, OpenOptions
from edgekit.field.telemetry.collector import Telemetry
from edgekit.field.telemetry.machine import MachineWatch
from edgekit.field.telemetry.observation import Observation

REAL_TIME = time.time
HOUR_S, MINUTE_S = 3600.0, 60.0
APART_S = 0.5  # between two recorded ticks that are kept
RATES = (22, *[8] * 6, 24, 24, *[36] * 3, 26, *[34] * 11)  # requests in each hour of the day
RESTART_H, SWITCH_H, DRIFT_H = 5.0, 14.3, 18.2  # hours of the day at which these things happen
ACKNOWLEDGED_S = 25 * MINUTE_S  # after it was told
RESTART_S = 4 * MINUTE_S
LOOK_S = 30.0  # between two looks of the watcher
LONG = 12  # requests with a long conversation, for a device that is slow to its first token
LONG_TURNS = 34
KEPT_SAMPLES = 60
FILES = ("report.json", "manifest.json", "signals.json", "README.md")


def main() -> int:
    """Record, pack, and say what it came to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("bundles/smollm2-135m-cpu-int4"))
    parser.add_argument("--cache-dir", type=Path, default=Path(".edgekit/cache"))
    parser.add_argument("--out", type=Path, default=RECORDING)
    arguments = parser.parse_args()
    if not (arguments.bundle / "signals.json").is_file():
        sys.exit(f"{arguments.bundle} is not a bundle with signals.json: run `make demo` first.")
    build = build_of(arguments.cache_dir)
    texts = {name: (arguments.bundle / name).read_text(encoding="utf-8") for name in FILES}
    files = {**texts, **chosen_samples(arguments.bundle)}
    with tempfile.TemporaryDirectory() as folder:
        day = Day(arguments.bundle, Path(folder)).record()
    parts = {"build": build, "bundle": {"name": arguments.bundle.name, "files": files}, "day": day}
    for name, part in parts.items():
        packed = gzip.compress(json.dumps(part, separators=(",", ":")).encode(), mtime=0)
        (arguments.out / f"{name}.json.gz").write_bytes(packed)
        print(f"{name}: {len(packed) / 1024:.0f} KB")
    return 0


class Day:
    """Records one day of `bundle` in an empty `folder`."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.bundle, self.folder, self.state = bundle, folder, folder / "state"
        self.began = (time.time() // MINUTE_S) * MINUTE_S - 24 * HOUR_S
        self.ahead_s = 0.0  # of the real clock
        self.draw = random.Random(7)
        self.questions = [str(row.messages[-2]["content"]) for row in load_dataset("demo").test]
        self.draw.shuffle(self.questions)
        self.releases = Releases(self.state / "releases")
        self.answers: list[Observation] = []
        self.changes: list[dict[str, Any]] = []
        self.asked = 0
        self.machine = MachineWatch()

    def record(self) -> dict[str, Any]:
        """The whole day, then the requests with long conversations: what happened, with times in Unix seconds."""
        with mock.patch("time.time", lambda: REAL_TIME() + self.ahead_s):
            self._set_clock(self.began - 2 * HOUR_S)
            self._release(self.bundle, "the first one")
            newer = next_release(self.bundle, self.folder / "next")
            with self._served() as deployment:
                self._hours(deployment, 0.0, SWITCH_H)
            self._set_clock(self.began + SWITCH_H * HOUR_S)
            self._release(newer, "an update")
            with self._served() as deployment:
                self._hours(deployment, SWITCH_H, 24.0)
            long = self._long()
        return {
            "end": self.began + 24 * HOUR_S,
            "changes": self.changes,
            "answers": [_short(seen) for seen in self.answers],
            "long": [_short(seen) for seen in long],
            **stored(self.state),
        }

    def _set_clock(self, moment: float) -> None:
        self.ahead_s = moment - REAL_TIME()

    def _release(self, bundle: Path, why: str) -> None:
        name = self.releases.import_(bundle, who="operator").name
        # golden answers and the comparison are held; speed is not, as this machine does other work beside
        self.releases.promote(name, who="operator", why=why, health=check_golden)

    @contextlib.contextmanager
    def _served(self) -> Iterator[Deployment]:
        """The release in use, opened as `edgekit serve` opens it, without the threads that follow a real clock."""
        deployment = Deployment(self.state, None, options=OpenOptions("gguf", threads=1))
        deployment.opened.telemetry.listeners.append(self.answers.append)
        try:
            yield deployment
        finally:
            deployment.close()
            deployment.opened.model.close()

    def _hours(self, deployment: Deployment, first_h: float, last_h: float) -> None:
        """Minute by minute: the machine is read, what arrives is answered, and the watcher looks."""
        for minute in range(round(first_h * 60), round(last_h * 60)):
            start = self.began + minute * MINUTE_S
            stopped = 0 <= start - self.began - RESTART_H * HOUR_S < RESTART_S
            arrivals = [] if stopped else sorted(self._arrivals(minute / 60))
            for look in (0.0, LOOK_S):
                for arrival in [at for at in arrivals if look <= at < look + LOOK_S]:
                    self._set_clock(start + arrival)
                    deployment.opened.model.generate(self._question(minute / 60))
                self._look(deployment, start + look + LOOK_S - 1, beat=not stopped)
            if minute % 60 == 0:
                print(f"hour {minute // 60}: {len(self.answers)} answers", flush=True)

    def _arrivals(self, hour: float) -> Iterator[float]:
        chance = RATES[int(hour)] / 60
        while chance > 0:
            if self.draw.random() < chance:
                yield self.draw.uniform(0, MINUTE_S - 8)
            chance -= 1

    def _question(self, hour: float) -> str:
        self.asked += 1
        question = self.questions[self.asked % len(self.questions)]
        return typos(question, self.draw) if hour >= DRIFT_H else question

    def _look(self, deployment: Deployment, now: float, *, beat: bool) -> None:
        self._set_clock(now)
        telemetry = deployment.opened.telemetry
        if beat:
            telemetry.store.sample(self.machine.read(), telemetry.release)
            telemetry.store.heartbeat(now)
        telemetry.store.flush()
        for change in deployment.watcher.tick(now):
            told = {name: value for name, value in vars(change).items() if name != "reading"}
            self.changes.append({**told, "rule": change.rule.model_dump()})
        incidents = deployment.watcher.incidents
        for incident in incidents.find():
            if incident.state == "OPEN" and now - incident.opened >= ACKNOWLEDGED_S:
                done = {"who": "operator", "why": "asking the depot what they type"}
                incidents.acknowledge(incident.id, now=now, **done)
                told = {"kind": "acknowledged", "incident": incident.id, "time": now, **done}
                self.changes.append(told)

    def _long(self) -> list[Observation]:
        """Answers to long conversations, in a store of their own."""
        found: list[Observation] = []
        rows = load_dataset("demo").test
        with (
            Telemetry.open(self.folder / "long", self.bundle, "gguf", beat_s=None) as telemetry,
            load(self.bundle, "gguf", threads=1, telemetry=telemetry) as model,
        ):
            telemetry.listeners.append(found.append)
            for n in range(LONG):
                turns = [
                    rows[(n * LONG_TURNS + turn) % len(rows)].messages[-2:] for turn in range(LONG_TURNS)
                ]
                talk = [message for turn in turns for message in turn][:-1]
                model.chat(talk)
        return found


# What is packed


def build_of(cache_dir: Path) -> dict[str, Any]:
    """The events of a build, their times in seconds from its start, without progress that follows other closely."""
    lines = [json.loads(line) for line in (cache_dir / "events.jsonl").read_text("utf-8").splitlines()]
    lines.sort(key=lambda line: line["time"])  # a child process tells some of them late
    if kept := [line["stage"] for line in lines if line.get("cached")]:
        sys.exit(
            f"Stages of this build came from the cache: {', '.join(kept)}. Build with a new --cache-dir."
        )
    start, shown = lines[0]["time"], 0.0
    events = []
    for line in lines:
        if line["event"] == "Progress" and line["time"] - shown < APART_S and line["done"] != line["total"]:
            continue
        shown = line["time"] if line["event"] == "Progress" else shown
        events.append({**line, "time": round(line["time"] - start, 3)})
    return {"seconds": events[-1]["time"], "events": events}


def chosen_samples(bundle: Path) -> dict[str, str]:
    """Rows of each variant's samples: all that the tuned model and an exported file answer differently, and others."""
    rows = {
        file.name: {json.loads(line)["id"]: line for line in file.read_text(encoding="utf-8").splitlines()}
        for file in sorted((bundle / "samples").glob("*.jsonl"))
    }
    answers = [
        {key: json.loads(line)["answer"] for key, line in found.items()}
        for name, found in rows.items()
        if not name.startswith("base")
    ]
    names = list(next(iter(rows.values())))
    differ = [key for key in names if len({found.get(key) for found in answers}) > 1]
    others = [key for key in names if key not in differ][: max(0, KEPT_SAMPLES - len(differ))]
    kept = sorted([*differ, *others])
    return {
        f"samples/{name}": "".join(f"{found[key]}\n" for key in kept if key in found)
        for name, found in rows.items()
    }


def stored(state: Path) -> dict[str, Any]:
    """What the stores of the device hold after the day."""
    with contextlib.closing(sqlite3.connect(state / "telemetry.sqlite")) as db:
        minutes = db.execute("select minute, release, body from minutes order by minute").fetchall()
        alarms = db.execute("select release, body from alarms order by time").fetchall()
    releases = state / "releases"
    versions = sorted((releases / "versions").glob("[0-9a-f]*"))

    def imported(name: str) -> dict[str, Any]:
        record = json.loads((releases / "records" / name / "import.json").read_text("utf-8"))
        return {**record, "from": ""}  # where it lay is of no interest

    return {
        "machine": [
            [minute, release, round(highest["rss_mib"]), round(highest.get("load", 0.0), 2)]
            for minute, release, body in minutes
            if (highest := json.loads(body)["highest"]).get("rss_mib")
        ],
        "alarms": [[release, json.loads(body)] for release, body in alarms],
        "switches": [json.loads(line) for line in (releases / "log.jsonl").read_text("utf-8").splitlines()],
        "manifests": {version.name: (version / "manifest.json").read_text("utf-8") for version in versions},
        "imports": {version.name: imported(version.name) for version in versions},
    }


def _short(seen: Observation) -> dict[str, Any]:
    """An observation with its numbers as precise as anybody reads them."""
    values = asdict(seen).items()
    short = {key: round(value, 5) if isinstance(value, float) else value for key, value in values}
    return {**short, "time": round(seen.time, 2)}


if __name__ == "__main__":
    sys.exit(main())
