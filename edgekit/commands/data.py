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
    data: Annotated[str, typer.Argument(help="A JSONL file, a folder, or demo.")], json: shell.Json = False
) -> None:
    """Check every row, and show the splits, the labels and the missing fields of the dataset card."""
    from edgekit.data.dataset import load_dataset
    from edgekit.data.splits import SPLITS

    dataset = load_dataset(data)
    rows = {split: getattr(dataset, split) for split in SPLITS}
    labels = {split: Counter(row.label for row in part if row.label) for split, part in rows.items()}
    result = {
        "name": dataset.name,
        "sha256": dataset.digest,
        "rows": {split: len(part) for split, part in rows.items()},
        "labels": {split: dict(sorted(counts.items())) for split, counts in labels.items()},
        "card": dataset.card,
        "missing_in_card": dataset.missing_card_keys,
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
