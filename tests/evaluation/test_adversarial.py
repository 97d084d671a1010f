"""The search for slips: it finds a planted weakness, within its budget, and what it finds really changes the answer."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fake_runtime import FakeRuntime

from edgekit.base.events import ignore
from edgekit.data.bugs import bugs, pieces, vocabulary
from edgekit.data.rows import Row
from edgekit.evaluation.adversarial import Search, evaluate
from edgekit.evaluation.kept import Kept

QUESTIONS = {
    "please turn the kitchen light on": "light",
    "close the window of the office now": "window",
    "how is the weather in Paris today": "forecast",
}
ROWS = [
    Row(str(n), ({"role": "user", "content": question}, {"role": "assistant", "content": answer}))
    for n, (question, answer) in enumerate(QUESTIONS.items())
]
KEYWORDS = {"kitchen": "light", "office": "window", "weather": "forecast"}


@dataclass
class Keywords(FakeRuntime):
    """Knows the answer by one word of the question: without it the answer is unlikely, and another one is given."""

    needs: int = 1
    asked: list[str] = field(default_factory=list)

    def _found(self, prompt: Any) -> str | None:
        text = self.decode(prompt).split("user\n")[-1]
        self.asked.append(text)
        return next((answer for word, answer in KEYWORDS.items() if word in text), None)

    def score_answers(self, prompt: Any, answers: Any) -> list[float]:
        found = self._found(prompt)
        return [math.log(0.9 if found == self.decode(answer) else 0.05) for answer in answers]

    def generate_batch(self, prompts: Any, max_tokens: int) -> list[list[int]]:
        return [self.encode(self._found(prompt) or "no idea") for prompt in prompts]


def run(
    folder: Path, runtime: FakeRuntime, search: Search = Search(), rows: list[Row] = ROWS
) -> dict[str, Any]:
    kept = Kept(folder / "log.jsonl", "digest", ignore)
    found = evaluate(runtime, rows, search, max_tokens=16, log=folder / "log.jsonl", kept=kept, emit=ignore)
    json.dumps(found, allow_nan=False)
    return found


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def test_the_word_that_carries_each_answer_is_found_and_changed(tmp_path: Path) -> None:
    found = run(tmp_path, Keywords())
    assert (
        found["success"],
        found["searched"],
        found["clean"]["accuracy"],
        found["attacked"]["accuracy"],
    ) == (1, 3, 1, 0)
    assert found["success_95"][0] < 0.5 and found["mean_words_of_successes"] == 1
    for sample in samples(tmp_path):
        ((before, after),) = sample["edits"]
        assert before in KEYWORDS and before not in sample["attacked"] and after in sample["attacked"]
        assert sample["answer"] == "no idea" and not sample["correct"] and sample["right_before"]
        assert sample["queries"] <= 60


def test_the_budget_counts_every_text_that_is_asked(tmp_path: Path) -> None:
    runtime = Keywords()
    found = run(tmp_path, runtime, Search(queries=8))
    assert sum(sample["queries"] for sample in samples(tmp_path)) == len(runtime.asked) - len(ROWS)
    assert max(sample["queries"] for sample in samples(tmp_path)) <= 8 and found["mean_queries"] <= 8


def test_a_model_that_ignores_words_cannot_be_fooled(tmp_path: Path) -> None:
    class Sure(Keywords):
        def _found(self, prompt: Any) -> str | None:
            return "light"

    found = run(tmp_path, Sure())
    assert (found["success"], found["searched"], found["succeeded"]) == (0, 1, 0)
    right, *wrong = samples(tmp_path)
    assert right["correct"] and right["edits"] == [] and right["queries"] > 0
    assert all(not one["correct"] and one["queries"] == 0 and not one["right_before"] for one in wrong)


def test_words_of_the_answer_are_left_alone(tmp_path: Path) -> None:
    """The answer "kitchen" could only change with that word, which stays."""
    messages = ({"role": "user", "content": "is it the kitchen"}, {"role": "assistant", "content": "kitchen"})

    class Copies(Keywords):
        def _found(self, prompt: Any) -> str | None:
            return "kitchen" if "kitchen" in self.decode(prompt) else None

    found = run(tmp_path, Copies(), rows=[Row("1", messages)])
    assert found["success"] == 0 and "kitchen" in samples(tmp_path)[0]["attacked"]


def test_an_interrupted_search_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    whole = run(tmp_path, Keywords())
    log = (tmp_path / "log.jsonl").read_bytes()
    part = tmp_path / "log.jsonl.part"
    part.write_text("".join(part.read_text().splitlines(keepends=True)[:2]))
    again = Keywords()
    assert run(tmp_path, again) == whole and (tmp_path / "log.jsonl").read_bytes() == log
    assert len(again.asked) - len(ROWS) == sum(sample["queries"] for sample in samples(tmp_path)[1:])


@pytest.mark.parametrize("seed", range(8))
def test_slips_keep_the_ends_of_a_word_and_make_no_other_word(seed: int) -> None:
    words = vocabulary(["form from frm"])
    found = bugs("form", Random(seed), words)
    assert found and not {bug.lower() for bug in found} & words
    for bug in bugs("weather", Random(seed), frozenset()):
        assert bug != "weather" and 6 <= len(bug) <= 7
        assert bug[0] == "w" and bug[-1] == "r" or not bug.isascii()
    assert bugs("an", Random(seed), frozenset()) == ["аn"]  # a Cyrillic letter
    assert "".join(pieces("it's  5 o'clock\n")) == "it's  5 o'clock\n"
