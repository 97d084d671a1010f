"""How soon drift is told, how often it is told wrongly, and what watching for it costs, on the demo bundle.

    python benchmarks/field_drift.py record BUNDLE --clinc clinc150.json    scores of real answers -> scores.json
    python benchmarks/field_drift.py [report]                               delays and false alarms, from scores.json
    python benchmarks/field_drift.py cost BUNDLE                            CPU and memory of telemetry

The reference is the validation rows, the steady stream the test rows, which are of other wordings; every stream is
resampled with replacement from recorded scores.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import string
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
from common import MIB

import edgekit
from edgekit.base.artifacts import write_json
from edgekit.data.dataset import load_dataset
from edgekit.data.rows import Row
from edgekit.field.telemetry import reference

SCORES = Path(__file__).parent.parent / "tests" / "field" / "telemetry" / "scores.json"
TYPO_SHARE = 0.2


def typo_words(text: str, rng: random.Random, share: float = TYPO_SHARE) -> str:
    """`text` with one random edit in each word, at the probability `share`."""
    return " ".join(edit(word, rng) if word and rng.random() < share else word for word in text.split(" "))


def edit(word: str, rng: random.Random) -> str:
    """`word` with one letter dropped, doubled, replaced, or swapped with the next."""
    at = rng.randrange(len(word))
    kind = rng.choice(("drop", "double", "replace", "swap"))
    if kind == "drop":
        return word[:at] + word[at + 1 :]
    if kind == "double":
        return word[:at] + word[at] + word[at:]
    if kind == "replace":
        return word[:at] + rng.choice(string.ascii_lowercase) + word[at + 1 :]
    return word[:at] + word[at + 1 : at + 2] + word[at : at + 1] + word[at + 2 :]


def with_typos(row: Row, rng: random.Random) -> list[dict[str, str]]:
    """The conversation of `row` with the user's words changed."""
    return [
        {**message, "content": typo_words(message["content"], rng)}
        if message["role"] == "user"
        else dict(message)
        for message in row.messages[:-1]
    ]


class Answers:
    """Keeps every answer."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def record(self, answer: Any) -> None:
        """Keep `answer`."""
        self.kept.append(answer)


def record(bundle: Path, clinc: Path, out: Path, threads: int) -> None:
    """Answer the streams with the bundle's GGUF file and keep their scores, and no text."""
    data = load_dataset("demo")
    rng = random.Random(7)
    queries = json.loads(clinc.read_text(encoding="utf-8"))
    sampled = rng.sample([text for text, _ in queries["test"]], 300)
    with edgekit.load(bundle, "gguf", threads=threads) as model:
        signals = reference.capture(model, data.validation, data.train)
        streams: dict[str, Iterable[Sequence[Any]]] = {
            "steady": [row.messages[:-1] for row in data.test],
            "clinc": [[{"role": "user", "content": text}] for text in sampled],
            "typo_words": [with_typos(row, rng) for row in data.test],
        }
        found: dict[str, list[list[float]]] = {}
        names = list(signals.classes.shares) if signals.classes else []
        for name, conversations in streams.items():
            kept = Answers()
            model.telemetry = kept
            for messages in conversations:
                for _ in model.answer(model.prompt(messages)):
                    pass
            found[name] = [
                [
                    float(f"{answer.certainty.confidence:.6g}"),
                    float(f"{answer.certainty.entropy:.6g}"),
                    len(answer.prompt),
                    float(f"{signals.unknown_rate(answer.prompt):.6g}"),
                    names.index(signals.class_of(answer.text) or reference.OTHER),
                ]
                for answer in kept.kept
                if answer.certainty.confidence is not None
            ]
            print(name, len(found[name]), flush=True)
            manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
            write_json(
                out,
                {
                    "recorded_from": {
                        "bundle": f"{manifest['name']}-{manifest['target']}",
                        "model_sha256": next(
                            file["sha256"] for file in manifest["files"] if file["path"] == "model.gguf"
                        ),
                        "data_sha256": data.digest,
                        "clinc": "CLINC150 test split, 300 queries drawn with seed 7",
                        "typo_words": "each word with one random edit at 20 %",
                    },
                    "columns": [*reference.NUMBERS, reference.CLASSES],
                    "signals": {"schema": reference.SCHEMA, "formats": {"gguf": signals.to_json()}},
                    "streams": found,
                },
            )


