"""Counterfactual swaps: answers that change with a name, a pronoun or a spelling, and should not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.base.events import Emit, Progress
from edgekit.data.counterfactual import KINDS, Swapped, swapped
from edgekit.data.noise import last_question
from edgekit.data.rows import Row
from edgekit.evaluation.accuracy import answer_rows
from edgekit.evaluation.answering import Model, fill, sample_of
from edgekit.evaluation.kept import Kept
from edgekit.evaluation.samples import write_log
from edgekit.evaluation.statistics import wilson

SCHEMA = "edgekit.counterfactual/1"
STAGE = "eval.counterfactual"
CLEAN = "clean"
EXAMPLES = 10


def evaluate(
    model: Model, rows: Sequence[Row], *, seed: int, max_tokens: int, log: Path, kept: Kept, emit: Emit
) -> dict[str, Any]:
    """Ask the rows that have such words as they are and with them swapped. Returns `edgekit.counterfactual/1`.

    `log` gets one JSON object for each asked row and kind, completely or not at all. Answers in `kept` are not asked again, and
    it gets the new ones. Raises `ConfigError` when no row has such a word.
    """
    changed: dict[str, list[Swapped | None]] = {
        kind: [swapped(row, kind, seed) for row in rows] for kind in KINDS
    }
    having = [row for row, *others in zip(rows, *changed.values(), strict=True) if any(others)]
    if not having:
        raise ConfigError(
            f"None of the {len(rows)} rows has a name, a pronoun or a spelling that can be swapped.",
            "Use more rows (--limit 0), or another split.",
        )
    samples = [
        {**sample, "variant": CLEAN, "swaps": []}
        for sample in answer_rows(model, having, max_tokens=max_tokens, emit=emit, stage=STAGE, kept=kept)
    ]
    for kind, others in changed.items():
        asked = [one for one in others if one is not None]
        part = [
            sample_of(model, one.row, variant=kind, swaps=[list(pair) for pair in one.words]) for one in asked
        ]
        done = 0
        for count in fill(model, part, [one.row.messages[:-1] for one in asked], max_tokens, kept):
            done += count
            emit(Progress(STAGE, done, len(asked), "answers", kind))
        samples += [
            {**sample, "question": last_question(one.row)} for sample, one in zip(part, asked, strict=True)
        ]
    write_log(log, samples)
    return {"schema": SCHEMA, "seed": seed, "n": len(rows), "asked": len(having), **figures(samples)}


def figures(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each kind and of all: the swapped rows, the share of answers that changed, and rights lost and won."""
    clean = {sample["id"]: sample for sample in samples if sample["variant"] == CLEAN}
    swaps = [sample for sample in samples if sample["variant"] != CLEAN]
    parts = {kind: [sample for sample in swaps if sample["variant"] == kind] for kind in KINDS}
    changed = [sample for sample in swaps if sample["answer"] != clean[sample["id"]]["answer"]]
    return {
        "all": _figures(swaps, clean),
        "kinds": [
            {"name": kind, "about": KINDS[kind].about, **_figures(part, clean)}
            for kind, part in parts.items()
        ],
        "examples": [
            {
                **{key: sample[key] for key in ("id", "variant", "swaps", "question", "expected", "answer")},
                "before": clean[sample["id"]]["answer"],
            }
            for sample in changed[:EXAMPLES]
        ],
    }


def _figures(part: Sequence[Mapping[str, Any]], clean: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    pairs = [(clean[sample["id"]], sample) for sample in part]
    changed = sum(before["answer"] != after["answer"] for before, after in pairs)
    return {
        "n": len(pairs),
        "changed": changed / len(pairs) if pairs else None,
        "changed_95": list(wilson(changed, len(pairs))),
        "lost": sum(before["correct"] and not after["correct"] for before, after in pairs),
        "won": sum(after["correct"] and not before["correct"] for before, after in pairs),
    }
