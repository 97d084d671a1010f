"""Answers of an evaluation that was interrupted: kept beside its log, and used when it is run again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.base.events import Alert, Emit

SCHEMA = "edgekit.samples.part/1"
NEEDED = {"prompt", "expected"}


class Kept:
    """The file `LOG.part`: each sample as soon as it is answered. It is removed when the log itself is written.

    Its first line holds `digest`, of the model file and the options that an answer depends on. Where it is another one, the
    file begins anew, with a warning. A line that an interruption cut is asked again.
    """

    def __init__(self, log: Path, digest: str, emit: Emit) -> None:
        self._path = log.with_name(f"{log.name}.part")
        self._samples: dict[tuple[str, str | None], dict[str, Any]] = {}
        self._head = {"schema": SCHEMA, "digest": digest}
        lines = _objects(self._path)
        same = bool(lines) and lines[0] == self._head
        if lines and not same:
            emit(
                Alert(
                    "warning", f"{self._path} is of another model file or other options.", "It is replaced."
                )
            )
        self.remove()
        if same:
            self.add([line for line in lines[1:] if line.keys() >= NEEDED])
            emit(Alert("info", f"{len(self._samples):,} answers of an interrupted run are used."))

    def answer(self, prompt: str, expected: str | None) -> str | None:
        """The answer to `prompt`, cut as the answer `expected` demands; None if it was not asked."""
        answer = self.value(prompt, expected, "answer")
        return None if answer is None else str(answer)

    def value(self, prompt: str, expected: str | None, name: str) -> Any:
        """What is kept of `prompt` under `name`; None if there is nothing."""
        return (self.sample(prompt, expected) or {}).get(name)

    def sample(self, prompt: str, expected: str | None) -> dict[str, Any] | None:
        """All that is kept of `prompt`; None if there is nothing."""
        return self._samples.get((prompt, expected))

    def add(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep samples, each with `prompt` and `expected`; what is new of one prompt is added to what is kept of it."""
        if not samples:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            if not file.tell():
                file.write(json.dumps(self._head) + "\n")
            for sample in samples:
                self._samples.setdefault((sample["prompt"], sample["expected"]), {}).update(sample)
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")

    def remove(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


def _objects(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of the lines of `path`, without damaged lines; none where there is no such file."""
    found = []
    if path.is_file():
        for line in path.read_text("utf-8", errors="replace").split("\n"):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                found.append(value)
    return found
