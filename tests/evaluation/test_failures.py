"""The classes in which a model fails, and what it answers there instead."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.evaluation.failures import failures
from edgekit.evaluation.statistics import wilson


def sample(id_: int, label: str | None, expected: str, answer: str) -> dict[str, Any]:
    return {
        "id": str(id_),
        "label": label,
        "expected": expected,
        "answer": answer,
        "correct": answer == expected,
    }


def of(label: str, *answers: str) -> list[dict[str, Any]]:
    return [
        sample(1000 * sum(map(ord, label)) + place, label, label, answer)
        for place, answer in enumerate(answers)
    ]


def test_the_planted_class_is_named_with_its_rows_and_the_answer_given_instead() -> None:
    right = of("pay", *["pay"] * 10)
    planted = of("move", "stay", "pay", "stay", "move", "stay", *["move"] * 3)
    found = failures([*right, *planted])
    assert found["by"] == "label" and [one["label"] for one in found["classes"]] == ["move"]
    (one,) = found["classes"]
    assert (one["n"], one["wrong"], one["accuracy"]) == (8, 4, 0.5)
    assert one["wilson_95"] == list(wilson(4, 8)) and one["instead"] == {"answer": "stay", "n": 3}
    assert "new" not in one
    assert failures(right) == {"by": "label", "classes": []}


def test_the_surest_failure_comes_first_and_not_the_smallest_class() -> None:
    one_row, many = of("rare", "other"), of("often", *["rare"] * 6, *["often"] * 4)
    assert [one["label"] for one in failures([*one_row, *many])["classes"]] == ["often", "rare"]


def test_a_class_that_only_the_file_fails_is_new() -> None:
    tuned = [*of("pay", "pay", "pay"), *of("move", "pay", "move")]
    file = [*of("pay", "pay", "move"), *of("move", "move", "pay")]
    assert {one["label"]: one["new"] for one in failures(file, tuned)["classes"]} == {
        "pay": True,
        "move": False,
    }


@pytest.mark.parametrize(
    ("answer", "instead"),
    [
        ('{"intent":"close","job":"7"}', "close"),
        ('{"intent":"close_all","job":"7', "close_all"),  # cut, and the longer of two labels
        ('{"intent":"open","job":"8"}', '{"intent":"open","job":"8"}'),  # its own label: the rest is wrong
        ('{"close":"close_all"}', '{"close":"close_all"}'),  # two labels
        ("no\nidea", "no idea"),
    ],
)
def test_where_answers_hold_their_labels_the_label_is_what_was_answered(answer: str, instead: str) -> None:
    labels = ["close", "close_all"]
    rows = [
        sample(place, name, f'{{"intent":"{name}"}}', f'{{"intent":"{name}"}}')
        for place, name in enumerate(labels)
    ]
    wrong = sample(7, "open", '{"intent":"open","job":"7"}', answer)
    (one,) = failures([*rows, wrong])["classes"]
    assert one["label"] == "open" and one["instead"] == {"answer": instead, "n": 1}


def test_without_labels_repeated_answers_are_classes_and_free_texts_are_measured_by_length() -> None:
    rows = [sample(n, None, ["yes", "no"][n % 2], "yes") for n in range(8)]
    found = failures(rows)
    assert found["by"] == "answer" and found["classes"][0]["instead"] == {"answer": "yes", "n": 4}
    texts = [" ".join(["word"] * (n + 1)) for n in range(8)]
    free = [sample(n, None, text, text if n < 6 else "word") for n, text in enumerate(texts)]
    found = failures(free, free)
    assert found["by"] == "words"
    (one,) = found["classes"]
    assert (one["label"], one["n"], one["wrong"], one["instead"], one["new"]) == ("7 to 8", 2, 2, None, False)
