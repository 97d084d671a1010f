"""Calibration of a model's confidence: bins of a reliability diagram and the expected calibration error.

Guo et al., On Calibration of Modern Neural Networks, 2017 <https://arxiv.org/abs/1706.04599>; bins of equal size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Answers of similar confidence: their mean confidence and their accuracy."""

    confidence: float
    accuracy: float
    n: int


def binned(sure: Sequence[tuple[float, bool]]) -> list[Bin]:
    """Confidence and accuracy in up to ten bins with equal numbers of answers, by rising confidence.

    Bins of equal width would put nearly all answers of a tuned model into the last one.
    """
    ordered = sorted(sure)
    count = min(BINS, len(ordered))
    edges = [len(ordered) * index // count for index in range(count + 1)] if count else []
    bins = []
    for start, end in itertools.pairwise(edges):
        part = ordered[start:end]
        confidence = sum(each for each, _ in part) / len(part)
        bins.append(Bin(confidence, sum(right for _, right in part) / len(part), len(part)))
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: the mean difference of confidence and accuracy, weighted by answers."""
    total = sum(each.n for each in bins)
    return sum(each.n * abs(each.confidence - each.accuracy) for each in bins) / max(1, total)
