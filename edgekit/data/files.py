"""Which files hold the rows of which split: a file, a folder of files, a folder that `datasets` saved, or a hub data set."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from edgekit.base.errors import ConfigError, reason
from edgekit.data.kinds import READ, SUFFIXES
from edgekit.data.splits import SPLITS

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in the names of files and folders that name a split, as `datasets` reads them."""
DICT, STATE, INFO = (
    "dataset_dict.json",
    "state.json",
    "dataset_info.json",
)  # what `datasets` writes beside its data
NOT_ROWS = {DICT, STATE, INFO, "dataset_infos.json", "card.json"}
ADVICE = f"Give one file of rows ({READ}), or a folder with a train, a validation and a test file."

_SHARD = re.compile(r"-(\d{5,})-of-(\d{5,})\b")


@dataclass(frozen=True)
class Files:
    """The files of each split, in order; without validation or test, those are taken from train. `note` is for people."""

    parts: Mapping[str, tuple[Path, ...]]
    root: Path
    card_file: Path | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def name_of(self, path: Path) -> str:
        """How messages call a file."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name


def in_folder(folder: Path) -> Files:
    """The files of a local folder. Raises `ConfigError` when it has no rows for training, or more than one set of rows."""
    card = folder / "card.json"
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{folder} is the folder of a model, not of rows. Nothing was started.",
            "Give it with --model, and rows with --data.",
        )
    if (folder / DICT).is_file():
        return _saved_splits(folder, card)
    if (folder / STATE).is_file():
        return Files({"train": _saved(folder)}, folder, card, _saved_card(folder))
    usual = {split: (folder / f"{split}.jsonl",) for split in SPLITS}
    found = [path for pattern in ("*", "*/*", "*/*/*") for path in folder.glob(pattern) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in found]
    if all(path.is_file() for (path,) in usual.values()):
        parts = {split: [path.name for path in paths] for split, paths in usual.items()}
    else:
        parts = by_split(folder, names, "Give a folder that holds only one of them.")
    return Files(located(folder, parts), folder, card, note=note_on(names, parts))


def note_on(names: Iterable[str], parts: Mapping[str, Sequence[str]]) -> str:
    """What a person should know of the choice of `parts`: data files among `names` that are in none, and files put together.

    The shards of one table are one file.
    """
    used = {name for part in parts.values() for name in part}
    left = sorted(name for name in names if _is_data(name) and name not in used)
    notes = [f"not used: {_some(left)}"] if left else []
    for split, part in parts.items():
        tables = {_SHARD.split(name)[0] for name in part}
        if len(tables) > 1:
            notes.append(f"read together as {split}: {_some(part)}")
    return "; ".join(notes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", and {len(names) - 8} more" if len(names) > 8 else "")


def within(source: object, names: Iterable[str]) -> list[str]:
    """The `names` of a list of files that was made elsewhere. Raises `ConfigError` for one that leads out of its folder."""
    found = list(names)
    for name in found:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise ConfigError(
                f"{source} lists the file {name!a}, which is not within it. Nothing was read.",
                "Use another data set, or download and check its files by hand.",
            )
    return found


def located(folder: Path, names: Mapping[str, Iterable[str]]) -> dict[str, tuple[Path, ...]]:
    """The paths of files that are named relative to `folder`."""
    return {split: tuple(folder / name for name in part) for split, part in names.items()}


def by_split(source: object, names: Iterable[str], hint: str) -> dict[str, list[str]]:
    """The data files among relative `names`, by split. Files that name no split are for training, if no file does.

    `hint` is what to do when there is more than one set of rows, with `{0}` for the first.

    Raises `ConfigError` when there are none, when shards are missing, and when there is more than one set of rows.
    """
    every = sorted(names)
    files = [PurePosixPath(name) for name in every if _is_data(name)]
    splits = {path: _split(path) for path in files}
    if not any(splits.values()):
        splits = dict.fromkeys(files, "train")
    chosen = {path: split for path, split in splits.items() if split}
    if "train" not in chosen.values():
        shown = ", ".join(every[:8]) + (", ..." if len(every) > 8 else "")
        raise ConfigError(
            f"{source} has no data file for training; it has {shown or 'no files'}. Nothing was started.",
            f"{ADVICE} Scripts and pickles are never run.",
        )
    sets = sorted({_set(path) for path in chosen})
    if len(sets) > 1:
        raise ConfigError(
            f"{source} has more than one set of rows: {', '.join(sets[:12])}. Nothing was started.",
            hint.format(sets[0]),
        )
    _check_shards(source, chosen)
    return {
        split: [str(path) for path in chosen if chosen[path] == split]
        for split in SPLITS
        if split in chosen.values()
    }


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    if any(part.startswith((".", "_")) for part in path.parts) or path.name.lower() in NOT_ROWS:
        return False
    return path.name.lower().removesuffix(".gz").endswith(SUFFIXES) and not path.name.endswith(".card.json")


def _split(path: PurePosixPath) -> str | None:
    """The split that a file's name says, or else the folder that is nearest to it."""
    for part in reversed(path.parts):
        words = set(re.split(r"[^a-z]+", part.lower()))
        found = [split for split, known in WORDS.items() if words & set(known)]
        if len(found) == 1:
            return found[0]
    return None


