"""Exact-match accuracy of an opened model on rows with known answers, and what changed between two models."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.base.artifacts import written_whole
from edgekit.base.errors import ConfigError, CorruptError
from edgekit.base.events import Emit, Progress
from edgekit.data.rows import Row
from edgekit.registry import Runtime

CHUNK = 24  # prompts answered between two readings of the progress


def evaluate(
    runtime: Runtime, rows: Sequence[Row], *, max_tokens: int, log: Path, emit: Emit, stage: str
) -> dict[str, Any]:
    """Answer every row greedily and compare with its answer, both without surrounding whitespace.

    Rows with answers of like length are asked together, and answers much longer than theirs are cut.

    Returns `accuracy`, `n`, `wilson_95` (interval of the accuracy), `json_match` (share that is equal as JSON, at
    least the accuracy on JSON answers) and `per_label`. `log` gets one JSON object for each row, in the rows'
    order, whole or not at all. Raises `ConfigError` when there are no rows.
    """
    if not rows:
        raise ConfigError("There are no rows to evaluate on.", "Add test rows to --data.")
    template = runtime.chat_template
    prompts = [template.render(row.messages[:-1], add_generation_prompt=True) for row in rows]
    ids = [runtime.encode(prompt) for prompt in prompts]
    expected = [len(runtime.encode(row.answer)) for row in rows]
    by_length = sorted(range(len(rows)), key=lambda index: (expected[index], len(ids[index])))
    answers = [""] * len(rows)
    correct = 0
    for start in range(0, len(rows), CHUNK):
        chunk = by_length[start : start + CHUNK]
        enough = min(max_tokens, cut_after(max(expected[index] for index in chunk)))
        for index, answer in zip(chunk, runtime.generate_batch([ids[i] for i in chunk], enough), strict=True):
            answers[index] = runtime.decode(answer).strip()
            correct += answers[index] == rows[index].answer.strip()
        done = start + len(chunk)
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
    with written_whole(log, force=True) as staging:
        staging.write_text(
            "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples), encoding="utf-8"
        )
    return {
        "accuracy": correct / len(rows),
        "n": len(rows),
        "wilson_95": list(wilson(correct, len(rows))),
        "json_match": sum(_same_json(s["expected"], s["answer"]) for s in samples) / len(rows),
        "per_label": _per_label(samples),
    }


def cut_after(expected: int) -> int:
    """Tokens after which an answer is cut where `expected` are right: it is wrong by then, and may never end."""
    return round(1.25 * expected) + 4


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927), 95 % by default."""
    share, spread = correct / n, z * z / n
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / n + spread / n / 4)
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def compare(first: Path, second: Path) -> dict[str, Any]:
    """What changed between two sample logs of the same rows.

    Returns `n`, the accuracies, the ids that went from right to wrong (`lost`) and from wrong to right (`won`), and
    `mcnemar_p`: the two-sided exact probability of so uneven a split if both models were equally good (McNemar
    1947). Raises `CorruptError` for a malformed log and `ConfigError` when the rows differ.
    """
    a, b = _read_log(first), _read_log(second)
    if a.keys() != b.keys():
        only = sorted(a.keys() ^ b.keys())
        raise ConfigError(
            f"{first} and {second} are logs of different rows; {len(only)} ids are in one only, such as '{only[0]}'.",
            "Evaluate both models on the same rows.",
        )
    lost = [id_ for id_ in a if a[id_] and not b[id_]]
    won = [id_ for id_ in a if b[id_] and not a[id_]]
    return {
        "n": len(a),
        "accuracy_first": sum(a.values()) / len(a),
        "accuracy_second": sum(b.values()) / len(b),
        "lost": lost,
        "won": won,
        "mcnemar_p": mcnemar(len(lost), len(won)),
    }


def mcnemar(lost: int, won: int) -> float:
    """Two-sided exact p of McNemar's test: `lost` against `won` among their sum under a fair coin."""
    n = lost + won
    tail = sum(math.comb(n, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / (1 << n))


def _read_log(path: Path) -> dict[str, bool]:
    try:
        with path.open(encoding="utf-8") as lines:
            samples = [json.loads(line) for line in lines]
        found = {str(sample["id"]): bool(sample["correct"]) for sample in samples}
    except FileNotFoundError:
        raise ConfigError(
            f"There is no sample log {path}.", "Sample logs are in a bundle's folder samples/."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(
            f"{path} is not a whole sample log: {error}", "Evaluate the model again."
        ) from error
    if not found:
        raise CorruptError(f"{path} holds no samples.", "Evaluate the model again.")
    return found


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
