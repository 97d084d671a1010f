"""Texts from elsewhere, made safe to show: what would move the cursor or change colours is replaced."""

from __future__ import annotations

from typing import Any

LONGEST = 4000  # signs of a text on one line
REPLACED = "\N{REPLACEMENT CHARACTER}"


def plain(value: Any) -> str:
    """Text of any number of lines; control signs are shown as `\N{REPLACEMENT CHARACTER}`."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in "\n\u00a0" else REPLACED for sign in text)


def one_line(value: Any, most: int = LONGEST) -> str:
    """Text on one line of at most `most` signs; what is left out at its end is shown as `…`."""
    text = str(value)
    shown = plain(" ".join(text[: 4 * most].split()))
    return shown if len(shown) <= most and len(text) <= 4 * most else shown[: most - 1] + "…"
