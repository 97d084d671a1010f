"""What is read of a machine, on trees of files as different kernels show them."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from edgekit.field.telemetry import machine
from edgekit.field.telemetry.machine import MachineWatch


def write(root: Path, name: str, value: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")


def at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr("edgekit.field.telemetry.machine.time.monotonic", lambda: seconds)


def test_this_machine_can_be_read() -> None:
    found = MachineWatch().read()
    assert found.rss_mib == pytest.approx(psutil.Process(os.getpid()).memory_info().rss / 2**20, rel=0.2)
    assert found.load is None or found.load >= 0


def test_what_a_machine_does_not_tell_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "sensors_temperatures", raising=False)
    found = MachineWatch(tmp_path).read()
    assert found.temperature_c is None and found.throttled_s is None


def test_the_processor_s_temperature_comes_before_a_disk_s(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = type("Reading", (), {})
    cold, hot = reading(), reading()
    cold.current, hot.current = 51.0, 90.0  # type: ignore[attr-defined]
    monkeypatch.setattr(
        psutil, "sensors_temperatures", lambda: {"nvme": [hot], "coretemp": [cold]}, raising=False
    )
    assert MachineWatch().read().temperature_c == 51.0
    monkeypatch.setattr(psutil, "sensors_temperatures", dict, raising=False)
    assert MachineWatch().read().temperature_c is None


def test_the_kernel_s_counters_tell_how_long_it_was_throttled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = "devices/system/cpu/cpu1/thermal_throttle/core_throttle_total_time_ms"
    write(tmp_path, counter, 5000)
    at(monkeypatch, 0.0)
    watch = MachineWatch(tmp_path)
    at(monkeypatch, 10.0)
    assert watch.read().throttled_s == 0.0
    write(tmp_path, counter, 7500)
    at(monkeypatch, 20.0)
    assert watch.read().throttled_s == 2.5


def test_a_slow_clock_counts_only_while_the_machine_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, khz in (("scaling_cur_freq", 600_000), ("cpuinfo_max_freq", 2_400_000)):
        write(tmp_path, f"devices/system/cpu/cpu0/cpufreq/{name}", khz)
    at(monkeypatch, 0.0)
    watch = MachineWatch(tmp_path)
    for now, load, expected in ((5.0, 0.1, 0.0), (10.0, 1.0, 5.0)):
        at(monkeypatch, now)
        monkeypatch.setattr(machine, "_load", lambda load=load: load)
        assert watch.read().throttled_s == expected


def test_a_raspberry_pi_says_so_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = "devices/platform/soc/soc:firmware/get_throttled"
    write(tmp_path, file, "50000")  # was throttled once, is not now
    at(monkeypatch, 0.0)
    watch = MachineWatch(tmp_path)
    at(monkeypatch, 5.0)
    assert watch.read().throttled_s == 0.0
    write(tmp_path, file, "50005")
    at(monkeypatch, 10.0)
    assert watch.read().throttled_s == 5.0
