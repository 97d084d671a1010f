"""Peak resident memory: of this process and its children while something runs, and of this process since it began.

And a limit of memory that a process sets for itself, and what it can give back.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import psutil


MADV_PAGEOUT = 21  # of Linux's madvise(2); Python's `mmap` has no name for it
RESERVED_MIB = 1024  # allowance for what threads and allocators reserve and never use


def limit_own_memory(memory_mib: float, *, for_good: bool) -> int | None:
    """Bound what this process can reserve to `memory_mib` and `RESERVED_MIB` more, or to the limit it has; returns MiB.

    `for_good` keeps the process from raising it again. None on other systems than Linux, which accept `RLIMIT_DATA` and
    do not enforce it.
    """
    if sys.platform != "linux":
        return None
    import resource

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = int((memory_mib + RESERVED_MIB) * 2**20)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit if for_good else hard))
    return limit // 2**20


def give_back() -> None:
    """Give memory that is not used any more back to the system.

    Objects that refer to each other in circles are collected. The allocator of glibc keeps freed memory for later, of a
    tuned model more than a GiB, unless it is asked to return it; other allocators are left alone.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def keep_for_good() -> None:
    """Leave every object that exists now out of later collections.

    torch and transformers alone are a million objects that exist until the process ends, and a collection takes a quarter
    of a second to look at them all. An object that is in use now and in a circle is never collected later.
    """
    gc.freeze()


def page_out(address: int, size: int) -> None:
    """Let the system drop `size` bytes at `address`, of a mapped file, from memory; they are read again when needed.

    Nothing is lost, whatever lies there. Only Linux, since version 5.4, can be told so; elsewhere the pages stay until
    memory is short.
    """
    if sys.platform == "linux":
        start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        whole = (address + size - start) // mmap.PAGESIZE * mmap.PAGESIZE
        if whole > 0:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(whole), MADV_PAGEOUT)


def tree_rss_mib(process: psutil.Process) -> float:
    """Resident memory of `process` and its descendants, MiB, with shared pages in each; raises `psutil.Error`."""
    import psutil

    total = process.memory_info().rss
    for member in process.children(recursive=True):
        try:
            total += member.memory_info().rss
        except psutil.Error:  # it ended between listing and reading
            continue
    return float(total) / 2**20


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
        import psutil  # not above: a process that only measures itself does not need it

        self.peak_mib = max(self.peak_mib, tree_rss_mib(psutil.Process()))


def own_peak_mib() -> float:
    """The peak resident memory of this process since its start, MiB."""
    try:  # getrusage would count the parent's memory at the moment of the fork
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
