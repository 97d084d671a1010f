"""Instruction rows: a record of a data file as a conversation that ends with its answer."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from edgekit.data.columns import Columns

Item = TypeVar("Item")

Message = Mapping[str, str]
SHAPES = "'messages', 'prompt' and 'completion', or 'instruction' and 'output'"
ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
"""Role names of messages and of ShareGPT's conversations."""


class Fault(Exception):
    """What is wrong with one row."""


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation whose last message is the answer to learn; `line` counts rows where a file has no lines.

    `more` has the other columns that were asked for, such as the language, as text. No result of a build depends on them.
    """

    id: str
    messages: tuple[Message, ...]
    label: str | None = None
    line: int = 0
    file: str = ""
    more: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def answer(self) -> str:
        """The text of the last message."""
        return self.messages[-1]["content"]

    @property
    def place(self) -> str:
        """The file and line that it comes from."""
        return f"{self.file}:{self.line}"


def content_of(rows: Sequence[Row]) -> list[list[Any]]:
    """The parts of `rows` that results depend on, as JSON values: ids, messages and labels, in order."""
    return [[row.id, [dict(message) for message in row.messages], row.label] for row in rows]


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """`count` items at distances as equal as possible, the first one included; at most all of them."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def contents_of(conversations: Iterable[Sequence[Message]]) -> Iterator[str]:
    """The text of every message."""
    for messages in conversations:
        yield from (message["content"] for message in messages)


def row_of(values: Mapping[str, Any], columns: Columns, classes: Mapping[str, tuple[str, ...]]) -> Row:
    """A record as a row. `classes` are the names of integer labels by column. Raises `Fault` for what is not a row."""
    found = {part: _value(values, column, classes) for part, column in columns.of.items()}
    label = _text(found.get("label"), columns.of.get("label", ""))
    label = label.strip() or None if label else None
    if "messages" in found:
        messages = _conversation(found["messages"], columns.of["messages"])
    else:
        prompt = _needed("no prompt", found["prompt"], columns.of["prompt"])
        extra = _text(found.get("input"), columns.of.get("input", "")) or ""
        if extra.strip():
            prompt = f"{prompt}\n\n{extra}"
        answer = _needed("no answer", found["completion"], columns.of["completion"])
        if columns.of["completion"] == columns.of.get("label"):
            answer = answer.strip()
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    system = _text(found.get("system"), columns.of.get("system", "")) or ""
    if system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return Row(_identity(found.get("id"), messages), tuple(messages), label)


def others(
    values: Mapping[str, Any], names: Iterable[str], classes: Mapping[str, tuple[str, ...]]
) -> dict[str, str]:
    """The columns `names` of a record as text, other values than text as JSON; those that are missing or empty are left out."""
    found = {name: _value(values, name, classes) for name in names}
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for name, value in found.items()
        if value not in (None, "") and not _is_nan(value)
    }
    return {name: text.encode("utf-8", "backslashreplace").decode() for name, text in texts.items()}


def _identity(given: Any, messages: Sequence[Message]) -> str:
    """The row's own id, else a digest of its messages."""
    if given is not None and not isinstance(given, str | int):
        raise Fault("'id' must be a string or an integer")
    if given is None or given == "":
        content = json.dumps([dict(message) for message in messages], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]
    return encodable(str(given), "'id'")


def encodable(text: str, where: str) -> str:
    """The same text. Raises `Fault` when it has half of a surrogate pair, which no tokenizer or file takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise Fault(f"{where} has half of a surrogate pair (\\u{code:04x}), which is not text") from error
    return text


def _value(values: Mapping[str, Any], column: str, classes: Mapping[str, tuple[str, ...]]) -> Any:
    """The value of a column; `a.b.0` is a value within the column `a`. An integer label becomes its name."""
    value: Any = values.get(column)
    if value is None and column not in values and "." in column:
        value = values
        for key in column.split("."):
            if isinstance(value, list):
                value = value[int(key)] if key.isdecimal() and int(key) < len(value) else None
            else:
                value = value.get(key) if isinstance(value, Mapping) else None
    names = classes.get(column)
    if names is None or not isinstance(value, int):
        return value
    if not 0 <= value < len(names):
        raise Fault(f"'{column}' is {value}, which has no name: the names are those of 0 to {len(names) - 1}")
    return names[value]


def _text(value: Any, column: str) -> str | None:
    """A text as it is, and a number or a date in its usual form; None for an empty value."""
    if value is None:
        return None
    if isinstance(value, str):
        return encodable(value, f"'{column}'")
    if isinstance(value, list | dict | bytes):
        raise Fault(
            f"'{column}' must be text, not {'bytes' if isinstance(value, bytes) else 'a list or an object'}"
        )
    if _is_nan(value):
        return None
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _is_nan(value: Any) -> bool:
    """Whether it is NaN, an empty value of pandas."""
    return isinstance(value, float) and math.isnan(value)


def _needed(what: str, value: Any, column: str) -> str:
    text = _text(value, column)
    if text is None or not text.strip():
        raise Fault(f"{what}: '{column}' is missing or empty")
    return text


def _conversation(value: Any, column: str) -> list[Message]:
    if isinstance(value, str):  # in a cell of a table
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Fault(f"'{column}' is not a list of messages in JSON") from error
    if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        if len({len(part) for part in value.values()}) > 1:
            raise Fault(f"'{column}' has lists of unequal length under {', '.join(map(ascii, value))}")
        value = [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]
    if not isinstance(value, list) or not value:
        raise Fault(f"'{column}' must be a list of messages")
    messages: list[Message] = []
    for index, message in enumerate(value, start=1):
        role, content = (
            (message.get(key, message.get(other)) for key, other in (("role", "from"), ("content", "value")))
            if isinstance(message, dict)
            else (None, None)
        )
        if not isinstance(content, str):
            raise Fault(f"message {index} has no string under 'content'")
        if not isinstance(role, str) or role not in ROLES:
            raise Fault(f"message {index} has the role {role!r}; use system, user or assistant")
        content = encodable(content, f"message {index} of '{column}'")
        messages.append({"role": ROLES[role], "content": content})
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise Fault("no answer: the last message must have the role assistant and must not be empty")
    if len(messages) < 2:
        raise Fault("no prompt before the answer")
    return messages
