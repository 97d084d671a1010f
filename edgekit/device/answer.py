"""One answer while it is generated: its text piece by piece, and its measurements at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from edgekit.device.certainty import Certainty
from edgekit.models.sampling import Sampling
from edgekit.registry import LogitsProcessor, Runtime

WHOLE = ("stop", "length")  # finish reasons of complete answers; all others were cancelled or failed


class Records(Protocol):
    """A receiver of every finished answer, such as telemetry."""

    def record(self, answer: Answer) -> None:
        """Record `answer`; never raises."""


class OwnRecords(Records, Protocol):
    """Records that a model opened, and closes together with itself."""

    def close(self) -> None:
        """Write pending data, and stop."""


class Answer:
    """An iterator of text pieces; its other attributes are set while it is generated.

    `finish` is `stop`, `length`, `cancelled` when the reader left, or `error` with the type in `error`; None until the
    end. Times are seconds: `queue_s` is the time in the queue, which the server sets, and `ttft_s` the time from there
    to the first token.
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
        """Whether the model alone determined the text, without a grammar or a stop string."""
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
        shown = read = 0  # ids before `shown` are final text; those before `read` were yielded
        options: dict[str, Any] = {"process": self._look} if self.certainty or self._process else {}
        try:
            for token in runtime.generate(self.prompt, max_tokens, sampling, **options):
                if self.ttft_s is None:
                    self.ttft_s = time.perf_counter() - start
                self.ids.append(token)
                # earlier tokens give the decoder its context, and only new text is yielded
                before, now = runtime.decode(self.ids[shown:read]), runtime.decode(self.ids[shown:])
                if not now.endswith("\ufffd"):  # the bytes of a character may span several tokens
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
            self.certainty.look(ids, logits)  # the model's own distribution, before a grammar restricts it
        if self._process:
            self._process(ids, logits)
