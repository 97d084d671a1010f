"""How likely an opened model holds given answers."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.models.likelihood import answer_likelihood
from edgekit.registry import Runtime, ScoresAnswers


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
