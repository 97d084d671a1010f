"""Shadow mode: a candidate answers the same requests as the version in use; its answers are compared and discarded.

Only counts are kept. It runs in a thread of the lowest priority with a short queue; when the queue is full, requests
are skipped.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.device.answer import WHOLE, Answer

if TYPE_CHECKING:
    from edgekit.data.rows import Message
    from edgekit.device.loaded import LoadedModel

QUEUE = 16
LEAST_PRIORITY = 19


@dataclass(frozen=True)
class Means:
    """Means over the answers of one of the two versions; None without answers."""

    ttft_s: float | None
    duration_s: float | None
    confidence: float | None


@dataclass(frozen=True)
class Summary:
    """The comparison so far, without any prompt or answer."""

    requests: int
    """Requests that the server offered."""
    answered: int
    """Requests that the candidate answered too, compared."""
    dropped: int
    """Requests skipped because the candidate was behind."""
    failed: int
    """Requests on which the candidate failed."""
    same_answer: int
    same_class: int | None
    """None when answers have no classes."""
    current: Means
    candidate: Means


@dataclass(frozen=True)
class _Asked:
    prompt: Sequence[int] | Sequence[Message]
    tokens: bool
    answer: Answer


class _Sums:
    def __init__(self) -> None:
        self._sums = {"ttft_s": 0.0, "duration_s": 0.0, "confidence": 0.0}
        self._counts = dict.fromkeys(self._sums, 0)

    def add(self, answer: Answer) -> None:
        certainty = answer.certainty.confidence if answer.certainty else None
        values = {"ttft_s": answer.ttft_s, "duration_s": answer.duration_s, "confidence": certainty}
        for name, value in values.items():
            if value is not None:
                self._sums[name] += value
                self._counts[name] += 1

    def means(self) -> Means:
        return Means(**{name: self._sums[name] / n if n else None for name, n in self._counts.items()})


class _Unrecorded:
    """Keeps shadow answers out of telemetry; their confidence is still computed."""

    def record(self, answer: Answer) -> None:
        """Record nothing."""


class Shadow:
    """Asks `candidate` the questions of the version in use; `close` frees it.

    `class_of` returns the class of an answer's text, None for no class.
    """

    def __init__(
        self,
        candidate: LoadedModel,
        *,
        class_of: Callable[[str], str | None] | None = None,
        queue_size: int = QUEUE,
    ) -> None:
        self._model = candidate
        self._class_of = class_of
        self._waiting: queue.Queue[_Asked | None] = queue.Queue(queue_size)
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(
            ("requests", "answered", "dropped", "failed", "same_answer", "same_class"), 0
        )
        self._current, self._candidate = _Sums(), _Sums()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, answer: Answer, messages: Sequence[Message] | None = None) -> None:
        """Ask the candidate the question of a finished greedy `answer`; returns at once and never raises.

        With `messages` the candidate renders them by its own template; without, it takes the token ids, which only fits
        a candidate with the same tokenizer and template. Answers that failed or were cancelled are not compared.
        """
        if answer.finish not in WHOLE or self._closing:
            return
        if answer.sampling.temperature or not answer.comparable:
            return  # sampling, a grammar or a stop string shaped it: the two answers cannot be compared
        self._count("requests")
        asked = _Asked(answer.prompt if messages is None else messages, messages is None, answer)
        try:
            self._waiting.put_nowait(asked)
        except queue.Full:
            self._count("dropped")

    def record(self, answer: Answer) -> None:
        """The same as `offer(answer)`, so that a shadow can be one of the `Records`."""
        self.offer(answer)

    def summary(self) -> Summary:
        """The counts and means so far."""
        with self._lock:
            counts: dict[str, Any] = dict(self._counts)
            if self._class_of is None:
                counts["same_class"] = None
            return Summary(**counts, current=self._current.means(), candidate=self._candidate.means())

    def wait(self) -> None:
        """Block until every queued request is answered."""
        self._waiting.join()

    def close(self) -> None:
        """Stop after the current answer, drop the queue, and free the candidate."""
        self._closing = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
                self._waiting.task_done()
        self._waiting.put(None)
        self._thread.join()
        self._model.close()

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def _work(self) -> None:
        if (
            sys.platform == "linux"
        ):  # on Linux a thread has its own priority, which the threads it starts inherit
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_PRIORITY)
        while (asked := self._waiting.get()) is not None:
            try:
                self._answer(asked)
            except Exception:  # noqa: BLE001 - a candidate's failure must not affect the version in use
                self._count("failed")
            finally:
                self._waiting.task_done()

    def _answer(self, asked: _Asked) -> None:
        prompt: Any = asked.prompt if asked.tokens else self._model.prompt(list(asked.prompt))  # type: ignore[arg-type]
        shown = len(asked.answer.ids)  # a truncated answer is compared with one truncated at the same length
        limit = max(1, shown) if asked.answer.finish == "length" else max(self._model.max_tokens, 2 * shown)
        seen = Answer(self._model.runtime, prompt, limit, records=_Unrecorded())
        for _ in seen:
            if self._closing:
                return
        classes = [self._class_of(text) for text in (asked.answer.text, seen.text)] if self._class_of else []
        with self._lock:
            self._counts["answered"] += 1
            self._counts["same_answer"] += asked.answer.text.strip() == seen.text.strip()
            self._counts["same_class"] += bool(classes) and classes[0] == classes[1]
            self._current.add(asked.answer)
            self._candidate.add(seen)
