"""One answer as it is made: its text piece by piece, and what is to be known of it when it has ended."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from edgekit.device.certainty import Certainty
from edgekit.models.sampling import Sampling
from edgekit.registry import LogitsProcessor, Runtime

WHOLE = ("stop", "length")  # how an answer ends that was given; all else was cancelled or failed


class Records(Protocol):
    """What is told of every answer when it has ended; telemetry is one."""

    def record(self, answer: Answer) -> None:
        """Take note of `answer`; never raises."""


class OwnRecords(Records, Protocol):
    """Records that a model opened itself, and closes with itself."""

    def close(self) -> None:
        """Write what waits, and stop."""


class Answer:
    """An iterator of text pieces; its other attributes fill in as it goes.

    `finish` is `stop`, `length`, `cancelled` when the reader went away, or `error` with the kind in `error`; None while
    it is under way. Times are seconds: `queue_s` before it began, which whoever queued the request sets, and `ttft_s` from
    there to its first token.
    """

    def __init__(
        self,
        runtime: Runtime,
        prompt: Sequence[int],
        max_tokens: int,
        sampling: Sampling = Sampling(),
        *,
        process: LogitsProcessor | None = None,
        records: Records | None = None,
        operation: str = "chat",
    ) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.comparable = True
        """Whether the model alone chose the words: no grammar and no stop string."""
        self.ids: list[int] = []
        self.text = ""
        self.operation = operation
        self.queue_s = 0.0
        self.ttft_s: float | None = None
        self.duration_s = 0.0
        self.finish: str | None = None
        self.error: str | None = None
        self.certainty = None if records is None else Certainty()
        self._records = records
        self._process = process
        self._pieces = self._made(runtime, max_tokens, sampling)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def _made(self, runtime: Runtime, max_tokens: int, sampling: Sampling) -> Iterator[str]:
        start = time.perf_counter()
        shown = read = 0  # ids before `shown` are text for good; those before `read` were yielded
        options: dict[str, Any] = {"process": self._look} if self.certainty or self._process else {}
        try:
            for token in runtime.generate(self.prompt, max_tokens, sampling, **options):
                if self.ttft_s is None:
                    self.ttft_s = time.perf_counter() - start
                self.ids.append(token)
                # the tokens before give the decoder its context, and only what is new is yielded
                before, now = runtime.decode(self.ids[shown:read]), runtime.decode(self.ids[shown:])
                if not now.endswith("\ufffd"):  # the bytes of a character may come in several tokens
                    shown, read = read, len(self.ids)
                    self.text += now[len(before) :]
                    yield now[len(before) :]
            if read < len(self.ids):
                rest = runtime.decode(self.ids[shown:])[len(runtime.decode(self.ids[shown:read])) :]
                self.text += rest
                yield rest
            self.finish = "length" if len(self.ids) == max_tokens else "stop"
        except GeneratorExit:
            self.finish = "cancelled"
            raise
        except Exception as error:
            self.finish, self.error = "error", type(error).__name__
            raise
        finally:
            self.duration_s = time.perf_counter() - start
            if self._records is not None:
                self._records.record(self)

    def _look(self, ids: Sequence[int], logits: Any) -> None:
        if self.certainty:
            self.certainty.look(ids, logits)  # what the model would say, before anything forbids it
        if self._process:
            self._process(ids, logits)
