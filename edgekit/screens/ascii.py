"""For a terminal that has no other signs than ASCII: whatever a widget draws becomes one of them, of the same width."""

from __future__ import annotations

from functools import lru_cache

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

ALIKE = str.maketrans(
    "│┃▊▋▌▍▎▏▐▕─━▔▁·•–—…→←✓°\u00a0",
    "||||||||||---_..--.><v' ",
)
BOXES, BLOCKS = range(0x2500, 0x2580), range(0x2580, 0x25A0)


class Ascii(LineFilter):
    """Borders, scroll bars and all else that has its own signs."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments in ASCII."""
        return [Segment(in_ascii(text), style, control) for text, style, control in segments]


@lru_cache(4096)
def in_ascii(text: str) -> str:
    """`text` in as many cells; what looks like no ASCII sign is `?`."""
    if text.isascii():
        return text
    return "".join(sign if sign.isascii() else _of(sign) for sign in text.translate(ALIKE))


def _of(sign: str) -> str:
    if ord(sign) in BOXES:
        return "+"
    return "#" if ord(sign) in BLOCKS else "?" * cell_len(sign)
