"""`edgekit eval robust`: what noise, other phrasings and a search for slips do to a model's answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edgekit.base.errors import ConfigError
from edgekit.commands import shell
from edgekit.commands.artifact import model_file
from edgekit.commands.evaluate import LOG_HELP, ScopeOptions, show


def register(parent: typer.Typer) -> None:
    """Add `robust` to `parent`, the group `eval`."""
    parent.command("robust")(robust)


@dataclass(frozen=True, kw_only=True)
class RobustOptions(ScopeOptions):
    """The options of `eval robust`."""

    families: Annotated[
        str,
        typer.Option(
            "--families", metavar="NAMES", help="Families of noise, such as typos,case. Default: all ten."
        ),
    ] = ""
    strength: Annotated[
        float, typer.Option("--strength", min=0.0, max=1.0, help="Share of the words that noise changes.")
    ] = 0.2
    seed: Annotated[int, typer.Option("--seed", help="Seed of the noise.")] = 7
    adversarial: Annotated[
        bool,
        typer.Option(
            "--adversarial", help="Search for slips that change a right answer, instead of drawing noise."
        ),
    ] = False
    queries: Annotated[
        int, typer.Option("--queries", min=4, help="Most texts asked for each row by --adversarial.")
    ] = 60
    out: Annotated[Path, typer.Option("--out", "-o", help=LOG_HELP)] = Path("robustness.jsonl")


@shell.takes(RobustOptions)
def robust(options: RobustOptions) -> None:
    """Measure what accuracy loses under noise and in other phrasings of the task, and log every sample.

    A run that was interrupted goes on from its last answers when the same command is typed again.
    """
    if options.adversarial:
        if options.families:
            raise ConfigError(
                "--adversarial searches instead of drawing the noise of --families.", "Leave out one of them."
            )
        if options.abstain != "auto":
            raise ConfigError("--adversarial counts no abstentions.", "Leave out --abstain or --adversarial.")
        model_file(options.artifact)  # a URL gives no likelihoods
        _search(options)
        return
    from edgekit.evaluation import robust as evaluation
    from edgekit.report.evaluation_tables import robustness_table

    noise = evaluation.Noise.of(options.families, options.strength, options.seed)
    dataset = options.dataset()
    rows = options.rows_of(dataset)
    asking = evaluation.Asking(options.max_tokens, options.abstaining(dataset))
    with options.resumed() as (emit, log, model, kept):
        result = evaluation.evaluate(model, rows, noise, asking, log=log, kept=kept, emit=emit)
    show(options, result | options.about(dataset, model), robustness_table)


def _search(options: RobustOptions) -> None:
    """Search for slips in the rows that are answered rightly; at most `--strength` of their words change."""
    from edgekit.evaluation.adversarial import Search, evaluate
    from edgekit.report.evaluation_tables import adversarial_table

    search = Search(options.queries, options.strength, options.seed)
    dataset = options.dataset()
    rows = options.rows_of(dataset)
    with options.log() as (emit, log, runtime):
        kept = options.kept(runtime, emit, search.queries, search.share, search.seed)
        most = options.max_tokens
        result = evaluate(runtime, rows, search, max_tokens=most, log=log, kept=kept, emit=emit)
    kept.remove()
    show(options, result | options.about(dataset, runtime), adversarial_table)
