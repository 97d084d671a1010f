"""For a terminal that has no other signs than ASCII: whatever a widget draws becomes one of them, of the same width."""

from __future__ import annotations

from functools import lru_cache

from rich.cells import split_graphemes
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

ALIKE = str.maketrans(
    "│┃▊▋▌▍▎▏▐▕─━▔·•–—…→←↑↓✓✗×“”°\u00a0▶▸▲●■░▁▂▃▄▅▆▇█",
    '||||||||||---..--~><^v+xx""\' >>Ao#._.,-=+*#',
)
BOXES, BLOCKS, DOTS = range(0x2500, 0x2580), range(0x2580, 0x25A0), range(0x2800, 0x2900)


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
    text = text.translate(ALIKE)
    return "".join(_sign(text[start:end], width) for start, end, width in split_graphemes(text)[0])


def _sign(grapheme: str, width: int) -> str:
    if grapheme.isascii():
        return grapheme
    letter = ord(grapheme[0]) if len(grapheme) == 1 else 0
    if letter in BOXES:
        return "+"
    if letter in DOTS:
        return "*" if letter > DOTS.start else " "
    return ("#" if letter in BLOCKS else "?") * width
