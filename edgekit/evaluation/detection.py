"""How well a score tells the requests within the scope of a task from all others.

A higher score means that a request is more likely within the scope. Figures as in Hendrycks and Gimpel 2017, arXiv 1610.02136.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.evaluation.statistics import auroc, wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUANTILES = (0.01, 0.02, 0.05)
KEPT = 0.95


def average_precision(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> float:
    """The mean precision over the recalled positives, without interpolation; higher scores are more positive."""
    scores = np.concatenate([positive, negative])
    is_positive = np.arange(len(scores)) < len(positive)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are on one side of every threshold
    hits = np.cumsum(is_positive[order])[last]
    precision = hits / (np.flatnonzero(last) + 1)
    return float(np.diff(hits, prepend=0) @ precision) / len(positive)


def passed_at(inside: NDArray[np.floating], outside: NDArray[np.floating], kept: float = KEPT) -> float:
    """The share of `outside` that passes the highest threshold that the share `kept` of `inside` passes."""
    enough = math.ceil(kept * len(inside) - 1e-9)
    threshold = np.sort(inside)[::-1][enough - 1]
    return float((outside >= threshold).mean())


def figures(inside: NDArray[np.floating], outside: NDArray[np.floating]) -> dict[str, Any]:
    """What a score is worth without a threshold: `auroc`, `aupr_in` and `aupr_out`, and `fpr95`.

    `aupr_in` takes the requests within the scope as positive, `aupr_out` the others; both depend on how many there are of each.
    `fpr95` is the share of the others that passes where 95 % of those within the scope do.
    """
    area, interval = auroc(inside, outside)
    return {
        "auroc": area,
        "auroc_95": list(interval),
        "aupr_in": average_precision(inside, outside),
        "aupr_out": average_precision(-outside, -inside),
        "fpr95": passed_at(inside, outside),
    }


def at_thresholds(
    validation: NDArray[np.floating],
    inside: NDArray[np.floating],
    outside: NDArray[np.floating],
    right: NDArray[np.bool_],
    quantiles: Sequence[float] = QUANTILES,
) -> list[dict[str, Any]]:
    """What becomes of the accuracy and of requests out of scope when each score below a threshold is refused.

    The threshold is a quantile of the scores of `validation`. A row within the scope that is refused counts as wrong.
    """
    found = []
    for quantile in quantiles:
        threshold = float(np.quantile(validation, quantile))
        kept, refused = inside >= threshold, outside < threshold
        found.append(
            {
                "quantile": quantile,
                "threshold": threshold,
                "kept": float(kept.mean()),
                **pair(kept & right, refused),
            }
        )
    return found


def pair(right: NDArray[np.bool_], refused: NDArray[np.bool_]) -> dict[str, Any]:
    """The accuracy on rows within the scope, and the share of the others that is refused, with their intervals."""
    return {
        "in_scope_accuracy": float(right.mean()),
        "in_scope_95": list(wilson(int(right.sum()), len(right))),
        "out_of_scope_recall": float(refused.mean()),
        "out_of_scope_95": list(wilson(int(refused.sum()), len(refused))),
    }
