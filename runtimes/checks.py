"""Checks of every runtime before it computes, and the preparation of its text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from edgekit.base.errors import ConfigError


def check_fits(prompt: int, max_tokens: int, context: int) -> None:
    """Raise `ConfigError` for an empty prompt, or when prompt and answer exceed `context` tokens together."""
    if prompt == 0:
        raise ConfigError("The prompt is empty.", "Give at least one token.")
    if prompt + max_tokens > context:
        raise ConfigError(
            f"A prompt of {prompt} tokens and {max_tokens} tokens to generate exceed the context of {context}.",
            "Shorten the prompt, or ask for fewer tokens. If the model was trained for more, an app can open it with "
            f"context={prompt + max_tokens}.",
        )


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raise `ConfigError` for a token id outside the vocabulary: a runtime would abort the process or read past it."""
    unknown = next((id_ for id_ in ids if not 0 <= id_ < vocab_size), None)
    if unknown is not None:
        raise ConfigError(
            f"Token id {unknown} is outside the vocabulary of {vocab_size}.",
            "Encode the text with this model.",
        )


def nfc(text: str, wanted: bool) -> str:
    """`text` in the Unicode form NFC where the model's own tokenizer normalises it first, as Qwen's does."""
    return unicodedata.normalize("NFC", text) if wanted else text
