"""How far a request is from the training rows, by the hidden state from which the model begins its answer.

Mahalanobis distance: Lee et al. 2018, arXiv 1807.03888, for text Podolskiy et al. 2021, arXiv 2101.03778. Nearest neighbour:
Sun et al. 2022, arXiv 2204.06507, with one neighbour, because a label may have few rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.base.events import Emit, Progress
from edgekit.data.rows import Row
from edgekit.device.prompt import encode_prompt
from edgekit.evaluation.answering import prompt_text
from edgekit.evaluation.kept import Kept
from edgekit.registry import HasHiddenStates, Runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST = 1e-12  # variance of a state that never changes


def states_of(
    runtime: Runtime, rows: Sequence[Row], emit: Emit, stage: str, kept: Kept | None = None
) -> NDArray[np.float64] | None:
    """The hidden states `(N, D)` at the end of the prompts of `rows`; None where the runtime does not show them.

    States in `kept` are not computed again, and it gets the new ones.
    """
    found = []
    for index, row in enumerate(rows):
        prompt = prompt_text(runtime, row.messages[:-1])
        known = kept.value(prompt, None, "state") if kept is not None else None
        if known is not None:
            found.append(np.array(known))
        else:
            ids = encode_prompt(runtime, row.messages[:-1])
            state = runtime.hidden_state(ids) if isinstance(runtime, HasHiddenStates) else None
            if state is None:
                return None
            found.append(state)
            if kept is not None:
                kept.add([{"prompt": prompt, "expected": None, "state": state.tolist()}])
        emit(Progress(stage, index + 1, len(rows), "rows"))
    return np.array(found, np.float64)


def shrunk_covariance(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """The covariance `(D, D)` of `centred (N, D)`, shrunk towards a multiple of the identity.

    Ledoit and Wolf 2004, Journal of Multivariate Analysis 88, 365: with fewer rows than dimensions the plain one cannot be
    inverted.
    """
    count, width = centred.shape
    plain = centred.T @ centred / count
    mean = float(np.trace(plain)) / width
    spread = float(((plain - mean * np.eye(width)) ** 2).sum()) / width
    noise = float(((centred**2).sum(axis=1) ** 2).sum() / count - (plain**2).sum()) / count / width
    share = min(1.0, noise / spread) if spread > 0 else 1.0
    shrunk: NDArray[np.float64] = (1 - share) * plain + share * max(mean, LEAST) * np.eye(width)
    return shrunk


@dataclass(frozen=True)
class TrainingStates:
    """The hidden states of training rows: `whiten (D, D)` gives them unit covariance, `means (C, D)` are those of the labels.

    `directions (N, D)` are the states with length 1.
    """

    whiten: NDArray[np.float64]
    means: NDArray[np.float64]
    directions: NDArray[np.float64]

    @classmethod
    def of(cls, states: NDArray[np.float64], labels: Sequence[str]) -> TrainingStates:
        """From `states (N, D)` of rows with these labels; the labels share one covariance."""
        place = np.unique(np.array(labels, dtype=str), return_inverse=True)[1]
        sums = np.zeros((place.max() + 1, states.shape[1]))
        np.add.at(sums, place, states)
        means = sums / np.bincount(place)[:, None]
        whiten = np.linalg.inv(np.linalg.cholesky(shrunk_covariance(states - means[place]))).T
        return cls(whiten, means @ whiten, _directions(states))

    def mahalanobis(self, states: NDArray[np.float64]) -> NDArray[np.float64]:
        """The negative squared Mahalanobis distance of `states (M, D)` to the nearest mean, `(M,)`."""
        white = states @ self.whiten
        nearest = [float(((self.means - one) ** 2).sum(axis=1).min()) for one in white]
        return -np.array(nearest)

    def nearest(self, states: NDArray[np.float64]) -> NDArray[np.float64]:
        """The largest cosine of `states (M, D)` with a training state, `(M,)`."""
        found: NDArray[np.float64] = (_directions(states) @ self.directions.T).max(axis=1)
        return found


def _directions(states: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), LEAST)
    return found
