"""Reads the dataset that `--data` names: files of rows, a folder saved by `datasets`, a hub data set, or `demo`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError, reason
from edgekit.base.events import Alert, Emit, ignore
from edgekit.data import columns as naming
from edgekit.data import hub
from edgekit.data.files import Files, in_folder
from edgekit.data.kinds import SUFFIXES
from edgekit.data.leaks import find_leaks, without
from edgekit.data.reading import MAX_FAULTS_SHOWN, Reader
from edgekit.data.rows import Row
from edgekit.data.splits import SPLITS, Dataset, split_by_id

DEMO = "demo"


@dataclass(frozen=True)
class DataOptions:
    """How the rows that `--data` names are read: the options that every verb with `--data` has beside it.

    `columns` names the columns (`prompt=text,completion=category`), `revision` is that of a hub data set, `drop_leaks`
    leaves out rows whose prompts are also in a later split, and `offline` forbids downloads. `keep` are further columns
    that the rows keep, where they have them.
    """

    columns: str = ""
    revision: str = ""
    drop_leaks: bool = False
    offline: bool = False
    keep: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """The options as they are typed; defaults and `--offline`, which is the verb's own, are left out."""
        given = {"--columns": self.columns, "--data-revision": self.revision}
        words = [word for name, value in given.items() if value for word in (name, value)]
        return words + ["--drop-leaks"] * self.drop_leaks

    @property
    def recorded(self) -> dict[str, Any]:
        """What the manifest of a bundle keeps of them; the revision is there as the commit."""
        given = {"columns": self.columns, "drop_leaks": self.drop_leaks}
        return {name: value for name, value in given.items() if value}

    def as_built(self, source: str, provenance: Mapping[str, Any]) -> DataOptions:
        """These options, and for those that are not given the ones of a build.

        `provenance` is `data` in the manifest of its bundle. The commit holds for the hub data set of the same name.
        """
        kept = provenance.get("options")
        kept = kept if isinstance(kept, dict) else {}
        revision = self.revision
        named = None if revision or Path(source).expanduser().exists() else hub.parse(source)
        if named and named.revision is None and named.repository.endswith(f"/{provenance.get('name')}"):
            revision = str(provenance.get("commit") or "")
        return replace(
            self,
            columns=self.columns or str(kept.get("columns") or ""),
            revision=revision,
            drop_leaks=self.drop_leaks or kept.get("drop_leaks") is True,
        )


def load_dataset(source: str, options: DataOptions | None = None, emit: Emit = ignore) -> Dataset:
    """The dataset that `--data` names: a file or a folder of rows, a folder saved by `datasets`, a hub data set, or `demo`.

    A single file is split 80/10/10 by id, and a split that a folder lacks is taken from its training rows in the same way.
    The card is `card.json` in the folder, or `<file>.card.json`. `emit` receives what a person should know of it. Raises
    `ConfigError` with every fault found, and `MissingPartError` where a package is missing.
    """
    options = options or DataOptions()
    if source == DEMO and not Path(source).exists():
        if options.columns or options.revision:
            raise ConfigError(
                "The demo data has its own columns.", "Leave out --columns and --data-revision."
            )
        return _demo()
    files, name, commit = _found(source, options, emit)
    parts, form = _read(files, source, options)
    leaks = find_leaks(parts)
    if leaks and not options.drop_leaks:
        raise ConfigError(
            f"{len(leaks)} prompts in {source} appear in more than one split, so test results would be contaminated.",
            "Keep each prompt in one split, or add --drop-leaks, which leaves these rows out.",
            [leak.text for leak in leaks[:MAX_FAULTS_SHOWN]],
        )
    parts = without(parts, leaks)
    _check_sizes(source, parts)
    card = {**files.card, **_read_card(files)}
    found = Dataset(
        name,
        parts["train"],
        parts["validation"],
        parts["test"],
        card,
        form,
        tuple(leaks),
        commit,
        options.recorded,
    )
    for note in found.notes:
        emit(Alert("info", note))
    return found


