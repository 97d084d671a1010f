"""The machine's fingerprint and its free room, inside a container too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from edgekit.base import hardware
from edgekit.build import plan


def test_the_fingerprint_is_json_and_stable() -> None:
    found = hardware.fingerprint()
    assert json.loads(json.dumps(found)) == found == hardware.fingerprint()
    assert found["cores"] >= 1
    assert found["memory_mib"] > 64
    assert found["cpu"] and found["arch"] and found["os"]
    assert found["python"] == sys.version.split()[0]


def test_it_loads_no_torch() -> None:
    code = "import sys; from edgekit.base.hardware import fingerprint; fingerprint(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("model name\t: A\nflags\t\t: fpu avx2 avx512_bf16 fma\n", True),
        ("model name\t: A\nflags\t\t: fpu avx2 fma\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\n", False),
        ("", False),
    ],
)
def test_bf16_is_read_from_the_flags(monkeypatch: pytest.MonkeyPatch, cpuinfo: str, expected: bool) -> None:
    real = Path.read_text

    def read_text(path: Path, *args: str, **options: str) -> str:
        return cpuinfo if str(path) == "/proc/cpuinfo" else real(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert hardware.cpu_has_bf16() is expected


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 8 GiB, 6 of them free, in a cgroup folder that a test fills."""
    memory = SimpleNamespace(total=8192 * 2**20, available=6144 * 2**20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(hardware, "CGROUP_LIMITS", (str(tmp_path / "memory.max"),))
    return tmp_path


def test_a_container_limits_the_memory(container: Path) -> None:
    assert hardware.total_memory_mib() == 8192
    assert hardware.available_memory_mib() == 6144
    (container / "memory.max").write_text("max\n")
    assert hardware.total_memory_mib() == 8192
    (container / "memory.max").write_text(f"{1024 * 2**20}\n")
    assert hardware.total_memory_mib() == 1024


def test_what_a_container_has_taken_is_not_free(container: Path) -> None:
    (container / "memory.max").write_text(f"{1024 * 2**20}\n")
    (container / "memory.current").write_text(f"{924 * 2**20}\n")
    (container / "memory.stat").write_text("anon 5\ninactive_file 0\n")
    assert hardware.available_memory_mib() == 100
    (container / "memory.stat").write_text(f"anon 5\ninactive_file {50 * 2**20}\n")
    assert hardware.available_memory_mib() == 150


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    free = hardware.free_disk_mib(tmp_path / "not" / "there" / "yet")
    assert free == pytest.approx(psutil.disk_usage(str(tmp_path)).free // 2**20, abs=512)


@pytest.mark.parametrize(
    ("text", "cores", "throttled"),
    [("200000 100000\n", 2, True), ("150000 100000\n", 2, True), ("5000 100000\n", 1, True), ("max 100000\n", 8, False),
     ("900000 100000\n", 8, False), ("", 8, False), ("x 0\n", 8, False), ("1 0\n", 8, False)],
)  # fmt: skip
def test_a_container_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, cores: int, throttled: bool
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(hardware, "CGROUP_CPU", str(tmp_path / "cpu.max"))
    monkeypatch.setattr(hardware, "_allowed", lambda: 8)
    assert (hardware.cores(), hardware.is_throttled()) == (cores, throttled)


@pytest.mark.parametrize("throttled", [False, True])
def test_the_speed_is_that_of_the_products_that_were_left_alone(
    monkeypatch: pytest.MonkeyPatch, throttled: bool
) -> None:
    """Every second product is held up; on a clock of its own, a product takes 2 ms."""
    clock, products = [0.0], [0]

    class Matrix:
        def __matmul__(self, other: object) -> None:
            products[0] += 1
            clock[0] += 0.002 if products[0] % 2 else 0.018

    monkeypatch.setattr("numpy.ones", lambda *_, **__: Matrix())
    monkeypatch.setattr(plan, "time", SimpleNamespace(perf_counter=lambda: clock[0], sleep=lambda s: None))
    monkeypatch.setattr(hardware, "is_throttled", lambda: throttled)
    seconds = 2 * plan.FLOPS_SIZE**3 / plan._flops.__wrapped__()
    assert seconds == pytest.approx(0.01 if throttled else 0.002, rel=0.15)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in for the driver's own program, in a folder on PATH."""
    file = tmp_path / hardware.NVIDIA_SMI
    file.write_text("#!/bin/sh\necho 'Made Up 9000'\necho 'Made Up 10'\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    hardware.gpu.cache_clear()
    yield file
    hardware.gpu.cache_clear()


@pytest.mark.parametrize("torch", [None, SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))])
def test_the_gpu_is_the_drivers_whether_torch_is_imported_or_not(
    driver: Path, monkeypatch: pytest.MonkeyPatch, torch: object
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert hardware.fingerprint()["gpu"] == "Made Up 9000"


def test_no_gpu_is_told_where_there_is_none_or_none_may_be_used(
    driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert hardware.gpu() is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    hardware.gpu.cache_clear()
    driver.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert hardware.gpu() is None
    driver.unlink()
    hardware.gpu.cache_clear()
    assert hardware.gpu() is None
