"""`edgekit verify`: a bundle asked again, and a file held against a model that it is, or is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny
import vocabularies

from edgekit.base.artifacts import sha256_file
from edgekit.base.cache import Cache
from edgekit.base.errors import ConfigError, CorruptError, UnsupportedError
from edgekit.base.events import Alert, Event, GateResult, ignore
from edgekit.export.gguf import write as exporter
from edgekit.export.gguf.quantize import quantize
from edgekit.models.source import resolve
from edgekit.proof import prove
from edgekit.proof.verify import subject_of, verify_file
from edgekit.targets.target import Budget

LOOSE = Budget(
    mean_kld_nats=0.1,
    text_mean_kld_nats=0.1,
    top1_agreement=0.8,
    answer_top1_agreement=0.7,
    greedy_agreement=0.2,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"), ignore)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_small(tmp_path_factory.mktemp("small") / "llama")


@pytest.fixture(scope="module")
def file(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("file") / "model.gguf"
    exporter.write(small, out, ignore)
    return out


def check(path: Path, model: Path, cache: Cache, budget: Budget = LOOSE) -> dict[str, GateResult]:
    found = verify_file(path, resolve(str(model)), [], budget, cache, quick=True, threads=1)
    return {gate.name: gate for gate in found}


def failed(found: dict[str, GateResult]) -> set[str]:
    return {name for name, gate in found.items() if not gate.passed}


def test_a_file_is_the_model_it_was_made_from(file: Path, small: Path, cache: Cache, tmp_path: Path) -> None:
    found = check(file, small, cache, Budget(mean_kld_nats=1e-6, text_mean_kld_nats=1e-6))
    assert not failed(found)
    assert {name.partition(".")[2] for name in found} >= {
        "structure", "weights", "tokenizer_identity", "template_identity", "template_branches", "stop_ids",
        "stop_contract", "mean_kld_nats", "text_mean_kld_nats", "bare_runtime",
    }  # fmt: skip
    assert "texts" in found["gguf.tokenizer_identity"].detail
    assert "conversations" in found["gguf.bare_runtime"].detail
    quantize(file, tmp_path / "small.gguf", tiny.gguf_options("Q8_0"), threads=1)
    assert not failed(check(tmp_path / "small.gguf", small, cache))


def test_a_hugging_face_folder_can_be_held_against_another(small: Path, cache: Cache, tmp_path: Path) -> None:
    assert not failed(check(small, small, cache))
    other = tiny.make_small(tmp_path / "other", seed=1)
    assert "folder.mean_kld_nats" in failed(check(other, small, cache))


def test_another_model_is_named_by_its_weights_and_its_numbers(
    file: Path, cache: Cache, tmp_path: Path
) -> None:
    other = tiny.make_small(tmp_path / "other", seed=1)
    found = check(file, other, cache)
    assert {"gguf.weights", "gguf.mean_kld_nats", "gguf.text_mean_kld_nats"} <= failed(found)
    assert (
        "gguf.structure" not in failed(found)
        and "gguf.vocabulary" not in failed(found)
        and "gguf.tokenizer_identity" not in failed(found)
    )
    assert "tensors with the largest error: " in found["gguf.mean_kld_nats"].detail


def test_a_model_without_such_a_proof_is_told_and_unread_weights_fail(
    file: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, events = subject_of(file), list[Event]()
    other = Path(shutil.copytree(small, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["UnheardOfForCausalLM"]}))
    by_name = prove.weights(subject, other, ignore, "verify")
    assert by_name is not None and all(gate.passed for gate in by_name.gates)
    (other / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    assert prove.weights(subject, other, events.append, "verify") is None
    assert isinstance(events[0], Alert) and "not compared" in events[0].message

    def unread(*arguments: Any, **options: Any) -> None:
        raise UnsupportedError("Weights in a form of their own.")

    monkeypatch.setattr("edgekit.export.gguf.proof.prove", unread)
    (gate,) = prove.weights(subject, small, ignore, "verify").gates
    assert gate.name == "gguf.weights" and not gate.passed and "form of their own" in gate.detail


def test_a_base_model_is_proven_without_the_checks_of_conversations(
    file: Path, shell, tmp_path: Path
) -> None:
    """It has no chat template: what remains is checked, and that something is left out is said."""
    base = tiny.make(tmp_path / "base", tokens=vocabularies.for_transformers())
    exporter.write(base, tmp_path / "base.gguf", ignore)
    told: list[Event] = []
    cache = Cache(tmp_path / "cache", told.append)
    found = check(tmp_path / "base.gguf", base, cache)
    assert not failed(found) and "gguf.text_mean_kld_nats" in found
    assert not {"gguf.template_identity", "gguf.template_branches", "gguf.mean_kld_nats"} & found.keys()
    assert found["gguf.greedy_agreement"].n == found["gguf.stop_contract"].n == 28
    assert [e for e in told if isinstance(e, Alert) and "no chat template" in e.message]

    other = tiny.make(tmp_path / "other", seed=1, tokens=vocabularies.for_transformers())
    assert {"gguf.weights", "gguf.text_mean_kld_nats", "gguf.greedy_agreement"} <= failed(
        check(tmp_path / "base.gguf", other, cache)
    )
    with_template = check(file, base, cache)  # the same weights
    assert "gguf.template_identity" in failed(with_template)
    assert "the model has none" in with_template["gguf.template_identity"].detail

    options = ["--reference", base, "--cache-dir", cache.root, "--quick", "--threads", "1", "--json"]
    done = shell("verify", tmp_path / "base.gguf", *options, "--set", "budget.greedy_agreement=0.2")
    document = json.loads(done.stdout)
    assert done.returncode == 0 and document["chat_checked"] is False
    assert any("no chat template" in warning for warning in document["warnings"])


def test_a_damaged_file_is_corrupt_before_anything_runs(
    file: Path, small: Path, cache: Cache, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-4096])
    with pytest.raises(CorruptError):
        check(cut, small, cache)


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ConfigError, match="is not a .gguf file"):
        subject_of(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match="no file"):
        subject_of(tmp_path / "absent.gguf")


def test_the_shell_prints_a_table_or_json_and_exits_by_it(
    shell, file: Path, small: Path, cache: Cache, tmp_path: Path
) -> None:
    common = ["--reference", small, "--cache-dir", cache.root, "--quick", "--threads", "1"]
    done = shell(
        "verify",
        file,
        *common,
        "--json",
        "--set",
        "budget.answer_top1_agreement=0.7",
        "--set",
        "budget.greedy_agreement=0.2",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert all(gate["passed"] for gate in result["gates"])
    done = shell(
        "verify", file, *common, "--set", "budget.top1_agreement=1.0", "--set", "budget.mean_kld_nats=1e-12"
    )
    assert done.returncode == 3
    assert "✗ gguf.mean_kld_nats" in done.stdout and "wider type" in done.stdout
    assert "gguf.mean_kld_nats" in done.stderr and "Traceback" not in done.stderr
    assert shell("verify", file).returncode == 2
    assert "--reference MODEL" in shell("verify", file).stderr
    assert shell("verify", file, "--reference", "org/model", "--offline").returncode == 2


# Golden answers


@pytest.fixture
def bundle(tiny_build: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_build.bundle, tmp_path / "bundle"))


def change(bundle: Path, edit: Any) -> None:
    """Change golden.json and its digest in the manifest: what is found then is found by asking, not by a digest."""
    golden = json.loads((bundle / "golden.json").read_text())
    edit(golden)
    (bundle / "golden.json").write_text(json.dumps(golden))
    manifest = json.loads((bundle / "manifest.json").read_text())
    entry = next(entry for entry in manifest["files"] if entry["path"] == "golden.json")
    entry["bytes"] = (bundle / "golden.json").stat().st_size
    entry["sha256"] = sha256_file(bundle / "golden.json")
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_bundle_answers_as_when_it_was_built(tiny_build: Any, shell) -> None:
    done = shell("verify", tiny_build.bundle, "--json")
    assert done.returncode == 0, done.stderr
    names = {gate["name"] for gate in json.loads(done.stdout)["gates"]}
    assert names == {"build.verdict"} | {
        f"{format}.golden_{kind}" for format in ("gguf", "onnx") for kind in ("tokens", "template", "answers")
    }
    golden = json.loads((tiny_build.bundle / "golden.json").read_text())
    assert len(golden["formats"]["gguf"]["answers"]) == 8 and len(golden["formats"]["onnx"]["texts"]) >= 64


@pytest.mark.parametrize(
    ("kind", "edit"),
    [
        ("answers", lambda golden: golden["formats"]["gguf"]["answers"][0].update(ids=[1, 2, 3])),
        ("tokens", lambda golden: golden["formats"]["gguf"]["texts"][5].update(ids=[7])),
        ("template", lambda golden: golden["formats"]["gguf"]["answers"][3].update(rendered="<|im_start|>")),
    ],
)
def test_another_answer_is_found_by_asking(bundle: Path, shell, kind: str, edit: Any) -> None:
    change(bundle, edit)
    done = shell("verify", bundle)
    assert done.returncode == 3 and f"gguf.golden_{kind}" in done.stderr


def test_a_swapped_file_with_the_right_digest_is_found_by_asking(bundle: Path, shell, tmp_path: Path) -> None:
    """Someone puts another model into the bundle and mends the manifest: the answers tell."""
    exporter.write(tiny.make_small(tmp_path / "other", seed=1), tmp_path / "other.gguf", ignore)
    shutil.copyfile(tmp_path / "other.gguf", bundle / "model.gguf")
    manifest = json.loads((bundle / "manifest.json").read_text())
    entry = next(entry for entry in manifest["files"] if entry["path"] == "model.gguf")
    entry |= {"bytes": (bundle / "model.gguf").stat().st_size, "sha256": sha256_file(bundle / "model.gguf")}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert gguf.GGUFReader(bundle / "model.gguf").tensors
    done = shell("verify", bundle)
    assert done.returncode == 3 and "gguf.golden_answers" in done.stderr


def test_a_bundle_without_golden_answers_is_corrupt(bundle: Path, shell) -> None:
    change(bundle, lambda golden: golden.update(schema="other"))
    assert shell("verify", bundle).returncode == 5
