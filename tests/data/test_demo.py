"""The demo set: the same everywhere, nothing shared between its splits, every answer copyable from its sentence."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.base.artifacts import digest_of
from edgekit.base.errors import ConfigError
from edgekit.data import demo

INTENTS = demo.patterns()["intents"]
SPLITS = ("train", "validation", "test")
TRAIN_SHA256 = "f9bdaa7d14089b9fe6f7cecf684a76bd2ea061cb52ca7565c1c5536e850ef38c"


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, Any]]]:
    return demo.generate()


def question(row: dict[str, Any]) -> str:
    return str(row["messages"][1]["content"])


def answer(row: dict[str, Any]) -> dict[str, str]:
    return dict(json.loads(row["messages"][2]["content"]))


def wording(text: str) -> str:
    return re.sub(r"[^\w{}]+", " ", text.lower()).strip()


def expansions(pattern: str) -> list[str]:
    choice = re.search(r"\(([^()]*)\)", pattern)
    if not choice:
        return [pattern]
    before, after = pattern[: choice.start()], pattern[choice.end() :]
    return [text for option in choice[1].split("|") for text in expansions(before + option + after)]


def test_the_same_arguments_give_the_same_rows_on_every_version(
    rows: dict[str, list[dict[str, Any]]],
) -> None:
    random.seed(0)  # the global generator plays no part
    assert demo.generate() == rows
    assert digest_of(rows["train"]) == TRAIN_SHA256


def test_another_seed_gives_other_rows(rows: dict[str, list[dict[str, Any]]]) -> None:
    other = demo.generate(seed=8)
    assert not {question(row) for row in other["test"]} >= {question(row) for row in rows["test"]}


def test_counts_ids_and_labels(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert {split: len(part) for split, part in rows.items()} == {
        "train": 800,
        "validation": 150,
        "test": 300,
    }
    for split, part in rows.items():
        assert [row["id"] for row in part] == [f"{split}-{n:04d}" for n in range(1, len(part) + 1)]
        assert all([m["role"] for m in row["messages"]] == ["system", "user", "assistant"] for row in part)


def test_intents_are_balanced_and_shuffled(rows: dict[str, list[dict[str, Any]]]) -> None:
    for part in rows.values():
        counts = Counter(row["label"] for row in part)
        assert set(counts) == set(INTENTS)
        assert 0.08 <= counts.pop("out_of_scope") / len(part) <= 0.10
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len({row["label"] for row in part[:21]}) > 8


def test_no_sentence_is_twice_in_a_split_or_in_two(rows: dict[str, list[dict[str, Any]]]) -> None:
    texts = [wording(question(row)) for part in rows.values() for row in part]
    assert len(set(texts)) == len(texts) == 1250


def test_no_slot_combination_is_in_two_splits(rows: dict[str, list[dict[str, Any]]]) -> None:
    used = {split: {tuple(answer(row).values())[1:] for row in part} - {()} for split, part in rows.items()}
    assert all(len(combinations) > 100 for combinations in used.values())
    assert not used["train"] & used["test"]
    assert not used["train"] & used["validation"]
    assert not used["validation"] & used["test"]


def test_no_pattern_says_the_same_as_another() -> None:
    owners: dict[str, tuple[str, str, int]] = {}
    for intent, table in INTENTS.items():
        for split in SPLITS:
            for number, pattern in enumerate(table[split]):
                for text in expansions(pattern):
                    owner = (intent, split, number)
                    assert owners.setdefault(wording(text), owner) == owner, text


def test_patterns_are_many_well_formed_and_hold_every_answered_slot() -> None:
    slots = demo.patterns()["slots"]
    for intent, table in INTENTS.items():
        least = (45, 8, 15) if intent == demo.OUT_OF_SCOPE else (9, 2, 3)
        assert all(len(table[split]) >= n for split, n in zip(SPLITS, least, strict=True)), intent
        for text in (text for split in SPLITS for pattern in table[split] for text in expansions(pattern)):
            assert not re.search(r"  | [,.?]|[()|]|^ | $", text), text
            found = re.findall(r"\{(\w+)\}", text)
            assert set(found) <= set(slots), text
            if intent != demo.OUT_OF_SCOPE:
                assert sorted(found) == sorted(table["keys"]), text


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 200), st.integers(0, 60), st.integers(0, 200), st.integers(0, 10**6))
def test_every_answer_can_be_read_off_its_sentence(train: int, validation: int, test: int, seed: int) -> None:
    parts = demo.generate(train, validation, test, seed)
    assert [len(parts[split]) for split in SPLITS] == [train, validation, test]
    for row in (row for part in parts.values() for row in part):
        command = answer(row)
        assert row["messages"][2]["content"] == json.dumps(command, separators=(",", ":"))
        intent = command.pop("intent")
        assert intent == row["label"]
        assert list(command) == INTENTS[intent]["keys"]
        for value in command.values():
            assert re.search(rf"(?<!\w){re.escape(value)}(?!\w)", question(row)), row


def test_a_larger_train_set_keeps_the_test_set_and_has_no_duplicates(
    rows: dict[str, list[dict[str, Any]]],
) -> None:
    larger = demo.generate(train=5000)
    assert len({wording(question(row)) for row in larger["train"]}) == 5000
    assert larger["test"] == rows["test"]
    tested = {tuple(answer(row).values())[1:] for row in larger["test"]} - {()}
    assert not tested & {tuple(answer(row).values())[1:] for row in larger["train"]}


def test_noise_is_there_and_leaves_most_sentences_clean(rows: dict[str, list[dict[str, Any]]]) -> None:
    known = set(re.findall(r"[a-z]+", json.dumps(demo.patterns()).lower()))
    texts = [question(row) for row in rows["train"]]
    typos = [text for text in texts if set(re.findall(r"[a-z]{5,}", text.lower())) - known]
    assert 0.04 < len(typos) / len(texts) < 0.15
    assert (
        0.15
        < sum(bool(re.search("please|could you|thank|cheers|hello", text.lower())) for text in texts) / 800
        < 0.6
    )
    assert 0.2 < sum(not text.endswith((".", "?", "!")) for text in texts) / 800 < 0.6


def test_asking_for_more_sentences_than_there_are_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"keys": [], "train": ["what (is|was) it?"], "validation": ["why?"], "test": ["who?"]}
    noise = {"request": ["*"], "request_with_clause": ["*"], "greeting": ["hi"], "thanks": ["bye"]}
    table = {"slots": {}, "noise": noise, "intents": {"ask": few, "out_of_scope": few}}
    monkeypatch.setattr(demo, "patterns", lambda: table)
    with pytest.raises(ConfigError, match="8 of 91 different train sentences for ask"):
        demo.generate(train=100, validation=0, test=0)


def test_rows_fit_the_token_budget_of_the_sample_model(rows: dict[str, list[dict[str, Any]]]) -> None:
    tokenizer = tiny.tokenizer()
    for part in rows.values():
        whole = [
            len(tokenizer.apply_chat_template(row["messages"], tokenize=True)["input_ids"]) for row in part
        ]
        answers = [len(tokenizer(row["messages"][2]["content"])["input_ids"]) for row in part]
        assert sum(whole) / len(whole) <= 60 and max(whole) <= 96
        assert sum(answers) / len(answers) <= 20


def test_write_gives_three_files_and_a_card(tmp_path: Path) -> None:
    folder = demo.write(tmp_path / "demo", train=42, validation=21, test=21, seed=3)
    assert sorted(file.name for file in folder.iterdir()) == [
        "card.json",
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]
    expected = demo.generate(42, 21, 21, 3)
    for split in SPLITS:
        lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == expected[split]
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["licence"] == "Apache-2.0" and card["pii"] == "none: invented names"
    assert card["rows"] == {"train": 42, "validation": 21, "test": 21} and card["seed"] == 3
    before = (folder / "train.jsonl").read_bytes()
    with pytest.raises(ConfigError):
        demo.write(folder)
    assert (folder / "train.jsonl").read_bytes() == before
    demo.write(folder, train=10, force=True)
    assert len((folder / "train.jsonl").read_text(encoding="utf-8").splitlines()) == 10
