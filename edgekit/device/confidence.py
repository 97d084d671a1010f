"""How sure a bundle is of an answer that is one of its labels, with the temperature that its build fitted.

The confidence is the probability of the answer among the labels: the softmax of their scores
(`edgekit.device.likelihood.choice_scores`) divided by the temperature of this format. Temperature scaling: Guo et al. 2017,
arXiv 1706.04599.
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
    "Leave out --min-confidence, or build the bundle again: where the answers are 2 to 32 labels, a build writes a "
    "calibration into it."
)


@dataclass(frozen=True)
class Calibration:
    """The labels that are the answers of a task, and the temperature of one format on it.

    At most 5 % of the validation rows in scope have a confidence below `threshold`; it is None in bundles of edgekit before it
    was stored.
    """

    labels: tuple[str, ...]
    temperature: float
    threshold: float | None = None

    def minimum(self, asked: Minimum) -> float:
        """The lowest confidence as a number. Raises `ConfigError` for `auto` without a threshold."""
        if not isinstance(asked, str):
            return asked
        if self.threshold is None:
            raise ConfigError(
                "The calibration of this bundle has no threshold of its own, which --min-confidence auto takes.",
                "Give a number, such as --min-confidence 0.8, or build the bundle again.",
            )
        return self.threshold

    def confidence(self, runtime: Runtime, prompt: Sequence[int], answer: str) -> float | None:
        """The probability of `answer` to `prompt` among the labels; None for an answer that is none of them."""
        answer = answer.strip()
        if answer not in self.labels:
            return None
        scores = choice_scores(runtime, prompt, [continued(runtime, label) for label in self.labels])
        return float(probabilities(scores, self.temperature)[self.labels.index(answer)])


@dataclass(frozen=True)
class Verdict:
    """The confidence in an answer, None where it is none of the labels, and whether it is too low to be given."""

    confidence: float | None
    abstained: bool

    @property
    def fields(self) -> dict[str, Any]:
        """Both, for a JSON document."""
        return {"confidence": self.confidence, "abstained": self.abstained}

    def why(self, minimum: float) -> str:
        """Why no answer is given, in a sentence."""
        if self.confidence is None:
            return "No answer is given: what the model says is not one of the labels of its task."
        return f"No answer is given: the confidence of {self.confidence:.1%} is below {minimum:.1%}."

    @classmethod
    def of(cls, confidence: float | None, minimum: float) -> Verdict:
        """An answer is given from the confidence `minimum` on; one without a confidence only where nothing is asked for."""
        return cls(confidence, (confidence or 0.0) < minimum)


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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
    threshold = entry.get("threshold")
    if threshold is not None and not 0 <= float(threshold) <= 1:
        raise ValueError("the threshold is not between 0 and 1")
    return Calibration(labels, temperature, None if threshold is None else float(threshold))
