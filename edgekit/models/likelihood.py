"""How likely a model holds an answer, from its logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log-probabilities of `logits (..., V)`, nats."""
    found = logits.astype(np.float64)
    found -= found.max(axis=-1, keepdims=True)
    found -= np.log(np.exp(found).sum(axis=-1, keepdims=True))
    return found


def probabilities(scores: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    """The softmax of `scores (..., K)` divided by the temperature."""
    found: NDArray[np.float64] = np.exp(log_softmax(scores / temperature))
    return found


def answer_likelihood(rows: NDArray[np.floating], answer: Sequence[int], stops: Sequence[int]) -> float:
    """The log-likelihood in nats of the token ids `answer` and of a stop after it.

    `rows (len(answer) + 1, V)` are the logits after the prompt and after each token of the answer. The stop may be any of the
    ids `stops`; without any, the end does not count.
    """
    sure = log_softmax(rows)
    said = float(sure[np.arange(len(answer)), list(answer)].sum())
    return said + (float(np.log(np.exp(sure[-1][list(stops)]).sum())) if stops else 0.0)
