"""Requests out of scope: the answer that the rows themselves give, and no request that the task may cover."""

from __future__ import annotations

import pytest

from edgekit.data.dataset import load_dataset
from edgekit.data.out_of_scope import ANSWER, answer_of, requests, rows_out_of_scope, unlike
from edgekit.data.rows import Row


def row(text: str, answer: str, label: str | None = None, name: str = "") -> Row:
    messages = ({"role": "user", "content": text}, {"role": "assistant", "content": answer})
    return Row(name or text, messages, label)


def intents(form: str = "{}", *more: Row) -> list[Row]:
    labels = ("weather", "alarm", "music")
    rows = [row(f"text {place}", form.format(label), label) for place in range(10) for label in labels]
    return [*rows, *more]


@pytest.mark.parametrize(
    ("rows", "answer"),
    [
        (intents(), ANSWER),
        (intents("intent: {}"), f"intent: {ANSWER}"),
        (intents("{}", row("x", "oos", "oos")), "oos"),
        (intents("{}", row("x", "I cannot help.", "out of scope")), "I cannot help."),
        (intents("{}", row("x", "Sorry.", "unknown"), row("y", "No.", "unknown")), ""),  # which of the two?
        ([row(f"question {place}", f"a text of its own, {place}") for place in range(30)], ""),
    ],
)
def test_the_answer_is_the_rows_own(rows: list[Row], answer: str) -> None:
    assert answer_of(rows) == answer
    assert answer_of(rows, "None of these.") == "None of these." and answer_of(rows, "") == ""


def test_the_demos_rows_have_their_own_answer() -> None:
    assert answer_of(load_dataset("demo").train) == '{"intent":"out_of_scope"}'


def test_a_request_like_a_training_row_is_left_out() -> None:
    rows = [row("what is the capital of Norway", "capital"), row("play some music", "music")]
    asked = rows_out_of_scope(rows, unlike(rows), ANSWER, 10_000, "7")
    found = {each.messages[-2]["content"] for each in asked}
    assert "what is the capital of Norway?" not in found
    assert "why is the sky blue?" in found and len(found) > 250 and found < set(requests())


def test_they_have_the_frame_of_the_rows_and_depend_on_the_seed() -> None:
    system = {"role": "system", "content": "Answer with the intent."}
    rows = [Row("a", (system, *row("play", "music").messages), "music")]
    texts = unlike(rows)
    found = rows_out_of_scope(rows, texts, "none", 5, "7")
    assert all(each.messages[0] == system and each.answer == "none" for each in found)
    assert found == rows_out_of_scope(rows, texts, "none", 5, "7")
    assert found != rows_out_of_scope(rows, texts, "none", 5, "8")
