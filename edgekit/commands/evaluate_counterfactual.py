"""`edgekit eval counterfactual`: answers that change with a name, a pronoun or a spelling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edgekit.commands import shell
from edgekit.commands.evaluate import LOG_HELP, LoggedOptions, show


def register(parent: typer.Typer) -> None:
    """Add `counterfactual` to `parent`, the group `eval`."""
    parent.command("counterfactual")(counterfactual)


@dataclass(frozen=True, kw_only=True)
class CounterfactualOptions(LoggedOptions):
    """The options of `eval counterfactual`."""

    seed: Annotated[int, typer.Option("--seed", help="Seed of the names that are drawn.")] = 7
    out: Annotated[Path, typer.Option("--out", "-o", help=LOG_HELP)] = Path("counterfactual.jsonl")


@shell.takes(CounterfactualOptions)
def counterfactual(options: CounterfactualOptions) -> None:
    """Count the answers that change when names, pronouns and spellings are swapped, and log every sample.

    A run that was interrupted goes on from its last answers when the same command is typed again.
    """
    from edgekit.evaluation.counterfactual import evaluate
    from edgekit.report.evaluation_tables import counterfactual_table

    dataset = options.dataset()
    rows = options.rows_of(dataset)
    with options.resumed() as (emit, log, model, kept):
        most, seed = options.max_tokens, options.seed
        result = evaluate(model, rows, seed=seed, max_tokens=most, log=log, kept=kept, emit=emit)
    show(options, result | options.about(dataset, model), counterfactual_table)