def _set(path: PurePosixPath) -> str:
    """The folder and kind of a file, without what names its split: files of one set have it in common."""
    parts = [part for part in path.parts[:-1] if part != "data" and not _split(PurePosixPath(part))]
    name = path.name.lower()
    ending = next(suffix for suffix in SUFFIXES if name.removesuffix(".gz").endswith(suffix))
    return "/".join([*parts, f"*{ending}"])


def _check_shards(source: object, files: Iterable[PurePosixPath]) -> None:
    shards: dict[tuple[str, int], set[int]] = {}
    for path in files:
        if found := _SHARD.search(path.name):
            shard = str(path.parent / path.name[: found.start()]), int(found[2])
            shards.setdefault(shard, set()).add(int(found[1]))
    for (name, count), here in shards.items():
        if len(here) != count:
            raise ConfigError(
                f"{source} is incomplete: it has {len(here)} of the {count} files {name}-*. Nothing was started.",
                "Fetch or copy it again.",
            )


def _saved_splits(folder: Path, card: Path) -> Files:
    """A saved DatasetDict: a folder for each split."""
    names = _read_json(folder / DICT).get("splits")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{folder / DICT} lists no splits.", "Save the data set again.")
    found: dict[str, str] = {}
    for name in names:
        if (split := _split(PurePosixPath(name))) and split not in found:
            found[split] = name
    if "train" not in found:
        raise ConfigError(
            f"{folder} has no split for training; it has {', '.join(names)}. Nothing was started.",
            f"Give the folder of one split, such as {folder / names[0] if names else folder}.",
        )
    left = [name for name in names if name not in found.values()]
    note = f"not used: {', '.join(left)}" if left else ""
    parts = {split: _saved(folder / _plain(folder, found[split])) for split in SPLITS if split in found}
    return Files(parts, folder, card, _saved_card(folder / found["train"]), note)


def _saved(folder: Path) -> tuple[Path, ...]:
    """The files of a saved data set, in its order."""
    state = _read_json(folder / STATE)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise ConfigError(
            f"{folder} was saved by an old version of datasets, as a selection from other rows.",
            "Save it again: ds.flatten_indices().save_to_disk(...).",
        )
    files = state.get("_data_files")
    if not isinstance(files, list) or not files or not all(isinstance(file, dict) for file in files):
        raise ConfigError(f"{folder / STATE} lists no data files.", "Save the data set again.")
    found = tuple(folder / _plain(folder, str(file.get("filename"))) for file in files)
    if missing := [path.name for path in found if not path.is_file()]:
        raise ConfigError(
            f"{folder} is incomplete: it has no {', '.join(missing)}. Nothing was started.",
            "Copy or save it again.",
        )
    return found


def _plain(folder: Path, name: str) -> str:
    """A name within `folder`. Raises `ConfigError` for a path that leads elsewhere."""
    if not name or PurePosixPath(name).name != name or name in (".", "..") or "\\" in name:
        raise ConfigError(
            f"{folder} names the file '{name}', which is not within it. Nothing was read.", "Save it again."
        )
    return name


def _saved_card(folder: Path) -> dict[str, str]:
    """What `datasets` notes of the source and the licence."""
    info = _read_json(folder / INFO) if (folder / INFO).is_file() else {}
    found = {"source": info.get("homepage"), "licence": info.get("license")}
    return {key: value for key, value in found.items() if isinstance(value, str) and value}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {reason(error)}.", "Save the data set again.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is not a JSON object.", "Save the data set again.")
    return found
