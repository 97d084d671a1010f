"""Calibration: whether a model that is 90 % sure is right in 90 % of the cases, and what it gains by answering only when sure.

Expected calibration error: Naeini et al. 2015 (AAAI) with bins of equal width, Nguyen and O'Connor 2015 (EMNLP) with bins of
equal mass. Temperature: Guo et al. 2017, arXiv 1706.04599. Risk and coverage: Geifman and El-Yaniv 2017, arXiv 1705.08500.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.base.errors import ConfigError
from edgekit.base.events import Emit
from edgekit.data.rows import Row
from edgekit.evaluation.choices import Scored, samples_of, score
from edgekit.evaluation.kept import Kept
from edgekit.evaluation.samples import write_log
from edgekit.evaluation.statistics import wilson
from edgekit.models.likelihood import log_softmax, probabilities
from edgekit.registry import Runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = "edgekit.calibration/1"
BELOW = 0.05  # share of the rows in scope that each threshold of a device may refuse
BINS = 15
RISKS = (0.01, 0.02)
COLDEST, HOTTEST = 1e-3, 1e3
GRID = 61  # temperatures, ten for each power of ten
GOLDEN = (math.sqrt(5) - 1) / 2


def evaluate(
    runtime: Runtime,
    validation: Sequence[Row],
    rows: Sequence[Row],
    labels: Sequence[str],
    *,
    log: Path,
    kept: Kept | None,
    emit: Emit,
) -> dict[str, Any]:
    """Choose one of `labels` for each of `rows`, and compare confidence with truth; the temperature is that of `validation`.

    `log` gets one JSON object for each row, completely or not at all. Scores in `kept`, of the same labels, are not computed
    again, and it gets the new ones. Returns the document of schema
    `edgekit.calibration/1`. Raises `ConfigError` when no row's answer is one of the labels.
    """
    fitted_on = score(runtime, validation, labels, emit, "eval.validation", kept=kept)
    scored = score(runtime, rows, labels, emit, "eval.calibration", kept=kept)
    for found, of in ((fitted_on, "validation"), (scored, "evaluated")):
        if not found.rows:
            raise ConfigError(
                f"No answer of the {of} rows is an answer of the training rows.",
                "Use splits with the same labels.",
            )
    temperature = fit_temperature(fitted_on.scores, fitted_on.right)
    sure = probabilities(scored.scores, temperature)
    write_log(log, samples_of(scored, sure, labels))
    return {
        "schema": SCHEMA,
        "n": len(scored.rows),
        "left_out": len(rows) - len(scored.rows),
        "labels": len(labels),
        "temperature": temperature,
        "validation_rows": len(fitted_on.rows),
        "before": figures(probabilities(scored.scores, 1.0), scored.right),
        "after": figures(sure, scored.right),
    }


def fitted(scored: Scored, covered: Sequence[bool], within: Sequence[bool]) -> dict[str, Any]:
    """The `temperature` of `scored`, the number of its `rows`, and their figures `before` and `after` it.

    `covered (K,)` says which candidates do not mean "out of scope", and `within (N,)` which rows are in scope: those of the
    `threshold` of the confidence, and of the `scope_threshold` of the largest score among the covered candidates, `max_score` in
    `edgekit.evaluation.ood`. Both are None where no row is in scope.
    """
    temperature = fit_temperature(scored.scores, scored.right)
    sure, inside = probabilities(scored.scores, temperature), np.array(within, bool)
    largest = scored.scores.max(axis=1, where=np.array(covered, bool), initial=-np.inf)
    return {
        "threshold": threshold(sure.max(axis=1)[inside]) if inside.any() else None,
        "scope_threshold": threshold(largest[inside]) if inside.any() else None,
        "temperature": temperature,
        "rows": len(scored.rows),
        "before": figures(probabilities(scored.scores, 1.0), scored.right),
        "after": figures(sure, scored.right),
    }


def fit_temperature(scores: NDArray[np.float64], right: NDArray[np.int64]) -> float:
    """The temperature that makes the right answers of N rows likeliest, between 0.001 and 1000.

    It has the smallest cross-entropy to a right answer that counts as `(N + 1) / (N + 2)` certain: where every row is answered
    rightly, the smallest loss would else be at temperature zero, with complete confidence in wrong answers too (Platt 1999,
    Probabilistic Outputs for Support Vector Machines, section 2.2). A grid of temperatures finds the neighbourhood of the
    minimum, and a golden-section search the minimum in it.
    """
    doubt = 1 / (len(scores) + 2)
    is_right = np.eye(len(scores[0]), dtype=bool)[right]

    def loss(logarithm: float) -> float:
        sure = log_softmax(scores / math.exp(logarithm))
        wrong = np.logaddexp.reduce(np.where(is_right, -np.inf, sure), axis=1)
        return (1 - doubt) * nll(sure, right) - doubt * float(wrong.mean())

    grid = np.linspace(math.log(COLDEST), math.log(HOTTEST), GRID).tolist()
    place = int(np.argmin([loss(logarithm) for logarithm in grid]))
    low, high = grid[max(place - 1, 0)], grid[min(place + 1, GRID - 1)]
    for _ in range(60):
        left, middle = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, middle) if loss(left) <= loss(middle) else (left, high)
    return math.exp((low + high) / 2)


def threshold(values: NDArray[np.float64]) -> float:
    """The largest of the values `(N,)` below which at most 5 % of them are."""
    return float(np.quantile(values, BELOW, method="lower"))


def nll(log_sure: NDArray[np.float64], right: NDArray[np.int64]) -> float:
    """The mean negative log-probability of the right answers, nats."""
    return float(-log_sure[np.arange(len(right)), right].mean())


def figures(sure: NDArray[np.float64], right: NDArray[np.int64]) -> dict[str, Any]:
    """Every figure of probabilities `sure (N, K)` of K candidates, of which `right (N,)` is the right one.

    `brier` is the squared error summed over the candidates (Brier 1950). `reliability` holds the bins of equal width.
    """
    confidence, correct = sure.max(axis=1), sure.argmax(axis=1) == right
    count = len(right)
    truth = np.eye(sure.shape[1])[right]
    floor = np.log(np.maximum(sure, np.finfo(float).tiny))
    width = _bins(np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1), confidence, correct)
    order = np.argsort(confidence, kind="stable")
    mass = np.empty(count, int)
    mass[order] = np.arange(count) * BINS // count
    return {
        "accuracy": float(correct.mean()),
        "wilson_95": list(wilson(int(correct.sum()), count)),
        "confidence": float(confidence.mean()),
        "ece": _error(width, count),
        "ece_equal_mass": _error(_bins(mass, confidence, correct), count),
        "brier": float(((sure - truth) ** 2).sum(axis=1).mean()),
        "nll": nll(floor, right),
        **selective(confidence, correct),
        "reliability": width,
    }


def _bins(
    places: NDArray[np.int64], confidence: NDArray[np.float64], correct: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """The bins that hold rows: their number of rows, mean confidence and accuracy."""
    return [
        {
            "n": int(chosen.sum()),
            "confidence": float(confidence[chosen].mean()),
            "accuracy": float(correct[chosen].mean()),
        }
        for place in range(BINS)
        if (chosen := places == place).any()
    ]


def _error(bins: Sequence[dict[str, Any]], count: int) -> float:
    """The mean difference of confidence and accuracy, weighted by the rows of each bin."""
    return float(sum(one["n"] * abs(one["confidence"] - one["accuracy"]) for one in bins)) / count


def selective(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> dict[str, Any]:
    """What is gained by answering the surest rows only.

    `aurc` is the mean error over all coverages, `coverage_at_risk` the largest share of rows that can be answered with at most
    that error. Rows of equal confidence are answered together, with their mean error.
    """
    order = np.argsort(-confidence, kind="stable")
    _, group = np.unique(-confidence[order], return_inverse=True)
    wrong = ~correct[order]
    mean = (np.bincount(group, wrong) / np.bincount(group))[group]
    risk = np.cumsum(mean) / np.arange(1, len(mean) + 1)
    last = np.append(group[1:] != group[:-1], True)  # a threshold lies between different confidences only
    return {
        "aurc": float(risk.mean()),
        "coverage_at_risk": {
            f"{limit:g}": float(max((place + 1 for place in np.flatnonzero(last & (risk <= limit + 1e-12))), default=0))
            / len(risk)
            for limit in RISKS
        },
    }  # fmt: skip
