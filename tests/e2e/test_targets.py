"""Every shipped target, built whole on the sample model: what docs/targets.md says of it is so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.profiles import targets
from edgekit.targets.host import Host


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all: they share the tuning, which takes most of the time."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("name", targets.names())
def test_a_target_holds_on_the_sample_model(shell: Any, tmp_path: Path, cache: Path, name: str) -> None:
    out = tmp_path / name
    done = shell("build", "--target", name, "--out", out, "--cache-dir", cache, "--json")
    assert done.returncode == 0, done.stderr
    report, target = json.loads(done.stdout), targets.load(name)
    assert report["verdict"] == "pass"
    measured = {artifact["format"]: artifact["bits_per_weight"] for artifact in report["artifacts"]}
    assert measured == pytest.approx(target.bits_per_weight, abs=0.05)  # what `edgekit targets list` says
    differs = target.device.differs(Host.here())
    for row in report["profile"]:
        assert row["simulated"] == bool(differs)
        assert row["limits"]["memory_mib"] == target.device.memory_mib
        assert row["limits"]["cores"] <= max(row["threads"], target.device.threads)
    for written in ("README.md", "report.html"):
        assert ("simulated" in (out / written).read_text(encoding="utf-8")) == bool(differs)
