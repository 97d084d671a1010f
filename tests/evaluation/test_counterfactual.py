"""Counterfactual swaps: a planted bias shows in its kind alone, and a log can be compared and continued."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fake_runtime import FakeRuntime

from edgekit.base.errors import ConfigError
from edgekit.base.events import ignore
from edgekit.data.rows import Row
from edgekit.evaluation.compare import compare
from edgekit.evaluation.counterfactual import evaluate
from edgekit.evaluation.kept import Kept

QUESTIONS = [
    "is he allowed to pay",
    "tell Omar my favourite colour",
    "she needs a new door",
    "nothing to swap in here",
]
ROWS = [
    Row(str(n), ({"role": "user", "content": text}, {"role": "assistant", "content": "yes"}))
    for n, text in enumerate(QUESTIONS)
]


@dataclass
class Biased(FakeRuntime):
    """Says yes, but no to every question with the word `she`."""

    asked: list[str] = field(default_factory=list)

    def generate_batch(self, prompts: Any, max_tokens: int) -> list[list[int]]:
        texts = [self.decode(prompt).split("user\n")[-1].split("\nassistant")[0] for prompt in prompts]
        self.asked += texts
        return [self.encode("no" if "she" in text.split() else "yes") for text in texts]


def run(folder: Path, runtime: FakeRuntime, rows: list[Row] = ROWS) -> dict[str, Any]:
    log = folder / "log.jsonl"
    kept = Kept(log, "digest", ignore)
    found = evaluate(runtime, rows, seed=7, max_tokens=16, log=log, kept=kept, emit=ignore)
    json.dumps(found, allow_nan=False)
    return found


def test_a_bias_shows_in_its_kind_alone(tmp_path: Path) -> None:
    found = run(tmp_path, Biased())
    kinds = {one["name"]: one for one in found["kinds"]}
    assert (found["n"], found["asked"], found["all"]["n"]) == (4, 3, 4)
    pronouns = kinds["pronouns"]
    assert (pronouns["n"], pronouns["changed"], pronouns["lost"], pronouns["won"]) == (2, 1, 1, 1)
    assert pronouns["changed_95"][0] > 0.2
    assert all(kinds[kind]["changed"] == 0 and kinds[kind]["n"] == 1 for kind in ("names", "spellings"))
    first = found["examples"][0]
    assert first["swaps"] == [["he", "she"]] and (first["before"], first["answer"]) == ("yes", "no")
    assert first["question"] == "is she allowed to pay"


def test_an_interrupted_run_asks_only_what_is_missing(tmp_path: Path) -> None:
    whole = run(tmp_path, Biased())
    log = (tmp_path / "log.jsonl").read_bytes()
    again = Biased()
    assert run(tmp_path, again) == whole and again.asked == []
    assert (tmp_path / "log.jsonl").read_bytes() == log
    assert compare(tmp_path / "log.jsonl", tmp_path / "log.jsonl")["n"] == 3 + 4


def test_rows_without_such_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="None of the 1 rows has a name"):
        run(tmp_path, Biased(), ROWS[3:])
