"""The drift reference of a bundle: distributions of the model's confidence and of prompts, on held-out rows.

It is `signals.json` in a bundle, with one entry for each format. Drift on a device is measured against it.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.base.errors import CorruptError, StageError
from edgekit.base.events import Emit, Progress, ignore
from edgekit.device.answer import WHOLE, Answer
from edgekit.field.telemetry.psi import WINDOW, psi_limit, smoothed

if TYPE_CHECKING:
    from edgekit.data.rows import Row
    from edgekit.device.loaded import LoadedModel

SCHEMA = "edgekit.signals/1"
FILE = "signals.json"
NUMBERS = ("confidence", "entropy", "prompt_tokens", "unknown_rate")
CLASSES = "label"
ROWS = 512  # rows captured at most, and scores kept
MOST_CLASSES = 64
OTHER = "(other)"
"""The class of an answer that matches no label of the rows: its text is never recorded as a name."""
BINS = 10


@dataclass(frozen=True)
class Distribution:
    """A numeric signal over the rows of the reference: its sorted scores, its bins, and its PSI limit.

    `edges` are the upper ends of all bins but the last. They are deciles when all scores differ.
    """

    scores: tuple[float, ...]
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    mean: float
    spread: float
    psi_limit: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        """The distribution of `values`, of which at most 512 are kept."""
        scores = sorted(map(_short, values))
        if len(scores) > ROWS:
            scores = [scores[index * (len(scores) - 1) // (ROWS - 1)] for index in range(ROWS)]
        deciles = (scores[min(len(scores) * part // BINS, len(scores) - 1)] for part in range(1, BINS))
        edges = tuple(sorted(set(deciles)))
        counts = [0] * (len(edges) + 1)
        for score in scores:
            counts[bisect_left(edges, score)] += 1
        mean = math.fsum(scores) / len(scores)
        return cls(
            tuple(scores),
            edges,
            tuple(smoothed(counts)),
            mean,
            math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores)),
            psi_limit(counts),
        )

    def bin(self, value: float) -> int:
        """The number of the bin that `value` falls into."""
        return bisect_left(self.edges, _short(value))

    def rank(self, value: float) -> float:
        """The rank of `value`: the share of the reference below it, ties counted half; 0 to 1, and 0.5 on average."""
        value = _short(value)  # rounded like the scores, so that ties stay ties
        return (bisect_left(self.scores, value) + bisect_right(self.scores, value)) / 2 / len(self.scores)


@dataclass(frozen=True)
class ClassMix:
    """How often each class was answered on the rows of the reference; `OTHER` is always a class."""

    shares: Mapping[str, float]
    psi_limit: float

    @classmethod
    def of(cls, labels: Iterable[str], names: Iterable[str]) -> ClassMix:
        """The mix of `labels` among `names`; when there are too many, the rarest are counted as `OTHER`."""
        found = Counter(labels)
        kept = sorted(names, key=lambda name: (-found[name], name))[:MOST_CLASSES]
        counts = {name: found[name] for name in kept if name != OTHER}
        counts[OTHER] = found.total() - sum(counts.values())
        shares = smoothed(list(counts.values()))
        return cls(dict(zip(counts, shares, strict=True)), psi_limit(list(counts.values())))


@dataclass(frozen=True)
class Signals:
    """The reference of one format. `label_key` is None when answers have no class, `""` when the answer is the class,
    else the key of a JSON object that holds the class. `known` is a bitmap of the token ids in the tuning rows.
    """

    format: str
    numbers: Mapping[str, Distribution]
    classes: ClassMix | None
    label_key: str | None
    known: bytes
    window: int = WINDOW
    sure: Sequence[tuple[float, bool]] = ()
    """Confidence of each answer and whether it was right; empty when the right answers were unknown."""

    def class_of(self, text: str) -> str | None:
        """The class of an answer's text, one of the reference's or `OTHER`; None when answers have no class."""
        if self.label_key is None or self.classes is None:
            return None
        said: object = text.strip()
        if self.label_key:
            try:
                parsed = json.loads(text)
            except (ValueError, RecursionError):
                return OTHER
            said = parsed.get(self.label_key) if isinstance(parsed, dict) else None
        return said if isinstance(said, str) and said in self.classes.shares else OTHER

    def unknown_rate(self, ids: Sequence[int]) -> float:
        """The share of token ids that the tuning rows never use; 0 for an empty prompt."""
        known, end = self.known, 8 * len(self.known)
        unknown = sum(1 for id_ in ids if not (0 <= id_ < end and known[id_ >> 3] >> (id_ & 7) & 1))
        return unknown / len(ids) if ids else 0.0

    def to_json(self) -> dict[str, Any]:
        """The entry of this format in `signals.json`."""
        return {
            "window": self.window,
            "numbers": {
                name: {key: _short(value) for key, value in vars(number).items()}
                for name, number in self.numbers.items()
            },
            "classes": None if self.classes is None else dict(self.classes.shares),
            "classes_psi_limit": None if self.classes is None else self.classes.psi_limit,
            "label_key": self.label_key,
            "known_ids": base64.b64encode(zlib.compress(self.known, 9)).decode(),
        }

    @classmethod
    def from_json(cls, format: str, entry: Mapping[str, Any]) -> Signals:
        """Read the output of `to_json`; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        numbers = {
            str(name): Distribution(
                scores=tuple(sorted(map(float, number["scores"]))),
                edges=tuple(sorted(map(float, number["edges"]))),
                shares=tuple(map(float, number["shares"])),
                mean=float(number["mean"]),
                spread=float(number["spread"]),
                psi_limit=float(number["psi_limit"]),
            )
            for name, number in entry["numbers"].items()
            if name in NUMBERS
        }
        for number in numbers.values():
            if not number.scores or len(number.shares) != len(number.edges) + 1 or min(number.shares) <= 0:
                raise ValueError("a distribution's bins and shares do not fit")
        mix = entry["classes"]
        classes = None
        if mix is not None:
            shares = {str(name): float(share) for name, share in mix.items()}
            if OTHER not in shares or min(shares.values()) <= 0:
                raise ValueError("the mix of classes is not whole")
            classes = ClassMix(shares, float(entry["classes_psi_limit"]))
        packed = zlib.decompressobj()
        known = packed.decompress(base64.b64decode(entry["known_ids"]), 1 << 20)
        key = entry["label_key"]
        if key is not None and not isinstance(key, str):
            raise ValueError("'label_key' is not a text")
        return cls(format, numbers, classes, key, known, int(entry["window"]))


