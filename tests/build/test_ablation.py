"""The runs of an ablation: which are made, what is refused before them, and that they share the cache of builds."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.base.errors import ConfigError, StageError
from edgekit.base.events import Event, Progress, ignore
from edgekit.build import ablation
from edgekit.build.ablation import Ablation
from edgekit.build.request import Order
from edgekit.evaluation.ablation import Part
from edgekit.profiles import targets

NOISE = Part("noise", ("tune.robustness.noise=[]",))
ROBUST = ["tune.robust=true"]


@dataclass
class Measured:
    """Stands in for a run: wrong on every noisy row where robust tuning has no noise."""

    orders: list[Order] = field(default_factory=list)

    def __call__(self, order: Order, emit: Any = ignore) -> dict[str, list[float]]:
        self.orders.append(order)
        right = 0.0 if "tune.robustness.noise=[]" in order.changes else 1.0
        return {"clean": [1.0] * 6, "noise": [right] * 4, "phrasings": [1.0] * 4}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Measured:
    found = Measured()
    monkeypatch.setattr(ablation, "measure", found)
    monkeypatch.setattr(ablation.model, "fetch", lambda source, emit: source)
    possible = SimpleNamespace(check=lambda arguments: None)  # `plan` measures the speed of the machine
    monkeypatch.setattr(ablation, "plan", lambda *given, **places: possible)
    return found


def order(tmp_path: Path, *changes: str) -> Order:
    return Order(changes=[*changes], cache_dir=tmp_path, formats="gguf", threads=1)


def test_each_part_is_left_out_with_each_seed_and_its_effect_told(tmp_path: Path, runs: Measured) -> None:
    events: list[Event] = []
    asked = Ablation(order(tmp_path, *ROBUST), (NOISE,), seeds=(1, 2), rows=4)
    found = ablation.run(asked, events.append)
    assert [one.changes for one in runs.orders] == [
        [*ROBUST, "evaluate.robust=true", "evaluate.robust_rows=4", *left, f"tune.seed={seed}"]
        for left in ([], [*NOISE.changes])
        for seed in (1, 2)
    ]
    (effect,) = found["effects"]
    assert effect["part"] == "noise" and effect["points"]["noise"]["points"] == 100
    assert effect["points"]["clean"]["points"] == 0 and found["n"] == {"clean": 6, "noise": 4, "phrasings": 4}
    assert found["schema"] == "edgekit.ablation/1" and found["seeds"] == [1, 2]
    told = [(one.done, one.total) for one in events if isinstance(one, Progress)]
    assert told == [(n, 4) for n in range(1, 5)]
    json.dumps(found, allow_nan=False)


def test_a_part_that_changes_nothing_is_refused_before_any_run(tmp_path: Path, runs: Measured) -> None:
    asked = Ablation(order(tmp_path), (Part("pruning", ("prune.drop_layers=0",)),))
    with pytest.raises(ConfigError, match="'pruning' changes nothing"):
        ablation.run(asked, ignore)
    wrong = Ablation(order(tmp_path), (Part("x", ("tune.rnk=4",)),))
    with pytest.raises(ConfigError) as refusal:
        ablation.run(wrong, ignore)
    assert "tune.rnk" in " ".join(refusal.value.faults) and runs.orders == []


@pytest.mark.parametrize("name", targets.names())
def test_the_parts_of_every_target_change_something(name: str, tmp_path: Path) -> None:
    for changes in ([], [*ROBUST, "prune.drop_layers=2", "tune.rslora=true"]):
        target = targets.load(name, changes)
        parts = ablation.default_parts(target)
        assert {part.name for part in parts} >= {"quantization"} | (
            {"noise", "pruning"} if changes else set()
        )
        for part in parts:
            assert targets.load(name, [*changes, *part.changes]) != target, part


def test_ray_spreads_the_same_runs_and_says_when_there_is_no_cluster(
    tmp_path: Path, runs: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    class RayError(Exception):
        pass

    def init(address: str, log_to_driver: bool) -> None:
        if address != "auto":
            raise ConnectionError("nobody answers")

    def remote(function: Any) -> Any:
        return SimpleNamespace(remote=lambda *given: (function, given))

    ray = SimpleNamespace(
        init=init, remote=remote, shutdown=lambda: None, exceptions=SimpleNamespace(RayError=RayError),
        get=lambda future: future[0](*future[1]),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", ray)
    here = Ablation(order(tmp_path, *ROBUST), (NOISE,), seeds=(1, 2))
    there = Ablation(here.order, here.parts, seeds=here.seeds, ray="auto")
    assert ablation.run(there, ignore) == ablation.run(here, ignore)
    with pytest.raises(StageError, match="no Ray cluster at 10.0.0.1:6379: nobody answers"):
        ablation.run(Ablation(here.order, here.parts, ray="10.0.0.1:6379"), ignore)


def test_a_run_shares_the_cache_with_builds(tiny_build: Any, shell: Any, tmp_path: Path) -> None:
    """The run with every part is the build that is there; without quantization, tuning is not done again."""
    words = tiny_build.command(tmp_path / "unused", tiny_build.cache_copy(tmp_path))[1:]
    place = words.index("--out")
    out = tmp_path / "ablation.json"
    words[place : place + 2] = ["--out", str(out)]
    typed = ["eval", "ablate", *words, "--part", "bits=export.0.type=F16", "--seeds", "7"]
    done = shell(*typed)
    assert done.returncode == 0, done.stderr
    assert "bits" in done.stdout and "every part" in done.stdout
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    assert "tune: started" not in done.stderr and "eval.gguf: started" in done.stderr
    found = json.loads(out.read_text())
    built = json.loads((tiny_build.bundle / "report.json").read_text())
    assert found["runs"][0]["accuracy"]["clean"]["mean"] == built["evaluation"]["gguf"]["accuracy"]
    assert found["n"] == {"clean": 12, "noise": 2, "phrasings": 2} and len(found["effects"]) == 1
    picture = out.with_suffix(".svg").read_text()
    assert picture.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and "bits, clean" in picture
