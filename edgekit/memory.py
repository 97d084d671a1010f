"""Peak resident memory of this process and its children while something runs."""

from __future__ import annotations

import threading
from typing import Self

import psutil


class PeakRss:
    """Context manager that samples the process tree's resident memory; `peak_mib` is the highest reading, MiB.

    Sampled every 50 ms: a spike shorter than that is missed. Shared pages of children count twice.
    """

    def __init__(self, interval_s: float = 0.05) -> None:
        self.peak_mib = 0.0
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._read()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        self._read()

    def _watch(self) -> None:
        while not self._done.wait(self._interval_s):
            self._read()

    def _read(self) -> None:
        process = psutil.Process()
        total = 0
        for member in [process, *process.children(recursive=True)]:
            try:
                total += member.memory_info().rss
            except psutil.Error:  # it ended between listing and reading
                continue
        self.peak_mib = max(self.peak_mib, total / 2**20)
