"""The rows of robust tuning: noise, other phrasings, twins, and requests out of scope, anew in every epoch.

Each epoch has every training row once: as it is, noisy, in another frame, or beside its noisy twin, whose answer the
consistency term then holds to the row's own. What becomes of a row depends on the seed, its id and the epoch alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from edgekit.data import out_of_scope
from edgekit.data.noise import noisy
from edgekit.data.phrasings import PHRASINGS
from edgekit.data.rows import Row
from edgekit.targets.target import Robustness, Tune

Example = tuple[Row, ...]
VALIDATION = "validation"
TYPOS = "typos"
LEAST = 0.2  # of the largest strength


def epochs_of(rows: Sequence[Row], options: Tune, answer: str) -> list[list[Example]]:
    """The examples of each epoch: one row, or a row and its noisy twin. Every epoch has as many.

    `answer` is that to requests out of scope; with an empty one, there are none.
    """
    robustness = options.robustness
    count = round(robustness.out_of_scope_share * len(rows)) if answer else 0
    beyond = out_of_scope.unlike(rows) if count else []
    epochs = []
    for epoch in range(math.ceil(options.epochs)):
        seed = f"{options.seed}:{epoch}"
        found = [_example(row, robustness, f"{seed}:{row.id}") for row in rows]
        asked = out_of_scope.rows_out_of_scope(rows, beyond, answer, count, seed)
        epochs.append([*found, *((_varied(row, robustness, f"{seed}:{row.id}"),) for row in asked)])
    return epochs


def validation_of(rows: Sequence[Row], options: Tune) -> list[Row]:
    """The validation rows, every other one with noise, so that the best checkpoint is the best on both."""
    robustness = options.robustness
    if not robustness.noise:
        return list(rows)
    return [
        _with_noise(row, robustness, Random(f"{VALIDATION}:{options.seed}:{row.id}")) if place % 2 else row
        for place, row in enumerate(rows)
    ]


def _example(row: Row, options: Robustness, seed: str) -> Example:
    random = Random(seed)
    if options.consistency > 0 and options.noise and random.random() < options.paired_share:
        return (row, _phrased(_with_noise(row, options, random), options, random))
    return (_varied(row, options, seed),)


def _varied(row: Row, options: Robustness, seed: str) -> Row:
    random = Random(f"varied:{seed}")
    if options.noise and random.random() < options.noisy_share:
        row = _with_noise(row, options, random)
    return _phrased(row, options, random)


def _with_noise(row: Row, options: Robustness, random: Random) -> Row:
    """The row with one family of noise, or with two.

    Half of the rows get typos, because what breaks words into other tokens is the hardest, of whatever family.
    """
    count = min(len(options.noise), random.choice((1, 1, 2)))
    families = random.sample(options.noise, count)
    if TYPOS in options.noise and TYPOS not in families and random.random() < 0.5:
        families[0] = TYPOS
    for family in families:
        strength = random.uniform(LEAST * options.strength, options.strength)
        row = noisy(row, family, str(random.random()), strength, held_out=False)
    return row


def _phrased(row: Row, options: Robustness, random: Random) -> Row:
    if random.random() >= options.phrased_share:
        return row
    return random.choice([each for each in PHRASINGS if not each.held_out]).of(row)
