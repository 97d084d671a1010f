"""Describes this machine: its fingerprint for reports, and the free memory and disk. Does not load torch."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import psutil

FEATURES = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
)
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
CGROUP_CPU = "/sys/fs/cgroup/cpu.max"
NVIDIA_SMI = "nvidia-smi"
MIB = 2**20


def fingerprint() -> dict[str, Any]:
    """The properties that speed and rounding depend on; the same on every call on one machine."""
    return {
        "cpu": _cpu_info("model name") or platform.processor() or platform.machine(),
        "arch": platform.machine(),
        "cores": cores(),
        "memory_mib": total_memory_mib(),
        "features": [feature for feature in FEATURES if feature in cpu_flags()],
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "gpu": gpu(),
    }


def cores() -> int:
    """The cores that this process may use, within its container's limit on their time."""
    quota = _quota()
    return _allowed() if quota is None else max(1, min(_allowed(), math.ceil(quota)))


def is_throttled() -> bool:
    """Whether a container limits this process to less processor time than its cores have."""
    quota = _quota()
    return quota is not None and quota < _allowed()


def _allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota() -> float | None:
    """Seconds of processor time per second that the container allows."""
    try:
        quota, period = map(int, Path(CGROUP_CPU).read_text().split())
        return quota / period
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup, or "max"
        return None


def total_memory_mib() -> int:
    """Memory this process may use: the machine's, or its container's limit, MiB."""
    total = psutil.virtual_memory().total
    for limit in CGROUP_LIMITS:
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no cgroup, or "max"
            continue
    return total // MIB


def available_memory_mib() -> int:
    """Memory that is available without swapping, within the container's limit, MiB."""
    available = psutil.virtual_memory().available
    for limit in map(Path, CGROUP_LIMITS):
        used = limit.with_name("memory.current" if limit.name == "memory.max" else "memory.usage_in_bytes")
        try:
            free = (
                int(limit.read_text())
                - int(used.read_text())
                + _idle_file_cache(limit.with_name("memory.stat"))
            )
        except (OSError, ValueError):  # no cgroup, or "max"
            continue
        available = min(available, max(free, 0))
    return available // MIB


def _idle_file_cache(stat: Path) -> int:
    """Bytes that count as used in a cgroup, but that the kernel can reclaim."""
    found = dict(line.split() for line in stat.read_text().splitlines())
    return int(found.get("total_inactive_file", found.get("inactive_file", 0)))


def free_disk_mib(path: Path) -> int:
    """Free space on the disk that holds `path`, which need not exist yet, MiB."""
    return psutil.disk_usage(str(_existing(path))).free // MIB


def on_one_disk(first: Path, second: Path) -> bool:
    """Whether two paths, which need not exist yet, are on one file system."""
    return _existing(first).stat().st_dev == _existing(second).stat().st_dev


def _existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return place


def cpu_flags() -> frozenset[str]:
    """Instruction sets of the processor as Linux names them; empty elsewhere."""
    return frozenset((_cpu_info("flags") or _cpu_info("Features") or "").split())


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 matrices natively; if not, bfloat16 is slower than float32."""
    return not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def _cpu_info(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next(
        (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), ""
    )


@cache
def gpu() -> str | None:
    """The name of the first NVIDIA GPU, from its driver; None if there is none or this process may not use it.

    The result does not depend on whether torch is installed or imported.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1") or shutil.which(NVIDIA_SMI) is None:
        return None
    command = [NVIDIA_SMI, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):  # it is installed, but there is no GPU
        return None
    return next((line.strip() for line in done.stdout.splitlines() if line.strip()), None)
