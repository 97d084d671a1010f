"""A Python module in a child process with limits; the parent can always tell how it ended.

`python -m edgekit.base.child MEMORY_MIB MODULE ARGS...` sets the limits and then runs the module, so that they hold
before it imports anything. Its output does not reach the terminal, and it writes no core file.
"""

from __future__ import annotations

import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from edgekit.base.memory import limit_own_memory

SAMPLED_S = 0.02
SHOWN = 200  # characters of the last line that the process wrote


# Python would import modules from the current folder first, which may be that of a stranger's model.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}


class Child:
    """A running module, as a context manager that ends the process on exit.

    `memory_mib` bounds the memory that the process can reserve (`RLIMIT_DATA`, which macOS does not enforce).
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        memory_mib: float | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        command = [sys.executable, "-m", "edgekit.base.child", str(memory_mib or 0), module, *arguments]
        # ggml would start a debugger to print a backtrace
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1", **SAFE_PATH}
        self._open = ExitStack()
        self._output = self._open.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._errors = self._open.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._errors,
            pass_fds=pass_fds,
            env=environment,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def output(self) -> str:
        """The standard output of the process."""
        return _read(self._output.fileno())

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process if it still runs, and free its resources."""
        self._process.kill()
        self._process.wait()
        self._open.close()

    def wait(self, limit_s: float, memory_mib: float | None = None) -> tuple[str, float]:
        """Wait until the process has ended or exceeds a limit of time or memory.

        Returns the exceeded limit, `timeout` or `memory`, with the seconds or MiB that were reached; an empty text when
        the process ended by itself. Resident memory is sampled every 20 ms.
        """
        import psutil

        start, process = time.monotonic(), psutil.Process(self.pid)
        while True:
            try:
                self._process.wait(SAMPLED_S)
                return "", time.monotonic() - start
            except subprocess.TimeoutExpired:
                pass
            seconds = time.monotonic() - start
            try:
                rss = process.memory_info().rss / 2**20
            except psutil.Error:  # it has just ended
                continue
            if memory_mib is not None and rss > memory_mib:
                return "memory", rss
            if seconds > limit_s:
                return "timeout", seconds

    def how_it_ended(self) -> str:
        """The signal or the exit status of the ended process, and the last line that it wrote to standard error."""
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        lines = [line for line in _read(self._errors.fileno()).splitlines() if line.strip()]
        last = "".join(c for c in lines[-1].strip() if c.isprintable())[:SHOWN] if lines else ""
        return f"{how}{last and f': {last}'}"


def _read(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, min(size, 1 << 24), max(0, size - (1 << 24))).decode(errors="replace")


def _limit(memory_mib: float) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_mib:
        limit_own_memory(memory_mib, for_good=True)


def main() -> None:
    """Run a module as `__main__` under the limits."""
    _limit(float(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
