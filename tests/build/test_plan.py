"""The plan of a build refuses before anything starts what could only fail at its end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.build import plan
from edgekit.targets.target import Device, GgufExport


@pytest.mark.parametrize(("mib", "refused"), [(2346.0, True), (2200.0, False), (119.0, False)])
def test_a_file_that_surely_exceeds_the_devices_memory_is_refused(
    mib: float, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "file_size", lambda shape, export, quantize: ("Q4_K_M", 9000.0))
    monkeypatch.setattr(plan, "least_size", lambda shape, export, quantize: mib)
    exporter: Any = SimpleNamespace(refusal=lambda config, export: "")
    monkeypatch.setattr(plan.registry, "load", lambda kind, name: exporter)
    shape: Any = None
    target: Any = SimpleNamespace(quantize=None, device=Device(memory_mib=2048))
    found = plan._plan_export(GgufExport(format="gguf", type="Q4_K_M"), {}, shape, target)
    assert ("2,346 MiB, and the target's device has 2,048 MiB" in found.refusal) == refused
    assert bool(found.refusal) == refused
