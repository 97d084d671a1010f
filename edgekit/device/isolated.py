"""A runtime in a child process, to open files from other sources.

llama.cpp and onnxruntime are native code that trusts much of a file's content. A file that makes them abort, crash,
hang or use all memory ends only the child process, and the caller gets a `CorruptError` that says what happened.

The child runs all calls of the runtime, because any token of any text may trigger a fault. So the file is loaded once,
and native code in the parent never reads it. The two processes exchange JSON and plain arrays of numbers, never pickles,
because a child that opened a hostile file is not trusted either. Starting the child takes about half a second, a call
about 0.1 ms, and logits are copied at about 1 GB/s.

Limits: 5 minutes for one call plus 5 more for each GiB of the file, one hour for all calls together plus one more for
each GiB, and 2 GiB of memory plus four times the size of the file. `edgekit verify --help` states them too.

Apps that open their own bundle with `edgekit.load` use no child process; the checks of `edgekit.containers` protect them.
"""

from __future__ import annotations

import json
import math
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import registry
from edgekit.base import errors
from edgekit.base.artifacts import size_of
from edgekit.base.child import Child
from edgekit.device.likelihood import likelihoods
from edgekit.models.chat import ChatTemplate
from edgekit.models.sampling import Sampling
from edgekit.registry import (
    BareText,
    FramesText,
    GuessesStops,
    HasBare,
    HasControlTokens,
    HasHiddenStates,
    LogitsProcessor,
    Runtime,
)

STEP_S, TOTAL_S = 300.0, 3600.0
MEMORY_MIB, MEMORY_TIMES = 2048.0, 4.0
REPLY_BYTES = 64 << 20
HINT = "Do not use this file. Get it again from a source that you trust, or export it again."
RAISED = {
    kind.__name__: kind
    for kind in (errors.ConfigError, errors.UnsupportedError, errors.MissingPartError, errors.CorruptError)
}


def memory_limit_mib(path: Path) -> float:
    """The memory limit for opening `path`, MiB: 2 GiB plus four times the size of the file or folder."""
    return MEMORY_MIB + MEMORY_TIMES * size_of(path) / 2**20


@dataclass(frozen=True)
class TimeLimits:
    """The limits in seconds for one call, opening the file included, and for all calls together."""

    step_s: float
    total_s: float

    @classmethod
    def of(cls, path: Path) -> TimeLimits:
        """5 minutes and one hour, plus the same again for each GiB of the file or folder."""
        times = 1 + size_of(path) / 2**30
        return cls(STEP_S * times, TOTAL_S * times)


def open_isolated(
    runtime: str, path: Path, *, threads: int = 2, context: int = 2048, limits: TimeLimits | None = None
) -> IsolatedRuntime:
    """Open `path` with the runtime of that name in a child process.

    `limits` bounds the time of its calls, by default `TimeLimits.of(path)`, and `memory_limit_mib` the memory of the
    process. Raises what the runtime raises, and `CorruptError` when the process crashes or exceeds a limit.
    """
    return IsolatedRuntime(runtime, path, threads, context, limits or TimeLimits.of(path))


