"""Where a model fails: the classes of its wrong answers, from a log of samples, and what it answers instead."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.base.texts import one_line
from edgekit.evaluation.slices import number_ranges
from edgekit.evaluation.statistics import wilson

ROWS_PER_CLASS = 2  # at the least, on average: otherwise nearly each row would be a class of its own
LONGEST_LABEL = 60  # characters of an answer that may be a class
Sample = Mapping[str, Any]


def failures(samples: Sequence[Sample], tuned: Sequence[Sample] | None = None) -> dict[str, Any]:
    """The classes in which at least one of `samples` is wrong, the surest failure first.

    `by` says what a class is: the `label` of the rows, else their `answer` where answers repeat, else a range of the number of
    words of the expected answer (`words`). `classes` holds for each `label`, `n`, `wrong`, `accuracy`, `wilson_95` and `instead`,
    the answer most often given in its place with its `n`; it is None for ranges of words. They are sorted by the upper end of the
    interval, because the accuracy of a class with few rows may be low by chance. With the samples of the `tuned` model, `new` says
    whether that model answers every row of the class rightly.
    """
    by, classes = _classes(samples)
    named = _labels_in_answers(samples) if by == "label" else None
    members: dict[str, list[Sample]] = {}
    for name, sample in zip(classes, samples, strict=True):
        members.setdefault(name, []).append(sample)
    lost = {sample["id"] for sample in tuned or () if not sample["correct"]}
    found = []
    for name, inside in members.items():
        wrong = [sample for sample in inside if not sample["correct"]]
        if not wrong:
            continue
        right = len(inside) - len(wrong)
        found.append(
            {
                "label": name,
                "n": len(inside),
                "wrong": len(wrong),
                "accuracy": right / len(inside),
                "wilson_95": list(wilson(right, len(inside))),
                "instead": None if by == "words" else _most_often(wrong, named),
                **({} if tuned is None else {"new": not any(sample["id"] in lost for sample in inside)}),
            }
        )
    return {"by": by, "classes": sorted(found, key=lambda one: (one["wilson_95"][1], one["label"]))}


def _classes(samples: Sequence[Sample]) -> tuple[str, list[str]]:
    """What a class is, and the class of each sample."""
    labels = [sample["label"] for sample in samples if sample.get("label")]
    if len(labels) == len(samples):
        return "label", labels
    answers = [sample["expected"] for sample in samples]
    if len(set(answers)) * ROWS_PER_CLASS <= len(answers) and max(map(len, answers)) <= LONGEST_LABEL:
        return "answer", answers
    return "words", number_ranges([len(answer.split()) for answer in answers])


def _labels_in_answers(samples: Sequence[Sample]) -> re.Pattern[str] | None:
    """Finds the labels in an answer, where each expected answer holds the label of its row; None where one does not."""
    labels = {sample["label"] for sample in samples}
    if not all(sample["label"] in sample["expected"] for sample in samples):
        return None
    longest_first = sorted(labels, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")


def _most_often(wrong: Sequence[Sample], named: re.Pattern[str] | None) -> dict[str, Any]:
    """The answer most often given in the wrong samples; where an answer names one other label, that label."""
    (answer, count), *_ = Counter(_said(sample, named) for sample in wrong).most_common()
    return {"answer": answer, "n": count}


def _said(sample: Sample, named: re.Pattern[str] | None) -> str:
    labels = set(named.findall(sample["answer"])) if named else set()
    if len(labels) == 1 and labels != {sample["label"]}:
        return str(labels.pop())
    return one_line(sample["answer"], LONGEST_LABEL)
