"""`edgekit cache`: what is kept, by stage and age, and what `clean` removes and refuses to remove."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgekit.base.cache import Cache
from edgekit.base.cache_contents import clean, entries
from edgekit.base.cache_users import LOCKS
from edgekit.base.errors import ConfigError, StageError
from edgekit.base.locks import locked

DAY = 86400
HOLD = """
import sys
from pathlib import Path
from edgekit.base.cache import Cache

def run(out, work):
    out.mkdir()

cache = Cache(Path(sys.argv[1]), lambda event: None)
cache.stage("held", {}, run)
print("holds", flush=True)
sys.stdin.readline()
"""


def make(root: Path, stage: str, size: int, age_s: float = 0.0) -> None:
    def run(out: Path, work: Path) -> None:
        out.mkdir()
        (out / "file").write_bytes(b"x" * size)

    made = Cache(root, lambda event: None).stage(stage, {"size": size}, run)
    then = time.time() - age_s
    os.utime(made.path / "stage.json", (then, then))


def interrupt(root: Path, stage: str) -> None:
    def run(out: Path, work: Path) -> None:
        (work / "checkpoint").write_text("half")
        raise StageError("It was interrupted.")

    with pytest.raises(StageError):
        Cache(root, lambda event: None).stage(stage, {}, run)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two outputs of `tune`, one of them ten days old, one of `merge`, and what an interrupted `prune` left."""
    root = tmp_path / "cache"
    make(root, "tune", 3000, age_s=10 * DAY)
    make(root, "tune", 1000)
    make(root, "merge", 50_000)
    interrupt(root, "prune")
    (root / "events.jsonl").write_text("")
    (root / "notes").mkdir()
    (root / "notes" / "mine").mkdir()  # not the cache's: it stays
    return root


def kept(root: Path) -> list[tuple[str, str]]:
    return [(entry.stage, entry.kind) for entry in entries(root)]


def test_list_shows_size_and_age_by_stage(shell: Any, root: Path) -> None:
    found = json.loads(shell("cache", "list", "--cache-dir", root, "--json").stdout)
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert list(stages) == ["merge", "tune", "prune"]  # the largest first
    assert stages["tune"]["finished"] == 2 and stages["prune"]["interrupted"] == 1
    assert 4000 < stages["tune"]["bytes"] < 10_000 and found["bytes"] > 54_000
    assert 9.9 * DAY < time.time() - stages["tune"]["oldest_used"] < 10.1 * DAY
    text = shell("cache", "list", "--cache-dir", root).stdout
    assert "2 finished" in text and "10 days ago" in text and "1 interrupted" in text


def test_clean_removes_what_was_not_used_for_so_long(shell: Any, root: Path) -> None:
    arguments = ["cache", "clean", "--cache-dir", root, "--older-than", "7d"]
    said = json.loads(shell(*arguments, "--dry-run", "--json").stdout)
    assert said["removed"] is False and [entry["stage"] for entry in said["entries"]] == ["tune"]
    assert len(kept(root)) == 4
    assert "1 entries" in shell(*arguments).stdout
    assert kept(root) == [("merge", "finished"), ("prune", "interrupted"), ("tune", "finished")]


def test_a_stage_that_is_taken_is_as_young_as_a_new_one(root: Path) -> None:
    make(root, "eval", 10, age_s=10 * DAY)

    def run(out: Path, work: Path) -> None:
        raise AssertionError("it is kept")

    assert Cache(root, lambda event: None).stage("eval", {"size": 10}, run).cached
    assert [entry.stage for entry in clean(root, older_than_s=7 * DAY, dry_run=True)] == ["tune"]


def test_clean_removes_one_stage_or_all(shell: Any, root: Path) -> None:
    assert shell("cache", "clean", "--cache-dir", root, "--stage", "prune").returncode == 0
    assert ("prune", "interrupted") not in kept(root) and len(kept(root)) == 3
    assert shell("cache", "clean", "--cache-dir", root).returncode == 0
    assert kept(root) == [] and (root / "notes" / "mine").is_dir() and (root / "events.jsonl").exists()


def test_clean_refuses_while_another_process_uses_the_cache(shell: Any, root: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "holds\n"
        done = shell("cache", "clean", "--cache-dir", root)
        assert done.returncode == 2 and f"in use by process {process.pid}" in done.stderr, done.stderr
        assert "nothing was removed" in done.stderr and len(kept(root)) == 5
        process.kill()
        process.wait()
    assert shell("cache", "clean", "--cache-dir", root).returncode == 0  # a killed process holds nothing
    assert kept(root) == []


def test_clean_refuses_while_a_build_is_planned_there(shell: Any, root: Path) -> None:
    from edgekit.build import runs
    from edgekit.build.runs import _document, of_this_process

    (root / runs.FILE).write_text(json.dumps(_document(of_this_process(root))))
    done = shell("cache", "clean", "--cache-dir", root)
    assert done.returncode == 2 and f"process {os.getpid()}" in done.stderr and len(kept(root)) == 4


@pytest.mark.parametrize("verb", ["tune", "verify", "export"])
def test_a_command_waits_for_a_stage_that_another_process_makes(
    tiny_build: Any, tmp_path: Path, verb: str
) -> None:
    """The lock of the first stage is held here; the command goes on when it is released."""
    cache = tiny_build.cache_copy(tmp_path)
    (made,) = (path for path in (cache / "model").iterdir() if not path.suffix)
    options = {
        "tune": ["--model", tiny_build.model, "--data", tiny_build.folder / "data", "--out", tmp_path / "out"],
        "verify": [tiny_build.bundle / "model.gguf", "--reference", tiny_build.model, "--quick"],
        "export": [tiny_build.model, "--data", tiny_build.folder / "data", "--out", tmp_path / "out"],
    }  # fmt: skip
    target = ["--target", tiny_build.folder / "tiny.toml", "--cache-dir", cache, "--threads", "1"]
    command = [sys.executable, "-m", "edgekit.cli", verb, *map(str, [*options[verb], *target])]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            with locked(cache / LOCKS / f"model.{made.name}"):
                said = next(line for line in process.stderr if "Waiting for another edgekit process" in line)
                assert "the stage 'model'" in said and process.poll() is None
            assert any("model" in line and "Waiting" not in line for line in process.stderr)
        finally:
            process.kill()


@pytest.mark.parametrize(
    "arguments, words", [(["--stage", "tuning"], "Its stages: merge, prune, tune"), (["--older-than", "soon"], "not a duration")]
)  # fmt: skip
def test_what_is_typed_wrong_removes_nothing(
    shell: Any, root: Path, arguments: list[str], words: str
) -> None:
    done = shell("cache", "clean", "--cache-dir", root, *arguments)
    assert done.returncode == 2 and words in done.stderr and len(kept(root)) == 4


def test_a_folder_that_is_not_there(shell: Any, tmp_path: Path) -> None:
    done = shell("cache", "list", "--cache-dir", tmp_path / "none")
    assert done.returncode == 2 and "There is no cache" in done.stderr
    with pytest.raises(ConfigError):
        clean(tmp_path / "none")
