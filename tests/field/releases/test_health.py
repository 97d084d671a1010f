"""Health checks and comparisons on a real tiny bundle, and on copies of it with a fault planted under a true manifest."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from field.releases import bundles
from typer.testing import CliRunner

from edgekit.base.artifacts import sha256_file
from edgekit.base.errors import GateError
from edgekit.commands import releases as command
from edgekit.commands import shell as commands
from edgekit.device.loaded import load
from edgekit.device.manifest import read_manifest
from edgekit.field.releases import Releases, compare, health
from edgekit.field.releases.health import check

LOOSE = {"ttft_ms": {"median": 1e6}, "decode_tokens_per_s": {"median": 1e-3}}


def seal(bundle: Path, edit: Callable[[dict[str, Any]], object] = lambda manifest: None) -> Path:
    """Give the manifest the digests of the files that are there: what is found then is found by asking."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    edit(manifest)
    for entry in manifest["files"]:
        entry["bytes"] = (bundle / entry["path"]).stat().st_size
        entry["sha256"] = sha256_file(bundle / entry["path"])
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def profiled(bundle: Path, **figures: Any) -> Path:
    """Change what the report says of every file's speed."""
    report = json.loads((bundle / "report.json").read_text())
    for entry in report["profile"]:
        entry.update(figures)
    (bundle / "report.json").write_text(json.dumps(report))
    return seal(bundle)


def swap_two_rows(bundle: Path) -> None:
    """Exchange the embeddings of the first two tokens of an answer, so that the file answers garbage."""
    golden = json.loads((bundle / "golden.json").read_text())["formats"]["gguf"]["answers"]
    first, second = next(
        (a, b) for answer in golden for a, b in zip(answer["ids"], answer["ids"][1:], strict=False) if a != b
    )
    reader = gguf.GGUFReader(bundle / "model.gguf", "r+")
    rows = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight").data
    kept = rows[first].copy()
    rows[first], rows[second] = rows[second], kept
    rows.flush()


