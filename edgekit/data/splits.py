"""A dataset: rows in three splits, and its card."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgekit.base.artifacts import digest_of
from edgekit.data.leaks import Leak, summary
from edgekit.data.rows import Row, content_of

SPLITS = ("train", "validation", "test")
CARD_KEYS = ("owner", "source", "licence", "collected", "pii")


@dataclass(frozen=True)
class Dataset:
    """Rows for tuning, for early stopping and proofs, and for evaluation; no prompt is in more than one split.

    `form` says in words what was read: the kind of the files, their columns, and where the splits come from. `left_out` are
    the rows that `--drop-leaks` removed, and `commit` is that of a hub data set. `options` are those that a person gave to
    read it, for reading it in the same way again.
    """

    name: str
    train: list[Row]
    validation: list[Row]
    test: list[Row]
    card: dict[str, Any] = field(default_factory=dict)
    form: dict[str, str] = field(default_factory=dict)
    left_out: tuple[Leak, ...] = ()
    commit: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def all_rows(self) -> list[Row]:
        """The rows of all splits."""
        return [*self.train, *self.validation, *self.test]

    @property
    def digest(self) -> str:
        """Digest of all rows of all splits."""
        return digest_of({split: content_of(getattr(self, split)) for split in SPLITS})

    @property
    def missing_card_keys(self) -> list[str]:
        """Keys that the dataset card lacks."""
        return [key for key in CARD_KEYS if not self.card.get(key)]

    @property
    def rows(self) -> dict[str, int]:
        """The number of rows in each split."""
        return {split: len(getattr(self, split)) for split in SPLITS}

    @property
    def notes(self) -> list[str]:
        """What a person should know of how the rows were read: one sentence for each."""
        form = self.form
        rows = ", ".join(f"{count:,} {split}" for split, count in self.rows.items())
        found = [f"data: {form['data']}"] if "data" in form else []
        found.append(f"rows: {rows}" + (f"; {form['splits']}" if "splits" in form else ""))
        found += [f"{name}: {form[name]}" for name in ("copies", "check", "files") if name in form]
        return found + ([f"{len(self.left_out):,} rows {summary(self.left_out)}"] if self.left_out else [])

    @property
    def provenance(self) -> dict[str, Any]:
        """What the bundle's manifest says of the rows."""
        more = {
            "form": self.form,
            "commit": self.commit,
            "left_out": len(self.left_out),
            "options": self.options,
        }
        found = {"name": self.name, "sha256": self.digest, "card": self.card}
        return {**found, **{key: value for key, value in more.items() if value}}


def split_by_id(rows: Sequence[Row], validation: float = 0.1, test: float = 0.1) -> dict[str, list[Row]]:
    """Rows in `train`, `validation` and `test` by the hash of their id: adding rows never moves a row to another split."""
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        place = int.from_bytes(hashlib.sha256(row.id.encode()).digest()[:8], "big") / 2**64
        parts["test" if place < test else "validation" if place < test + validation else "train"].append(row)
    return parts
