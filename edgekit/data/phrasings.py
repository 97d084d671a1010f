"""Other frames for the same task: what stands around a message, and how the system message is worded.

A model that is tuned in one frame often answers in no other (FormatSpread, Sclar et al. 2023, arXiv 2310.11324). Robust
tuning uses half of these; the others are held out to measure the spread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgekit.data.noise import asked
from edgekit.data.rows import Message, Row


@dataclass(frozen=True)
class Phrasing:
    """One frame; one that is `held_out` is never used in tuning."""

    name: str
    held_out: bool
    of: Callable[[Row], Row]
    """The same row asked in this frame."""


def _around(name: str, before: str, after: str = "", *, held_out: bool = False) -> Phrasing:
    return Phrasing(name, held_out, lambda row: asked(row, lambda text: f"{before}{text}{after}"))


def _system(name: str, change: Callable[[str], str], *, held_out: bool = False) -> Phrasing:
    """The system message reworded: `change` gets it, or an empty text where there is none."""

    def of(row: Row) -> Row:
        first, rest = row.messages[0], row.messages
        own = ""
        if first["role"] == "system":
            own, rest = first["content"], row.messages[1:]
        content = change(own)
        start: tuple[Message, ...] = ({"role": "system", "content": content},) if content else ()
        return replace(row, messages=(*start, *rest))

    return Phrasing(name, held_out, of)


PHRASINGS: Sequence[Phrasing] = (
    _around("request", "Request: "),
    _around("message", "Message: ", "\n"),
    _around("quoted", '"', '"'),
    _system("assistant", lambda own: f"You are a helpful assistant. {own}".strip()),
    _system("instructions", lambda own: f"Instructions: {own or 'answer as you have learned.'}"),
    _around("user_says", "The user says: ", held_out=True),
    _around("input_output", "Input: ", "\nOutput:", held_out=True),
    _around("tagged", "<message>", "</message>", held_out=True),
    _system("reworded", lambda own: f"Follow this rule. {own}" if own else "Reply to the message.", held_out=True),
    _system("emphasis", lambda own: f"{own.upper()}\nThis is important." if own else "IMPORTANT: be precise.", held_out=True),
)  # fmt: skip
