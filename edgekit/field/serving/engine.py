"""One model that answers one request after another, from a bounded queue, in a thread of its own.

The runtimes compute one answer at a time on all cores, so parallel answers would only slow each other down. The worker
thread passes the pieces of an answer to the event loop of its client.
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
from edgekit.device.confidence import Verdict
from edgekit.device.loaded import LoadedModel
from edgekit.field.serving.constrain import Constraints
from edgekit.field.serving.stops import StopStrings
from edgekit.models.sampling import Sampling
from edgekit.registry import LogitsProcessor

GREEDY = Sampling()
ALIAS = "default"  # a model name that every release answers to
# Why the engine ended an answer before the model did, and the finish reason that clients get.
FINISH = {"stop": "stop", "timeout": "length", "cancelled": "cancelled", "drained": "cancelled"}


@dataclass(frozen=True)
class Request:
    """A request. `prompt` makes the token ids with the model that will answer; `grammar` comes from `constrain`."""

    prompt: Callable[[LoadedModel], Sequence[int]]
    max_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    operation: str = "chat"


class Busy(Exception):
    """A request was not accepted or not finished; the client may retry after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Busy):
    """The queue is full."""


class Draining(Busy):
    """The server is stopping."""


class TimeUp(Exception):
    """The time limit ended the request before the first token of the answer."""


