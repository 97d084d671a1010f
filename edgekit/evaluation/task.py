"""How well a model does its task: exact match or constrained choice, JSON answers by their parts, and the worst slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.base.events import Emit
from edgekit.data.rows import Row
from edgekit.evaluation.abstention import abstention
from edgekit.evaluation.accuracy import answer_rows, figures
from edgekit.evaluation.answering import Model
from edgekit.evaluation.failures import failures
from edgekit.evaluation.few_shot import FewShot
from edgekit.evaluation.kept import Kept
from edgekit.evaluation.lm_eval_log import as_lm_eval
from edgekit.evaluation.samples import write_log
from edgekit.evaluation.slices import Slicing, slices, worst
from edgekit.evaluation.slots import slot_figures
from edgekit.registry import AnswersConversations, Runtime

SCHEMA = "edgekit.task/1"
STAGE = "eval"


@dataclass(frozen=True)
class Task:
    """How the rows are asked, and how the answers are counted.

    With `labels`, each answer is the most likely one of them; without, it is generated. `shots` are examples in the prompt.
    Generated samples are also written to `lm_eval`, as lm-evaluation-harness logs them.
    """

    max_tokens: int = 64
    labels: tuple[str, ...] = ()
    shots: FewShot | None = None
    slicing: Slicing = field(default_factory=Slicing)
    lm_eval: Path | None = None
    abstaining: str = ""
    """The answer that says that a request is out of scope; empty where there is none."""


def evaluate(
    model: Model, rows: Sequence[Row], task: Task, *, log: Path, kept: Kept | None, emit: Emit
) -> dict[str, Any]:
    """Answer every row and compare with its answer. Returns the document of schema `edgekit.task/1`.

    `log` gets one JSON object for each row, completely or not at all. Answers in `kept`, or scores of
    the same labels, are not computed again, and it gets the new ones. Raises `ConfigError` without rows, and when no row's answer is one of the labels.
    """
    given = len(rows)
    if task.labels:
        if isinstance(model, AnswersConversations):
            raise ConfigError(
                "An endpoint gives no likelihoods, which a choice needs.",
                "Leave out --choice, or give the model file itself.",
            )
        rows, samples = _chosen(model, rows, task, kept, emit)
    else:
        samples = answer_rows(
            model, rows, max_tokens=task.max_tokens, emit=emit, stage=STAGE, shots=task.shots, kept=kept
        )
    write_log(log, samples)
    if task.lm_eval:
        write_log(task.lm_eval, as_lm_eval(samples, task.max_tokens))
    found = {"schema": SCHEMA, **figures(samples), "json": slot_figures(samples)}
    cut = slices(rows, [sample["correct"] for sample in samples], task.slicing)
    return {
        **found,
        "shots": len(task.shots.examples) if task.shots else 0,
        "labels": len(task.labels),
        "left_out": given - len(rows),
        "slices": cut,
        "worst": worst(cut, found["accuracy"], task.slicing.at_least),
        "slice_rows": task.slicing.at_least,
        "failures": failures(samples),
        "abstention": abstention(samples, task.abstaining),
    }


def _chosen(
    runtime: Runtime, rows: Sequence[Row], task: Task, kept: Kept | None, emit: Emit
) -> tuple[Sequence[Row], list[dict[str, Any]]]:
    """The rows whose answer is one of the labels, and a sample of each with the most likely label."""
    from edgekit.evaluation.choices import samples_of, score
    from edgekit.models.likelihood import probabilities

    scored = score(runtime, rows, task.labels, emit, STAGE, task.shots, kept)
    if not scored.rows:
        raise ConfigError(
            "No answer of the evaluated rows is an answer of the training rows.",
            "Leave out --choice, or use splits with the same labels.",
        )
    return scored.rows, samples_of(scored, probabilities(scored.scores), task.labels)
