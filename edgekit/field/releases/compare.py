"""Compares the answers of a candidate with those of the version in use, on the same questions.

With rows, the right answers are known. Without rows, the questions are the candidate's example and the golden prompts
of both versions, and the answer of the version in use counts as right. A few questions prove nothing: the verdict is
then *unproven*, neither "as good" nor "worse". Two versions with the same model files need no such proof.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.data.rows import Message, Row
from edgekit.device.loaded import load
from edgekit.device.manifest import read_manifest
from edgekit.evaluation.noninferiority import MARGIN_POINTS, rows_needed, slice_is_worse
from edgekit.evaluation.noninferiority import judge as judge_change
from edgekit.proof.golden import read_golden

ANSWERS_FOLLOW_FROM = (
    "system",
    "max_tokens",
    "threads",
)  # keys of the manifest, in addition to the format's files


@dataclass(frozen=True)
class Question:
    """One question; `answer` is the right answer, None when the answer of the version in use counts as right."""

    id: str
    messages: tuple[Message, ...]
    answer: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Flip:
    """A question that only one of the two versions answers correctly."""

    id: str
    label: str | None
    expected: str
    current: str
    candidate: str
    lost: bool
    """Whether the version in use answers it correctly."""


@dataclass(frozen=True)
class Comparison:
    """The comparison of two versions on the same questions, by exact match."""

    passed: bool
    """Whether the candidate is shown to be as good."""
    detail: str
    n: int
    agreement: float
    """Share of equal answers."""
    accuracy_current: float
    accuracy_candidate: float
    worst_difference_points: float
    """Lower 95 % bound of the candidate's accuracy minus the current one's, percentage points."""
    margin_points: float
    worse_classes: tuple[str, ...]
    flips: tuple[Flip, ...]
    unproven: bool = False
    """Whether there are too few answers to tell: neither shown to be as good, nor measured as worse."""
    rows_needed: int = 0
    """Questions that would prove it at the same shares of lost and won answers; 0 when none are needed."""


def compare(
    candidate: Path,
    current: Path,
    rows: Sequence[Row] = (),
    *,
    format: str | None = None,
    threads: int | None = None,
    margin_points: float = MARGIN_POINTS,
) -> Comparison:
    """Ask both bundles and compare the candidate with the current one; raises `ConfigError` without questions.

    The bundles are opened one after the other, because a device may not have memory for two. By default `format` is the
    first that both have.
    """
    questions = [Question(row.id, row.messages[:-1], row.answer, row.label) for row in rows]
    questions = questions or [*_example(candidate), *_golden(current), *_golden(candidate)]
    if not questions:
        raise ConfigError("There are no questions to compare the two versions on.", "Give rows with --data.")
    if format is None:
        kinds = list(read_manifest(current)["formats"])
        theirs = read_manifest(candidate)["formats"]
        format = next((kind for kind in kinds if kind in theirs), None)
        if format is None:
            raise ConfigError(
                f"The two versions have no format in common: {', '.join(kinds)} is in use, the candidate has {', '.join(theirs)}.",
                "Build the candidate for the format in use.",
            )
    before = _answers(current, questions, format, threads)
    after = _answers(candidate, questions, format, threads)
    same_files = model_of(candidate, format) == model_of(current, format)
    return judge(questions, before, after, margin_points=margin_points, same_files=same_files)


def judge(
    questions: Sequence[Question],
    before: Sequence[str],
    after: Sequence[str],
    *,
    margin_points: float = MARGIN_POINTS,
    same_files: bool = False,
) -> Comparison:
    """Non-inferiority of the answers `after` to those `before`, exact match without surrounding whitespace.

    The candidate passes when the lower 95 % bound of the paired difference of accuracies (Tango's score interval) is
    above minus `margin_points`, and no class lost more than that with the p of a one-sided McNemar test below 0.05
    divided by the number of classes. It is unproven when only the bound is too low, while the difference itself is
    within the margin. With `same_files` both versions hold the same model, and equal answers suffice.
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
    change = judge_change(lost, won, n, margin_points)
    worst = change.low
    classes = _classes(questions, flips)
    worse = [
        label
        for label, (lost_here, won_here, size) in sorted(classes.items())
        if slice_is_worse(
            lost_here, won_here, 100 * (won_here - lost_here) / size, margin_points, len(classes)
        )
    ]
    detail = (
        f"{lost} of {n} answers lost and {won} won, accuracy {right_before / n:.1%} to {right_after / n:.1%}, "
        f"lower 95 % bound of the change {worst:+.1f} points, limit {-margin_points:+.1f}"
    )
    if worse:
        detail += f"; worse in {', '.join(worse)}"
    within = change.shown and not worse
    if not within and same_files and same == n:
        within, detail = True, f"the same model files, and the same {n} answers"
    unproven = not within and not worse and change.verdict == "unproven"
    needed = rows_needed(lost / n, won / n, margin_points) if unproven else 0
    return Comparison(
        passed=within,
        detail=detail,
        n=n,
        agreement=same / n,
        accuracy_current=right_before / n,
        accuracy_candidate=right_after / n,
        worst_difference_points=round(worst, 3),
        margin_points=margin_points,
        worse_classes=tuple(worse),
        flips=tuple(flips),
        unproven=unproven,
        rows_needed=needed,
    )


def model_of(bundle: Path, format: str) -> dict[str, Any]:
    """Everything that determines the greedy answers of a format: its files' digests and the manifest's settings."""
    manifest = read_manifest(bundle)
    path = manifest["formats"][format]["path"]
    digests = {
        entry["path"]: entry["sha256"]
        for entry in manifest["files"]
        if entry["path"] == path or entry["path"].startswith(f"{path}/")
    }
    return {"files": digests, **{key: manifest.get(key) for key in ANSWERS_FOLLOW_FROM}}


def _classes(questions: Sequence[Question], flips: Sequence[Flip]) -> dict[str, tuple[int, int, int]]:
    """The lost, won and all questions of each class."""
    sizes = Counter(question.label for question in questions if question.label is not None)
    lost = Counter(flip.label for flip in flips if flip.lost)
    won = Counter(flip.label for flip in flips if not flip.lost)
    return {label: (lost[label], won[label], size) for label, size in sizes.items()}


def _answers(bundle: Path, questions: Sequence[Question], format: str, threads: int | None) -> list[str]:
    """Greedy answers of one bundle; a question without a system message gets the bundle's own, as when serving."""
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
    """The golden prompts of a bundle, each once, because all formats were asked the same rows."""
    asked = [answer["messages"] for golden in read_golden(bundle).values() for answer in golden["answers"]]
    each = {json.dumps(messages, sort_keys=True): messages for messages in asked}
    return [Question(f"golden-{number}", tuple(messages)) for number, messages in enumerate(each.values(), 1)]
