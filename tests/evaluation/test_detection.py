"""The figures of scores that tell requests apart, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from edgekit.evaluation import detection
from edgekit.evaluation.statistics import auroc

RNG = np.random.default_rng(3)
CASES = {
    "apart": (RNG.normal(2, 1, 200), RNG.normal(0, 1, 90)),
    "near": (RNG.normal(0.3, 1, 70), RNG.normal(0, 2, 300)),
    "the wrong way": (RNG.normal(-1, 1, 50), RNG.normal(0, 1, 50)),
    "with ties": (RNG.integers(1, 5, 120) / 2, RNG.integers(0, 4, 80) / 2),
    "all equal": (np.zeros(7), np.zeros(9)),
    "one each": (np.array([1.0]), np.array([0.5])),
}


@pytest.mark.parametrize("case", CASES)
def test_the_figures_are_those_of_scikit_learn(case: str) -> None:
    inside, outside = CASES[case]
    truth = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    scores = np.r_[inside, outside]
    found = detection.figures(inside, outside)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert found["aupr_in"] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    assert found["aupr_out"] == pytest.approx(average_precision_score(1 - truth, -scores), abs=1e-12)
    false_positive, true_positive, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert found["fpr95"] == pytest.approx(false_positive[true_positive >= 0.95 - 1e-9].min(), abs=1e-12)
    low, high = found["auroc_95"]
    assert 0 <= low < high <= 1 and low <= found["auroc"] <= high


def test_the_interval_of_the_auroc_holds_the_true_value_in_95_of_100_samples() -> None:
    """Of normal scores one unit apart the true value is Phi(1 / sqrt 2) = 0.7602."""
    rng, held = np.random.default_rng(8), 0
    for _ in range(400):
        low, high = auroc(rng.normal(1, 1, 60), rng.normal(0, 1, 40))[1]
        held += low <= 0.7602 <= high
    assert 0.92 <= held / 400 <= 0.98


def test_scores_that_part_all_pairs_still_have_an_interval() -> None:
    area, (low, high) = auroc(np.arange(30.0) + 100, np.arange(20.0))
    assert area == 1 and high == 1 and 0.8 < low < 0.9


def test_a_threshold_refuses_its_share_of_the_validation_rows_and_counts_them_as_wrong() -> None:
    validation, inside = np.arange(100.0), np.arange(0, 100, 2.0)
    outside, right = np.array([-5.0, 0.5, 3.0, 50.0]), np.arange(50) != 40
    first, _, last = detection.at_thresholds(validation, inside, outside, right)
    assert (first["quantile"], last["quantile"]) == (0.01, 0.05)
    assert first["threshold"] == pytest.approx(0.99) and last["threshold"] == pytest.approx(4.95)
    assert first["kept"] == 49 / 50 and first["in_scope_accuracy"] == 48 / 50
    assert last["kept"] == 47 / 50 and last["in_scope_accuracy"] == 46 / 50
    assert first["out_of_scope_recall"] == 2 / 4 and last["out_of_scope_recall"] == 3 / 4
