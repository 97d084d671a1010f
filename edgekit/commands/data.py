"""`edgekit data audit|demo`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from edgekit.commands import shell

app = typer.Typer(help="Check instruction rows, or write the demo dataset.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    """Add `data` to `parent`."""
    parent.add_typer(app, name="data")


@app.command("audit")
def audit(
    data: Annotated[str, typer.Argument(help=f"{shell.ROWS}, or demo.")],
    columns: shell.Columns = "",
    data_revision: shell.DataRevision = "",
    drop_leaks: shell.DropLeaks = False,
    offline: shell.Offline = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Check every row, and show the columns, splits and labels, and the missing fields of the dataset card.

    With --drop-leaks, --json lists every row that is left out.
    """
    from edgekit.data.dataset import DataOptions
    from edgekit.data.splits import SPLITS

    dataset = shell.dataset(data, DataOptions(columns, data_revision, drop_leaks, offline))
    rows = {split: getattr(dataset, split) for split in SPLITS}
    labels = {split: Counter(row.label for row in part if row.label) for split, part in rows.items()}
    result = {
        "name": dataset.name,
        "sha256": dataset.digest,
        "rows": {split: len(part) for split, part in rows.items()},
        "notes": dataset.notes,
        "example": {"prompt": dataset.train[0].messages[-2]["content"], "answer": dataset.train[0].answer},
        "left_out": [leak.as_dict() for leak in dataset.left_out],
        "labels": {split: dict(sorted(counts.items())) for split, counts in labels.items()},
        "card": dataset.card,
        "missing_in_card": dataset.missing_card_keys,
        "commit": dataset.commit,
    }
    if json:
        shell.print_json(result)
        return
    for split, part in rows.items():
        few = min(labels[split].values(), default=0)
        shell.say(f"{split:<11} {len(part):>6} rows  {len(labels[split])} labels, at least {few} rows each")
    shell.say(
        f"card        {'complete' if not result['missing_in_card'] else 'lacks ' + ', '.join(dataset.missing_card_keys)}"
    )


@app.command("demo")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder; it must not exist.")] = Path(
        "demo-data"
    ),
    train: Annotated[int, typer.Option("--train", min=40, help="Training rows.")] = 800,
    validation: Annotated[int, typer.Option("--validation", min=20, help="Validation rows.")] = 150,
    test: Annotated[int, typer.Option("--test", min=20, help="Test rows.")] = 300,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the generator.")] = 7,
    force: shell.Force = False,
) -> None:
    """Write the demo dataset: a field-service assistant that turns a sentence into one JSON command."""
    from edgekit.data import demo as generator

    generator.write(out, train, validation, test, seed, force=force)
    shell.say(f"Written: {out}\nNext: edgekit build --data {out}")
