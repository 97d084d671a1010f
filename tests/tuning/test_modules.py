"""An adapter of a mixture of experts can be merged: it leaves the experts out, which is told, or is refused at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from safetensors import safe_open

from edgekit import registry
from edgekit.base.errors import ConfigError, UnsupportedError
from edgekit.base.events import Alert, Event, ignore
from edgekit.build.plan import plan
from edgekit.data.rows import Row
from edgekit.data.splits import Dataset
from edgekit.models.source import resolve
from edgekit.profiles.targets import load
from edgekit.targets.target import Tune
from edgekit.tuning import tune as tune_code
from edgekit.tuning.modules import Modules, chosen
from edgekit.tuning.tune import tune

ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]
WIDE = {"hidden_size": 128, "num_experts": 8, "moe_intermediate_size": 96}  # experts that stay in their files
OPTIONS = Tune(rank=4, batch_size=4, epochs=1, dtype="float32")
TURNS = {"role": "user", "content": "Is the pump on?"}, {"role": "assistant", "content": "No."}
ROWS = [Row(f"row-{number}", TURNS, None, number) for number in range(4)]
EXPERTS = Tune(modules=["gate_proj", "up_proj", "down_proj"])


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts in bfloat16."""
    folder = tiny.make_small(tmp_path_factory.mktemp("moe") / "qwen3", "qwen3-moe", **WIDE)
    transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def tuned(model: Path, folder: Path, emit: Any = ignore) -> Path:
    data = Dataset("rows", ROWS, [], [])
    tune(model, data, OPTIONS, folder / "adapter", work=folder / "work", threads=1, emit=emit)
    return folder / "adapter"


def test_the_experts_get_no_adapter_and_the_rest_can_be_merged(moe: Path, tmp_path: Path) -> None:
    told: list[Event] = []
    adapter = tuned(moe, tmp_path, told.append)
    assert [event.message for event in told if isinstance(event, Alert)] == [
        "The experts of this model cannot be merged with an adapter: it changes only k_proj, o_proj, q_proj, v_proj."
    ]
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as stored:
        assert {name.split(".")[-3] for name in stored.keys()} == set(ATTENTION)  # noqa: SIM118 - no mapping
    registry.load("stages", "merge")(moe, adapter, tmp_path / "merged")
    proof = registry.load("stages", "merge-proof")(moe, adapter, tmp_path / "merged", [[1, 5, 6, 7]])
    assert proof["max_abs_logit_difference"] < 1e-3


def test_an_adapter_on_experts_as_peft_makes_it_could_not_be_merged(
    moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_code, "chosen", lambda config, options: Modules("all-linear"))
    with pytest.raises((UnsupportedError, RuntimeError)):
        registry.load("stages", "merge")(moe, tuned(moe, tmp_path), tmp_path / "merged")


def test_experts_that_were_asked_for_are_refused_before_anything_starts(moe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"on down_proj, gate_up_proj.*Nothing was started") as caught:
        chosen(config(moe), EXPERTS)
    assert "choose among k_proj, o_proj, q_proj, v_proj" in str(caught.value.hint)
    target = load("cpu-int4").model_copy(update={"tune": EXPERTS})
    with pytest.raises(ConfigError, match="Nothing was started"):
        plan(resolve(str(moe)), target, Dataset("rows", ROWS, [], []), cache_dir=tmp_path, out=tmp_path)


def test_what_an_adapter_leaves_out_stands_in_the_plan(moe: Path, tmp_path: Path) -> None:
    target, data = load("cpu-int4"), Dataset("rows", ROWS, [], [])
    found = plan(resolve(str(moe)), target, data, cache_dir=tmp_path, out=tmp_path)
    assert "it changes only k_proj" in found.left_out


def test_a_model_without_experts_gets_what_was_asked_for(small_model: Path) -> None:
    for modules in ("all-linear", ["q_proj"]):
        assert chosen(config(small_model), Tune.model_validate({"modules": modules})) == Modules(modules)


def test_modules_outside_the_experts_may_be_named(moe: Path) -> None:
    assert chosen(config(moe), Tune(modules=["q_proj"])) == Modules(["q_proj"])
    with pytest.raises(ConfigError, match="no_such"):
        chosen(config(moe), Tune(modules=["no_such"]))
