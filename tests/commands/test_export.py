"""`edgekit export --adapter`: what is written loads, swaps in, and answers as the merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

import edgekit
from edgekit.base.errors import UnsupportedError


@pytest.fixture(scope="module")
def adapter(tiny_build: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.adapter(tiny_build.model, tmp_path_factory.mktemp("lora") / "field", r=4)


@pytest.fixture(scope="module")
def exported(shell: Any, tiny_build: Any, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("exported") / "out"
    done = shell(
        "export", tiny_build.model, "--adapter", adapter, "--out", out, "--target", tiny_build.folder / "tiny.toml",
        "--data", tiny_build.folder / "data", "--cache-dir", tiny_build.folder / "cache", "--threads", "1", "--json",
        "--set", "budget.answer_top1_agreement=0.7", "--set", "budget.greedy_agreement=0.2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return out, json.loads(done.stdout)


def test_each_format_gets_its_base_and_its_adapter_with_the_proof(exported: Any) -> None:
    out, told = exported
    assert {str(path.relative_to(out)) for path in map(Path, told["adapters"].values())} == {
        "adapters/field.gguf", "adapters/field.onnx_adapter",
    }  # fmt: skip
    assert all(Path(path).exists() for path in [*told["files"].values(), *told["adapters"].values()])
    names = {gate["name"] for gate in told["gates"]}
    assert names >= {
        f"{format}.adapter_{what}"
        for format in ("gguf", "onnx")
        for what in ("mean_kld_nats", "greedy_agreement", "stop_contract", "change_error")
    }
    # the base alone is held on plain text: nobody asks it the task that its adapter was tuned for
    assert "gguf.text_mean_kld_nats" in names and not names & {"gguf.greedy_agreement", "onnx.mean_kld_nats"}
    assert all(gate["passed"] for gate in told["gates"])


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_the_adapter_swaps_in_and_out(exported: Any, format: str) -> None:
    _, told = exported
    with edgekit.load(told["files"][format]) as model:
        plain = model.generate("close job 4512", max_tokens=8)
        tuned = model.use(told["adapters"][format]).generate("close job 4512", max_tokens=8)
        assert tuned != plain
        assert model.use(None).generate("close job 4512", max_tokens=8) == plain


def test_a_base_with_an_adapter_in_its_weights_takes_no_other(exported: Any, tiny_build: Any) -> None:
    _, told = exported
    with (
        edgekit.load(tiny_build.bundle) as merged,
        pytest.raises(UnsupportedError, match="already has the adapter"),
    ):
        merged.use(told["adapters"]["gguf"])


def test_a_folder_that_is_no_adapter_is_said(shell: Any, tiny_build: Any, tmp_path: Path) -> None:
    done = shell("export", tiny_build.model, "--adapter", tiny_build.model, "--out", tmp_path / "out")
    assert done.returncode == 2 and "adapter_config.json" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
