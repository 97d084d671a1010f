"""`edgekit eval task`: how well a model file does its task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edgekit.base.errors import ConfigError
from edgekit.commands import shell
from edgekit.commands.artifact import model_file
from edgekit.commands.evaluate import ScopeOptions, show


def register(parent: typer.Typer) -> None:
    """Add `task` to `parent`, the group `eval`."""
    parent.command("task")(task)


@dataclass(frozen=True, kw_only=True)
class TaskOptions(ScopeOptions):
    """The options of `eval task`."""

    choice: Annotated[
        bool,
        typer.Option(
            "--choice", help="Take the most likely of the training rows' answers, instead of a generated one."
        ),
    ] = False
    shots: Annotated[
        int,
        typer.Option(
            "--shots", min=0, help="Training rows shown as examples in each prompt, as many as fit it."
        ),
    ] = 0
    slices: Annotated[
        str,
        typer.Option(
            "--slices", metavar="COLUMNS", help="Columns of the data whose values are measured separately."
        ),
    ] = ""
    slice_rows: Annotated[
        int, typer.Option("--slice-rows", min=1, help="Fewest rows of a slice named among the worst.")
    ] = 10
    lm_eval: Annotated[
        Path | None,
        typer.Option("--lm-eval", help="Another log to write, in the form of lm-evaluation-harness."),
    ] = None


@shell.takes(TaskOptions)
def task(options: TaskOptions) -> None:
    """Measure the accuracy on the rows of a split, in all and in slices, and log every sample.

    A run that was interrupted goes on from its last answers when the same command is typed again.
    """
    from edgekit.base.events import Alert
    from edgekit.evaluation import few_shot
    from edgekit.evaluation.choices import candidates
    from edgekit.evaluation.slices import Slicing
    from edgekit.evaluation.task import Task, evaluate
    from edgekit.report.task_table import task_table

    if options.lm_eval and options.choice:
        raise ConfigError(
            "--lm-eval logs generated answers, and --choice generates none.", "Leave out one of them."
        )
    if options.choice or options.shots:
        model_file(options.artifact)  # a URL gives no likelihoods, and shows no tokens
    if options.lm_eval and options.lm_eval.resolve() == options.out.resolve():
        raise ConfigError("--out and --lm-eval name the same file.", "Give them two names.")
    slicing = Slicing.of(options.slices, options.slice_rows)
    dataset = options.dataset(slicing.keep)
    rows = options.rows_of(dataset)
    slicing.check(rows)
    labels = tuple(candidates(dataset.train)) if options.choice else ()
    with _lm_eval_log(options) as other, options.resumed(*labels) as (emit, log, model, kept):
        shots = None
        if options.shots:
            shots = few_shot.prepare(
                model, dataset.train, rows, options.max_tokens, few_shot.CONTEXT, options.shots
            )
            if len(shots.examples) < options.shots:
                emit(
                    Alert(
                        "warning",
                        f"{len(shots.examples)} examples are shown, not {options.shots}: no more fit the prompt, or the "
                        "training rows are fewer.",
                    )
                )
        beyond = options.abstaining(dataset)
        asked = Task(options.max_tokens, labels, shots, slicing, other, beyond)
        result = evaluate(model, rows, asked, log=log, kept=kept, emit=emit)
    show(options, result | options.about(dataset, model), task_table)


@contextmanager
def _lm_eval_log(options: TaskOptions) -> Iterator[Path | None]:
    """The new log of `--lm-eval` to write; None without it."""
    from edgekit.base.artifacts import written_whole

    if options.lm_eval is None:
        yield None
        return
    with written_whole(
        options.lm_eval, inputs=options.inputs, force=options.force, file=True, option="--lm-eval"
    ) as log:
        yield log
