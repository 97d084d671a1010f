"""The log of an evaluation: one JSON object for each row, with the prompt, the expected and the model's answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.base.artifacts import written_whole
from edgekit.base.errors import ConfigError, CorruptError, reason


def write_log(path: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    """Write the samples as JSONL, completely or not at all."""
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    with written_whole(path, force=True) as staging:
        staging.write_text("".join(lines), encoding="utf-8")


@dataclass(frozen=True)
class Scored:
    """One line of a log: which row, asked in which variant (empty for the row itself), and whether the answer is right."""

    id: str
    label: str
    variant: str
    correct: bool

    @property
    def key(self) -> str:
        """The id, with the variant behind it in a log of `eval robust`."""
        return f"{self.id} ({self.variant})" if self.variant else self.id


def read_scored(path: Path) -> list[Scored]:
    """The lines of a sample log.

    Raises `ConfigError` when there is no such file and `CorruptError` when it is malformed or empty.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            samples = [json.loads(line) for line in lines]
        found = [
            Scored(
                str(one["id"]),
                str(one.get("label") or ""),
                str(one.get("variant") or ""),
                bool(one["correct"]),
            )
            for one in samples
        ]
    except FileNotFoundError:
        raise ConfigError(
            f"There is no sample log {path}.", "Sample logs are in the folder samples/ of a bundle."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(
            f"{path} is not a complete log of `edgekit eval`: {'a line has no ' + str(error) if isinstance(error, KeyError) else reason(error)}.",
            "Evaluate the model again.",
        ) from error
    if not found:
        raise CorruptError(f"{path} holds no samples.", "Evaluate the model again.")
    return found


def read_log(path: Path) -> dict[str, bool]:
    """Whether each row of a sample log was answered correctly, by id; by id and variant in a log of `eval robust`.

    Raises as `read_scored` does.
    """
    return {one.key: one.correct for one in read_scored(path)}
