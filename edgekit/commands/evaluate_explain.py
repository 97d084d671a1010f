"""`edgekit eval explain`: one row through several model files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.base.errors import ConfigError
from edgekit.commands import shell
from edgekit.commands.artifact import model_file
from edgekit.commands.evaluate import RowsOptions

if TYPE_CHECKING:
    from edgekit.base.events import Emit
    from edgekit.data.rows import Row
    from edgekit.evaluation.kept import Kept


def register(parent: typer.Typer) -> None:
    """Add `explain` to `parent`, the group `eval`."""
    parent.command("explain")(explain)


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(RowsOptions):
    """The options of `eval explain`."""

    id: Annotated[str, typer.Argument(metavar="ID", help="The id of a row, as in a log of samples.")]
    artifacts: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Model files in the order of the build (.gguf files, folders), or bundles, whose files are all taken.",
        ),
    ]
    words: Annotated[int, typer.Option("--words", min=0, help="Number of words in the table.")] = 12


@shell.takes(ExplainOptions)
def explain(options: ExplainOptions) -> None:
    """Show how likely each file holds the answers to one row, and by how much each word carries the right one.

    A run that was interrupted goes on from its last likelihoods when the same command is typed again.
    """
    from edgekit.evaluation import explain as explanation
    from edgekit.report.explain_table import explain_table

    if Path(options.id).exists() and not options.artifacts[0].exists():
        raise ConfigError(
            f"There is no file {options.artifacts[0]}. {options.id} is a file, and the id of a row comes before the files. "
            "Nothing was started.",
            "Type it as in edgekit eval explain ID FILE...",
        )
    files = [file for artifact in options.artifacts for file in _files(artifact)]
    dataset = options.dataset()
    row = explanation.find(dataset, options.id, options.split)
    with shell.working() as emit:
        most, keep = options.max_tokens, _keeping(options, row, emit)
        found = explanation.explain(row, files, options.opened_at, keep, max_tokens=most, emit=emit)
    document = found | {"data": options.rows_measured(dataset)}
    shell.show(document, lambda shown: explain_table(shown, options.words), as_json=options.json)


def _keeping(options: ExplainOptions, row: Row, emit: Emit) -> Callable[[Path], Kept]:
    """Gives what an interrupted run has kept of each file, in `explanation-1.jsonl.part` and so on in this folder."""
    from edgekit.base.artifacts import digest_of, sha256_tree
    from edgekit.data.rows import content_of
    from edgekit.evaluation.kept import Kept

    numbers = count(1)

    def keep(file: Path) -> Kept:
        digest = digest_of([sha256_tree(file), content_of([row]), options.max_tokens])
        return Kept(Path(f"explanation-{next(numbers)}.jsonl"), digest, emit)

    return keep


def _files(artifact: Path) -> list[Path]:
    """The files of a bundle; anything else is a model file. Raises as `model_file`."""
    from edgekit.device.manifest import MANIFEST, read_manifest

    if not (artifact / MANIFEST).is_file():
        return [model_file(artifact)]
    return [model_file(artifact / one["path"]) for one in read_manifest(artifact)["formats"].values()]