@pytest.fixture(scope="module")
def fit(tiny_build: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle as GGUF alone; its profile is slow enough for a machine that does other work too."""
    bundle = Path(shutil.copytree(tiny_build.bundle, tmp_path_factory.mktemp("fit") / "bundle"))
    seal(bundle, lambda manifest: manifest["formats"].pop("onnx"))
    seal(
        bundle, lambda manifest: manifest.update(threads=1)
    )  # two threads wait for each other on a busy core
    return profiled(bundle, **LOOSE)


@pytest.fixture
def bundle(fit: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fit, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def garbage(fit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = Path(shutil.copytree(fit, tmp_path_factory.mktemp("garbage") / "bundle"))
    swap_two_rows(bundle)
    return seal(bundle)


def budget(bundle: Path, **limits: float) -> Path:
    return seal(bundle, lambda manifest: manifest["recipe"]["target"]["budget"].update(limits))


def test_a_fit_bundle_passes_and_is_measured(bundle: Path) -> None:
    found = check(budget(bundle, peak_rss_mib=4000.0), threads=1)
    assert found.passed and found.kind == "" and found.reason == "", found
    assert {gate.name for gate in found.gates} == {
        "build.verdict", "gguf.golden_tokens", "gguf.golden_template", "gguf.golden_answers", "gguf.ttft_ms",
        "gguf.decode_tokens_per_s", "gguf.peak_rss_mib",
    }  # fmt: skip
    assert found.ttft_ms and found.decode_tokens_per_s and 20 < (found.peak_rss_mib or 0) < 2000


def test_garbage_answers_are_found(garbage: Path) -> None:
    found = check(garbage, speed=False, threads=1)
    assert not found.passed and found.kind == "garbage" and "golden_answers" in found.reason


def test_a_bundle_much_slower_than_profiled_on_this_machine_is_found(bundle: Path) -> None:
    fast = profiled(bundle, ttft_ms={"median": 1e-4}, decode_tokens_per_s={"median": 1e8})
    found = health.examine(fast, "gguf", threads=1)
    assert not found.passed and found.kind == "slow"
    assert {gate.name for gate in found.gates if not gate.passed} == {
        "gguf.ttft_ms",
        "gguf.decode_tokens_per_s",
    }
    report = json.loads((bundle / "report.json").read_text())
    report["machine"]["cpu"] = "another"
    (bundle / "report.json").write_text(json.dumps(report))
    assert health.examine(seal(bundle), "gguf", threads=1).passed  # another machine's speed is no measure


def test_too_much_memory_is_found_by_its_budget_and_a_runaway_is_ended(bundle: Path) -> None:
    found = check(budget(bundle, peak_rss_mib=25.0), memory_mib=4000.0, threads=1)
    assert not found.passed and found.kind == "memory" and "gguf.peak_rss_mib" in found.reason
    ended = check(budget(bundle, peak_rss_mib=8.0), threads=1)
    assert ended.kind == "memory" and "the limit is 16 MiB" in ended.reason


def test_a_wrong_digest_is_found(bundle: Path) -> None:
    with (bundle / "model.gguf").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55\xaa"[:1])
        file.seek(-2, 2)
        file.write(b"\xa5")
    found = check(bundle, speed=False)
    assert not found.passed and found.kind == "digest" and "digest differs" in found.reason
    (bundle / "manifest.json").write_text("{}")
    assert check(bundle).kind == "digest"


def test_a_budget_that_is_no_number_is_a_verdict(bundle: Path) -> None:
    text = {"target": {"budget": {"peak_rss_mib": "little"}}}
    found = check(seal(bundle, lambda manifest: manifest.update(recipe=text)), speed=False)
    assert not found.passed and "its manifest cannot be used" in found.reason and "little" in found.reason


def test_a_check_that_does_not_end_is_a_verdict(bundle: Path) -> None:
    found = check(bundle, limit_s=0.05)
    assert not found.passed and found.kind == "timeout"


def test_a_file_that_no_runtime_opens_is_a_verdict(bundle: Path) -> None:
    (bundle / "model.gguf").write_bytes((bundle / "model.gguf").read_bytes()[:5000])
    found = check(seal(bundle), speed=False)
    assert not found.passed and found.kind == "crash" and "model.gguf" in found.reason


def test_a_process_that_crashes_is_a_verdict(bundle: Path, tmp_path: Path, monkeypatch) -> None:
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\necho 'it went wrong' >&2\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    found = check(bundle)
    assert not found.passed and found.kind == "crash"
    assert "SIGSEGV" in found.reason and "it went wrong" in found.reason


# Comparison


def test_a_version_answers_as_well_as_itself_and_garbage_does_not(fit: Path, garbage: Path) -> None:
    same = compare.compare(fit, fit, threads=1)
    assert same.passed and same.agreement == 1.0 and not same.flips and same.n >= 8
    assert "same model files" in same.detail
    lost = compare.compare(garbage, fit, threads=1)
    assert not lost.passed and lost.flips and all(flip.lost for flip in lost.flips)
    assert lost.accuracy_current > lost.accuracy_candidate


def asked(n: int, labels: int = 1) -> list[compare.Question]:
    return [compare.Question(str(i), (), "yes", f"class {i % labels}") for i in range(n)]


def answers(n: int, wrong: range) -> list[str]:
    return ["no" if i in wrong else " yes\n" for i in range(n)]


@pytest.mark.parametrize(
    ("before", "after", "passed"),
    [
        (range(0), range(0), True),
        (range(3), range(3, 6), True),  # three lost and three won of 1,000
        (range(0), range(5), True),  # half a point
        (range(0), range(30), False),  # three points
        (range(300), range(300, 590), False),  # as good, but so many flips that it cannot be told
        (range(30), range(0), True),
    ],
)
def test_non_inferiority_is_by_the_bound_of_the_paired_difference(before, after, passed: bool) -> None:
    found = compare.judge(asked(1000), answers(1000, before), answers(1000, after), margin_points=2.0)
    assert found.passed is passed, found.detail
    assert len(found.flips) == len(set(before) ^ set(after))


@pytest.mark.parametrize(
    ("n", "wrong", "passed", "unproven", "needed"),
    [
        (3, range(0), False, True, 133),
        (132, range(0), False, True, 133),
        (133, range(0), True, False, 0),
        (3, range(1), False, False, 0),  # a third of the answers is lost: that is worse, not doubtful
        (200, range(2), False, True, 531),
    ],
)
def test_few_answers_prove_nothing_and_it_is_said_how_many_do(n, wrong, passed, unproven, needed) -> None:
    found = compare.judge(asked(n), answers(n, range(0)), answers(n, wrong))
    assert (found.passed, found.unproven) == (passed, unproven), found.detail
    assert found.rows_needed == needed
    if needed:
        lost = int(len(wrong) / n * needed)
        assert compare.judge(asked(needed), answers(needed, range(0)), answers(needed, range(lost))).passed


def test_the_same_model_files_need_no_rows_unless_they_answer_otherwise(fit: Path, tmp_path: Path) -> None:
    same = compare.judge(asked(3), answers(3, range(0)), answers(3, range(0)), same_files=True)
    assert same.passed and "same model files" in same.detail
    other = compare.judge(asked(3), answers(3, range(0)), answers(3, range(1)), same_files=True)
    assert not other.passed
    copy = Path(shutil.copytree(fit, tmp_path / "copy"))
    seal(copy, lambda manifest: manifest.update(version="2.0.0"))
    assert compare.model_of(copy, "gguf") == compare.model_of(fit, "gguf")
    seal(copy, lambda manifest: manifest.update(system="Answer in rhymes."))
    assert compare.model_of(copy, "gguf") != compare.model_of(fit, "gguf")
    seal(copy, lambda manifest: manifest.update(system=read_manifest(fit)["system"]))
    with (copy / "model.gguf").open("ab") as file:
        file.write(b"another")
    assert compare.model_of(seal(copy), "gguf") != compare.model_of(fit, "gguf")


def test_a_class_that_got_worse_is_named_though_the_whole_did_not(tmp_path: Path) -> None:
    n, wrong = 4000, range(0, 100, 10)  # ten answers, all of one class of ten
    found = compare.judge(asked(n, 10), answers(n, range(0)), answers(n, wrong))
    assert not found.passed and found.worse_classes == ("class 0",) and "class 0" in found.detail
    assert found.worst_difference_points > -2.0


# The whole way, by the command line


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        monkeypatch.setattr(commands, "state", commands.State())
        line = [*map(str, arguments), "--json", "--state", str(tmp_path / "state")]
        done = CliRunner().invoke(command.app, line)
        if done.exception is not None:
            raise done.exception
        return json.loads(done.stdout)

    return run


def test_from_import_to_rollback_by_the_command_line(
    fit: Path, garbage: Path, typed: Callable[..., Any], tmp_path: Path
) -> None:
    one = typed("import", fit)
    assert one["place"] == "new"
    with pytest.raises(GateError, match="golden_answers"):
        typed("import", garbage)
    assert typed("promote", one["name"], "--why", "first", "--threads", 1)["comparison"] is None
    releases = Releases(tmp_path / "state" / "releases")
    releases.mark_good()
    # one that was good when it came, and answers garbage now
    two = releases.import_(garbage, health=bundles.fit)
    with pytest.raises(GateError, match="golden_answers"):
        typed("promote", two.name, "--threads", 1)
    assert releases.boot() == releases.get(one["name"]).path
    # the same model under another manifest is a version that answers as well
    better = Path(shutil.copytree(fit, tmp_path / "better"))
    three = typed("import", seal(better, lambda manifest: manifest.update(version="2.0.0")))
    question = load(fit, threads=1)
    row = {"prompt": "hello", "completion": question.generate("hello") or "none"}
    question.close()
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    promoted = typed("promote", three["name"], "--data", tmp_path / "rows.jsonl", "--threads", 1)
    assert promoted["place"] == "pending" and promoted["comparison"]["n"] == 1
    assert releases.boot().name == three["name"]
    releases.mark_good(three["name"])
    with load(releases.boot(), threads=1) as model:
        assert model.generate("hello").strip() == row["completion"].strip() or row["completion"] == "none"
    assert typed("rollback", "--why", "drift")["name"] == one["name"]
    places = {release["name"]: release["place"] for release in typed("list")}
    assert places == {one["name"]: "current", two.name: "new", three["name"]: "bad"}
    assert typed("gc")["removed"] == [three["name"]]
    assert [line["what"] for line in typed("log")] == [
        "import", "promote", "good", "import", "refuse", "import", "promote", "try", "good", "rollback", "gc",
    ]  # fmt: skip


def test_an_onnx_folder_is_kept_as_its_reader_wants_it(tiny_build: Any, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_build.bundle, tmp_path / "bundle"))
    seal(bundle, lambda manifest: manifest["formats"].pop("gguf"))
    seal(bundle, lambda manifest: manifest.update(threads=1))
    release = Releases(tmp_path / "releases").import_(bundle)
    with load(release.path, "onnx", threads=1) as model:
        assert isinstance(model.generate("hello"), str)
