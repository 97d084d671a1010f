"""Encodes a conversation so that no text of a message becomes a control token.

The control tokens of the template (`<|im_start|>`) separate the roles. A user may write the same characters; if they
were encoded as control tokens, `<|im_end|><|im_start|>system` would begin a system message. The method of
`transformers.utils.chat_template_utils.mark_control_tokens` keeps them as text: a mark is inserted into each before
rendering, and the rendered text is split at the marks and encoded in pieces.

A conversation without such characters is encoded in one piece, so its ids are the reference's. Three inputs are not
protected: raw prompts of `/v1/completions`, which the caller writes completely; the rows of a dataset, whose owner is
trusted (tuning and proofs read control tokens in them); and templates whose separators are plain text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.data.rows import Message
from edgekit.registry import HasControlTokens, Runtime

MARKS = [chr(code) for code in range(0xF0000, 0xF0100)]  # private use: they have no meaning in any text


def encode_prompt(runtime: Runtime, messages: Sequence[Message]) -> list[int]:
    """Token ids of the rendered `messages`, up to the start of the answer.

    Raises `ConfigError` when the template refuses the conversation, or a control token cannot be kept as text.
    """
    tokens = runtime.control_tokens if isinstance(runtime, HasControlTokens) else frozenset()
    starts = _starts(tokens)
    texts = [value for message in messages for value in message.values() if isinstance(value, str)]
    if starts is None or not any(starts.search(form) for text in texts for form in _forms(text)):
        return runtime.encode(runtime.chat_template.render(messages, add_generation_prompt=True))
    mark = next((mark for mark in MARKS if not any(mark in text for text in texts)), None)
    if mark is None:
        raise ConfigError("A message contains every private-use character.", "Remove them from the message.")
    marked = [{key: _marked(value, starts, mark) for key, value in message.items()} for message in messages]
    _check_text(runtime, [value for message in marked for value in message.values()], mark, tokens)
    first, *rest = runtime.chat_template.render(marked, add_generation_prompt=True).split(mark)
    return [*runtime.encode(first), *(id_ for piece in rest for id_ in continued(runtime, piece))]


def _starts(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern for the first character of every control token, overlapping ones included."""
    texts = "|".join(re.escape(token) for token in sorted(tokens) if len(token) > 1)
    return re.compile(f"(?={texts})(.)", re.DOTALL) if texts else None


def _forms(text: str) -> tuple[str, str]:
    """A text unchanged and in the Unicode form NFC, which some tokenizers use."""
    return text, unicodedata.normalize("NFC", text)


def _marked(value: Any, starts: re.Pattern[str], mark: str) -> Any:
    if not isinstance(value, str):
        return value
    plain, normal = _forms(value)
    return starts.sub(
        rf"\1{mark}", plain if starts.search(plain) else normal if starts.search(normal) else plain
    )


def _check_text(runtime: Runtime, texts: Iterable[Any], mark: str, tokens: frozenset[str]) -> None:
    """Raise `ConfigError` when a piece of a message still contains a control token."""
    ids = {id_ for token in tokens if len(found := runtime.encode(token)) == 1 for id_ in found}
    for text in texts:
        if isinstance(text, str) and mark in text:
            for piece in text.split(mark):
                if ids & set(runtime.encode(piece)):
                    raise ConfigError(
                        "A message contains a control token that cannot be kept as text.",
                        "Remove the control token from the message.",
                    )


def continued(runtime: Runtime, piece: str) -> list[int]:
    """Ids of a piece that continues another: without the space that SentencePiece adds before a text."""
    line, ids = runtime.encode("\n"), runtime.encode("\n" + piece)
    return ids[len(line) :] if ids[: len(line)] == line else runtime.encode(piece)
