"""The profiler: each thread count in a fresh process, and what that process reports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny

from edgekit import registry
from edgekit.base.errors import StageError
from edgekit.base.events import Alert, Event
from edgekit.base.memory import RESERVED_MIB
from edgekit.profiles import limits, probe, profiler
from edgekit.targets.target import Device, Profile

QUICK = Profile(threads=[1], prompt_tokens=16, generate_tokens=4, warmup=1, repeats=3)


def test_a_real_file_is_measured_in_a_process_of_its_own() -> None:
    ballast = b"x" * (800 * 2**20)  # this process is large; the child must not be charged for it
    (entry,) = profiler.profile(tiny.sample_gguf(), "llama.cpp", QUICK)
    assert len(ballast) > entry["peak_rss_mib"] * 2**20
    assert entry["artifact"] == tiny.SAMPLE
    assert (entry["runtime"], entry["threads"], entry["simulated"]) == ("llama.cpp", 1, False)
    for metric in ("ttft_ms", "prefill_tokens_per_s", "decode_tokens_per_s"):
        reading = entry[metric]
        assert reading["n"] == 3
        assert 0 < reading["min"] <= reading["median"] <= reading["max"]
    assert 100 < entry["peak_rss_mib"] < 700  # at least the weights
    assert json.loads(json.dumps(entry)) == entry
    assert entry["limits"] == {"threads": 1, "cores": None, "memory_mib": None, "how": "no limits"}


def test_a_model_fits_or_not_by_the_memory_that_it_takes() -> None:
    """Both sides of the limit, 15 % beside the peak that was measured without one."""
    (free,) = profiler.profile(tiny.sample_gguf(), "llama.cpp", QUICK)
    enough, too_small = (int(free["peak_rss_mib"] * share) for share in (1.15, 0.85))
    (entry,) = profiler.profile(
        tiny.sample_gguf(), "llama.cpp", QUICK, device=Device(threads=1, memory_mib=enough)
    )
    how = f"CPU affinity, RLIMIT_DATA of {enough + RESERVED_MIB} MiB, peak resident memory"
    assert entry["limits"] == {"threads": 1, "cores": 1, "memory_mib": enough, "how": how}
    said = rf"{tiny.SAMPLE} does not fit.*used \d+ MiB.*limit is {too_small} MiB \(device.memory_mib\)"
    with pytest.raises(StageError, match=said) as refusal:
        profiler.profile(tiny.sample_gguf(), "llama.cpp", QUICK, device=Device(memory_mib=too_small))
    assert refusal.value.hint


def test_a_model_far_beyond_the_memory_fails_to_open_and_is_said_to_be_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The runtime fails in its own way where an allocation is refused; the limit is named as the cause, as it works without."""
    answers: list[dict[str, Any] | str] = ["std::bad_alloc", {"runs": []}]
    asked: list[dict[str, Any]] = []

    def fake(task: dict[str, Any]) -> dict[str, Any] | str:
        asked.append(task)
        return answers[len(asked) - 1]

    monkeypatch.setattr(profiler, "_probe", fake)
    with pytest.raises(
        StageError, match=r"fails with a limit of 100 MiB \(device.memory_mib\) and works without"
    ):
        profiler.profile(Path("model.gguf"), "llama.cpp", QUICK, device=Device(memory_mib=100))
    assert [task.get("memory_mib") for task in asked] == [100, None]


def test_a_mapped_file_counts_against_the_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "own_peak_mib", lambda: 100.5)  # resident, whether allocated or mapped
    limits.Applied(memory_mib=101).check()
    with pytest.raises(limits.MemoryExceededError):
        limits.Applied(memory_mib=100).check()
    monkeypatch.setattr(profiler, "_probe", lambda task: {"exceeded_mib": 100.5})
    with pytest.raises(StageError, match="used 100 MiB, and the limit is 100 MiB"):
        profiler.profile(Path("model.gguf"), "llama.cpp", QUICK, device=Device(memory_mib=100))


