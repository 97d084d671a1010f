"""Whether a model is as often right as it is sure: bins of a reliability diagram and the expected calibration error.

Guo et al., On Calibration of Modern Neural Networks, 2017 <https://arxiv.org/abs/1706.04599>; bins of like many answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Answers of like confidence: how sure the model was on average, and how often it was right."""

    confidence: float
    accuracy: float
    n: int


def binned(sure: Sequence[tuple[float, bool]]) -> list[Bin]:
    """Confidences and whether they were right in up to ten bins of like many answers, the least sure first.

    Bins of like width would put nearly all answers of a tuned model into the last one.
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
    """The expected calibration error: how far confidence and accuracy are apart, weighted by answers."""
    total = sum(each.n for each in bins)
    return sum(each.n * abs(each.confidence - each.accuracy) for each in bins) / max(1, total)