def report(seeds: int) -> None:
    """Print delay and false alarms of each signal and method alone, then of all together."""
    sys.path.insert(0, str(SCORES.parent.parent))
    from telemetry.field import TURNS, alarms, answers, signals

    from edgekit.field.telemetry.drift import METHODS, DriftDetector

    steady, after, known = 10_000, 1000, signals()
    false: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * seeds)
    delays: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [math.inf] * seeds)
    for seed in range(seeds):
        for methods in (*((method,) for method in METHODS), METHODS):
            name = methods[0] if len(methods) == 1 else "all"
            for alarm in alarms(DriftDetector(known, methods), answers("steady", steady, seed)):
                false[alarm.signal if name != "all" else "all", name][seed] += 1
            for turn in TURNS:
                detector, start = DriftDetector(known, methods), 500 + 37 * seed
                alarms(detector, answers("steady", start, seed + 1000))
                already = set(detector.drifting)
                for alarm in alarms(detector, answers(turn, after, seed, start)):
                    key = (alarm.signal if name != "all" else "all", name, turn)
                    if alarm.signal not in already:
                        delays[key][seed] = min(delays[key][seed], alarm.time - start + 1)
    print(f"{seeds} seeds; delay in requests, median and worst; false alarms per {steady} steady requests\n")
    print("| signal | method | false alarms | " + " | ".join(TURNS) + " |")
    print("|---|---|---|" + "---|" * len(TURNS))
    rows = [(signal, method) for signal in (*known.numbers, reference.CLASSES) for method in METHODS]
    for signal, method in [*rows, ("all", "all")]:
        if signal == reference.CLASSES and method != "psi":
            continue
        cells = [
            f"{statistics.median(delays[signal, method, turn]):.0f}, {max(delays[signal, method, turn]):.0f}"
            for turn in TURNS
        ]
        mean = statistics.mean(false[signal, method])
        print(f"| {signal} | {method} | {mean:.2f} | " + " | ".join(cells).replace("inf", "never") + " |")


def cost(bundle: Path, threads: int, rounds: int) -> None:
    """Print what telemetry costs in CPU seconds and memory, answering the same rows with it and without, in turns."""
    questions = [row.messages[:-1] for row in load_dataset("demo").test[:25]]
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as folder, edgekit.load(bundle, "gguf", threads=threads) as model:
        file = Path(folder) / "signals.json"
        write_json(file, json.loads(SCORES.read_text(encoding="utf-8"))["signals"])
        prompts = [model.prompt(messages) for messages in questions]

        def cpu_s(records: Any) -> float:
            model.telemetry = records
            start = time.process_time()
            for prompt in prompts:
                for _ in model.answer(prompt):
                    pass
            return time.process_time() - start

        cpu_s(None)
        before = process.memory_info().rss
        from edgekit.field.telemetry.collector import Telemetry
        from edgekit.field.telemetry.store import Store

        signals = reference.load(file, "gguf")
        telemetry = Telemetry(Store(Path(folder) / "state" / "telemetry.sqlite"), "", "gguf", signals)
        pairs = [(cpu_s(None), cpu_s(telemetry)) for _ in range(rounds)]
        memory = (process.memory_info().rss - before) / MIB
        telemetry.close()
        answers = [answer for answer in (model.answer(prompt) for prompt in prompts) if list(answer)]
        alone = Telemetry(
            Store(Path(folder) / "alone" / "telemetry.sqlite"), "", "gguf", signals, beat_s=None
        )
        start = time.process_time()
        for _ in range(40):
            for answer in answers:
                alone.record(answer)
        each = (time.process_time() - start) / 40 / len(answers)
        alone.close()
    without, added = statistics.median(a for a, _ in pairs), statistics.median(b - a for a, b in pairs)
    print(
        f"CPU for {len(prompts)} answers: {without:.2f} s without, {added:+.3f} s with telemetry ({added / without:+.2%})"
    )
    print(f"`record` alone: {each * 1e6:.0f} us an answer ({each * len(prompts) / without:.3%})")
    print(f"memory: {memory:+.2f} MiB")


def main() -> None:
    """Run the command that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", default="report", choices=("record", "report", "cost"))
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--clinc", type=Path)
    parser.add_argument("--scores", type=Path, default=SCORES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=20, help="streams of `report`, rounds of `cost`")
    given = parser.parse_args()
    if given.command == "report":
        report(given.seeds)
    elif given.bundle is None or (given.command == "record" and given.clinc is None):
        parser.error("name the bundle, and for `record` the file of CLINC150 queries")
    elif given.command == "record":
        record(given.bundle, given.clinc, given.scores, given.threads)
    else:
        cost(given.bundle, given.threads, given.seeds)


if __name__ == "__main__":
    main()
