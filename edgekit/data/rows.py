"""Instruction rows: read from JSONL in three formats, checked together, and split by id.

Formats: `messages` (a list of role and content), `prompt`/`completion`, and Alpaca's `instruction`/`input`/`output`;
each with an optional `id` and an optional `label` from a closed set of answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError, reason

Message = Mapping[str, str]
SHAPES = "'messages', 'prompt' and 'completion', or 'instruction' and 'output'"
MAX_FAULTS_SHOWN = 20


@dataclass(frozen=True)
class Row:
    """One conversation whose last message is the answer to learn."""

    id: str
    messages: tuple[Message, ...]
    label: str | None = None
    line: int = 0

    @property
    def answer(self) -> str:
        """The text of the last message."""
        return self.messages[-1]["content"]


def content_of(rows: Sequence[Row]) -> list[list[Any]]:
    """The parts of `rows` that results depend on, as JSON values: ids, messages and labels, in order."""
    return [[row.id, [dict(message) for message in row.messages], row.label] for row in rows]


class _Fault(Exception):
    """What is wrong with one row."""


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file; exact duplicates count once.

    Raises `ConfigError` with every bad row and its line number, and for a file that is missing or has no rows.
    """
    if path.exists() and not path.is_file():  # a device or a pipe may be endless
        raise ConfigError(
            f"{path} is not a file.",
            "Give a JSONL file, or a folder with train.jsonl, validation.jsonl and test.jsonl.",
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").split(
            "\n"
        )  # JSON strings may contain other line separators
    except FileNotFoundError:
        raise ConfigError(
            f"There is no data file {path}.", "Check the path; `demo` is the built-in data set."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read as UTF-8 text: {reason(error)}.", "Save it as JSONL in UTF-8."
        ) from error
    rows: dict[str, Row] = {}
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _parse(line, number)
            earlier = rows.get(row.id)
            if earlier and earlier.messages != row.messages:
                raise _Fault(
                    f"the id '{row.id}' is already used on line {earlier.line} for a different conversation"
                )
            rows.setdefault(row.id, row)
        except _Fault as fault:
            faults.append(f"{path.name}:{number}: {fault}")
    if faults:
        shown = faults[:MAX_FAULTS_SHOWN]
        rest = [f"... and {len(faults) - len(shown)} more"] if len(faults) > len(shown) else []
        raise ConfigError(
            f"{len(faults)} of {sum(map(bool, map(str.strip, lines)))} rows in {path} cannot be used; nothing was started.",
            "Fix or remove these lines and run the same command again.",
            faults=shown + rest,
        )
    if not rows:
        raise ConfigError(f"{path} holds no rows.", f"Write one JSON object on each line, with {SHAPES}.")
    return list(rows.values())


def _parse(line: str, number: int) -> Row:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise _Fault(f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}") from error
    if not isinstance(value, dict):
        raise _Fault("not a JSON object")
    messages = _messages(value)
    label = value.get("label")
    if label is not None and not isinstance(label, str):
        raise _Fault("'label' must be a string")
    given = value.get("id")
    if given is not None and not isinstance(given, str | int):
        raise _Fault("'id' must be a string or an integer")
    content = json.dumps([dict(message) for message in messages], sort_keys=True)
    identity = str(given) if given is not None else hashlib.sha256(content.encode()).hexdigest()[:16]
    return Row(id=identity, messages=messages, label=label, line=number)


def _messages(value: Mapping[str, Any]) -> tuple[Message, ...]:
    if "messages" in value:
        messages = _checked_messages(value["messages"])
    elif "prompt" in value:
        messages = [_message("user", value, "prompt"), _message("assistant", value, "completion")]
    elif "instruction" in value:
        user = _message("user", value, "instruction")
        extra = value.get("input") or ""
        if not isinstance(extra, str):
            raise _Fault("'input' must be a string")
        if extra.strip():
            user = {"role": "user", "content": f"{user['content']}\n\n{extra}"}
        messages = [user, _message("assistant", value, "output")]
    else:
        raise _Fault(f"no conversation: a row needs {SHAPES}")
    return tuple(messages)


def _message(role: str, value: Mapping[str, Any], key: str) -> dict[str, str]:
    text = value.get(key)
    if not isinstance(text, str) or not text.strip():
        what = "no answer" if role == "assistant" else "no prompt"
        raise _Fault(f"{what}: '{key}' is missing or empty")
    return {"role": role, "content": text}


def _checked_messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise _Fault("'messages' must be a list of messages")
    messages = []
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise _Fault(f"message {index + 1} has no string under 'content'")
        if message.get("role") not in ("system", "user", "assistant"):
            raise _Fault(
                f"message {index + 1} has the role {message.get('role')!r}; use system, user or assistant"
            )
        messages.append({"role": str(message["role"]), "content": message["content"]})
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise _Fault("no answer: the last message must have the role assistant and must not be empty")
    if len(messages) < 2:
        raise _Fault("no prompt before the answer")
    return messages


def split_by_id(rows: Sequence[Row], validation: float = 0.1, test: float = 0.1) -> dict[str, list[Row]]:
    """Rows in `train`, `validation` and `test` by the hash of their id: adding rows never moves a row to another split."""
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        place = int.from_bytes(hashlib.sha256(row.id.encode()).digest()[:8], "big") / 2**64
        parts["test" if place < test else "validation" if place < test + validation else "train"].append(row)
    return parts
