"""`eval task`: what an answer is worth by its parts, and in which slices a model is worst."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fake_runtime import FakeRuntime

from edgekit.base.errors import ConfigError, CorruptError
from edgekit.base.events import ignore
from edgekit.data.rows import Row
from edgekit.evaluation.compare import compare
from edgekit.evaluation.kept import Kept
from edgekit.evaluation.samples import read_scored
from edgekit.evaluation.slices import Slicing, slices, worst
from edgekit.evaluation.slots import slot_figures
from edgekit.evaluation.task import Task, evaluate


def row(number: int, question: str, answer: str, label: str | None = None, **more: str) -> Row:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Row(str(number), messages, label, more=more)


def sample(expected: Any, answer: str) -> dict[str, Any]:
    return {"expected": json.dumps(expected), "answer": answer}


def test_a_wrong_slot_costs_its_share_and_a_broken_answer_all_of_it() -> None:
    expected = {"intent": "book", "slots": {"day": "mon", "guests": 2}}
    right, wrong = json.dumps(expected), '{"slots": {"guests": 3, "day": "mon"}, "intent": "book"}'
    found = slot_figures([sample(expected, right)] * 4)
    assert found and (found["f1"], found["precision"], found["recall"], found["valid"]) == (1, 1, 1, 1)
    assert found["f1_95"][0] < 0.9 and found["f1_95"][1] == pytest.approx(
        1
    )  # four rows do not show that it is perfect
    found = slot_figures([sample(expected, wrong)])
    assert found and found["f1"] == pytest.approx(2 / 3) and found["valid"] == 1
    found = slot_figures([sample(expected, right), sample(expected, right[:-1])])
    assert found and (found["precision"], found["recall"], found["valid"]) == (1, 0.5, 0.5)
    assert found["f1"] == pytest.approx(2 / 3) and found["f1_95"][0] < 2 / 3 < found["f1_95"][1]


def test_types_nesting_and_repeated_items_count_and_order_does_not() -> None:
    def f1(expected: Any, answer: Any) -> float:
        found = slot_figures([sample(expected, json.dumps(answer))])
        assert found
        return float(found["f1"])

    assert f1({"a": 1, "b": ["x", "y"]}, {"b": ["y", "x"], "a": 1}) == 1
    assert f1({"a": 1}, {"a": "1"}) == f1({"a": 1}, {"a": True}) == f1({"a": 1}, {"b": 1}) == 0
    assert f1({"a": ["x"]}, {"a": ["x", "x"]}) == pytest.approx(2 / 3)
    assert f1({"a": {"b": 1}}, {"a": 1}) == f1({"a": {"b": 1}}, {"b": 1}) == 0


def test_only_rows_with_objects_have_parts() -> None:
    assert slot_figures([{"expected": "yes", "answer": "{}"}, {"expected": "[1]", "answer": "[1]"}]) is None
    found = slot_figures([sample({"a": 1}, '{"a": NaN}'), {"expected": "yes", "answer": "yes"}])
    assert found and (found["n"], found["valid"], found["f1"]) == (1, 0, 0)


def test_the_worst_slice_is_the_planted_one_and_small_slices_are_not_named() -> None:
    rows = [
        row(n, "word " * (1 + n % 8), "x", "ab"[n % 2], language="de" if n % 5 == 0 else "en")
        for n in range(100)
    ]
    rows += [row(n, "word " * 40, "x") for n in range(100, 103)]
    right = [r.more.get("language") == "en" for r in rows]
    found = slices(rows, right, Slicing())
    assert [one["by"] for one in found] == sorted(
        (one["by"] for one in found), key=["label", "words", "language"].index
    )
    by_words = [one for one in found if one["by"] == "words"]
    assert sum(one["n"] for one in by_words) == 103 and by_words[-1]["value"].endswith("to 40")
    named = worst(found, 80 / 103, 10)
    assert (named[0]["by"], named[0]["value"], named[0]["n"], named[0]["accuracy"]) == (
        "language",
        "de",
        20,
        0,
    )
    assert named[0]["wilson_95"][0] == 0 and 0.1 < named[0]["wilson_95"][1] < 0.2
    assert all(one["accuracy"] < 80 / 103 for one in named)
    assert all(one["n"] >= 30 for one in worst(found, 80 / 103, 30))


def test_a_column_that_no_row_has_is_refused() -> None:
    rows = [row(1, "q", "a", source="web"), row(2, "q", "a")]
    Slicing.of("source", 5).check(rows)
    with pytest.raises(ConfigError, match="column 'sorce'"):
        Slicing.of(" source , sorce", 5).check(rows)
    found = slices(rows, [True, False], Slicing.of("source", 1))
    assert [(one["value"], one["n"]) for one in found if one["by"] == "source"] == [("web", 1)]


@dataclass
class Prefers(FakeRuntime):
    """Half a nat for each token of an answer that the prompt holds, and one for each of another."""

    def score_answers(self, prompt: Any, answers: Any) -> list[float]:
        asked = self.decode(prompt)
        return [-(len(answer) + 1) * (0.5 if self.decode(answer) in asked else 1) for answer in answers]


def test_a_choice_takes_the_likeliest_label_for_its_length(tmp_path: Path) -> None:
    """Of "a rather long label" and "no", the sum prefers the short one; each token of the long one is likelier."""
    rows = [row(n, "this is a rather long label", "a rather long label") for n in range(3)]
    rows += [row(3, "no", "no"), row(4, "anything", "not a label")]
    task = Task(labels=("a rather long label", "no"), slicing=Slicing(at_least=1))
    found = evaluate(Prefers(), rows, task, log=tmp_path / "log", kept=None, emit=ignore)
    assert (found["accuracy"], found["n"], found["left_out"], found["labels"]) == (1, 4, 1, 2)
    json.dumps(found, allow_nan=False)
    with pytest.raises(ConfigError, match="answer of the training rows"):
        evaluate(Prefers(), rows[4:], task, log=tmp_path / "log", kept=None, emit=ignore)


def test_an_interrupted_choice_goes_on_with_its_scores(tmp_path: Path) -> None:
    """Of two labels for four rows, the scores of three rows are kept; other labels are scored anew."""

    class Stops(Prefers):
        left = 3

        def score_answers(self, prompt: Any, answers: Any) -> list[float]:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().score_answers(prompt, answers)

    rows = [row(n, f"{'yes' if n % 2 else 'no'}, is it {n}?", "yes") for n in range(4)]
    log, task = tmp_path / "log", Task(labels=("no", "yes"))

    def of(model: FakeRuntime, name: str = "digest") -> dict[str, Any]:
        kept = Kept(log, name, ignore)
        found = evaluate(model, rows, task, log=log, kept=kept, emit=ignore)
        kept.remove()
        return found

    whole = of(Prefers())
    said = log.read_text()
    with pytest.raises(KeyboardInterrupt):
        of(Stops())
    again = Stops()
    again.left = 1
    assert of(again) == whole and log.read_text() == said and whole["accuracy"] == 0.5
    with pytest.raises(KeyboardInterrupt):
        of(Stops(), "of other labels")
    assert [path.name for path in tmp_path.iterdir() if path != log] == ["log.part"]


def test_other_columns_do_not_change_what_a_row_is() -> None:
    one = row(1, "q", "a", language="de")
    assert one == replace(one, more={})


@dataclass
class Yes(FakeRuntime):
    """Says yes to everything."""

    def generate_batch(self, prompts: Any, max_tokens: int) -> list[list[int]]:
        return [self.encode("yes") for _ in prompts]


def test_a_log_in_the_form_of_lm_eval_holds_the_same_results(tmp_path: Path) -> None:
    rows = [row(n, f"question {n}", "yes" if n % 3 else "no", "ab"[n % 2]) for n in range(12)]
    own, other = tmp_path / "own", tmp_path / "other"
    found = evaluate(Yes(), rows, Task(9, lm_eval=other), log=own, kept=None, emit=ignore)
    assert read_scored(other) == read_scored(own) and compare(own, other)["difference_points"] == 0
    lines = [json.loads(line) for line in other.read_text().splitlines()]
    assert sum(line["exact_match"] for line in lines) / 12 == found["accuracy"]
    first = lines[0]
    assert (
        first["doc_id"] == 0
        and first["target"] == "no"
        and first["resps"] == [["yes"]] == [first["filtered_resps"]]
    )
    assert first["arguments"]["gen_args_0"]["arg_0"] == json.loads(own.read_text().splitlines()[0])["prompt"]


def test_logs_of_lm_eval_itself_are_read(tmp_path: Path) -> None:
    log = tmp_path / "samples_gsm8k.jsonl"
    lines = [
        {
            "doc_id": n,
            "doc": {"question": "q"},
            "filter": name,
            "exact_match": value,
            "metrics": ["exact_match"],
        }
        for n in range(2)
        for name, value in (("strict-match", float(n)), ("flexible-extract", 1.0))
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(one.key, one.correct) for one in read_scored(log)] == [
        ("0 (strict-match)", False), ("0 (flexible-extract)", True),
        ("1 (strict-match)", True), ("1 (flexible-extract)", True),
    ]  # fmt: skip
    log.write_text(json.dumps({"doc_id": 3, "doc": {}, "filter": "none", "acc": True}) + "\n")
    assert [(one.key, one.correct) for one in read_scored(log)] == [("3", True)]
    log.write_text(json.dumps({"doc_id": 3, "doc": {}, "perplexity": 3.0}) + "\n")
    with pytest.raises(CorruptError, match="no 'exact_match'"):
        read_scored(log)