class IsolatedRuntime:
    """A `Runtime` in a child process; `generate` computes the whole answer before it yields."""

    def __init__(self, runtime: str, path: Path, threads: int, context: int, limits: TimeLimits) -> None:
        self._path = path
        self._runtime = runtime
        self._limits = limits
        self._taken_s = 0.0
        self._memory_mib = memory_limit_mib(path)
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [str(theirs.fileno()), runtime, str(path), str(threads), str(context)]
            self._child = Child(
                "edgekit.device.isolated",
                arguments,
                memory_mib=self._memory_mib,
                pass_fds=[theirs.fileno()],
            )
        self._connection = Connection(ours.detach())
        self._reader = ThreadPoolExecutor(1)  # a read that can be given up after a time limit
        try:
            facts = self._receive("opening it")
        except BaseException:
            self.close()
            raise
        self.name = str(facts["name"])
        self._vocab_size = int(facts["vocab_size"])
        self._stop_ids = frozenset(map(int, facts["stop_ids"]))
        self.guessed_stop_ids: frozenset[int] = frozenset(map(int, facts["guessed_stop_ids"]))
        """Ids at which the runtime's own tools end an answer although the file does not name them."""
        self._has_bare = bool(facts["bare"])
        self._frames = bool(facts["frames"])
        self._has_hidden_states = bool(facts["hidden_states"])

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    @property
    def vocab_size(self) -> int:
        """V, the number of logits for one position."""
        return self._vocab_size

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids at which this file stops an answer."""
        return self._stop_ids

    @property
    def chat_template(self) -> ChatTemplate:
        """The chat template in the file; it is rendered in this process, under the limits of `models.chat`."""
        return ChatTemplate(*map(str, self.ask("reading its chat template", "chat_template")))

    @cached_property
    def control_tokens(self) -> frozenset[str]:
        """The texts that `encode` turns into control tokens; empty where the runtime does not know them."""
        return frozenset(map(str, self.ask("reading its control tokens", "control_tokens")))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens in it are recognised, none are added."""
        return list(map(int, self.ask("encoding a text", "encode", text)))

    def framed(self, text: str) -> list[int]:
        """Token ids of `text` with those that the runtime's own tools add to plain text; none added if it has no such."""
        return list(map(int, self.ask("encoding a text", "framed" if self._frames else "encode", text)))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens."""
        return str(self.ask("decoding tokens", "decode", list(map(int, ids))))

    def logits(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """Next-token logits `(T - first, V)`; raises `CorruptError` when one of them is not finite."""
        shape = (len(ids) - first, self._vocab_size)
        self.ask("computing logits", "logits", list(map(int, ids)), first)
        data = self._received("computing logits", 4 * shape[0] * shape[1])
        if len(data) != 4 * shape[0] * shape[1]:
            raise self._corrupt(f"the size of the logits does not fit {shape[0]} positions")
        rows = np.frombuffer(data, np.float32).reshape(shape)
        if np.isnan(rows).any():
            raise self._corrupt(f"{self.name} computes NaN logits, so the weights are damaged")
        return rows

    def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling = Sampling(), *,
        ignore_stop: bool = False, process: LogitsProcessor | None = None,
    ) -> Iterator[int]:  # fmt: skip
        """Token ids after the prompt `ids`; raises `UnsupportedError` with `process`, which cannot run in the child."""
        if process is not None:
            raise errors.UnsupportedError(
                "A runtime in a child process does not support a logits processor.",
                "Open the file with edgekit.load.",
            )
        chosen = [sampling.temperature, sampling.top_p, sampling.seed]
        answer = self.ask(
            "computing an answer", "generate", list(map(int, ids)), max_tokens, chosen, ignore_stop
        )
        yield from map(int, answer)

    def generate_batch(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Greedy answers to many prompts, in one call."""
        plain = [list(map(int, prompt)) for prompt in prompts]
        found = self.ask("computing answers", "generate_batch", plain, max_tokens)
        return [list(map(int, answer)) for answer in found]

    def score_answers(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """The log-likelihood in nats of each of `answers`, each with a stop id after it, as the answer to `prompt`."""
        ids, plain = list(map(int, prompt)), [list(map(int, answer)) for answer in answers]
        found = [float(value) for value in self.ask("scoring answers", "score_answers", ids, plain)]
        if len(found) != len(plain) or any(math.isnan(value) for value in found):
            raise self._corrupt(f"{self.name} scores answers with NaN, so the weights are damaged")
        return found

    def hidden_state(self, ids: Sequence[int]) -> NDArray[np.float32] | None:
        """The hidden state `(D,)` at the last of `ids`; None if the runtime has no access to it."""
        if not self._has_hidden_states:
            return None
        value = self.ask("reading a hidden state", "hidden_state", list(map(int, ids)))
        if value is None:
            return None
        found = np.array(value, np.float32)
        if found.ndim != 1 or not np.isfinite(found).all():
            raise self._corrupt(f"{self.name} computes a damaged hidden state")
        return found

    def bare(self) -> BareText | None:
        """The text path of the runtime's own package, in the child process; None if the runtime has none."""
        return _IsolatedBare(self) if self._has_bare else None

    def close(self) -> None:
        """End the child process."""
        self._reader.shutdown()
        self._connection.close()
        self._child.close()

    def ask(self, what: str, method: str, *arguments: Any) -> Any:
        """The result of the child's `method` for `arguments`; `what` names the work in error messages."""
        try:
            self._connection.send_bytes(json.dumps([method, *arguments]).encode())
        except OSError:  # the child has ended; its last output says why
            return self._receive(what)
        return self._receive(what)

    def _receive(self, what: str) -> Any:
        """The child's reply; raises the error that it holds."""
        try:
            reply = json.loads(self._received(what, REPLY_BYTES))
            if "error" not in reply:
                return reply["value"]
            kind, message, hint = reply["error"], str(reply["message"]), str(reply["hint"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._corrupt(f"the process that opened it sent a malformed reply while {what}") from error
        if kind not in RAISED:
            raise self._corrupt(f"{self._runtime} failed while {what}: {message}")
        raise RAISED[kind](message, hint)

    def _received(self, what: str, limit: int) -> bytes:
        limit_s = min(self._limits.step_s, self._limits.total_s - self._taken_s)
        if limit_s <= 0:
            self._child.kill()
            raise self._too_late(what, limit_s)
        start = time.monotonic()
        try:
            return self._reader.submit(self._connection.recv_bytes, limit).result(limit_s)
        except TimeoutError as error:
            self._child.kill()
            raise self._too_late(what, limit_s) from error
        except (EOFError, OSError) as error:
            self._child.kill()
            how = self._child.how_it_ended()
            raise self._corrupt(
                f"{self._runtime} crashed while {what} ({how}); its memory limit is {self._memory_mib:.0f} MiB"
            ) from error
        except BaseException:  # such as Ctrl-C: the reader would wait on
            self._child.kill()
            raise
        finally:
            self._taken_s += time.monotonic() - start

    def _too_late(self, what: str, limit_s: float) -> errors.CorruptError:
        if limit_s == self._limits.step_s:
            return self._corrupt(f"{self._runtime} did not finish {what} within {limit_s:.3g} s")
        total = f"{self._limits.total_s:.4g} s"
        return self._corrupt(f"{self._runtime} exceeded {total} for all calls together, while {what}")

    def _corrupt(self, reason: str) -> errors.CorruptError:
        return errors.CorruptError(f"{self._path} cannot be used: {reason}.", HINT)


class _IsolatedBare:
    """The `BareText` of the runtime in the child process."""

    def __init__(self, runtime: IsolatedRuntime) -> None:
        self._runtime = runtime

    def encode(self, text: str) -> list[int]:
        return list(map(int, self._runtime.ask("encoding a text", "bare.encode", text)))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._runtime.ask("decoding tokens", "bare.decode", list(map(int, ids))))

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        plain = [dict(message) for message in messages]
        return str(self._runtime.ask("rendering its chat template", "bare.render", plain))


class _Server:
    """The child's side: a runtime that serves one call after the other."""

    def __init__(self, connection: Connection, model: Runtime) -> None:
        self._connection = connection
        self._model = model
        self._bare: BareText | None = None

    def facts(self) -> dict[str, Any]:
        """The values that do not change after the file is opened."""
        model = self._model
        return {
            "name": model.name,
            "vocab_size": model.vocab_size,
            "stop_ids": sorted(model.stop_ids),
            "guessed_stop_ids": sorted(model.guessed_stop_ids) if isinstance(model, GuessesStops) else [],
            "bare": isinstance(model, HasBare),
            "frames": isinstance(model, FramesText),
            "hidden_states": isinstance(model, HasHiddenStates),
        }

    def call(self, method: str, arguments: list[Any]) -> tuple[Any, memoryview | None]:
        """The value for the reply, and the array that follows it."""
        if method == "chat_template":
            template = self._model.chat_template
            return [template.source, template.bos_token, template.eos_token], None
        if method == "control_tokens":
            return sorted(self._model.control_tokens) if isinstance(
                self._model, HasControlTokens
            ) else [], None
        if method == "logits":
            rows = np.ascontiguousarray(self._model.logits(*arguments), np.float32)
            return list(rows.shape), rows.reshape(-1).view(np.uint8).data
        if method == "hidden_state" and isinstance(self._model, HasHiddenStates):
            state = self._model.hidden_state(*arguments)
            return None if state is None else state.tolist(), None
        if method == "generate":
            ids, max_tokens, sampling, ignore_stop = arguments
            answer = self._model.generate(ids, max_tokens, Sampling(*sampling), ignore_stop=ignore_stop)
            return list(map(int, answer)), None
        if method == "score_answers":
            return likelihoods(self._model, *arguments), None
        if method.startswith("bare.") and isinstance(self._model, HasBare):
            self._bare = self._bare or self._model.bare()
            return getattr(self._bare, method.removeprefix("bare."))(*arguments), None
        return getattr(self._model, method)(*arguments), None

    def serve(self) -> None:
        """Serve calls until the parent disconnects."""
        while True:
            try:
                method, *arguments = json.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                return
            _reply(self._connection, lambda: self.call(method, arguments))  # noqa: B023 - called at once


def _reply(connection: Connection, work: Any) -> bool:
    """Send the result of `work` or the error that it raises; returns whether it succeeded."""
    try:
        value, array = work()
        reply = {"value": value}
    except KeyboardInterrupt:
        raise
    except errors.EdgekitError as error:
        reply = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except MemoryError:
        reply = {"error": "MemoryError", "message": "there was not enough memory", "hint": ""}
    except BaseException as error:  # noqa: BLE001 - a panic of a native library, for example, is not an Exception
        first = (str(error).splitlines() or [""])[0]
        reply = {"error": type(error).__name__, "message": f"{type(error).__name__}: {first}", "hint": ""}
    connection.send_bytes(json.dumps(reply).encode())
    if "error" not in reply and array is not None:
        connection.send_bytes(array)
    return "error" not in reply


def main() -> None:
    """Open the file and serve it to the parent; called as `python -m edgekit.device.isolated`."""
    descriptor, runtime, path, threads, context = sys.argv[1:]
    connection = Connection(int(descriptor))
    server: list[_Server] = []

    def opened() -> tuple[Any, None]:
        model = registry.load("runtimes", runtime)(Path(path), threads=int(threads), context=int(context))
        server.append(_Server(connection, model))
        return server[0].facts(), None

    if _reply(connection, opened):
        server[0].serve()


if __name__ == "__main__":
    main()
