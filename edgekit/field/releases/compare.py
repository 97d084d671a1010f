"""Does a candidate answer as well as the version in use? Both are asked the same, one after the other.

With rows the right answers are known. Without them the candidate's example and the golden prompts of both are asked, and
what the version in use answers counts as right: another answer must first be shown to be a better one.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError, CorruptError
from edgekit.data.rows import Message, Row
from edgekit.device.loaded import load
from edgekit.device.manifest import read_manifest
from edgekit.proof.golden import FILE as GOLDEN

MARGIN_POINTS = 2.0
Z_95 = 1.644854  # one-sided
CLASS_P = 0.05  # shared by all classes


@dataclass(frozen=True)
class Question:
    """One thing to ask; `answer` is the right one, None when the version in use says what is right."""

    id: str
    messages: tuple[Message, ...]
    answer: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Flip:
    """A question that one of the two answers rightly and the other not."""

    id: str
    label: str | None
    expected: str
    current: str
    candidate: str
    lost: bool
    """Whether it was right before."""


@dataclass(frozen=True)
class Comparison:
    """Exact match of two versions on the same questions."""

    passed: bool
    detail: str
    n: int
    agreement: float
    """Share of equal answers."""
    accuracy_current: float
    accuracy_candidate: float
    worst_difference_points: float
    """Lower 95 % bound of the candidate's accuracy less the current one's, percentage points."""
    margin_points: float
    worse_classes: tuple[str, ...]
    flips: tuple[Flip, ...]


def compare(
    candidate: Path,
    current: Path,
    rows: Sequence[Row] = (),
    *,
    format: str | None = None,
    threads: int | None = None,
    margin_points: float = MARGIN_POINTS,
) -> Comparison:
    """Ask both bundles and hold the candidate to the current one; raises `ConfigError` when there is nothing to ask.

    Both bundles are opened in turn, as a device may not hold two. `format` is the first that both have by default.
    """
    questions = [Question(row.id, row.messages[:-1], row.answer, row.label) for row in rows]
    questions = questions or [*_example(candidate), *_golden(current), *_golden(candidate)]
    if not questions:
        raise ConfigError("There is nothing to compare the two versions on.", "Give rows with --data.")
    if format is None:
        kinds = list(read_manifest(current)["formats"])
        theirs = read_manifest(candidate)["formats"]
        format = next((kind for kind in kinds if kind in theirs), None)
        if format is None:
            raise ConfigError(
                f"The two versions share no format: {', '.join(kinds)} is in use, the other has {', '.join(theirs)}.",
                "Build the candidate for the format in use.",
            )
    before = _answers(current, questions, format, threads)
    after = _answers(candidate, questions, format, threads)
    return judge(questions, before, after, margin_points=margin_points)


def judge(
    questions: Sequence[Question],
    before: Sequence[str],
    after: Sequence[str],
    *,
    margin_points: float = MARGIN_POINTS,
) -> Comparison:
    """Non-inferiority of the answers `after` to those `before`, exact match without surrounding whitespace.

    The candidate passes when the lower 95 % bound of the paired difference of accuracies (Wald interval, Agresti 2013,
    section 11.1.1) is above minus `margin_points`, and no class fell by more than that with a one-sided McNemar test
    below 0.05 over the number of classes.
    """
    flips, right_before, right_after, same = [], 0, 0, 0
    for question, old, new in zip(questions, map(str.strip, before), map(str.strip, after), strict=True):
        expected = old if question.answer is None else question.answer.strip()
        right_before += old == expected
        right_after += new == expected
        same += old == new
        if (old == expected) != (new == expected):
            flips.append(Flip(question.id, question.label, expected, old, new, lost=old == expected))
    n, lost = len(questions), sum(flip.lost for flip in flips)
    won = len(flips) - lost
    difference = (won - lost) / n
    deviation = math.sqrt(max(0.0, lost + won - (won - lost) ** 2 / n)) / n
    worst = 100 * (difference - Z_95 * deviation)
    worse = _worse_classes(questions, flips, margin_points)
    detail = (
        f"{lost} of {n} answers lost and {won} won, accuracy {right_before / n:.1%} to {right_after / n:.1%}, "
        f"at worst {worst:+.1f} points (margin {margin_points:.1f})"
    )
    if worse:
        detail += f"; worse in {', '.join(worse)}"
    passed = worst > -margin_points and not worse
    return Comparison(
        passed=passed,
        detail=detail,
        n=n,
        agreement=same / n,
        accuracy_current=right_before / n,
        accuracy_candidate=right_after / n,
        worst_difference_points=round(worst, 3),
        margin_points=margin_points,
        worse_classes=tuple(worse),
        flips=tuple(flips),
    )


def _worse_classes(questions: Sequence[Question], flips: Sequence[Flip], margin_points: float) -> list[str]:
    sizes = Counter(question.label for question in questions if question.label is not None)
    worse = []
    for label, size in sorted(sizes.items()):
        lost = sum(flip.lost for flip in flips if flip.label == label)
        n = sum(flip.label == label for flip in flips)
        tail = sum(math.comb(n, k) for k in range(lost, n + 1)) / 2**n
        if 100 * (2 * lost - n) / size > margin_points and tail < CLASS_P / len(sizes):
            worse.append(label)
    return worse


def _answers(bundle: Path, questions: Sequence[Question], format: str, threads: int | None) -> list[str]:
    """Greedy answers of one bundle; a question without a system message gets the bundle's own, as in use."""
    with load(bundle, format, threads=threads, allow_failed=True) as model:
        prompts = [model.prompt(question.messages) for question in questions]
        answers = model.runtime.generate_batch(prompts, model.max_tokens)
        return [model.runtime.decode(ids) for ids in answers]


def _example(bundle: Path) -> list[Question]:
    example = read_manifest(bundle).get("example")
    if not isinstance(example, dict):
        return []
    return [Question("example", tuple(example["messages"]), example["answer"])]


def _golden(bundle: Path) -> list[Question]:
    """The golden prompts of a bundle, each once: its formats were asked the same rows."""
    try:
        formats: dict[str, Any] = json.loads((bundle / GOLDEN).read_text(encoding="utf-8"))["formats"]
        asked = [answer["messages"] for golden in formats.values() for answer in golden["answers"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(
            f"{bundle / GOLDEN} cannot be read: {error}", "Copy the bundle again, or build it again."
        ) from error
    each = {json.dumps(messages, sort_keys=True): messages for messages in asked}
    return [Question(f"golden-{number}", tuple(messages)) for number, messages in enumerate(each.values(), 1)]
