"""The advice on a failed gate follows from why it failed: its value, or a sample that is too small to show it."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from edgekit.base.events import GateResult
from edgekit.evaluation.compare import Change
from edgekit.evaluation.statistics import ONE_SIDED_95, wilson
from edgekit.proof import gates
from edgekit.report import summary
from edgekit.targets.target import Budget

BUDGET = Budget(accuracy_drop_points=2.0, accuracy_gain_points=0.0, stop_agreement=0.95, mean_kld_nats=0.02)


def changed(n: int, before: int, lost: int, won: int) -> Change:
    ids = [tuple(map(str, range(count))) for count in (lost, won)]
    return Change(n, before, before - lost + won, *ids)


def stops(right: int, n: int) -> GateResult:
    measured = gates.Measured(right / n, "", wilson(right, n, ONE_SIDED_95), n)
    return gates._share("gguf.stop_contract", measured, BUDGET.stop_agreement, "s")


def kld(value: float, high: float) -> GateResult:
    return gates._at_most(
        "gguf.mean_kld_nats", gates.Measured(value, "", (0.0, high), 40), BUDGET.mean_kld_nats, "s"
    )


SMALL = {
    "few answers": (stops(20, 20), "Add validation rows"),
    "few positions": (kld(0.01, 0.09), "Add validation rows"),
    "few test rows": (gates.accuracy_drop(changed(20, 10, 0, 0), BUDGET, "gguf", "s"), "Add test rows"),
    "a small gain": (gates.accuracy_gain(changed(20, 10, 0, 1), "0-shot", BUDGET), "Add test rows"),
}
WORSE = {
    "other ends": (stops(80, 100), summary.VERIFY_ADVICE["stop_contract"]),
    "other numbers": (kld(0.05, 0.06), summary.ADVICE["mean_kld_nats"]),
    "accuracy lost": (gates.accuracy_drop(changed(200, 180, 40, 0), BUDGET, "gguf", "s"), "Use a wider type"),
    "nothing gained": (
        gates.accuracy_gain(changed(200, 100, 5, 0), "0-shot", BUDGET),
        "Tuning was not shown",
    ),
    "as good as before": (
        gates.accuracy_gain(changed(200, 100, 5, 5), "0-shot", BUDGET),
        "Tuning was not shown",
    ),
    "a large file": (gates.size(10 << 20, 5.0, "gguf", "s"), summary.ADVICE["size_mib"]),
}


@pytest.mark.parametrize("case", [*SMALL, *WORSE])
def test_a_small_sample_asks_for_rows_and_a_worse_value_for_a_better_file(case: str) -> None:
    gate, said = (SMALL | WORSE)[case]
    assert not gate.passed and summary.advice(asdict(gate)).startswith(said)
    assert ("too small" in summary.advice(asdict(gate))) is (case in SMALL)


@pytest.mark.parametrize("check", ["greedy_agreement", "mean_kld_nats", "stop_contract"])
def test_a_base_with_an_adapter_gets_the_advice_of_the_same_check(check: str) -> None:
    alone = {"name": f"gguf.{check}", "value": 0.5, "limit": 0.9 if check != "mean_kld_nats" else 0.1}
    assert summary.advice({**alone, "name": f"gguf.adapter_{check}"}) == summary.advice(alone)
    assert summary.advice(alone) != summary.OTHER_ADVICE


def test_a_wrong_adapter_gets_advice_on_adapters() -> None:
    gate = {"name": "onnx.adapter_change_error", "value": 1.0, "limit": 0.2}
    assert "adapter that was tuned on this base" in summary.advice(gate)


def test_every_advice_on_a_sample_belongs_to_a_check_with_bounds() -> None:
    assert (
        {*summary.ABOVE, *summary.AT_LEAST} - {"rounding"}  # of all tensors, not of a sample
        <= set(summary.SAMPLE_ADVICE)
        <= {*summary.ADVICE, *summary.VERIFY_ADVICE}
    )