def capture(
    model: LoadedModel,
    rows: Sequence[Row],
    tuned_on: Sequence[Row],
    emit: Emit = ignore,
    *,
    stage: str = "signals",
) -> Signals:
    """Answer held-out `rows`, at most 512, and record the signals of each answer that a device will test.

    Token ids count as known when one of the rows `tuned_on` has them, so that held-out rows have as many unknown tokens
    as a stable stream will have. Raises `StageError` when no row could be answered.
    """
    template = model.runtime.chat_template
    known = bitmap(id_ for row in tuned_on for id_ in model.runtime.encode(template.render(row.messages)))
    labelled = [row for row in (*tuned_on, *rows) if row.label is not None]
    key = label_key(labelled)
    names = {str(row.label) for row in labelled}
    empty = ClassMix({name: 1.0 for name in (*names, OTHER)}, 0.0)
    reader = Signals(model.format, {}, None if key is None else empty, key, known)
    kept = _Kept()
    sure: list[tuple[float, bool]] = []
    before, model.telemetry = model.telemetry, kept
    step = max(1, -(-len(rows) // ROWS))
    try:
        for done, row in enumerate(rows[::step], 1):
            many = len(kept.answers)
            for _ in model.answer(model.prompt(row.messages[:-1])):
                pass
            for answer in kept.answers[many:]:
                if answer.certainty and answer.certainty.confidence is not None:
                    sure.append((answer.certainty.confidence, answer.text.strip() == row.answer.strip()))
            emit(Progress(stage, done, len(rows[::step]), "answers"))
    finally:
        model.telemetry = before
    return replace(of_answers(kept.answers, reader, names), sure=sure)


def of_answers(answers: Sequence[Answer], reader: Signals, names: Iterable[str]) -> Signals:
    """The reference made of these answers; `reader` gives their classes and shares of unknown tokens."""
    values: dict[str, list[float]] = {name: [] for name in NUMBERS}
    for answer in answers:
        if (
            answer.certainty
            and answer.certainty.confidence is not None
            and answer.certainty.entropy is not None
        ):
            values["confidence"].append(answer.certainty.confidence)
            values["entropy"].append(answer.certainty.entropy)
        values["prompt_tokens"].append(len(answer.prompt))
        values["unknown_rate"].append(reader.unknown_rate(answer.prompt))
    labels = [label for answer in answers if (label := reader.class_of(answer.text)) is not None]
    return of_values(reader.format, values, labels, names, reader.label_key, reader.known)


def of_values(
    format: str,
    values: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    names: Iterable[str],
    label_key: str | None,
    known: bytes,
) -> Signals:
    """The reference made of measured values. Raises `StageError` when there are none."""
    if not values["confidence"]:
        raise StageError(
            "The model answered none of the validation rows, so no drift reference was written.",
            "Check the validation rows.",
        )
    return Signals(
        format,
        {name: Distribution.of(values[name]) for name in NUMBERS},
        ClassMix.of(labels, names) if labels else None,
        label_key,
        known,
    )


def label_key(rows: Sequence[Row]) -> str | None:
    """Where the answers of `rows` hold their labels: `""` for the answer itself, or a key of a JSON object.

    None when there are no labels, or when no single place holds all of them.
    """
    if not rows:
        return None
    if all(row.answer.strip() == row.label for row in rows):
        return ""
    keys: set[str] | None = None
    for row in rows:
        try:
            answer = json.loads(row.answer)
        except (ValueError, RecursionError):
            return None
        if not isinstance(answer, dict):
            return None
        here = {key for key, value in answer.items() if key and value == row.label}
        keys = here if keys is None else keys & here
    return min(keys) if keys else None


def bitmap(ids: Iterable[int]) -> bytes:
    """A bit for each token id, set for those in `ids`."""
    used = set(ids)
    bits = bytearray(max(used, default=-1) // 8 + 1)
    for id_ in used:
        bits[id_ >> 3] |= 1 << (id_ & 7)
    return bytes(bits)


def load(path: Path, format: str) -> Signals | None:
    """The reference of `format` in a bundle or in a `signals.json`; None when it was built without one.

    Raises `CorruptError` for a file that is there and cannot be read.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        return None
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
        if whole["schema"] != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        entry = whole["formats"].get(format)
        return None if entry is None else Signals.from_json(format, entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise CorruptError(f"{file} cannot be read: {error}", "Copy the bundle again.") from error


class _Kept:
    """Keeps the answers that it receives."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def record(self, answer: Answer) -> None:
        if answer.finish in WHOLE:
            self.answers.append(answer)


def _short(value: float | tuple[float, ...]) -> Any:
    """`value` rounded to six digits, more than a few hundred rows can resolve."""
    return [_short(item) for item in value] if isinstance(value, tuple) else float(f"{value:.6g}")
