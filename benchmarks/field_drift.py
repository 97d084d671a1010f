"""How soon drift is told, how often it is told wrongly, and what watching for it costs, on the demo bundle.

    python benchmarks/field_drift.py record BUNDLE --clinc clinc150.json    scores of real answers -> scores.json
    python benchmarks/field_drift.py report                                 delays and false alarms, from scores.json
    python benchmarks/field_drift.py cost BUNDLE                            CPU and memory of telemetry

The reference is the validation rows, the steady stream the test rows, which are of other wordings; every stream is
resampled with replacement from recorded scores.
"""

from __future__ import annotations

import argparse
import json
import random
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import edgekit
from edgekit.artifacts import write_json
from edgekit.data.dataset import load_dataset
from edgekit.data.rows import Row
from edgekit.telemetry import reference

SCORES = Path(__file__).parent.parent / "tests" / "telemetry" / "scores.json"
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


def typo_letters(text: str, rng: random.Random, share: float = TYPO_SHARE) -> str:
    """`text` with each character dropped, doubled or replaced at the probability `share`."""
    out = []
    for letter in text:
        if letter == " " or rng.random() >= share:
            out.append(letter)
        else:
            out.append(rng.choice(("", letter * 2, rng.choice(string.ascii_lowercase))))
    return "".join(out)


def with_typos(row: Row, change: Any, rng: random.Random) -> list[dict[str, str]]:
    """The conversation of `row` with the user's words changed."""
    return [
        {**message, "content": change(message["content"], rng)} if message["role"] == "user" else dict(message)
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
            "typo_words": [with_typos(row, typo_words, rng) for row in data.test],
            "typo_letters": [with_typos(row, typo_letters, rng) for row in data.test],
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
                        "typo_letters": "each character dropped, doubled or replaced at 20 %",
                    },
                    "columns": [*reference.NUMBERS, reference.CLASSES],
                    "signals": reference.to_file([signals.to_json()], ["gguf"]),
                    "streams": found,
                },
            )


def main() -> None:
    """Run the command that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("record", "report", "cost"))
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--clinc", type=Path)
    parser.add_argument("--scores", type=Path, default=SCORES)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.command == "record":
        record(given.bundle, given.clinc, given.scores, given.threads)


if __name__ == "__main__":
    main()
