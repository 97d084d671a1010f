"""Lines of text with their kinds, as the results screen draws them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

Line = tuple[str, str]
"""A kind of line (`head`, `failed`, `more`, `fact`) and its text."""
STYLES = {"head": "bold", "failed": "bold red", "more": "dim", "fact": ""}


def styled(lines: Sequence[Line]) -> Text:
    """Lines with their kinds as styles; each kind is told by a sign or a word too."""
    return Text("\n").join(
        Text(f"{'  ' if kind == 'more' else ''}{line}", STYLES[kind]) for kind, line in lines
    )
