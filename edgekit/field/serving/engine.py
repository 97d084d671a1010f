"""One model that answers one request after another, from a bounded queue, on a thread of its own.

The runtimes compute one answer at a time on all cores, so answers side by side would only slow each other down. What
the worker thread makes crosses to the event loop of whoever asked.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from edgekit.base.errors import ConfigError
from edgekit.device.answer import WHOLE, Answer, Records
from edgekit.device.loaded import LoadedModel
from edgekit.field.serving.constrain import Constraints
from edgekit.field.serving.stops import StopStrings
from edgekit.models.sampling import Sampling
from edgekit.registry import LogitsProcessor

GREEDY = Sampling()
ALIAS = "default"  # a model name that every release answers to
# Why the engine ended an answer before the model did, and what its finish is then.
FINISH = {"stop": "stop", "timeout": "length", "cancelled": "cancelled", "drained": "cancelled"}


@dataclass(frozen=True)
class Request:
    """What is asked. `prompt` makes the token ids with the model that will answer; `grammar` is of `constrain`."""

    prompt: Callable[[LoadedModel], Sequence[int]]
    max_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    operation: str = "chat"


class Busy(Exception):
    """A request was not accepted, or not finished; trying again in `retry_after_s` seconds makes sense."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Busy):
    """As many requests wait as may."""


class Draining(Busy):
    """The server is about to stop."""


class TimeUp(Exception):
    """The time limit came before the first word of the answer."""


class Ticket:
    """A request that was accepted: iterate it for the text pieces of its answer.

    When it has ended, `finish` is `stop`, `length` or `cancelled`, and the counts of tokens are known. Iterating raises
    what went wrong: `ConfigError` for a request that cannot be answered, `TimeUp`, `Draining`, or the model's own error.
    """

    def __init__(self, request: Request, end: Callable[[Ticket, str], None]) -> None:
        self.request = request
        self.finish: str | None = None
        self.release = ""
        self.prompt_tokens = 0
        self.answer_tokens = 0
        self.accepted = time.monotonic()
        self.ending: str | None = None  # a key of FINISH
        self.timer: asyncio.TimerHandle | None = None
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[str | Exception | None] = asyncio.Queue()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        item = await self._items.get()
        if isinstance(item, str):
            return item
        self._items.put_nowait(item)  # whoever asks again hears it again
        if item is None:
            raise StopAsyncIteration
        raise item

    def cancel(self) -> None:
        """Nobody wants the answer any more: it ends before its next token; harmless after its end."""
        self._end(self, "cancelled")

    def put(self, item: str | Exception | None) -> None:
        """Hand a piece, the error that ended the answer, or None for its good end to the reader, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._take, item)
        except RuntimeError:  # the reader's event loop is closed
            self.ending = self.ending or "cancelled"

    def _take(self, item: str | Exception | None) -> None:
        self._items.put_nowait(item)
        if not isinstance(item, str) and self.timer:
            self.timer.cancel()


class _Ended(Exception):
    """Raised before a token is chosen, to end an answer that nobody waits for any more."""


class _Deployed:
    """A model in use, with what belongs to it alone."""

    def __init__(self, model: LoadedModel, source: Path | None, release: str) -> None:
        self.model = model
        self.release = release
        self.constraints = Constraints(source, model.runtime)
        self.name = ""


class _Told:
    """Hands answers on to the model's records, with the reason where it was the engine that ended one."""

    def __init__(self, records: Records, running: Callable[[], Ticket | None]) -> None:
        self._records = records
        self._running = running

    def record(self, answer: Answer) -> None:
        if answer.error == ConfigError.__name__:
            return  # the request was wrong, not the model: the asker is told
        ticket = self._running()
        if ticket and ticket.ending and (answer.finish == "cancelled" or answer.error == _Ended.__name__):
            if ticket.ending == "timeout" and not answer.ids:
                answer.finish, answer.error = "error", TimeUp.__name__
            else:
                answer.finish, answer.error = FINISH[ticket.ending], None
        self._records.record(answer)


