"""Requests out of scope: the rows that are asked, and scores of a model whose knowledge is planted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runtime import FakeRuntime
from numpy.typing import NDArray

from edgekit.base.errors import ConfigError
from edgekit.base.events import ignore
from edgekit.data.rows import Row
from edgekit.data.splits import Dataset
from edgekit.evaluation import ood
from edgekit.evaluation.kept import Kept

LABELS = ("balance", "transfer", "weather")
BEYOND = "out_of_scope"


def row(id_: str, question: str, answer: str, label: str | None = None) -> Row:
    return Row(id_, ({"role": "user", "content": question}, {"role": "assistant", "content": answer}), label)


def rows(split: str, count: int) -> list[Row]:
    return [row(f"{split}{n}", f"{LABELS[n % 3]}, {split} {n}", LABELS[n % 3]) for n in range(count)]


STRANGE = [row(f"odd{n}", f"odd request {n}", BEYOND, BEYOND) for n in range(9)]
DATA = Dataset("rows", rows("train", 30), rows("v", 24), [*rows("test", 18), *STRANGE[:3]], {})


FREE = Dataset(
    "rows",
    [row(f"t{n}", f"balance {n}", f"balance {n}", "balance") for n in range(201)],  # too many for labels
    DATA.validation,
    DATA.test,
    {},
)


@dataclass
class Knows(FakeRuntime):
    """Is sure of the label that a request names, and of the abstaining answer or of nothing elsewhere, as far as `clear`."""

    clear: bool = True
    abstains: bool = True

    def _named(self, prompt: Sequence[int]) -> str:
        text = self.decode(prompt).rpartition("user\n")[2]
        return next((label for label in LABELS if text.startswith(label)), "")

    def score_answers(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        named = self._named(prompt)
        noise = np.random.default_rng(sum(prompt)).normal(0, 0.05, len(answers))
        texts = [self.decode(answer) for answer in answers]
        if not self.clear:
            named = LABELS[sum(prompt) % 3]
        beyond = -0.1 if self.abstains and not named else -4.0
        likely = {named: -0.1, BEYOND: beyond}
        return [
            (len(answer) + 1) * (likely.get(text, -1.0 if not named else -3.0) + extra)
            for text, answer, extra in zip(texts, answers, noise, strict=True)
        ]

    def hidden_state(self, ids: Sequence[int]) -> NDArray[np.float32] | None:
        named = self._named(ids) if self.clear else LABELS[sum(ids) % 3]
        state = np.random.default_rng(sum(ids)).normal(0, 0.1, 6)
        state[LABELS.index(named) if named else 5] += 2
        return state.astype(np.float32)

    def generate_batch(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        return [self.encode(self._named(prompt) or BEYOND)[:max_tokens] for prompt in prompts]


def measure(runtime: Any, data: Dataset, tmp_path: Path, abstaining: str = BEYOND, **options: Any) -> Any:
    requests = ood.Requests.of(data, "test", STRANGE[3:], abstaining, **options)
    log = tmp_path / "log.jsonl"
    found = ood.evaluate(runtime, requests, fit_rows=20, max_tokens=20, log=log, kept=None, emit=ignore)
    json.dumps(found, allow_nan=False)
    return found, [json.loads(line) for line in log.read_text().splitlines()]


def test_the_rows_that_are_asked() -> None:
    found = ood.Requests.of(DATA, "test", STRANGE[3:], BEYOND)
    assert [one.id for one in found.outside] == [f"odd{n}" for n in (3, 4, 5, 6, 7, 8, 0, 1, 2)]
    assert len(found.inside) == 18 and found.labels == sorted(LABELS) and found.left_out == 0
    other = Dataset("rows", DATA.train, DATA.validation, [*DATA.test, row("new", "taxes", "taxes")], {})
    assert ood.Requests.of(other, "test", [], BEYOND).left_out == 1
    few = ood.Requests.of(DATA, "test", STRANGE[3:], BEYOND, limit=2)
    assert [len(each) for each in few.asked.values()] == [2, 2, 2]


def test_training_rows_out_of_scope_are_no_label_and_teach_no_distance() -> None:
    data = Dataset("rows", [*DATA.train, *STRANGE[3:]], DATA.validation, DATA.test, {})
    found = ood.Requests.of(data, "test", [], BEYOND)
    assert BEYOND not in found.labels and not {one.id for one in found.train} & {one.id for one in STRANGE}


def test_without_requests_of_both_kinds_nothing_is_measured() -> None:
    with pytest.raises(ConfigError, match="no requests that are out of scope") as refused:
        ood.Requests.of(Dataset("rows", DATA.train, DATA.validation, rows("test", 5), {}), "test", [], BEYOND)
    assert "--out-of-scope FILE" in refused.value.hint
    with pytest.raises(ConfigError, match="The test rows have no request within the scope"):
        ood.Requests.of(Dataset("rows", DATA.train, DATA.validation, STRANGE, {}), "test", [], BEYOND)


def test_a_model_that_knows_its_scope_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    found, samples = measure(Knows(), DATA, tmp_path)
    assert found["schema"] == "edgekit.ood/1" and (found["n"], found["n_out_of_scope"]) == (18, 9)
    scores = {one["name"]: one for one in found["scores"]}
    assert list(scores) == ["max_probability", "max_score", "energy", "abstention", "mahalanobis", "knn"]
    assert all(one["auroc"] == 1 and one["fpr95"] == 0 for one in scores.values()), found["scores"]
    assert found["accuracy"] == 1 and found["as_answered"]["out_of_scope_recall"] == 1
    assert found["hidden_states"] == {"rows": 20, "labels": 3, "width": 6} and found["not_measured"] == {}
    assert [one["scope"] for one in samples] == ["in"] * 18 + ["out"] * 9
    assert (
        all(one["correct"] for one in samples) and samples[-1]["expected"] == samples[-1]["answer"] == BEYOND
    )
    blind, _ = measure(Knows(clear=False), DATA, tmp_path)
    for one in blind["scores"]:
        low, high = one["auroc_95"]
        assert low < 0.75 and high > 0.35 and one["auroc"] < 0.9, one


def test_a_model_that_never_abstains_is_seen_in_its_answers(tmp_path: Path) -> None:
    found, samples = measure(Knows(abstains=False), DATA, tmp_path)
    assert found["as_answered"]["out_of_scope_recall"] == 0 and not samples[-1]["correct"]
    scores = {one["name"]: one for one in found["scores"]}
    assert (
        scores["max_probability"]["auroc"] == 1
        and scores["max_probability"]["thresholds"][2]["out_of_scope_recall"] == 1
    )


def test_without_an_abstaining_answer_or_hidden_states_the_rest_is_measured(tmp_path: Path) -> None:
    class Plain(Knows):
        def hidden_state(self, ids: Sequence[int]) -> None:
            return None

    found, samples = measure(Plain(), DATA, tmp_path, abstaining="")
    assert [one["name"] for one in found["scores"]] == ["max_probability", "max_score", "energy"]
    assert found["as_answered"] is None and found["hidden_states"] is None
    assert set(found["not_measured"]) == {"abstention", "mahalanobis", "knn"}
    assert "fake shows no hidden states" in found["not_measured"]["knn"]
    assert not samples[-1]["correct"]


def test_free_answers_are_measured_by_their_own_likelihood(tmp_path: Path) -> None:
    found, samples = measure(Knows(), FREE, tmp_path)
    assert [one["name"] for one in found["scores"]] == ["max_score", "abstention", "mahalanobis", "knn"]
    assert found["labels"] is None and found["temperature"] is None and found["accuracy"] == 1
    assert set(found["not_measured"]) == {"max_probability", "energy"}
    assert {one["answer"] for one in samples if one["scope"] == "out"} == {BEYOND}
    scores = {one["name"]: one for one in found["scores"]}
    assert scores["abstention"]["auroc"] == 1


class Stops(Knows):
    """Is interrupted once it was asked `left` times."""

    left = 0

    def _ask(self) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1

    def score_answers(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        self._ask()
        return super().score_answers(prompt, answers)

    def hidden_state(self, ids: Sequence[int]) -> NDArray[np.float32] | None:
        self._ask()
        return super().hidden_state(ids)

    def generate_batch(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        self._ask()
        return super().generate_batch(prompts, max_tokens)


@pytest.mark.parametrize("data", [DATA, FREE], ids=["labels", "free answers"])
def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path: Path, data: Dataset) -> None:
    """Interrupted after every 17 questions, it asks no question twice and measures the same as a run at once."""
    requests = ood.Requests.of(data, "test", STRANGE[3:], BEYOND)
    log = tmp_path / "log.jsonl"

    def run(left: int) -> tuple[dict[str, Any], int]:
        model, kept = Stops(), Kept(log, "digest", ignore)
        model.left = left
        found = ood.evaluate(model, requests, fit_rows=20, max_tokens=20, log=log, kept=kept, emit=ignore)
        kept.remove()
        return found, left - model.left

    whole, asked = run(10_000)
    said = log.read_text()
    log.unlink()
    interruptions = 0
    while not log.exists():
        try:
            again, last = run(17)
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 5 and 17 * interruptions + last == asked
    assert again == whole and log.read_text() == said


def test_an_abstaining_answer_longer_than_that_of_the_requests_is_not_cut(tmp_path: Path) -> None:
    long = '{"intent": "out_of_scope", "why": "nothing here is about that"}'

    class Says(Knows):
        def generate_batch(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
            return [self.encode(self._named(prompt) or long)[:max_tokens] for prompt in prompts]

    requests = ood.Requests.of(FREE, "test", STRANGE[3:], long)
    log = tmp_path / "log.jsonl"
    found = ood.evaluate(Says(), requests, fit_rows=0, max_tokens=90, log=log, kept=None, emit=ignore)
    assert found["as_answered"]["out_of_scope_recall"] == 1


def test_the_rows_of_the_distances_are_of_all_labels_alike() -> None:
    many = [*rows("a", 30), *[row(f"w{n}", "w", "weather") for n in range(50)]]
    chosen = [one.answer for one in ood.spread(many, 9)]
    assert (
        sorted(chosen) == sorted(LABELS * 3) and len(ood.spread(many, 500)) == 80 and not ood.spread(many, 0)
    )
