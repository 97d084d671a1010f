"""`eval explain`: the word that carries an answer has the largest fall, and each file is told about each answer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from fake_runtime import FakeRuntime

from edgekit.base.errors import ConfigError
from edgekit.base.events import ignore
from edgekit.data.rows import Row
from edgekit.data.splits import Dataset
from edgekit.evaluation.explain import carrying, explain, find
from edgekit.evaluation.kept import Kept

ROW = Row(
    "one",
    ({"role": "user", "content": "turn on 2 kitchen lamps"}, {"role": "assistant", "content": "light"}),
)


@dataclass
class Counts(FakeRuntime):
    """A right answer is likely by the words of the question that it knows, each worth some nats."""

    worth: dict[str, float] = field(default_factory=dict)
    says: str = "light"
    scored: list[str] = field(default_factory=list)
    patience: int = 999

    def score_answers(self, prompt: Any, answers: Any) -> list[float]:
        if not self.patience:
            raise KeyboardInterrupt
        self.patience -= 1
        text = self.decode(prompt)
        self.scored += [self.decode(answer) for answer in answers]
        missing = sum(nats for word, nats in self.worth.items() if word not in text)
        return [-1.0 - missing if self.decode(answer) == "light" else -5.0 for answer in answers]

    def generate_batch(self, prompts: Any, max_tokens: int) -> list[list[int]]:
        return [self.encode(self.says)[:max_tokens]]


def run(*models: Counts, max_tokens: int = 16, kept: Path | None = None) -> dict[str, Any]:
    @contextmanager
    def open_file(path: Path) -> Iterator[Counts]:
        yield models[int(path.name)]

    files = [Path(str(number)) for number in range(len(models))]
    with TemporaryDirectory() as folder:
        keep = lambda file: Kept(kept or Path(folder, file.name), file.name, ignore)
        found = explain(ROW, files, open_file, keep, max_tokens=max_tokens, emit=ignore)
        assert not list(Path(folder).iterdir())
    json.dumps(found, allow_nan=False)
    return found


def test_each_word_has_the_fall_of_the_answer_without_it() -> None:
    found = run(Counts(worth={"kitchen": 2.0, "lamps": 0.5, "2": -0.25}))
    falls = {one["word"]: one["fall_nats"] for one in found["files"][0]["words"]}
    assert list(falls) == ["turn", "on", "2", "kitchen", "lamps"]
    assert falls == pytest.approx({"turn": 0, "on": 0, "2": -0.25, "kitchen": 2.0, "lamps": 0.5})
    assert carrying(found["files"], 3) == [2, 3, 4]
    assert (found["question"], found["expected"], found["files"][0]["correct"]) == (
        "turn on 2 kitchen lamps", "light", True,
    )  # fmt: skip


def test_an_interrupted_run_computes_the_rest_alone(tmp_path: Path) -> None:
    """Of six texts, four were scored before the interruption."""
    worth, part = {"kitchen": 2.0, "lamps": 0.5}, tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        run(Counts(worth=worth, patience=4), kept=part)
    again = Counts(worth=worth)
    found = run(again, kept=part)
    assert len(again.scored) == 2 and found == run(Counts(worth=worth))
    assert not list(tmp_path.iterdir())


def test_every_file_is_told_about_the_answers_of_all() -> None:
    """The first file gives another answer than the second, which is only known later."""
    first, second = Counts(), Counts(says="heat")
    found = run(first, second)
    for file in found["files"]:
        assert [one["text"] for one in file["answers"]] == ["light", "heat"]
        light, heat = file["answers"]
        assert light["probability"] == pytest.approx(math.exp(-1)) and heat["nats"] == -5
        assert light["nats_per_token"] == pytest.approx(-1 / 6)
    assert [file["correct"] for file in found["files"]] == [True, False]
    assert first.scored.count("heat") == 1


def test_an_answer_that_does_not_end_is_told_as_cut() -> None:
    assert run(Counts(says="light and more of it"), max_tokens=5)["files"][0]["cut"]
    assert not run(Counts())["files"][0]["cut"]


def test_a_row_is_found_in_any_split_and_a_misspelt_id_is_named() -> None:
    dataset = Dataset("mine", [Row("other-1", ROW.messages)], [], [ROW])
    assert find(dataset, "other-1", "test").id == "other-1"
    with pytest.raises(ConfigError, match="id 'onee' in mine. Did you mean 'one'?"):
        find(dataset, "onee", "test")
