"""Exact-match accuracy of an opened model on rows with known answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.base.events import Emit, Progress
from edgekit.data.rows import Row
from edgekit.evaluation.answering import Model, fill, sample_of
from edgekit.evaluation.few_shot import FewShot
from edgekit.evaluation.kept import Kept
from edgekit.evaluation.samples import write_log
from edgekit.evaluation.statistics import wilson
from edgekit.registry import AnswersConversations


def evaluate(
    model: Model,
    rows: Sequence[Row],
    *,
    max_tokens: int,
    log: Path,
    emit: Emit,
    stage: str,
    shots: FewShot | None = None,
) -> dict[str, Any]:
    """Answer every row greedily and compare with its answer, both without surrounding whitespace.

    Rows with answers of similar length are asked together, and much longer answers are cut. With `shots`, each prompt
    starts with an explanation of the task and examples; the result then has the number of examples as `shots`.

    Returns `figures`. `log` gets one JSON object for each row, in the order of the rows, completely or not at all. Raises
    `ConfigError` when there are no rows.
    """
    samples = answer_rows(model, rows, max_tokens=max_tokens, emit=emit, stage=stage, shots=shots)
    write_log(log, samples)
    return {**figures(samples), **({"shots": len(shots.examples)} if shots else {})}


def answer_rows(
    model: Model,
    rows: Sequence[Row],
    *,
    max_tokens: int,
    emit: Emit,
    stage: str,
    shots: FewShot | None = None,
    kept: Kept | None = None,
) -> list[dict[str, Any]]:
    """A sample of each row, with the model's answer. Answers in `kept` are not asked again, and it gets the new ones.

    Raises `ConfigError` when there are no rows.
    """
    if not rows:
        raise ConfigError("There are no rows to evaluate.", "Add test rows to --data.")
    template = None if isinstance(model, AnswersConversations) else model.chat_template
    conversations = [shots.messages(row, template) if shots else row.messages[:-1] for row in rows]
    samples = [sample_of(model, row, messages) for row, messages in zip(rows, conversations, strict=True)]
    done = 0
    for count in fill(model, samples, conversations, max_tokens, kept):
        done += count
        correct = sum(sample.get("correct", False) for sample in samples)
        emit(Progress(stage, done, len(rows), "rows", f"accuracy {correct / done:.1%}"))
    return samples


def figures(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The accuracy of answered samples: `accuracy`, `n`, `wilson_95`, `json_match` and `per_label`.

    `wilson_95` is the interval of the accuracy, and `json_match` the share that is equal as JSON, which is at least the
    accuracy on answers in JSON.
    """
    correct = sum(sample["correct"] for sample in samples)
    return {
        "accuracy": correct / len(samples),
        "n": len(samples),
        "wilson_95": list(wilson(correct, len(samples))),
        "json_match": sum(_same_json(s["expected"], s["answer"]) for s in samples) / len(samples),
        "per_label": _per_label(samples),
    }


def _same_json(expected: str, answer: str) -> bool:
    try:
        return bool(json.loads(expected) == json.loads(answer))
    except (ValueError, RecursionError):
        return False


def _per_label(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    labels = sorted({sample["label"] for sample in samples if sample["label"] is not None})
    result = {}
    for label in labels:
        correct = [sample["correct"] for sample in samples if sample["label"] == label]
        result[label] = {"accuracy": sum(correct) / len(correct), "n": len(correct)}
    return result
