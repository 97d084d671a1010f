"""What the benchmarks share: the model of the last build, and what a process costs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

EVERY_S, MIB = 0.015, 2**20


DEMO_BUNDLE = Path("bundles/smollm2-135m-cpu-int4")


def newest_merge() -> Path:
    """The merged folder of the last build in `.edgekit/cache`."""
    return newest("merge")


def newest(stage: str) -> Path:
    """The last result of a build's stage in `.edgekit/cache`."""
    folders = [path.parent for path in Path(".edgekit/cache", stage).glob("*/stage.json")]
    if not folders:
        sys.exit(f"The cache holds no result of the stage {stage}: run `make demo` first, or name a folder.")
    return max(folders, key=lambda folder: folder.stat().st_mtime)


@dataclass
class Cost:
    """What a process and its children took; memory is the most they held together, sampled every 15 ms.

    `anonymous_mib` leaves out pages of mapped files.
    """

    seconds: float
    cpu_seconds: float
    resident_mib: float
    anonymous_mib: float
    output: str


def watched(command: Sequence[object], work: Path, each: Callable[[], None] = lambda: None) -> Cost:
    """Run a process in the folder `work`, calling `each` between samples; stops the benchmark when it fails."""
    log = work / "log"
    with log.open("wb") as output:
        start, used, peaks = time.perf_counter(), _children_cpu_s(), [0, 0]
        process = subprocess.Popen(list(map(str, command)), cwd=work, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peaks = [max(pair) for pair in zip(peaks, memory_of(process.pid), strict=True)]
            each()
            time.sleep(EVERY_S)
        seconds, cpu = time.perf_counter() - start, _children_cpu_s() - used
    said = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode:
        sys.exit(said[-2000:])
    return Cost(seconds, cpu, peaks[0] / MIB, peaks[1] / MIB, said)


def memory_of(pid: int) -> tuple[int, int]:
    """Bytes that the process and its children hold: all resident pages, and those of no file."""
    resident = anonymous = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            info = process.memory_info()
            resident += info.rss
            anonymous += info.rss - getattr(info, "shared", 0)
    except psutil.Error:  # it ended between listing and reading
        pass
    return resident, anonymous


def _children_cpu_s() -> float:
    """CPU time of the processes that have ended, which other work on the machine hardly changes."""
    times = os.times()
    return times.children_user + times.children_system
