"""Published files of prompts without answers, such as XSTest's and IFEval's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.data.kinds import UNREADABLE, kind_of, not_utf8, unreadable
from edgekit.data.reading import MAX_FAULTS_SHOWN
from edgekit.data.rows import Fault
from edgekit.data.tables import open_lines


def read_prompts(path: Path, columns: Sequence[str], source: str) -> list[Mapping[str, Any]]:
    """The records of a CSV, TSV, JSONL or JSON file, each with a value in all of `columns`.

    `source` says which file is meant. Raises `ConfigError` for another file, with the lines that are wrong.
    """
    kind = kind_of(path)
    if not kind.is_text:
        raise ConfigError(f"{path} is {kind.text}, and a text file is needed.", f"Give {source}.")
    found: list[Mapping[str, Any]] = []
    faults = []
    try:
        for line, values in open_lines(path, kind).read(()):
            lacking = [] if isinstance(values, Fault) else [name for name in columns if not values.get(name)]
            if isinstance(values, Fault):
                faults.append(f"{path.name}:{line}: {values}")
            elif lacking:
                faults.append(f"{path.name}:{line}: no value in {' and '.join(map(repr, lacking))}")
            else:
                found.append(values)
    except UnicodeDecodeError as error:
        raise not_utf8(path, kind) from error
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    if faults or not found:
        faults = faults if found else faults[:1]  # another file altogether
        more = [f"... and {len(faults) - MAX_FAULTS_SHOWN} more"] if len(faults) > MAX_FAULTS_SHOWN else []
        raise ConfigError(
            f"{path} cannot be used: it needs the columns {', '.join(columns)}. Nothing was started.",
            f"Give {source}.",
            faults[:MAX_FAULTS_SHOWN] + more,
        )
    return found
