"""What the tests of commands share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from edgekit.commands.shell import State, state


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """`main` takes over the signals of its process, and notes what it has printed."""
    vars(state).update(vars(State()))
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
