"""`edgekit eval ood`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edgekit.commands import shell
from edgekit.commands.artifact import Artifact
from edgekit.commands.evaluate import LOG_HELP, ScopeOptions, show


def register(app: typer.Typer) -> None:
    """Add `ood` to the verbs of `eval`."""
    app.command("ood")(ood)


@dataclass(frozen=True, kw_only=True)
class OodOptions(ScopeOptions):
    """The options of `eval ood`."""

    artifact: Artifact  # a URL gives no likelihoods
    out_of_scope: Annotated[
        Path | None,
        typer.Option(
            "--out-of-scope",
            metavar="FILE",
            help="Requests that the task does not cover: one on each line, or a file of rows.",
        ),
    ] = None
    fit_rows: Annotated[
        int,
        typer.Option(
            "--fit-rows", min=0, help="Number of training rows whose hidden states are read; 0 reads none."
        ),
    ] = 400
    out: Annotated[Path, typer.Option("--out", "-o", help=LOG_HELP)] = Path("ood.jsonl")

    @property
    def inputs(self) -> list[Path]:
        """The model file, the rows, and the requests out of scope."""
        return [*super().inputs, *([self.out_of_scope] if self.out_of_scope else [])]


@shell.takes(OodOptions)
def ood(options: OodOptions) -> None:
    """Measure whether a model's scores tell requests that are out of scope from the rows of a split.

    Rows whose labels say that they are out of scope count as such, beside those of --out-of-scope. A run that was interrupted goes on
    from its last scores when the same command is typed again.
    """
    from edgekit.data.out_of_scope_file import read_requests
    from edgekit.evaluation import ood as evaluation
    from edgekit.report.ood_table import ood_table

    dataset = options.dataset()
    given = (
        read_requests(options.out_of_scope, dataset.train, options.columns) if options.out_of_scope else []
    )
    requests = evaluation.Requests.of(
        dataset, options.split, given, options.abstaining(dataset), limit=options.limit
    )
    with options.log() as (emit, log, runtime):
        kept = options.kept(runtime, emit, [*requests.labels], requests.abstaining)
        result = evaluation.evaluate(
            runtime,
            requests,
            fit_rows=options.fit_rows,
            max_tokens=options.max_tokens,
            log=log,
            kept=kept,
            emit=emit,
        )
        found = result | options.about(dataset, runtime)
    kept.remove()
    show(options, found, ood_table)
