"""What one rendering of a chat template may cost: steps of work, and characters made.

A template is a program that comes with a downloaded file. Nothing is interrupted from outside, so that it works in
any thread: each operation is charged before it runs, by an upper bound of its cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.utils import Namespace

STEPS = 10_000_000  # nodes of the template's syntax tree, or 16 characters read: 1 to 3 s in Python
CHARACTERS = 16 << 20  # 64 MiB where each takes four bytes
PER_INPUT = 64  # for each character of the conversation, as many steps and characters more
DEPTH = 50  # calls within calls, and containers within containers
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
    """A rendering asked for more than it may take; its text says of what."""


class Meter:
    """Counts down what is left to one rendering."""

    def __init__(self, input_characters: int) -> None:
        self.steps = STEPS + PER_INPUT * input_characters
        self.characters = CHARACTERS + PER_INPUT * input_characters
        self.depth = 0

    def work(self, steps: int) -> None:
        """Charge work that is about to be done."""
        self.steps -= steps
        if self.steps < 0:
            raise LimitReached("it takes too many steps")

    def make(self, characters: int) -> None:
        """Charge text, or containers at 16 characters an element, about to be made."""
        self.characters -= characters
        if self.characters < 0:
            raise LimitReached("it makes too much text")
        self.work(characters // 16 + 1)

    def weigh(self, value: Any) -> int:
        """The characters that printing or comparing `value` would touch; the walk over it is charged.

        Raises `LimitReached` for what is nested too deep, a container within itself among them.
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
        """Count one call within those under way."""
        if self.depth == DEPTH:
            raise LimitReached("it calls itself without end")
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        """`values` one by one, each charged as it is taken."""
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
    """The meter of the rendering under way."""
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
