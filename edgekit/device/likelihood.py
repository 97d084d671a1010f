"""How likely an opened model holds given answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekit.models.likelihood import answer_likelihood
from edgekit.registry import Runtime, ScoresAnswers

if TYPE_CHECKING:
    from numpy.typing import NDArray


def likelihoods(runtime: Runtime, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
    """The log-likelihood in nats of each of `answers`, each with a stop after it, as the answer to `prompt`.

    A runtime that can score answers itself computes the prompt once; for others it is computed with each answer.
    """
    if isinstance(runtime, ScoresAnswers):
        return runtime.score_answers(prompt, answers)
    stops = sorted(runtime.stop_ids)
    return [
        answer_likelihood(runtime.logits([*prompt, *answer], len(prompt) - 1), answer, stops)
        for answer in answers
    ]


def choice_scores(
    runtime: Runtime, prompt: Sequence[int], answers: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """The likelihoods `(K,)` of K answers divided by their numbers of tokens with the stop, nats for each token.

    Without the division a short answer would be preferred to a long one; lm-evaluation-harness divides for `acc_norm`.
    """
    tokens = np.array([len(answer) + 1 for answer in answers])
    found: NDArray[np.float64] = np.array(likelihoods(runtime, prompt, answers)) / tokens
    return found
