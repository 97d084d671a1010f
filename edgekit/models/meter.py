"""The limits of one rendering of a chat template: steps of work, and characters of text.

A template is a program that comes with a downloaded file. Before an operation runs, an upper bound of its cost is
charged; so no rendering is interrupted from outside, and the limits work in any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.utils import Namespace

STEPS = 10_000_000  # nodes of the template's syntax tree, or 16 characters read: 1 to 3 s in Python
CHARACTERS = 16 << 20  # 64 MiB where each takes four bytes
PER_INPUT = 64  # additional steps and characters for each character of the conversation
DEPTH = 50  # nested calls, and nested containers
LARGEST_NUMBER = 1 << 4096
_CONTAINERS: tuple[type[Any], ...] = (
    list,
    tuple,
    set,
    frozenset,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)


class LimitReached(Exception):
    """A rendering exceeded a limit, which the message names."""


class Meter:
    """The remaining steps and characters of one rendering."""

    def __init__(self, input_characters: int) -> None:
        self.steps = STEPS + PER_INPUT * input_characters
        self.characters = CHARACTERS + PER_INPUT * input_characters
        self.depth = 0

    def work(self, steps: int) -> None:
        """Charge steps before they are done."""
        self.steps -= steps
        if self.steps < 0:
            raise LimitReached("it needs too many steps")

    def make(self, characters: int) -> None:
        """Charge text before it is made, and containers at 16 characters for each element."""
        self.characters -= characters
        if self.characters < 0:
            raise LimitReached("it makes too much text")
        self.work(characters // 16 + 1)

    def weigh(self, value: Any) -> int:
        """The number of characters that printing or comparing `value` would read; the traversal is charged.

        Raises `LimitReached` for values that are nested too deeply, such as a container within itself.
        """
        total, waiting = 0, [(value, 0)]
        while waiting:
            found, depth = waiting.pop()
            if isinstance(found, str):
                total += len(found) + 1
            elif isinstance(found, int):
                total += found.bit_length() // 3 + 1
            elif isinstance(found, range):
                total += len(found)
            elif parts := _parts(found):
                if depth == DEPTH:
                    raise LimitReached("it nests values too deeply")
                self.work(len(parts))
                total += 16 * len(parts)
                waiting += [(part, depth + 1) for part in parts]
            else:
                total += 16
            if total > self.characters:
                raise LimitReached("it makes too much text")
        self.work(total // 16 + 1)
        return total

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count one nested call."""
        if self.depth == DEPTH:
            raise LimitReached("it calls itself endlessly")
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        """Yield `values` one by one, and charge each."""
        for value in values:
            self.work(8)
            yield value


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Namespace):
        value = value._Namespace__attrs
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    return list(value) if isinstance(value, _CONTAINERS) else []


_active: ContextVar[Meter | None] = ContextVar("meter", default=None)


def meter() -> Meter:
    """The meter of the current rendering."""
    found = _active.get()
    if found is None:
        raise LimitReached("it computes before it is rendered")
    return found


@contextmanager
def metered(input_characters: int) -> Iterator[Meter]:
    """Charge a new meter within this block, in this thread."""
    token = _active.set(Meter(input_characters))
    try:
        yield meter()
    finally:
        _active.reset(token)
