"""Distances to the training rows, against scikit-learn, and requests that are planted far away."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from edgekit.evaluation.hidden_states import TrainingStates, shrunk_covariance

RNG = np.random.default_rng(5)
MIX = RNG.normal(size=(24, 24))
CENTRES = 4 * RNG.normal(size=(3, 24))
PLACE = np.arange(90) % 3
STATES = CENTRES[PLACE] + RNG.normal(size=(90, 24)) @ MIX / 5
LABELS = [f"label {place}" for place in PLACE]


@pytest.mark.parametrize(("rows", "width"), [(200, 12), (40, 60), (3, 5)])
def test_the_covariance_is_that_of_scikit_learn(rows: int, width: int) -> None:
    centred = RNG.normal(size=(rows, width)) @ RNG.normal(size=(width, width))
    expected = LedoitWolf(assume_centered=True).fit(centred).covariance_
    np.testing.assert_allclose(shrunk_covariance(centred), expected, rtol=1e-9, atol=1e-9)


def test_the_distance_is_to_the_nearest_mean_with_one_covariance() -> None:
    means = np.array([STATES[PLACE == label].mean(axis=0) for label in range(3)])
    oracle = LedoitWolf(assume_centered=True).fit(STATES - means[PLACE])
    asked = RNG.normal(size=(10, 24)) * 3
    expected = [min((one - mean) @ oracle.precision_ @ (one - mean) for mean in means) for one in asked]
    found = TrainingStates.of(STATES, LABELS).mahalanobis(asked)
    np.testing.assert_allclose(-found, expected, rtol=1e-6)


def test_the_nearest_neighbour_is_that_of_scikit_learn() -> None:
    asked = RNG.normal(size=(10, 24))
    distances, _ = NearestNeighbors(n_neighbors=1, metric="cosine").fit(STATES).kneighbors(asked)
    np.testing.assert_allclose(
        TrainingStates.of(STATES, LABELS).nearest(asked), 1 - distances[:, 0], atol=1e-9
    )


def test_what_is_far_from_every_label_scores_low() -> None:
    trained = TrainingStates.of(STATES, LABELS)
    near, far = CENTRES + 0.1, 3 * RNG.normal(size=(3, 24))
    assert trained.mahalanobis(near).min() > trained.mahalanobis(far).max()
    assert trained.nearest(near).min() > trained.nearest(far).max()


def test_states_that_never_change_give_no_error() -> None:
    trained = TrainingStates.of(np.zeros((4, 6)), ["a", "b", "a", "b"])
    assert np.isfinite(trained.mahalanobis(np.ones((2, 6)))).all() and trained.nearest(np.ones((1, 6))) == 0
