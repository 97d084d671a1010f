"""Every shipped budget refuses a clearly worse file: the next wider type, a type that drifts more, a slow device."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.build.checks import budget_gates
from edgekit.evaluation.compare import Change
from edgekit.profiles import targets
from edgekit.proof import gates
from edgekit.proof.drift import Drift

WEIGHTS = 134_515_008  # of the sample model
Q8_0_MIB, INT8_MIB, F16_MIB = 138.1, 153.2, 258.0  # of the sample model: docs/targets.md
WORSE_SIZE = {  # the next wider type of either format
    "cpu-int4": Q8_0_MIB,
    "cpu-int8": F16_MIB,
    "laptop-q5": Q8_0_MIB,
    "mobile-int4": 100.6,  # llama.cpp's Q4_K_M file: benchmarks/bits.md
    "rpi5-int4": Q8_0_MIB,
}
WORSE_DRIFT = {  # mean and p99 KLD in nats and agreement of a file of the next narrower type, measured
    "cpu-int4": Drift(0.31, 2.45, 0.80, 1000),  # Q4_0: benchmarks/gguf_types.md
    "cpu-int8": Drift(0.0122, 0.113, 0.959, 1000),  # Q5_K_M: the same
    "laptop-q5": Drift(0.0145, 0.115, 0.961, 1000),  # Q4_K_M, the file of cpu-int4: docs/targets.md
    "mobile-int4": Drift(0.31, 2.45, 0.80, 1000),  # Q4_0
    "rpi5-int4": Drift(0.31, 2.45, 0.80, 1000),  # Q4_0
}
DEVICES = ("laptop-q5", "mobile-int4", "rpi5-int4")


def judged(name: str, path: Path, *, mib: float = 1.0, after: float = 0.98, **figures: Any) -> dict[str, Any]:
    """The budget's gates on a sparse file of `mib`, with the profile's `figures`."""
    with path.open("wb") as file:
        file.truncate(int(mib * 2**20))
    row = {"threads": 2, "peak_rss_mib": 100.0, "simulated": True, "differs": "needs aarch64"}
    row |= {"ttft_ms": {"median": 1.0}, "decode_tokens_per_s": {"median": 1e6}} | figures
    target = targets.load(name)
    request = SimpleNamespace(target=target.model_copy(update={"budget": target.budget.for_model(WEIGHTS)}))
    artifact = SimpleNamespace(path=path, format="gguf", steps=(SimpleNamespace(name="quantize.gguf"),))
    lost = tuple(f"row {number}" for number in range(round(300 * (0.98 - after))))
    change = Change(300, 294, 294 - len(lost), lost, ())
    found = budget_gates(request, artifact, change, SimpleNamespace(result={"entries": [row]}))  # type: ignore[arg-type]
    return {gate.name.removeprefix("gguf."): gate for gate in found}


def refused(name: str, path: Path, **worse: Any) -> list[str]:
    return [gate for gate, found in judged(name, path, **worse).items() if not found.passed]


@pytest.mark.parametrize("name", targets.names())
def test_a_worse_file_is_refused(name: str, tmp_path: Path) -> None:
    assert refused(name, tmp_path / "good") == []
    assert refused(name, tmp_path / "wider", mib=WORSE_SIZE[name]) == ["size_mib"]
    assert refused(name, tmp_path / "wrong", after=0.95) == ["accuracy_drop_points"]
    assert refused(name, tmp_path / "hungry", peak_rss_mib=600.0) == ["peak_rss_mib"]


@pytest.mark.parametrize("name", targets.names())
def test_a_file_that_drifts_more_is_refused(name: str) -> None:
    budget, worse = targets.load(name).budget, WORSE_DRIFT[name]
    good = Drift(0.001, 0.01, 0.999, 1000)
    assert all(gate.passed for gate in gates.drift(good, good, good, budget, "gguf", "quantize.gguf"))
    failed = {
        gate.name
        for gate in gates.drift(worse, good, None, budget, "gguf", "quantize.gguf")
        if not gate.passed
    }
    assert "gguf.mean_kld_nats" in failed
    assert name == "laptop-q5" or failed > {"gguf.p99_kld_nats", "gguf.top1_agreement"}
    answers = Drift(0.001, 0.01, 0.975, 1000)
    spoken = gates.drift(good, answers, None, budget, "gguf", "quantize.gguf")
    assert [gate.name for gate in spoken if not gate.passed] == ["gguf.answer_top1_agreement"]


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_that_is_too_slow_to_read_from_is_refused(name: str, tmp_path: Path) -> None:
    assert refused(name, tmp_path / "late", ttft_ms={"median": 1500.0}) == ["ttft_ms"]
    slow = {"median": 5.0}  # the speed of reading
    assert refused(name, tmp_path / "slow", decode_tokens_per_s=slow) == ["decode_tokens_per_s"]


@pytest.mark.parametrize("name", DEVICES)
def test_gates_on_speed_and_memory_say_where_the_device_was_simulated(name: str, tmp_path: Path) -> None:
    found = judged(name, tmp_path / "file")
    for gate in ("peak_rss_mib", "ttft_ms", "decode_tokens_per_s"):
        assert "simulated: not measured on the device, which needs aarch64" in found[gate].detail
    real = judged(name, tmp_path / "file", simulated=False, differs="")
    assert not any("simulated" in gate.detail for gate in real.values())
