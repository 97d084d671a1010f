"""`edgekit eval compare`, and `edgekit compare`, which is the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edgekit.base.errors import GateError
from edgekit.commands import shell


def register(parent: typer.Typer) -> None:
    """Add `compare` to `parent`: the group `eval`, or the whole command."""
    parent.command("compare")(compare)


@dataclass(frozen=True)
class CompareOptions:
    """The options of `eval compare`."""

    first: Annotated[Path, typer.Argument(help="A sample log, such as BUNDLE/samples/tuned.jsonl.")]
    second: Annotated[Path, typer.Argument(help="Another log of the same rows.")]
    margin: Annotated[
        float,
        typer.Option(
            "--margin", min=0.0, max=100.0, help="Percentage points of accuracy that the second log may lose."
        ),
    ] = 2.0
    json: shell.Json = False
    verbose: shell.Verbose = False


@shell.takes(CompareOptions)
def compare(options: CompareOptions) -> None:
    """Compare two sample logs of the same rows: the answers that changed, and whether the second model is as good.

    Exit code 3 when the second is worse by more than --margin, as a whole, by label, or by variant.
    """
    from edgekit.evaluation.compare import compare as compare_logs
    from edgekit.report.compare_table import compare_table

    result = compare_logs(options.first, options.second, options.margin)
    shell.show(result, compare_table, as_json=options.json)
    if result["verdict"] == "worse":
        worse = [f"{one['by']} {one['value']}" for one in result["slices"] if one["verdict"] == "worse"]
        places = f" Shown to lose more: {', '.join(worse)}." if worse else ""
        raise GateError(
            f"{options.second} is worse than {options.first} by more than {options.margin:g} points: "
            f"{result['difference_points']:+.1f} points on {result['n']} answers.{places}",
            "The list of lost answers shows which rows; give a larger --margin only if such a loss is acceptable.",
        )
