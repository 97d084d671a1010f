"""How sure a bundle is of an answer that is one of its labels, and whether a request is in its scope, by what its build fitted.

The confidence is the probability of the answer among the labels: the softmax of their scores
(`edgekit.device.likelihood.choice_scores`) divided by the temperature of this format. Temperature scaling: Guo et al. 2017,
arXiv 1706.04599. A request is out of scope when the largest score is below a threshold: `max_score` in `edgekit.evaluation.ood`,
which tells such requests apart better than the largest probability.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgekit.base.errors import ConfigError, CorruptError
from edgekit.device.likelihood import choice_scores
from edgekit.device.manifest import COPY, check_files
from edgekit.device.prompt import continued
from edgekit.models.likelihood import probabilities
from edgekit.registry import Runtime

Minimum = float | Literal["auto"]
"""The lowest confidence of an answer that is given: a number, or that of the bundle itself."""
FILE = "calibration.json"
SCHEMA = "edgekit.bundle.calibration/1"
MOST_LABELS = 200  # more would be scored for minutes
HINT = (
    "Leave out --min-confidence and --refuse-out-of-scope, or build the bundle again: where the answers are 2 to 32 labels, a "
    "build writes a calibration into it."
)


@dataclass(frozen=True)
class Refusal:
    """What is not given: answers of a lower confidence than `minimum`, and with `out_of_scope` any to a request out of scope."""

    minimum: Minimum = 0.0
    out_of_scope: bool = False


@dataclass(frozen=True)
class Verdict:
    """The confidence in an answer, None where it is none of the labels, and whether its request is in scope, None if not asked.

    `why` no answer is given is a sentence; it is empty where one is given.
    """

    confidence: float | None
    in_scope: bool | None = None
    why: str = ""

    @property
    def abstained(self) -> bool:
        """Whether no answer is given."""
        return bool(self.why)

    @property
    def fields(self) -> dict[str, Any]:
        """What a JSON document tells."""
        return {"confidence": self.confidence, "abstained": self.abstained, "in_scope": self.in_scope}


@dataclass(frozen=True)
class Calibration:
    """The labels that are the answers of a task, and the temperature of one format on it.

    At most 5 % of the validation rows in scope have a confidence below `threshold`, and at most 5 % a largest score below
    `scope_threshold`, nats for each token, among the labels that are not `abstaining`: those mean "out of scope". The thresholds
    are None in bundles of edgekit before they were stored.
    """

    labels: tuple[str, ...]
    temperature: float
    threshold: float | None = None
    scope_threshold: float | None = None
    abstaining: tuple[str, ...] = ()

    def limits(self, asked: Refusal) -> tuple[float, float | None]:
        """The lowest confidence with which an answer is given, and the lowest score of a request in scope; None for any.

        Raises `ConfigError` for a threshold that this calibration does not have.
        """
        lowest = asked.minimum if asked.minimum != "auto" else self.threshold
        if lowest is None:
            raise ConfigError(
                "The calibration of this bundle has no threshold of its own, which --min-confidence auto takes.",
                "Give a number, such as --min-confidence 0.8, or build the bundle again.",
            )
        if not asked.out_of_scope:
            return lowest, None
        if self.scope_threshold is None:
            raise ConfigError(
                "The calibration of this bundle has no threshold of the score, which --refuse-out-of-scope takes.",
                "Leave it out, or build the bundle again: a build with validation rows in scope writes one.",
            )
        return lowest, self.scope_threshold

    def judge(self, runtime: Runtime, prompt: Sequence[int], answer: str | None, asked: Refusal) -> Verdict:
        """How sure the model is of `answer` to a prompt of token ids, None if it was cut, and whether it is given.

        An answer that is none of the labels is given only where no confidence is asked for. Raises as `limits`.
        """
        lowest, scope = self.limits(asked)
        said = None if answer is None else answer.strip()
        confidence, in_scope, why = None, None, ""
        if said in self.labels or scope is not None:
            scores = choice_scores(runtime, prompt, [continued(runtime, label) for label in self.labels])
        if said in self.labels:
            confidence = float(probabilities(scores, self.temperature)[self.labels.index(said)])
        if scope is not None:
            largest = float(scores[[label not in self.abstaining for label in self.labels]].max())
            if said in self.abstaining:
                why = "the model itself answers that the request is out of scope"
            elif not largest >= scope:  # also where it is no number
                why = (
                    f"the request is out of scope, as the largest score of {largest:.3f} is below {scope:.3f}"
                )
            in_scope = not why
        if not why and (confidence or 0.0) < lowest:
            why = (
                "what the model says is not one of the labels of its task"
                if confidence is None
                else f"the confidence of {confidence:.1%} is below {lowest:.1%}"
            )
        return Verdict(confidence, in_scope, why and f"No answer is given: {why}.")


def read_calibration(folder: Path, manifest: Mapping[str, Any], format: str) -> Calibration | None:
    """The calibration of one format of a bundle; None where it has none, as bundles of free answers and older ones.

    Raises `CorruptError` when the file differs from the manifest or is malformed.
    """
    if not any(entry.get("path") == FILE for entry in manifest["files"]):
        return None
    check_files(folder, manifest, FILE)
    path = folder / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise CorruptError(f"{path} is not of schema {SCHEMA}.", "Use the edgekit version that wrote it.")
        entry = document["formats"].get(format)
        return None if entry is None else _calibration(entry)
    except (
        OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError, RecursionError,
    ) as error:  # fmt: skip
        raise CorruptError(f"{path} is not the calibration of a bundle.", COPY) from error


def _calibration(entry: Mapping[str, Any]) -> Calibration:
    labels, temperature = tuple(entry["labels"]), float(entry["temperature"])
    if (
        not 2 <= len(set(labels)) <= MOST_LABELS
        or len(set(labels)) < len(labels)
        or not all(isinstance(one, str) for one in labels)
    ):
        raise ValueError("the labels are not 2 to 200 different texts")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError("the temperature is not a positive number")
    threshold, scope = entry.get("threshold"), entry.get("scope_threshold")
    abstaining = entry.get("abstaining", [])
    if threshold is not None and not 0 <= float(threshold) <= 1:
        raise ValueError("the threshold is not between 0 and 1")
    if scope is not None and not -math.inf < float(scope) <= 0:
        raise ValueError("the threshold of the score is not a finite log-likelihood")
    if not isinstance(abstaining, list) or not set(abstaining) <= set(labels):
        raise ValueError("the abstaining answers are not a list of labels")
    if scope is not None and set(abstaining) == set(labels):
        raise ValueError("no label is left to have a score")
    return Calibration(
        labels,
        temperature,
        None if threshold is None else float(threshold),
        None if scope is None else float(scope),
        tuple(abstaining),
    )