def load_questions(source: str, options: DataOptions | None = None, emit: Emit = ignore) -> list[Row]:
    """Rows that no tuning has seen: all rows of one file, and the test rows of any other data set."""
    options = options or DataOptions()
    if not Path(source).expanduser().is_file():
        return load_dataset(source, options, emit).test
    files, _, _ = _found(source, options, emit)
    reader = Reader(naming.named(options.columns), options.keep)
    for path in files.parts["train"]:
        reader.add(path)
    return reader.finish(source)


def _found(source: str, options: DataOptions, emit: Emit) -> tuple[Files, str, str]:
    """The files of a data set, its name, and the commit of a hub data set."""
    if not source.strip():
        raise ConfigError(
            "No data is given.", "Give a file, a folder, a hub data set such as org/name, or demo."
        )
    if "://" in source:
        raise ConfigError(
            f"{source} is a web address, which is not read.",
            "Download the file, or give a data set of the Hugging Face hub by its name, such as org/name.",
        )
    path = Path(source).expanduser()
    named = None if path.exists() else hub.parse(source, options.revision)
    if named is not None:
        files, commit = hub.fetch(named, offline=options.offline, emit=emit)
        return files, named.repository.partition("/")[2], commit
    if options.revision:
        raise ConfigError(
            f"--data-revision {options.revision} needs a hub data set, and {source} is not one.",
            "Leave it out.",
        )
    if path.is_dir():
        return in_folder(path), path.stem, ""
    stem = path.name.removesuffix(".gz")
    stem = next((stem.removesuffix(suffix) for suffix in SUFFIXES if stem.endswith(suffix)), path.stem)
    return Files({"train": (path,)}, path.parent, path.with_name(path.name + ".card.json")), stem, ""


def _read(files: Files, source: str, options: DataOptions) -> tuple[dict[str, list[Row]], dict[str, str]]:
    """The rows of each split, and in words how they were read. Raises `ConfigError` with the faults of all files."""
    columns = naming.named(options.columns)
    parts: dict[str, list[Row]] = {}
    readers: list[Reader] = []
    errors: list[ConfigError] = []
    for split, paths in files.parts.items():
        try:
            readers.append(Reader(columns, options.keep))
            for path in paths:
                readers[-1].add(path, files.name_of(path))
            parts[split] = readers[-1].finish(source)
        except ConfigError as error:
            errors.append(error)
        found = readers[-1].columns
        columns = columns or (
            found if found and found.guessed else None
        )  # a guess holds for the other splits as well
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConfigError(
            f"Several files in {source} cannot be used; nothing was started.",
            errors[0].hint,
            [fault for error in errors for fault in error.faults or [error.message]],
        )
    lacking = [split for split in SPLITS if split not in parts]
    if lacking:
        share = {split: 0.1 if split in lacking else 0.0 for split in SPLITS[1:]}
        parts |= split_by_id(parts["train"], **share) | {
            split: parts[split] for split in SPLITS[1:] if split in parts
        }
    form = {"data": readers[0].text}
    if lacking:
        form["splits"] = f"{' and '.join(lacking)} by id from train"
    if copies := sum(reader.copies for reader in readers):
        form["copies"] = f"{copies:,} exact copies of other rows are left out"
    if joined := [place for reader in readers for place in reader.joined]:
        form["check"] = (
            f"{len(joined):,} rows contain tabs and line ends within quotation marks; if these are several rows, "
            f"double the quotation marks (first {joined[0]})"
        )
    if files.note:
        form["files"] = files.note
    return {split: parts[split] for split in SPLITS}, form


def _check_sizes(source: str, parts: Mapping[str, Sequence[Row]]) -> None:
    empty = [split for split in SPLITS if not parts[split]]
    if empty:
        raise ConfigError(
            f"{source} has too few rows: the split leaves none for {' and '.join(empty)}.",
            "Add rows (about 50 or more), or give a folder with a train, a validation and a test file.",
        )


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


def _read_card(files: Files) -> dict[str, Any]:
    path = files.card_file
    if path is None or not path.is_file():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(card, ensure_ascii=False).encode()  # it is written into the manifest
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"The dataset card {path} is not JSON in UTF-8: {reason(error)}.", "Fix it or remove it."
        ) from error
    if not isinstance(card, dict):
        raise ConfigError(f"The dataset card {path} is not a JSON object.", "Fix it or remove it.")
    return card
