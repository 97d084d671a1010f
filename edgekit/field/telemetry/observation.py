"""What is kept of one answer, and how sure the model was while it gave it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WATCHED = (
    16  # tokens of an answer whose distributions are looked at: 0.1 ms each, under 1 % of computing them
)


@dataclass(frozen=True, slots=True)
class Observation:
    """One answered request: numbers and names of classes, never the words of prompt or answer.

    `time` is when it ended, Unix seconds. `confidence` is the geometric mean of the probability of the likeliest
    token and `entropy` the mean entropy, nats, over the first tokens; `unknown_rate` is the share of the prompt's tokens
    that the rows it was tuned on never use; `label` is the class of the answer. What is not known is None.
    """

    time: float
    release: str
    format: str
    operation: str
    prompt_tokens: int
    answer_tokens: int
    queue_s: float
    ttft_s: float | None
    duration_s: float
    confidence: float | None = None
    entropy: float | None = None
    unknown_rate: float | None = None
    label: str | None = None
    finish: str = "stop"
    """`stop`, `length`, `cancelled` or `error`."""
    error: str | None = None
    """The kind of error, such as `StageError`."""


class Certainty:
    """Adds up how sure the model is of its first tokens; `look` is a `LogitsProcessor` that changes nothing."""

    def __init__(self) -> None:
        self._tokens = 0
        self._log_top = 0.0
        self._entropy = 0.0

    def look(self, ids: Sequence[int], logits: NDArray[np.float32]) -> None:
        """Read the distribution `(V,)` of the next token."""
        if self._tokens == WATCHED:
            return
        shifted = logits - logits.max()
        weights = np.exp(shifted)
        total = float(weights.sum())
        np.maximum(shifted, -1e4, out=shifted)  # a forbidden token's minus infinity times zero is no number
        self._tokens += 1
        self._log_top -= math.log(total)
        self._entropy += math.log(total) - float(weights @ shifted) / total

    @property
    def confidence(self) -> float | None:
        """Geometric mean of the likeliest token's probability."""
        return math.exp(self._log_top / self._tokens) if self._tokens else None

    @property
    def entropy(self) -> float | None:
        """Mean entropy, nats."""
        return self._entropy / self._tokens if self._tokens else None
