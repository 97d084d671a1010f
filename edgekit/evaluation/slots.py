"""Answers that are JSON objects: whether they are valid, and how many of their keys and values are right.

The F1 is micro-averaged over all pairs of a path and a value, as in slot filling (Tjong Kim Sang and De Meulder 2003, CoNLL).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgekit.evaluation.statistics import percentile_interval, resampled_sums, wilson

Pair = tuple[tuple[str, ...], str]


def slot_figures(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The figures of the samples whose expected answer is a JSON object; None without any.

    `n` counts them; `valid` is the share of answers that are JSON objects, and `f1`, `precision` and `recall` count pairs.
    An answer that is no JSON object has no pairs. `f1_95` is a bootstrap interval over the samples; where it has no width,
    that of a mean of as many values.
    """
    import numpy as np

    objects = [
        (expected, json_object(sample["answer"]))
        for sample in samples
        if (expected := json_object(sample["expected"])) is not None
    ]
    if not objects:
        return None
    counts = np.array([_counts(expected, answer) for expected, answer in objects], float)
    valid = sum(answer is not None for _, answer in objects)
    right, given, wanted = counts.sum(axis=0).tolist()
    f1 = _ratio(2 * right, given + wanted)
    drawn = resampled_sums(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        interval = percentile_interval(2 * drawn[:, 0] / (drawn[:, 1] + drawn[:, 2]))
    if not interval.low < interval.high < float("inf"):
        interval = wilson(f1 * len(objects), len(objects))
    return {
        "n": len(objects),
        "valid": valid / len(objects),
        "valid_95": list(wilson(valid, len(objects))),
        "f1": f1,
        "f1_95": list(interval),
        "precision": _ratio(right, given),
        "recall": _ratio(right, wanted),
    }


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is; None for anything else, such as NaN or Infinity in it, which JSON does not have."""
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def pairs(value: Any, path: tuple[str, ...] = ()) -> Iterator[Pair]:
    """Each value within an object with its path of keys; the items of a list have one path, so their order does not count."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from pairs(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from pairs(inner, (*path, "[]"))
    else:
        yield path, json.dumps(value)


def _counts(expected: dict[str, Any], answer: dict[str, Any] | None) -> tuple[int, int, int]:
    """How many pairs are right, are in the answer, and are expected."""
    wanted, given = Counter(pairs(expected)), Counter(pairs(answer or {}))
    return (wanted & given).total(), given.total(), wanted.total()


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _refuse(name: str) -> None:
    raise ValueError(name)