def test_a_damaged_file_is_not_said_to_be_too_large(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(StageError, match="could not be profiled"):
        profiler.profile(broken, "llama.cpp", QUICK, device=Device(memory_mib=700))


def test_every_thread_of_the_limited_process_has_its_cores_alone() -> None:
    code = """
import json, os, numpy, resource, sys
from edgekit.base.memory import RESERVED_MIB
from edgekit.profiles import limits
applied = limits.apply(1, 512)
cores = [len(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")]
print(json.dumps([applied.cores, cores, resource.getrlimit(resource.RLIMIT_DATA)[0]]))
try:
    bytearray((600 + RESERVED_MIB) * 2**20)
except MemoryError:
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    cores, seen, data = json.loads(done.stdout)
    assert cores == 1 and set(seen) == {1}
    assert data == (512 + RESERVED_MIB) * 2**20


def test_an_artifact_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(StageError, match="broken.gguf.*llama.cpp") as refusal:
        profiler.profile(broken, "llama.cpp", QUICK)
    assert refusal.value.hint


def test_thread_counts_above_the_cores_are_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[int] = []

    def fake(
        artifact: Path, runtime: str, threads: int, options: Profile, device: Device | None
    ) -> dict[str, Any]:
        run.append(threads)
        reading = {metric: 1.0 for metric in profiler.METRICS}
        return {"runs": [reading] * 3, "peak_rss_mib": 10.0, "joules_per_token": None, "limits": {}}

    monkeypatch.setattr(profiler, "fingerprint", lambda: {"cores": 4})
    monkeypatch.setattr(profiler, "_run", fake)
    events: list[Event] = []
    options = Profile(threads=[1, 4, 8], repeats=3)
    board = Device(recognised_by="a board that this is not")
    entries = profiler.profile(Path("model.gguf"), "llama.cpp", options, emit=events.append, device=board)
    assert run == [1, 4] == [entry["threads"] for entry in entries]
    assert all(entry["simulated"] and "a board that" in entry["differs"] for entry in entries)
    (alert,) = [event for event in events if isinstance(event, Alert)]
    assert "8" in alert.message and "4 cores" in alert.message


def test_the_spread_is_of_the_readings() -> None:
    assert profiler._spread([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "min": 1.0, "max": 10.0, "n": 4}


class FakeModel:
    """A runtime on a clock of its own: 50 ms to the first token, 10 ms for each further one."""

    vocab_size = 100

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock
        self.prompts: list[list[int]] = []

    def generate(self, ids: Sequence[int], max_tokens: int, *, ignore_stop: bool = False) -> Iterator[int]:
        assert ignore_stop
        self.prompts.append(list(ids))
        for step in range(max_tokens):
            self.clock[0] += 0.01 if step else 0.05
            yield 7

    def close(self) -> None: ...


def test_readings_are_those_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    model = FakeModel(clock)
    opened: dict[str, Any] = {}

    def open_model(path: Path, **options: Any) -> FakeModel:
        opened.update(options)
        return model

    monkeypatch.setattr(registry, "load", lambda kind, name: open_model)
    monkeypatch.setattr(probe.time, "perf_counter", lambda: clock[0])
    task = {"artifact": "x", "runtime": "r", "threads": 3, **QUICK.model_dump(exclude={"threads"})}
    found = probe.measure(task)
    assert opened["threads"] == 3
    assert opened["context"] >= 20
    assert len(found["runs"]) == 3  # the warm-up is not counted
    for run in found["runs"]:
        assert run["ttft_ms"] == pytest.approx(50)
        assert run["prefill_tokens_per_s"] == pytest.approx(16 / 0.05)
        assert run["decode_tokens_per_s"] == pytest.approx(100)
    assert [len(prompt) for prompt in model.prompts] == [16] * 4
    assert all(0 <= id_ < 100 for prompt in model.prompts for id_ in prompt)
    assert len({tuple(prompt[:3]) for prompt in model.prompts}) == 4  # no run can reuse another's prefix
