"""Work that waits, apart from the app's thread. Nobody waits for it when the app ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from textual.message_pump import MessagePump

Found = TypeVar("Found")


def in_thread(pump: MessagePump, work: Callable[[], Found], done: Callable[[Found], object]) -> None:
    """Do `work` in a thread of its own, then call `done` with what it found on the app's thread.

    What `work` raises is raised in the app, as if it had been done there.
    """

    def run() -> None:
        try:
            found = work()
        except BaseException as error:  # noqa: BLE001 (raised anew below)
            tell(pump, _raise, error)
        else:
            tell(pump, done, found)

    # The app's own workers are joined when it ends, however long they wait.
    threading.Thread(target=run, name="edgekit work", daemon=True).start()


async def from_thread(pump: MessagePump, work: Callable[[], Found]) -> Found:
    """Do `work` in a thread of its own and wait for what it found."""
    ended: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
    in_thread(pump, work, lambda found: None if ended.done() else ended.set_result(found))
    return await ended


def tell(pump: MessagePump, callback: Callable[..., object], *values: Any) -> None:
    """Call back on the app's thread from another one; nobody listens any more when the app has ended."""
    with contextlib.suppress(RuntimeError):
        pump.call_later(callback, *values)


def _raise(error: BaseException) -> None:
    raise error
