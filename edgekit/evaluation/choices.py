"""Constrained choice: the likelihood that a model gives to each of a few answers, and so its confidence in one.

A model that must give one of K labels is asked for none: the likelihood of each label after the prompt is computed, the end of
the answer included, and divided by its number of tokens: `edgekit.device.likelihood.choice_scores`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.base.errors import ConfigError
from edgekit.base.events import Emit, Progress
from edgekit.data.rows import Row
from edgekit.device.likelihood import choice_scores
from edgekit.device.prompt import continued, encode_prompt
from edgekit.evaluation.answering import prompt_text
from edgekit.evaluation.few_shot import FewShot
from edgekit.evaluation.kept import Kept
from edgekit.registry import Runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 200  # candidates; more are free text rather than labels


def candidates(train: Sequence[Row]) -> list[str]:
    """The different answers of the training rows, sorted. Raises `ConfigError` for one or for more than 200."""
    found = sorted({row.answer.strip() for row in train})
    if not 2 <= len(found) <= MOST:
        raise ConfigError(
            f"The training rows have {len(found):,} different answers, and a choice needs 2 to {MOST}.",
            "Use rows whose answers are labels; `edgekit eval task` without --choice measures free answers.",
        )
    return found


@dataclass(frozen=True)
class Scored:
    """The scores of N rows: `scores (N, K)`, nats for each token, of the K candidates, and the place of the right one."""

    rows: tuple[Row, ...]
    scores: NDArray[np.float64]
    right: NDArray[np.int64]


def score(
    runtime: Runtime,
    rows: Sequence[Row],
    labels: Sequence[str],
    emit: Emit,
    stage: str,
    shots: FewShot | None = None,
    kept: Kept | None = None,
) -> Scored:
    """The length-normalised log-likelihood of each of `labels` as the answer to each row.

    Rows whose answer is not one of `labels` are left out. With `shots`, each prompt starts with an explanation and examples.
    The scores in `kept`, which must be of the same labels, are not computed again, and it gets the new ones.
    """
    place = {label: index for index, label in enumerate(labels)}
    known = tuple(row for row in rows if row.answer.strip() in place)
    right = np.array([place[row.answer.strip()] for row in known], np.int64)
    return Scored(known, scores_of(runtime, known, labels, emit, stage, shots, kept), right)


def scores_of(
    runtime: Runtime,
    rows: Sequence[Row],
    labels: Sequence[str],
    emit: Emit,
    stage: str,
    shots: FewShot | None = None,
    kept: Kept | None = None,
) -> NDArray[np.float64]:
    """The same of all rows, whatever their answers are: `(N, K)`."""
    answers = [continued(runtime, label) for label in labels]
    scores = np.empty((len(rows), len(labels)))
    for index, row in enumerate(rows):
        asked = shots.messages(row, runtime.chat_template) if shots else row.messages[:-1]
        prompt = prompt_text(runtime, asked)
        known = kept.value(prompt, None, "scores") if kept is not None else None
        if known is not None:
            scores[index] = known
        else:
            scores[index] = choice_scores(runtime, encode_prompt(runtime, asked), answers)
            if kept is not None:
                best = labels[scores[index].argmax()]
                one = {"prompt": prompt, "expected": None, "answer": best, "scores": scores[index].tolist()}
                kept.add([one])
        emit(Progress(stage, index + 1, len(rows), "rows"))
    return scores


def samples_of(scored: Scored, sure: NDArray[np.float64], labels: Sequence[str]) -> list[dict[str, Any]]:
    """A sample of each row, whose answer is the label with the highest of the probabilities `sure (N, K)`."""
    chosen = sure.argmax(axis=1)
    return [
        {
            "id": row.id,
            "label": row.label,
            "expected": row.answer.strip(),
            "answer": labels[place],
            "correct": labels[place] == row.answer.strip(),
            "confidence": float(sure[index, place]),
            "scores": dict(zip(labels, np.round(scored.scores[index], 6).tolist(), strict=True)),
        }
        for index, (row, place) in enumerate(zip(scored.rows, chosen, strict=True))
    ]
