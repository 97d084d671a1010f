"""A whole build on the tiny model: what is in the bundle, what a second run does, and what an interruption leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.base.artifacts import list_files, sha256_file

REPORT_KEYS = {"schema", "target", "verdict", "artifacts", "stages", "evaluation", "profile", "gates"}
GATES = {
    "tokenizer_identity",
    "detokenization",
    "template_identity",
    "template_branches",
    "stop_ids",
    "bare_runtime",
    "stop_contract",
    "structure",
    "weights",
    "text_mean_kld_nats",
    "mean_kld_nats",
    "top1_agreement",
}


def report_of(bundle: Path) -> dict:
    return json.loads((bundle / "report.json").read_text())


def digests(bundle: Path) -> dict[str, str]:
    """What must not depend on how often a build was interrupted: everything but times and measurements."""
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    fixed = ("model.gguf", "onnx/", "tokenizer/", "samples/")
    return {entry["path"]: entry["sha256"] for entry in files if entry["path"].startswith(fixed)}


def test_the_bundle_is_whole(tiny_build) -> None:
    manifest = json.loads((tiny_build.bundle / "manifest.json").read_text())
    listed = {entry["path"]: entry for entry in manifest["files"]}
    there = {file.relative_to(tiny_build.bundle).as_posix() for file in list_files(tiny_build.bundle)}
    assert there == {*listed, "manifest.json"}
    for path, entry in listed.items():
        assert sha256_file(tiny_build.bundle / path) == entry["sha256"]
    assert {"model.gguf", "report.html", "README.md", "events.jsonl", "samples/gguf.jsonl"} <= there
    assert manifest["schema"] == "edgekit.bundle/1" and manifest["verdict"] == "pass"
    assert manifest["stop_ids"] == [2] and manifest["system"] == "Answer with one JSON command."
    bare = manifest["bare_runtime"]
    assert set(bare) == {"gguf", "onnx"} and bare["onnx"]["causes"]["nul"] > 0
    assert all(entry["texts"] > 2000 and entry["advice"] for entry in bare.values())
    assert "Remove it from every text." in (tiny_build.bundle / "README.md").read_text()
    told = (tiny_build.bundle / "events.jsonl").read_text()
    (deviation,) = manifest["deviations"]["gguf"]
    assert f"Deviation of the GGUF file: {deviation['concerns']}" in told


def test_the_report_has_every_key_filled(tiny_build) -> None:
    report = report_of(tiny_build.bundle)
    assert set(report) >= REPORT_KEYS and report["schema"] == "edgekit.report/1"
    assert set(report["evaluation"]) == {"base", "base_few_shot", "tuned", "gguf", "onnx"}
    assert set(report["failures"]) == {"tuned", "gguf", "onnx"}
    for name, found in report["failures"].items():
        wrong = sum(one["wrong"] for one in found["classes"])
        assert wrong == round(report["evaluation"][name]["n"] * (1 - report["evaluation"][name]["accuracy"]))
        assert all(("new" in one) == (name != "tuned") for one in found["classes"])
    for artifact in report["artifacts"]:
        assert artifact["bytes"] > 0 and len(artifact["sha256"]) == 64 and artifact["bits_per_weight"] > 1
    names = [stage["name"] for stage in report["stages"]]
    assert names[:3] == ["model", "tune", "merge"] and {"export.gguf", "quantize.gguf", "export.onnx"} <= set(
        names
    )
    drift = {stage["name"]: stage["drift"] for stage in report["stages"]}
    assert drift["merge"]["mean_kld_nats"] < 1e-6 < drift["model"]["mean_kld_nats"]
    entered = {stage["name"]: stage["drift_from_input"] for stage in report["stages"]}
    assert entered["tune"] == drift["model"] and entered["model"] is None
    assert 0 < entered["quantize.gguf"]["mean_kld_nats"] < 0.05
    low, high = drift["quantize.gguf"]["mean_kld_95"]
    assert low < drift["quantize.gguf"]["mean_kld_nats"] < high
    assert drift["export.gguf"]["mean_kld_nats"] < drift["quantize.gguf"]["mean_kld_nats"]
    for entry in report["profile"]:
        assert entry["ttft_ms"]["n"] == 3 and entry["peak_rss_mib"] > 10
    for kind in ("gguf", "onnx"):
        assert {f"{kind}.{gate}" for gate in GATES} <= {gate["name"] for gate in report["gates"]}
    assert report["tuning"]["loss"] and report["tuning"]["validation_loss"]
    assert list(report["robustness"]) == ["tuned", "gguf", "onnx"]
    for name, found in report["robustness"].items():
        assert found["n"] == 2 and [one["name"] for one in found["families"]] == ["typos"]
        log = (tiny_build.bundle / f"samples/robust/{name}.jsonl").read_text().splitlines()
        assert len(log) == 2 * (2 + found["template_spread"]["phrasings"])
        answers = {
            one["id"]: one["answer"]
            for one in map(json.loads, (tiny_build.bundle / f"samples/{name}.jsonl").read_text().splitlines())
        }
        clean = [one for one in map(json.loads, log) if one["variant"] == "clean"]
        assert clean and all(one["answer"] == answers[one["id"]] for one in clean)


def test_a_second_run_takes_everything_from_the_cache(tiny_build, shell) -> None:
    done = shell(*tiny_build.arguments, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert all(stage["cached"] for stage in report["stages"])
    assert report["tuning"] == report_of(tiny_build.bundle)["tuning"]


def test_another_target_value_redoes_only_what_depends_on_it(tiny_build, shell, tmp_path: Path) -> None:
    arguments = [
        *tiny_build.command(tmp_path / "bundle", tiny_build.cache_copy(tmp_path)),
        "--set",
        "export.0.type=F16",
    ]
    report = json.loads(shell(*arguments, "--json").stdout)
    redone = {stage["name"] for stage in report["stages"] if not stage["cached"]}
    assert redone == {"quantize.gguf", "verify.gguf", "eval.gguf", "robust.gguf", "profile.gguf"}


def test_fewer_formats_are_built_with_the_stages_and_gates_of_these_alone(
    tiny_build, shell, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    arguments = [*tiny_build.command(out, tiny_build.cache_copy(tmp_path)), "--formats", "gguf"]
    done = shell(*arguments, "--set", "evaluate.robust=false", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [artifact["format"] for artifact in report["artifacts"]] == ["gguf"]
    assert not [stage["name"] for stage in report["stages"] if "onnx" in stage["name"]]
    gates = {gate["name"] for gate in report["gates"]}
    whole = {gate["name"] for gate in report_of(tiny_build.bundle)["gates"]}
    assert gates == {name for name in whole if not name.startswith("onnx.")}
    assert all(stage["cached"] for stage in report["stages"])
    manifest = json.loads((out / "manifest.json").read_text())
    assert list(manifest["formats"]) == ["gguf"] and not (out / "onnx").exists()
    assert report["robustness"] == {} and not (out / "samples" / "robust").exists()
    assert not [stage["name"] for stage in report["stages"] if stage["name"].startswith("robust")]
    assert "Noise and other phrasings" not in (out / "report.html").read_text()


def test_a_bundle_of_something_else_is_not_overwritten(tiny_build, shell) -> None:
    before = sha256_file(tiny_build.bundle / "manifest.json")
    done = shell(*tiny_build.arguments, "--set", "tune.seed=8")
    assert done.returncode == 2 and "it was not changed" in done.stderr and "--force" in done.stderr
    assert sha256_file(tiny_build.bundle / "manifest.json") == before


@pytest.mark.parametrize("stage", ["tune", "export.gguf", "verify.gguf"])
def test_killed_and_run_again_it_ends_with_the_same_digests(
    tiny_build, shell, tmp_path: Path, stage: str
) -> None:
    """SIGKILL as soon as the stage is named. The later stages need its bytes, and are in the cache for the same ones."""
    cache = tiny_build.cache_copy(tmp_path)
    shutil.rmtree(cache / stage)
    arguments = tiny_build.command(tmp_path / "bundle", cache)
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekit.cli", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"{stage}:"):
            time.sleep(0.3)
            os.kill(process.pid, signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "bundle").exists()
    done = shell(*arguments)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "bundle") == digests(tiny_build.bundle)
    made = {each["name"] for each in report_of(tmp_path / "bundle")["stages"] if not each["cached"]}
    assert made <= {stage}  # a small one may have ended before the kill


def test_ctrl_c_says_what_is_kept(tiny_build, shell, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekit.cli", *tiny_build.command(tmp_path / "bundle", tmp_path / "cache")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("tune:"):
            process.send_signal(signal.SIGINT)
            break
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Finished stages are kept" in rest and "Traceback" not in rest
    assert list((tmp_path / "cache" / "model").iterdir())


def test_a_target_that_is_too_tight_names_gate_and_stage(tiny_build, shell, tmp_path: Path) -> None:
    arguments = tiny_build.command(tmp_path / "bundle", tiny_build.cache_copy(tmp_path))
    done = shell(*arguments, "--set", "budget.mean_kld_nats=1e-9", "--json")
    report = json.loads(done.stdout)
    failed = {gate["name"]: gate["stage"] for gate in report["gates"] if not gate["passed"]}
    assert done.returncode == 3 and report["verdict"] == "fail"
    assert failed["gguf.mean_kld_nats"] in ("export.gguf", "quantize.gguf")
    assert failed["onnx.mean_kld_nats"] == "export.onnx"


def test_the_readme_of_the_bundle_is_true(tiny_build) -> None:
    """Every Python block in it runs, in the bundle's folder."""
    text = (tiny_build.bundle / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tiny_build.bundle, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"
