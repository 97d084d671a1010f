"""Swaps of words that ask for the same answer: the right words, with their capitals, and never those of the answer."""

from __future__ import annotations

import pytest

from edgekit.data.counterfactual import KINDS, swapped, texts
from edgekit.data.rows import Row


def row(question: str, answer: str = "x") -> Row:
    return Row("1", ({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


def asked(question: str, kind: str, answer: str = "x", seed: int = 7) -> str | None:
    found = swapped(row(question, answer), kind, seed)
    return found and found.row.messages[0]["content"]


@pytest.mark.parametrize(
    ("question", "swapped_question"),
    [
        ("He said that his car is his, so ask him.", "She said that her car is hers, so ask her."),
        ("Call her tomorrow about her car; it is hers.", "Call him tomorrow about his car; it is his."),
        ("She hurt herself", "He hurt himself"),
        ("TELL HER", "TELL HIM"),
        ("is there a message for her?", "is there a message for him?"),
        ("the other shepherd", None),
    ],
)
def test_pronouns_change_by_what_stands_after_them(question: str, swapped_question: str | None) -> None:
    assert asked(question, "pronouns") == swapped_question


def test_spellings_change_in_both_directions_and_keep_their_capitals() -> None:
    assert (
        asked("My favourite COLOR is Grey, favourite!", "spellings")
        == "My favorite COLOUR is Gray, favorite!"
    )
    assert asked("nothing to change here", "spellings") is None
    pairs = texts()["spellings"]["pairs"]
    words = [word for pair in pairs for word in pair]
    assert len(words) == len(set(words)) and all(word == word.lower() for word in words)


@pytest.mark.parametrize("seed", range(20))
def test_a_name_becomes_one_of_the_same_gender_and_another_origin(seed: int) -> None:
    names = texts()["names"]
    found = swapped(row("Tell OMAR and ahmed that Fatima called, Omar!"), "names", seed)
    assert found is not None
    (omar, first), (ahmed, second), (fatima, third), (again, fourth) = found.words
    assert (omar, ahmed, fatima, again) == ("OMAR", "ahmed", "Fatima", "Omar")
    men = {name for origin, group in names["men"].items() if origin != "arabic" for name in group}
    women = {name for origin, group in names["women"].items() if origin != "arabic" for name in group}
    assert first.isupper() and second.islower() and third in women and fourth in men
    assert first.lower() == fourth.lower() != second and second.capitalize() in men


def test_no_name_is_in_two_groups() -> None:
    every = [name for groups in texts()["names"].values() for group in groups.values() for name in group]
    assert len(every) == len(set(every)) and all(name == name.capitalize() for name in every)


def test_words_of_the_answer_stay() -> None:
    answer = '{"to": "Omar", "colour": "grey"}'
    for kind in KINDS:
        assert asked("Give Omar the grey one of that colour", kind, answer) is None
    assert asked("Omar, ask Ahmed", "names", answer, 3) != "Omar, ask Ahmed"


def test_the_same_seed_gives_the_same_names() -> None:
    assert asked("call Priya", "names", seed=3) == asked("call Priya", "names", seed=3)
    assert len({asked("call Priya", "names", seed=seed) for seed in range(9)}) > 3
