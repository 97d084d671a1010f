"""An edgekit command in a process of its own, here or on another machine by SSH, and how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.base.errors import reason

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "ServerAliveInterval=5", "-o",
       "ServerAliveCountMax=3")  # fmt: skip
HOST_S = 120.0  # for a command on another machine, where none is given
MOST_MIB = 16  # of what a command prints
DRAIN_S = 1.0  # for what is left in the pipes of one that has ended: others may hold them open
LOOK_S = 0.1
PAGE = 72  # columns of a page that shows what a plain command prints
OUT_OF_TIME, OUT_OF_ROOM = 124, 125


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code and document, or in words what failed and what to do next."""

    command: Command
    code: int
    document: Any
    message: str = ""
    hint: str = ""
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """`edgekit ARGUMENTS`, here, or by SSH on the machine `host`.

    The outcome's document is its JSON document, or the text that people read where it is `plain`.
    """

    arguments: tuple[str, ...]
    host: str = ""
    plain: bool = False
    _process: list[subprocess.Popen[bytes]] = field(default_factory=list, compare=False, repr=False)

    @property
    def text(self) -> str:
        """The line as a person types it."""
        line = shlex.join(("edgekit", *self.arguments))
        return f"ssh {self.host} {shlex.quote(line)}" if self.host else line

    def run(self, timeout_s: float | None = None) -> Outcome:
        """Run it and wait for its end. Raises nothing: what fails is in the outcome."""
        limit_s = HOST_S if timeout_s is None and self.host else timeout_s
        try:
            process = subprocess.Popen(
                self._argv(() if self.plain else ("--json",)),
                env={**os.environ, "COLUMNS": str(PAGE)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a ctrl-c in the app is not one for its command
            )
        except OSError as error:
            return Outcome(self, 127, None, f"{self.text} could not be started: {reason(error)}.")
        self._process.append(process)
        try:
            out, err = _read(process, limit_s)
        except subprocess.TimeoutExpired:
            hint = "Type it in a shell to see what it waits for."
            return Outcome(self, OUT_OF_TIME, None, f"No answer within {limit_s:g} s.", hint)
        except BufferError:
            message = f"It printed more than {MOST_MIB} MiB and was stopped."
            return Outcome(self, OUT_OF_ROOM, None, message, "Type it in a shell to see what it prints.")
        finally:
            _kill(process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(DRAIN_S)
            self._process.remove(process)
        return self._outcome(process.returncode, out, err)

    def stop(self) -> None:
        """Kill what `run` waits for, if it does: its answer is no longer wanted."""
        for process in list(self._process):
            _kill(process)

    def start(self, log: Path) -> int:
        """Start it in a session of its own, so that it outlives the app and its terminal; its output goes to `log`.

        Returns the process id. Raises `OSError` when it cannot be started.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            process = subprocess.Popen(
                self._argv(()),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        threading.Thread(target=process.wait, name="reap", daemon=True).start()  # leaves no zombie behind
        return process.pid

    def _argv(self, more: tuple[str, ...]) -> list[str]:
        if self.host:
            return [*SSH, "--", self.host, shlex.join(("edgekit", *self.arguments, *more))]
        return [sys.executable, "-m", "edgekit.cli", *self.arguments, *more]

    def _outcome(self, code: int, out: str, err: str) -> Outcome:
        document = out if self.plain else _last_document(out)
        if code == 0:
            return Outcome(self, 0, document)
        said = [line.removeprefix("edgekit: ").strip() for line in err.splitlines() if line.strip()]
        envelope = _last_document(out.strip().rpartition("\n")[2])
        if not (isinstance(envelope, dict) and {"code", "message"} <= envelope.keys()):
            last = "\n".join(said) if self.plain else said[-1] if said else ""
            envelope = {"message": last or f"It ended with exit code {code}."}
        return Outcome(
            self,
            code,
            document,
            str(envelope["message"]),
            str(envelope.get("hint", "")),
            tuple(map(str, envelope.get("faults") or ())),
        )


def _read(process: subprocess.Popen[bytes], limit_s: float | None) -> tuple[str, str]:
    """What a process prints until its end, to both pipes, which are closed then.

    Raises `TimeoutExpired` when it is not at its end in time, and `BufferError` when it prints too much.
    """
    assert process.stdout is not None and process.stderr is not None
    end = float("inf") if limit_s is None else time.monotonic() + limit_s
    ended, found = False, {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    with process.stdout, process.stderr, selectors.DefaultSelector() as open_pipes:
        for pipe in found:
            open_pipes.register(pipe, selectors.EVENT_READ)
        while open_pipes.get_map() or not ended:
            if (left := end - time.monotonic()) <= 0:
                if ended:
                    break
                raise subprocess.TimeoutExpired(process.args, limit_s or 0.0)
            if not ended and process.poll() is not None:
                ended, end = True, time.monotonic() + DRAIN_S
                continue
            if not open_pipes.get_map():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(left, LOOK_S))
                continue
            for key, _ in open_pipes.select(min(left, LOOK_S)):
                if piece := os.read(key.fd, 1 << 16):
                    found[key.fd] += piece
                else:
                    open_pipes.unregister(key.fd)
            if sum(map(len, found.values())) > MOST_MIB << 20:
                raise BufferError
    out, err = (bytes(each).decode(errors="replace") for each in found.values())
    return out, err


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started, if it has not ended."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)


def _last_document(text: str) -> Any:
    """The JSON document in `text`, without an error's envelope behind it; None where there is none."""
    try:
        return json.JSONDecoder().raw_decode(text.lstrip())[0]
    except ValueError:
        return None
