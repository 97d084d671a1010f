"""A dataset: three splits and a card, read from a folder of JSONL files, one JSONL file, or `demo`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.base.artifacts import digest_of
from edgekit.base.errors import ConfigError
from edgekit.data.rows import Row, content_of, read_rows, split_by_id

DEMO = "demo"
CARD_KEYS = ("owner", "source", "licence", "collected", "pii")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Dataset:
    """Rows for tuning, for early stopping and proofs, and for evaluation; no prompt is in more than one split."""

    name: str
    train: list[Row]
    validation: list[Row]
    test: list[Row]
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of all rows of all splits."""
        return digest_of({split: content_of(getattr(self, split)) for split in SPLITS})

    @property
    def missing_card_keys(self) -> list[str]:
        """Keys that the dataset card lacks."""
        return [key for key in CARD_KEYS if not self.card.get(key)]


def load_dataset(source: str) -> Dataset:
    """The dataset that `--data` names.

    A folder holds `train.jsonl`, `validation.jsonl` and `test.jsonl`; one file is split 80/10/10 by id. The card is
    `card.json` in the folder, or `<file>.card.json`. Raises `ConfigError` with every fault found.
    """
    if source == DEMO and not Path(source).exists():
        return _demo()
    path = Path(source)
    if path.is_dir():
        parts = _read_folder(path)
        card_path = path / "card.json"
    else:
        parts = split_by_id(read_rows(path))
        card_path = path.with_name(path.name + ".card.json")
    _check(source, parts)
    return Dataset(path.stem, parts["train"], parts["validation"], parts["test"], _read_card(card_path))


def _demo() -> Dataset:
    from edgekit.data import demo

    parts = {
        split: [
            Row(row["id"], tuple(row["messages"]), row["label"], line)
            for line, row in enumerate(rows, start=1)
        ]
        for split, rows in demo.generate().items()
    }
    return Dataset(DEMO, parts["train"], parts["validation"], parts["test"], demo.card())


def _read_folder(folder: Path) -> dict[str, list[Row]]:
    missing = [f"{split}.jsonl" for split in SPLITS if not (folder / f"{split}.jsonl").is_file()]
    if missing:
        raise ConfigError(
            f"The data folder {folder} has no {', '.join(missing)}.",
            "Add the missing files, or give one JSONL file, which edgekit splits by id.",
        )
    parts: dict[str, list[Row]] = {}
    faults: list[str] = []
    errors: list[ConfigError] = []
    for split in SPLITS:
        try:
            parts[split] = read_rows(folder / f"{split}.jsonl")
        except ConfigError as error:
            errors.append(error)
            faults += error.faults or [error.message]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConfigError(
            f"Several files in {folder} cannot be used; nothing was started.", errors[0].hint, faults
        )
    return parts


def _check(source: str, parts: dict[str, list[Row]]) -> None:
    empty = [split for split in SPLITS if not parts[split]]
    if empty:
        raise ConfigError(
            f"{source} has too few rows: the split leaves none for {' and '.join(empty)}.",
            "Add rows (about 50 or more), or give a folder with train.jsonl, validation.jsonl and test.jsonl.",
        )
    seen: dict[tuple[Any, ...], str] = {}
    faults = []
    for split in SPLITS:
        for row in parts[split]:
            text = tuple((message["role"], message["content"]) for message in row.messages[:-1])
            if (other := seen.setdefault(text, split)) != split:
                faults.append(f"{split}.jsonl:{row.line}: the same prompt is in {other}")
    if faults:
        raise ConfigError(
            f"{len(faults)} prompts in {source} appear in more than one split, so test results would be contaminated.",
            "Keep each prompt in one split.",
            faults[:20],
        )


def _read_card(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"The dataset card {path} is not JSON: {error}", "Fix it or remove it.") from error
    if not isinstance(card, dict):
        raise ConfigError(f"The dataset card {path} is not a JSON object.", "Fix it or remove it.")
    return card
