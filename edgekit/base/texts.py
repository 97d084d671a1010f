"""Makes untrusted text safe to print: characters that move the cursor or change colours are replaced."""

from __future__ import annotations

from typing import Any

LONGEST = 4000  # characters of a text on one line
REPLACED = "\N{REPLACEMENT CHARACTER}"


def plain(value: Any) -> str:
    """Text of any number of lines; control characters become `\N{REPLACEMENT CHARACTER}`."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\u00a0" else REPLACED for char in text)


def one_line(value: Any, most: int = LONGEST) -> str:
    """Text on one line of at most `most` characters; a longer one ends with `…`."""
    text = str(value)
    shown = plain(" ".join(text[: 4 * most].split()))
    return shown if len(shown) <= most and len(text) <= 4 * most else shown[: most - 1] + "…"
