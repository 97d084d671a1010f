"""Applies a device's limits to the profiled process: processor cores and memory.

The peak resident memory, which counts allocated memory and mapped files, is compared with the limit after opening and
after each answer, because the device would have to hold it. `RLIMIT_DATA` stops a process that goes far beyond the limit;
it also counts memory that is reserved and never used (stacks of threads, buffers for long prompts), so it is set higher.
A control group would only make a model that is too large run slowly before it fails, and needs permissions that most
users do not have.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from edgekit.base.memory import limit_own_memory, own_peak_mib


class MemoryExceededError(Exception):
    """The process used more resident memory than its limit; `peak_mib` is its peak."""

    def __init__(self, peak_mib: float) -> None:
        super().__init__(f"{peak_mib:.0f} MiB resident")
        self.peak_mib = peak_mib


@dataclass(frozen=True)
class Applied:
    """The limits that were applied to this process; `None` for one that is not set or cannot be set on this system."""

    cores: int | None = None
    memory_mib: int | None = None
    how: str = "no limits"

    def check(self) -> None:
        """Raise `MemoryExceededError` when the peak memory of this process exceeds the limit."""
        peak = own_peak_mib()
        if self.memory_mib is not None and peak > self.memory_mib:
            raise MemoryExceededError(peak)


def apply(cores: int | None, memory_mib: int | None) -> Applied:
    """Limit this process and its threads to `cores` of its cores and to `memory_mib` MiB, permanently."""
    methods = []
    pinned = _pin(cores) if cores is not None else None
    if pinned is not None:
        methods.append("CPU affinity")
    if memory_mib is not None:
        if (limit := limit_own_memory(memory_mib, for_good=False)) is not None:
            methods.append(f"RLIMIT_DATA of {limit} MiB")
        methods.append("peak resident memory")
    return Applied(pinned, memory_mib, ", ".join(methods) or "no limits")


def _pin(cores: int) -> int | None:
    """Bind every thread of this process to the first `cores` cores; returns how many it may then use."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    for thread in os.listdir("/proc/self/task"):  # threads that libraries have started keep their own setting
        os.sched_setaffinity(int(thread), chosen)
    return len(os.sched_getaffinity(0))
