"""The shell command behind each action: the app has no other way to do anything."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.errors import ConfigError

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5")
NOT_HOSTS = "-"  # what ssh would take for an option
OUT_OF_TIME = 124


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
    """`edgekit ARGUMENTS`, here, or by SSH on the machine `host`. Raises `ConfigError` for a host that is an option."""

    arguments: tuple[str, ...]
    host: str = ""
    _process: list[subprocess.Popen[str]] = field(default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.host.startswith(NOT_HOSTS):
            raise ConfigError(f"{self.host!r} is no host name.", "Name a device as NAME=ssh:USER@HOST.")

    @property
    def text(self) -> str:
        """The line as a person types it."""
        line = shlex.join(("edgekit", *self.arguments))
        return f"ssh {self.host} {shlex.quote(line)}" if self.host else line

    def run(self, timeout_s: float | None = None) -> Outcome:
        """Run it with `--json` and wait for its end. Raises nothing: what fails is in the outcome."""
        try:
            process = subprocess.Popen(
                self._argv(("--json",)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # a ctrl-c in the app is not one for its command
            )
        except OSError as error:
            return Outcome(self, 127, None, f"{self.text} could not be started: {error.strerror or error}.")
        self._process.append(process)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return Outcome(
                self,
                OUT_OF_TIME,
                None,
                f"No answer within {timeout_s:g} s.",
                "Type it in a shell to see what it waits for.",
            )
        finally:
            self._process.remove(process)
        return self._outcome(process.returncode, out, err)

    def stop(self) -> None:
        """Kill what `run` waits for, if it does: its answer is no longer wanted."""
        for process in list(self._process):
            process.kill()

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
        document = _last_document(out)
        if code == 0:
            return Outcome(self, 0, document)
        said = [line.removeprefix("edgekit: ").strip() for line in err.splitlines() if line.strip()]
        envelope = _last_document(out.strip().rpartition("\n")[2])
        if not (isinstance(envelope, dict) and {"code", "message"} <= envelope.keys()):
            envelope = {"message": said[-1] if said else f"It ended with exit code {code}."}
        return Outcome(
            self,
            code,
            document,
            str(envelope["message"]),
            str(envelope.get("hint", "")),
            tuple(map(str, envelope.get("faults") or ())),
        )


def _last_document(text: str) -> Any:
    """The JSON document in `text`, without an error's envelope behind it; None where there is none."""
    try:
        return json.JSONDecoder().raw_decode(text.lstrip())[0]
    except ValueError:
        return None