class Engine:
    """Answers requests with one model after another; see the module.

    `name` is the model's name in requests and answers, `source` its bundle or folder, `release` its version. A name that
    the model had before a switch, each of `earlier_names`, and `default` are accepted in requests as well.
    `queue_size` requests may wait, `max_tokens` is the longest answer that may be asked for, and `timeout_s` seconds
    after it was accepted a request ends: with what it has, or with `TimeUp`.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        name: str,
        source: Path | None = None,
        release: str = "",
        queue_size: int = 64,
        max_tokens: int = 1024,
        timeout_s: float = 120.0,
    ) -> None:
        self.name = name
        self.earlier_names: frozenset[str] = frozenset()
        self.queue_size = queue_size
        self.max_tokens = max_tokens
        self.timeout_s = timeout_s
        self.started = time.time()
        self._changed = threading.Condition()
        self._queue: deque[Ticket] = deque()
        self._running: Ticket | None = None
        self._incoming: _Deployed | None = None
        self._draining = self._closed = False
        self._durations: deque[float] = deque(maxlen=32)
        self._deployed = self._adopt(model, source, release)
        self._worker = threading.Thread(target=self._work, name="edgekit-engine", daemon=True)
        self._worker.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests being answered: 0 or 1."""
        return int(self._running is not None)

    @property
    def release(self) -> str:
        """The version that answers now."""
        return self._deployed.release

    @property
    def ready(self) -> bool:
        """Whether a request would be accepted now."""
        return not self._draining and len(self._queue) < self.queue_size

    def answers_to(self, name: str) -> bool:
        """Whether a request for the model `name` is answered here."""
        return name in (self.name, ALIAS) or name in self.earlier_names

    def submit(self, request: Request) -> Ticket:
        """Put a request in the queue; called on the event loop that will read its answer.

        Raises `ConfigError` for too many tokens, `QueueFull`, and `Draining`.
        """
        if (request.max_tokens or 0) > self.max_tokens:
            raise ConfigError(f"At most {self.max_tokens} tokens may be asked for, not {request.max_tokens}.")
        with self._changed:
            if self._draining:
                raise Draining("The server is about to stop.", self._retry_after_s())
            if len(self._queue) >= self.queue_size:
                raise QueueFull(f"{len(self._queue)} requests wait already.", self._retry_after_s())
            ticket = Ticket(request, self._end)
            ticket.timer = asyncio.get_running_loop().call_later(self.timeout_s, self._end, ticket, "timeout")
            self._queue.append(ticket)
            self._changed.notify_all()
        return ticket

    def swap(
        self,
        model: LoadedModel,
        *,
        source: Path | None = None,
        release: str = "",
        name: str | None = None,
        grace_s: float | None = None,
    ) -> None:
        """Answer with `model` from now on, also what waits already; the answer under way ends on the old one.

        With `grace_s` it has so many seconds, and then ends with `Draining`. Blocks until the new one is in its place;
        the old one is closed right after.
        """
        incoming = self._adopt(model, source, release)
        incoming.name = self.name if name is None else name

        def placed() -> bool:
            return self._incoming is not incoming or self._closed

        with self._changed:
            superseded, self._incoming = self._incoming, incoming
            self._changed.notify_all()
            late = None if self._changed.wait_for(placed, grace_s) else self._running
        if late:
            self._end(late, "drained")
        with self._changed:
            self._changed.wait_for(placed)
        if superseded:
            superseded.model.close()

    def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and finish those accepted; after `timeout_s` the rest end with `Draining`.

        Blocks; returns whether all were finished.
        """
        with self._changed:
            self._draining = True
            finished = self._changed.wait_for(lambda: not self._queue and not self._running, timeout_s)
            left = [*self._queue, *([self._running] if self._running else [])]
        for ticket in left:
            self._end(ticket, "drained")
        return finished

    def close(self) -> None:
        """Stop the worker, after the answer under way, and free the model; what waits ends with `Draining`."""
        self.drain(0)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._worker.join()
        for deployed in filter(None, (self._deployed, self._incoming)):
            deployed.model.close()

    def _adopt(self, model: LoadedModel, source: Path | None, release: str) -> _Deployed:
        if model.telemetry is not None:
            model.telemetry = _Told(model.telemetry, lambda: self._running)
        return _Deployed(model, source, release)

    def _retry_after_s(self) -> int:
        """Seconds until about half of what waits is answered, by the durations of late."""
        mean = sum(self._durations) / len(self._durations) if self._durations else 1.0
        return max(1, math.ceil(mean * (len(self._queue) + 1) / 2))

    def _end(self, ticket: Ticket, why: str) -> None:
        """End a request early: at once where it waits, before its next token where it is being answered."""
        with self._changed:
            ticket.ending = ticket.ending or why
            waits = ticket in self._queue
            if waits:
                self._queue.remove(ticket)
                self._changed.notify_all()
        if waits:
            if why == "timeout":
                self._count_lost(ticket)
            self._finish(ticket)

    def _count_lost(self, ticket: Ticket) -> None:
        """Tell telemetry of a request whose time was up before anyone began to answer it."""
        model = self._deployed.model
        if model.telemetry is not None:
            lost = Answer(model.runtime, (), 0, operation=ticket.request.operation)
            lost.queue_s = time.monotonic() - ticket.accepted
            lost.finish, lost.error = "error", TimeUp.__name__
            model.telemetry.record(lost)

    def _finish(self, ticket: Ticket, error: Exception | None = None, finish: str | None = None) -> None:
        """Tell the reader how it ended: by itself with `finish`, with `error`, or for the reason in `ending`."""
        if error is None and finish is None:
            if ticket.ending == "timeout" and not ticket.answer_tokens:
                error = TimeUp(f"The answer took longer than {self.timeout_s:g} s.")
            elif ticket.ending == "drained":
                error = Draining(
                    "The answer was ended before it was finished; ask again.", self._retry_after_s()
                )
        ticket.finish = finish or FINISH.get(ticket.ending or "")
        ticket.put(error)

    def _work(self) -> None:
        while ticket := self._next():
            start = time.monotonic()
            try:
                finish = self._answer(ticket, self._deployed)
            except Exception as error:  # noqa: BLE001 - an error of one answer is that request's alone
                self._finish(ticket, error)
            else:
                self._finish(ticket, finish=finish)
            self._durations.append(time.monotonic() - start)

    def _next(self) -> Ticket | None:
        """The next request to answer, once the model that shall answer it is in its place; None to stop."""
        while True:
            with self._changed:
                self._running = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or self._incoming or self._queue)
                if self._closed:
                    return None
                if self._incoming is None:
                    self._running = self._queue.popleft()
                    return self._running
                old, self._deployed, self._incoming = self._deployed, self._incoming, None
                self.earlier_names |= {self.name}
                self.name = self._deployed.name
            old.model.close()

    def _answer(self, ticket: Ticket, deployed: _Deployed) -> str | None:
        """Make one answer; returns its finish, or None when the engine ended it for the reason in `ending`."""
        request, model = ticket.request, deployed.model
        ticket.release = deployed.release
        prompt = request.prompt(model)
        if not prompt or not all(0 <= token < model.runtime.vocab_size for token in prompt):
            raise ConfigError(f"A prompt is one or more token ids below {model.runtime.vocab_size}.")
        ticket.prompt_tokens = len(prompt)
        process = deployed.constraints.processor(request.grammar) if request.grammar else None
        answer = model.answer(
            prompt,
            max_tokens=request.max_tokens or min(model.max_tokens, self.max_tokens),
            sampling=request.sampling,
            process=self._watch(ticket, process),
            operation=request.operation,
            queue_s=time.monotonic() - ticket.accepted,
        )
        answer.comparable = not (request.grammar or request.stop)
        stops = StopStrings(request.stop)
        try:
            with closing(cast("Generator[str, None, None]", iter(answer))) as pieces:
                for piece in pieces:
                    if text := stops.feed(piece):
                        ticket.put(text)
                    if stops.found:
                        ticket.ending = ticket.ending or "stop"
                        break
        except _Ended:
            pass
        ticket.answer_tokens = len(answer.ids)
        if not stops.found and ticket.ending not in ("cancelled", "drained") and (rest := stops.rest()):
            ticket.put(rest)
        return answer.finish if answer.finish in WHOLE else None

    @staticmethod
    def _watch(ticket: Ticket, process: LogitsProcessor | None) -> LogitsProcessor:
        """`process`, and before every token a look whether someone still waits for it."""

        def watch(ids: Sequence[int], logits: Any) -> None:
            if ticket.ending:
                raise _Ended
            if process:
                process(ids, logits)

        return watch
