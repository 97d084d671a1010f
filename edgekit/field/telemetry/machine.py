"""Readings of the machine while it serves: memory, temperature, throttling and load."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

MIB = 2**20
SLOW = 0.6  # of the highest frequency: a busy processor below it is throttled
BUSY = 0.7  # of the cores; an idle processor lowers its frequency by itself
CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")
PI_THROTTLED = 0xF  # under-voltage, capped, throttled or hot, now; higher bits are the same for the past


@dataclass(frozen=True, slots=True)
class Machine:
    """One reading; values that this machine does not provide are None. `throttled_s` counts from the last reading."""

    time: float
    rss_mib: float
    temperature_c: float | None
    throttled_s: float | None
    load: float | None
    """Runnable processes per core over the last minute."""


class MachineWatch:
    """Reads the machine. `root` is the folder that holds the kernel's files; tests use another one."""

    def __init__(self, root: Path = Path("/sys")) -> None:
        self._process = psutil.Process()
        self._cpus = sorted((root / "devices/system/cpu").glob("cpu[0-9]*"))
        self._pi = root / "devices/platform/soc/soc:firmware/get_throttled"
        self._before = time.monotonic()
        self._throttled_ms = self._counted_ms()

    def read(self) -> Machine:
        """A reading of the machine now."""
        load = _load()
        return Machine(
            time.time(), self._process.memory_info().rss / MIB, temperature(), self._throttled(load), load
        )

    def _throttled(self, load: float | None) -> float | None:
        """Seconds of throttling since the last reading, from the kernel's counters or the frequency."""
        now = time.monotonic()
        passed, self._before = now - self._before, now
        bits = _number(self._pi, 16)
        if bits is not None:
            return passed if bits & PI_THROTTLED else 0.0
        counted = self._counted_ms()
        if counted is not None:
            before, self._throttled_ms = self._throttled_ms or 0, counted
            return min(passed, max(0, counted - before) / 1000)
        speeds = [
            (now_khz, top_khz)
            for cpu in self._cpus
            if (now_khz := _number(cpu / "cpufreq/scaling_cur_freq")) is not None
            and (top_khz := _number(cpu / "cpufreq/cpuinfo_max_freq"))
        ]
        if not speeds:
            return None
        slow = sum(now_khz for now_khz, _ in speeds) < SLOW * sum(top_khz for _, top_khz in speeds)
        return passed if slow and load is not None and load > BUSY else 0.0

    def _counted_ms(self) -> int | None:
        """Milliseconds of throttling of the most throttled core since the start, from the kernel's counter."""
        names = ("core_throttle_total_time_ms", "package_throttle_total_time_ms")
        found = [_number(cpu / "thermal_throttle" / name) for cpu in self._cpus for name in names]
        return max((value for value in found if value is not None), default=None)


def _number(path: Path, base: int = 10) -> int | None:
    try:
        return int(path.read_text().strip(), base)
    except (OSError, ValueError):
        return None


def _load() -> float | None:
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (OSError, AttributeError):
        return None


def temperature() -> float | None:
    """The hottest sensor of the processor, else of the machine; None without a sensor."""
    if not hasattr(psutil, "sensors_temperatures"):
        return None
    try:
        found = psutil.sensors_temperatures()
    except (OSError, RuntimeError):
        return None
    sensors = [found[name] for name in CPU_SENSORS if name in found] or list(found.values())
    return max((reading.current for group in sensors for reading in group), default=None)