class Ticket:
    """An accepted request: iterate over it for the text pieces of its answer.

    When it has ended, `finish` is `stop`, `length` or `cancelled`, and the token counts are known. `verdict` tells
    whether the answer is given, where the model has a `refusal`; an answer that is not given has no text. Iterating raises
    `ConfigError` for a request that cannot be answered, `TimeUp`, `Draining`, or the model's own error.
    """

    def __init__(self, request: Request, end: Callable[[Ticket, str], None]) -> None:
        self.request = request
        self.finish: str | None = None
        self.verdict: Verdict | None = None
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
        self._items.put_nowait(item)  # a second reader gets it too
        if item is None:
            raise StopAsyncIteration
        raise item

    def cancel(self) -> None:
        """Cancel the answer before its next token; has no effect after its end."""
        self._end(self, "cancelled")

    def put(self, item: str | Exception | None) -> None:
        """Pass a piece, the error that ended the answer, or None for its regular end to the reader, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._take, item)
        except RuntimeError:  # the reader's event loop is closed
            self.ending = self.ending or "cancelled"

    def _take(self, item: str | Exception | None) -> None:
        self._items.put_nowait(item)
        if not isinstance(item, str) and self.timer:
            self.timer.cancel()


class _Ended(Exception):
    """Raised before a token is chosen, to end an answer that no client is waiting for."""


class _Deployed:
    """A model in use, with the objects that belong to it."""

    def __init__(self, model: LoadedModel, source: Path | None, release: str) -> None:
        self.model = model
        self.release = release
        self.constraints = Constraints(source, model.runtime)
        self.name = ""


class _Told:
    """Passes answers on to the model's records, with the reason when the engine ended one."""

    def __init__(self, records: Records, running: Callable[[], Ticket | None]) -> None:
        self._records = records
        self._running = running

    def record(self, answer: Answer) -> None:
        if answer.error == ConfigError.__name__:
            return  # the request was wrong, not the model: the client gets the error
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
    `queue_size` requests may wait, and `max_tokens` is the longest answer that a request may ask for. `timeout_s` seconds
    after it was accepted, a request ends with the answer so far, or with `TimeUp`.
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
        """Whether this server answers requests for the model `name`."""
        return name in (self.name, ALIAS) or name in self.earlier_names

    def submit(self, request: Request) -> Ticket:
        """Put a request in the queue; called on the event loop that will read its answer.

        Raises `ConfigError` for too many tokens, `QueueFull`, and `Draining`.
        """
        if (request.max_tokens or 0) > self.max_tokens:
            raise ConfigError(
                f"max_tokens is {request.max_tokens}; this server allows at most {self.max_tokens}."
            )
        with self._changed:
            if self._draining:
                raise Draining("The server is stopping.", self._retry_after_s())
            if len(self._queue) >= self.queue_size:
                raise QueueFull(f"The queue is full ({len(self._queue)} requests).", self._retry_after_s())
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
        """Answer with `model` from now on, queued requests included; the current answer ends on the old model.

        With `grace_s`, the current answer ends with `Draining` after that many seconds. Blocks until the new model is in
        use; the old one is then closed.
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
        """Refuse new requests and finish the accepted ones; after `timeout_s` the rest end with `Draining`.

        Blocks, and returns whether all were finished.
        """
        with self._changed:
            self._draining = True
            finished = self._changed.wait_for(lambda: not self._queue and not self._running, timeout_s)
            left = [*self._queue, *([self._running] if self._running else [])]
        for ticket in left:
            self._end(ticket, "drained")
        return finished

    def close(self) -> None:
        """Stop the worker after the current answer, and free the model; queued requests end with `Draining`."""
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
        """Estimated seconds until half of the queue is answered, from recent durations."""
        mean = sum(self._durations) / len(self._durations) if self._durations else 1.0
        return max(1, math.ceil(mean * (len(self._queue) + 1) / 2))

    def _end(self, ticket: Ticket, why: str) -> None:
        """End a request early: at once if it is queued, before its next token if it is being answered."""
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
        """Record a request whose time limit passed while it was queued."""
        model = self._deployed.model
        if model.telemetry is not None:
            lost = Answer(model.runtime, (), 0, operation=ticket.request.operation)
            lost.queue_s = time.monotonic() - ticket.accepted
            lost.finish, lost.error = "error", TimeUp.__name__
            model.telemetry.record(lost)

    def _finish(self, ticket: Ticket, error: Exception | None = None, finish: str | None = None) -> None:
        """Pass the end to the reader: `finish`, `error`, or the reason in `ending`."""
        if error is None and finish is None:
            if ticket.ending == "timeout" and not ticket.answer_tokens:
                error = TimeUp(f"The answer took longer than {self.timeout_s:g} s.")
            elif ticket.ending == "drained":
                error = Draining(
                    "The server ended the answer before it was complete. Send the request again.",
                    self._retry_after_s(),
                )
        ticket.finish = finish or FINISH.get(ticket.ending or "")
        ticket.put(error)

    def _work(self) -> None:
        while ticket := self._next():
            start = time.monotonic()
            try:
                finish = self._answer(ticket, self._deployed)
            except Exception as error:  # noqa: BLE001 - an error of one answer must not affect other requests
                self._finish(ticket, error)
            else:
                self._finish(ticket, finish=finish)
            self._durations.append(time.monotonic() - start)

    def _next(self) -> Ticket | None:
        """The next request, once the model for it is in use; None to stop."""
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
        """Generate one answer; returns its finish reason, or None when the engine ended it as `ending` says."""
        request, model = ticket.request, deployed.model
        ticket.release = deployed.release
        if model.refusal is not None:
            _ = model.calibrated
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
        held: list[str] = []
        give = ticket.put if model.refusal is None else held.append
        try:
            with closing(cast("Generator[str, None, None]", iter(answer))) as pieces:
                for piece in pieces:
                    if text := stops.feed(piece):
                        give(text)
                    if stops.found:
                        ticket.ending = ticket.ending or "stop"
                        break
        except _Ended:
            pass
        ticket.answer_tokens = len(answer.ids)
        if not stops.found and ticket.ending not in ("cancelled", "drained") and (rest := stops.rest()):
            give(rest)
        if model.refusal is not None and ticket.ending not in ("cancelled", "drained"):
            text, whole = "".join(held), answer.finish == "stop" or stops.found
            ticket.verdict = model.judge(prompt, text if whole else None, model.refusal)
            if text and not ticket.verdict.abstained:
                ticket.put(text)
        return answer.finish if answer.finish in WHOLE else None

    @staticmethod
    def _watch(ticket: Ticket, process: LogitsProcessor | None) -> LogitsProcessor:
        """`process`, with a check before every token whether a client still waits for the answer."""

        def watch(ids: Sequence[int], logits: Any) -> None:
            if ticket.ending:
                raise _Ended
            if process:
                process(ids, logits)

        return watch
