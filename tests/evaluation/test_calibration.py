"""Confidence: every figure against a second computation, and a model whose confidence is planted."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runtime import FakeRuntime
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from edgekit.base.errors import ConfigError
from edgekit.base.events import ignore
from edgekit.data.rows import Row
from edgekit.evaluation import calibration
from edgekit.evaluation.choices import Scored, candidates, score

RNG = np.random.default_rng(11)
SCORES = RNG.normal(0, 2, (300, 4))
RIGHT = np.array([RNG.choice(4, p=softmax(row / 2.5)) for row in SCORES])  # surer than it may be by 2.5


def row(id_: str, answer: str, question: str = "q") -> Row:
    return Row(id_, ({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


# The likelihood of answers


def by_hand(table: NDArray[np.float32], start: int, answer: bytes) -> float:
    """The mean log-probability of the bytes of `answer` and of the stop 258 after the token `start`."""
    found, last = 0.0, start
    for token in [*answer, 258]:
        found += float(log_softmax(table[last].astype(float))[token])
        last = token
    return found / (len(answer) + 1)


def test_the_score_of_a_label_is_its_mean_log_probability_with_the_end() -> None:
    runtime, labels = FakeRuntime(), ["no", "yes", "yes sir"]
    found = score(runtime, [row("1", "yes"), row("2", "unknown"), row("3", " no\n")], labels, ignore, "stage")
    assert [one.id for one in found.rows] == ["1", "3"] and found.right.tolist() == [1, 0]
    last = runtime.encode("assistant\n")[-1]
    expected = [by_hand(runtime.table, last, label.encode()) for label in labels]
    assert found.scores == pytest.approx(np.array([expected, expected]), abs=1e-5)


def test_any_stop_ends_an_answer() -> None:
    one, two = FakeRuntime(), FakeRuntime(stop_ids=frozenset({256, 258}))
    scores = [score(each, [row("1", "a")], ["a", "b"], ignore, "s").scores[0, 0] for each in (one, two)]
    sure = softmax(one.table[ord("a")].astype(float))
    assert 2 * (scores[1] - scores[0]) == pytest.approx(
        math.log((sure[256] + sure[258]) / sure[258]), abs=1e-5
    )


def test_a_runtime_that_scores_answers_itself_is_asked_once_for_a_row() -> None:
    calls = []

    @dataclass
    class Scores(FakeRuntime):
        def score_answers(self, prompt: list[int], answers: list[list[int]]) -> list[float]:
            calls.append(len(answers))
            return [-3.0, -8.0]

    found = score(Scores(), [row("1", "a"), row("2", "bbb")], ["a", "bbb"], ignore, "s")
    assert calls == [2, 2] and found.scores.tolist() == [[-1.5, -2.0]] * 2


@pytest.mark.parametrize("count", [1, 201])
def test_free_answers_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"{count} different answers, and a choice needs 2 to 200"):
        candidates([row(str(n), f"answer {n}") for n in range(count)])
    assert candidates([row("1", "b"), row("2", " a "), row("3", "b")]) == ["a", "b"]


# Figures


def test_the_temperature_is_the_one_of_the_least_loss() -> None:
    found = calibration.fit_temperature(SCORES, RIGHT)

    wrong = np.eye(4)[RIGHT] == 0

    def loss(inverse: float) -> float:
        sure = softmax(SCORES * inverse, axis=1)
        is_wrong = (sure * wrong).sum(axis=1)  # a right answer counts as 301 / 302 certain
        return -float((301 / 302 * np.log(1 - is_wrong) + np.log(is_wrong) / 302).mean())

    assert 1 / found == pytest.approx(minimize_scalar(loss, bounds=(1e-2, 1e1), method="bounded").x, rel=1e-3)
    assert 1.7 < found < 3.6
    assert calibration.fit_temperature(4 * SCORES, RIGHT) == pytest.approx(4 * found, rel=1e-4)


@pytest.mark.parametrize("count", [16, 64, 1000])
def test_rows_that_are_all_right_leave_some_doubt(count: int) -> None:
    """Without it the best temperature would be zero, and every answer, a wrong one too, completely certain."""
    scores = np.tile([0.0, -1.0, -2.0, -3.0], (count, 1)) + RNG.normal(0, 0.1, (count, 4))
    found = calibration.fit_temperature(scores, np.zeros(count, int))
    doubt = 1 - calibration.probabilities(scores, found).max(axis=1).mean()
    assert found > 0.05 and doubt == pytest.approx(1 / (count + 2), rel=0.3)


def ece_by_hand(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], edges: NDArray[np.float64]
) -> float:
    found = 0.0
    for low, high in pairwise(edges):
        inside = [place for place, value in enumerate(confidence) if low < value <= high]
        if inside:
            found += len(inside) / len(confidence) * abs(
                sum(confidence[inside]) / len(inside) - sum(correct[inside]) / len(inside)
            )  # fmt: skip
    return found


def test_the_figures_are_those_of_their_definitions() -> None:
    sure = softmax(SCORES, axis=1)
    found = calibration.figures(sure, RIGHT)
    confidence, correct = sure.max(axis=1), sure.argmax(axis=1) == RIGHT
    assert found["accuracy"] == pytest.approx(correct.mean())
    assert found["ece"] == pytest.approx(ece_by_hand(confidence, correct, np.linspace(0, 1, 16)))
    ordered = np.sort(confidence)
    edges = np.array([0.0, *(ordered[20 * place - 1] for place in range(1, 16))])  # 300 rows in 15 bins of 20
    assert found["ece_equal_mass"] == pytest.approx(ece_by_hand(confidence, correct, edges))
    brier = np.mean([sum((sure[n, k] - (k == RIGHT[n])) ** 2 for k in range(4)) for n in range(300)])
    assert found["brier"] == pytest.approx(brier)
    assert found["nll"] == pytest.approx(-np.log(sure[np.arange(300), RIGHT]).mean())
    assert sum(one["n"] for one in found["reliability"]) == 300
    order = sorted(range(300), key=lambda n: -confidence[n])
    risks = [1 - np.mean([correct[n] for n in order[: count + 1]]) for count in range(300)]
    assert found["aurc"] == pytest.approx(np.mean(risks))
    for limit in (0.01, 0.02):
        covered = max((n + 1 for n in range(300) if risks[n] <= limit), default=0) / 300
        assert found["coverage_at_risk"][f"{limit:g}"] == pytest.approx(covered)


def test_the_temperature_mends_what_is_planted() -> None:
    before = calibration.figures(calibration.probabilities(SCORES, 1), RIGHT)
    after = calibration.figures(calibration.probabilities(SCORES, 2.5), RIGHT)
    assert before["ece"] > 0.2 and after["ece"] < 0.1 and after["nll"] < before["nll"]
    assert after["accuracy"] == before["accuracy"]


def test_certain_and_right_or_certain_and_wrong() -> None:
    sure = np.array([[1.0, 0.0]] * 10)
    right = calibration.figures(sure, np.zeros(10, int))
    assert [right[key] for key in ("ece", "ece_equal_mass", "brier", "aurc")] == [0, 0, 0, 0] and right[
        "nll"
    ] == 0
    assert right["coverage_at_risk"] == {"0.01": 1, "0.02": 1}
    wrong = calibration.figures(sure, np.ones(10, int))
    assert [wrong[key] for key in ("ece", "ece_equal_mass", "brier", "aurc")] == [1, 1, 2, 1]
    assert wrong["coverage_at_risk"] == {"0.01": 0, "0.02": 0} and math.isfinite(wrong["nll"])


def test_rows_of_equal_confidence_are_answered_together() -> None:
    """No threshold parts them, so their order in the file must not matter."""
    confidence, correct = np.full(4, 0.5), np.array([True, True, False, True])
    for order in ([0, 1, 2, 3], [2, 0, 1, 3]):
        found = calibration.selective(confidence, correct[order])
        assert found == {"aurc": 0.25, "coverage_at_risk": {"0.01": 0, "0.02": 0}}
    apart = calibration.selective(np.array([0.9, 0.9, 0.2, 0.2]), np.array([True, True, False, True]))
    assert apart["coverage_at_risk"]["0.01"] == 0.5 and apart["aurc"] == pytest.approx(
        (0 + 0 + 0.5 / 3 + 0.25) / 4
    )


def test_the_document_and_the_log(tmp_path: Path) -> None:
    rows = [row(str(n), "yes" if n % 3 else "no") for n in range(12)] + [row("other", "perhaps")]
    found: dict[str, Any] = calibration.evaluate(
        FakeRuntime(), rows[:6], rows, ["no", "yes"], log=tmp_path / "log.jsonl", kept=None, emit=ignore
    )
    json.dumps(found, allow_nan=False)
    assert found["schema"] == "edgekit.calibration/1" and (found["n"], found["left_out"]) == (12, 1)
    samples = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert found["after"]["accuracy"] == np.mean([one["correct"] for one in samples]) in (4 / 12, 8 / 12)
    one = samples[0]
    sure = softmax(np.array(list(one["scores"].values())) / found["temperature"])
    assert one["confidence"] == pytest.approx(sure.max(), abs=1e-4) and one["answer"] in ("yes", "no")
    with pytest.raises(ConfigError, match="No answer of the validation rows"):
        calibration.evaluate(
            FakeRuntime(), rows[-1:], rows, ["no", "yes"], log=tmp_path / "x", kept=None, emit=ignore
        )


def test_the_scope_threshold_is_of_the_rows_in_scope_and_of_the_labels_that_they_have() -> None:
    scores = np.array([[-1.0, -2.0, -0.1], [-3.0, -0.5, -0.1], [-9.0, -9.0, -0.1]])
    scored = Scored((row("1", "a"), row("2", "b"), row("3", "oos")), scores, np.array([0, 1, 2]))
    found = calibration.fitted(scored, [True, True, False], [True, True, False])
    assert found["scope_threshold"] == -1.0 and found["rows"] == 3
    sure = softmax(scores / found["temperature"], axis=1).max(axis=1)
    assert found["threshold"] == pytest.approx(min(sure[:2]))
    without = calibration.fitted(scored, [True, True, False], [False] * 3)
    assert without["scope_threshold"] is without["threshold"] is None and without["after"] == found["after"]
