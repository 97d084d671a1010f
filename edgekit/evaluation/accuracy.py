"""Exact-match accuracy of an opened model on rows with known answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.base.events import Emit, Progress
from edgekit.data.rows import Row
from edgekit.device.prompt import encode_prompt
from edgekit.evaluation.answering import Asked, answered
from edgekit.evaluation.few_shot import FewShot
from edgekit.evaluation.samples import write_log
from edgekit.evaluation.statistics import wilson
from edgekit.registry import Runtime


def evaluate(
    runtime: Runtime,
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

    Returns `accuracy`, `n`, `wilson_95` (interval of the accuracy), `json_match` (share that is equal as JSON, at
    least the accuracy on JSON answers) and `per_label`. `log` gets one JSON object for each row, in the order of the
    rows, completely or not at all. Raises `ConfigError` when there are no rows.
    """
    if not rows:
        raise ConfigError("There are no rows to evaluate.", "Add test rows to --data.")
    template = runtime.chat_template
    prompts = [
        shots.render(row, template)
        if shots
        else template.render(row.messages[:-1], add_generation_prompt=True)
        for row in rows
    ]
    ids = [  # without examples, encoded as an endpoint does, which keeps control tokens in messages as text
        runtime.encode(prompt) if shots else encode_prompt(runtime, row.messages[:-1])
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    asked = [Asked(one, len(runtime.encode(row.answer))) for one, row in zip(ids, rows, strict=True)]
    answers = [""] * len(rows)
    correct = done = 0
    for chunk in answered(runtime, asked, max_tokens):
        for index, answer in chunk.items():
            answers[index] = answer
            correct += answer == rows[index].answer.strip()
        done += len(chunk)
        emit(Progress(stage, done, len(rows), "rows", f"accuracy {correct / done:.1%}"))

    samples: list[dict[str, Any]] = [
        {
            "id": row.id,
            "label": row.label,
            "prompt": prompt,
            "expected": row.answer.strip(),
            "answer": answer,
            "correct": answer == row.answer.strip(),
        }
        for row, prompt, answer in zip(rows, prompts, answers, strict=True)
    ]
    write_log(log, samples)
    return {
        "accuracy": correct / len(rows),
        "n": len(rows),
        "wilson_95": list(wilson(correct, len(rows))),
        "json_match": sum(_same_json(s["expected"], s["answer"]) for s in samples) / len(rows),
        "per_label": _per_label(samples),
        **({"shots": len(shots.examples)} if shots else {}),
    }


def _same_json(expected: str, answer: str) -> bool:
    try:
        return bool(json.loads(expected) == json.loads(answer))
    except (ValueError, RecursionError):
        return False


def _per_label(samples: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    labels = sorted({sample["label"] for sample in samples if sample["label"] is not None})
    result = {}
    for label in labels:
        correct = [sample["correct"] for sample in samples if sample["label"] == label]
        result[label] = {"accuracy": sum(correct) / len(correct), "n": len(correct)}
    return result
