"""`--json` prints exactly one document, also when a gate fails or the command stops: the shell reads stdout whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

TIGHT = ("--set", "budget.mean_kld_nats=1e-9")


@pytest.fixture
def commands(tiny_build: Any, tmp_path: Path) -> dict[str, list[object]]:
    """For each verb with a gate, a command whose gate fails."""
    failed = tmp_path / "failed"
    shutil.copytree(tiny_build.bundle, failed)
    manifest = json.loads((failed / "manifest.json").read_text())
    (failed / "manifest.json").write_text(json.dumps({**manifest, "verdict": "fail"}))
    cache_dir = tiny_build.cache_copy(tmp_path)
    cache = ["--cache-dir", cache_dir, "--threads", "1"]
    target = tmp_path / "floats.toml"
    target.write_text('schema = 1\nname = "floats"\n[[export]]\nformat = "gguf"\ntype = "Q8_0"\n')
    return {
        "build": [*tiny_build.command(tmp_path / "bundle", cache_dir), *TIGHT],
        "verify bundle": ["verify", failed],
        "verify file": [
            "verify", tiny_build.bundle / "model.gguf", "--reference", tiny_build.model, "--quick", *cache, *TIGHT,
        ],
        "export": [
            "export", tiny_build.model, "--target", target, "--data", tiny_build.folder / "data", "--out",
            tmp_path / "exported", *cache, *TIGHT,
        ],
        "releases import": ["releases", "import", failed, "--state", tmp_path / "state"],
    }  # fmt: skip


@pytest.mark.parametrize("verb", ["build", "verify bundle", "verify file", "export", "releases import"])
def test_a_failed_gate_is_in_the_one_document(
    shell: Any, commands: dict[str, list[object]], verb: str
) -> None:
    done = shell(*commands[verb], "--json")
    assert done.returncode == 3, (done.stdout[-300:], done.stderr)
    found = json.loads(done.stdout)
    assert "gates" in found or found["code"] == 3
    if "gates" in found:
        assert any(not gate["passed"] for gate in found["gates"])
    assert "edgekit: " in done.stderr and "→" in done.stderr
    if verb == "export":
        assert "Use a wider type in this format's [[export]] table" in done.stderr


def test_a_plan_that_cannot_be_done_is_one_document(shell: Any, tiny_build: Any, tmp_path: Path) -> None:
    config = json.loads((tiny_build.model / "config.json").read_text())
    other = tmp_path / "mamba"
    shutil.copytree(tiny_build.model, other)
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["Mamba2ForCausalLM"]}))
    done = shell("plan", "--model", other, "--cache-dir", tmp_path, "--json")
    assert done.returncode == 2, done.stderr
    assert any(export["refusal"] for export in json.loads(done.stdout)["exports"])
