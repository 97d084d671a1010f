"""The cache: a stage runs once, resumes from its work folder, and never leaves half an output."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from edgekit.base.cache import SMALL, Cache
from edgekit.base.errors import StageError
from edgekit.base.events import Event, GateResult, Measured, StageFinished


class Writer:
    """A stage that counts its runs and writes one file."""

    def __init__(self, cache: Cache, text: str = "done", fail: BaseException | None = None) -> None:
        self.cache, self.text, self.fail, self.runs = cache, text, fail, 0

    def __call__(self, out: Path, work: Path) -> dict[str, Any]:
        self.runs += 1
        with (work / "tries").open("a") as file:
            file.write("x")
        out.mkdir()
        (out / "file").write_text(self.text)
        if self.fail:
            raise self.fail
        self.cache.emit(GateResult("g", 1.0, 1.0, True))
        self.cache.emit(Measured("s", "loss", 0.5, step=1))
        return {"tries": (work / "tries").read_text()}


def test_the_second_run_takes_the_first_result_with_its_facts(tmp_path: Path) -> None:
    events: list[Event] = []
    first = Cache(tmp_path, events.append)
    writer = Writer(first)
    made = first.stage("s", {"a": 1}, writer)
    second = Cache(tmp_path, events.append)
    found = second.stage("s", {"a": 1}, writer)
    assert writer.runs == 1
    assert (found.path, found.digest, found.result, found.cached) == (
        made.path,
        made.digest,
        made.result,
        True,
    )
    assert [fact for fact in second.facts] == first.facts
    assert isinstance(events[-1], StageFinished) and events[-1].cached


def test_another_input_or_a_changed_file_runs_the_stage_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path, lambda event: None)
    writer = Writer(cache)
    made = cache.stage("s", {"a": 1}, writer)
    cache.stage("s", {"a": 2}, writer)
    (made.path / "file").write_text("short")
    cache.stage("s", {"a": 1}, writer)
    assert writer.runs == 3


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), StageError("no"), RuntimeError("bug")])
def test_a_failed_try_keeps_its_work_and_no_output(tmp_path: Path, failure: BaseException) -> None:
    cache = Cache(tmp_path, lambda event: None)
    with pytest.raises(type(failure)):
        cache.stage("s", {}, Writer(cache, fail=failure))
    assert [path.suffix for path in (tmp_path / "s").iterdir()] == [".work"]
    assert cache.stage("s", {}, Writer(cache)).result == {"tries": "xx"}
    assert not list((tmp_path / "s").glob("*.work"))


def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    cache = Cache(tmp_path, lambda event: None)
    with pytest.raises(StageError, match="No space left") as caught:
        cache.stage("s", {}, Writer(cache, fail=OSError(28, "No space left on device")))
    assert "finished stages are kept" in caught.value.hint


def test_the_digest_is_of_the_files_alone(tmp_path: Path) -> None:
    one = Cache(tmp_path / "one", lambda event: None)
    two = Cache(tmp_path / "two", lambda event: None)
    assert one.stage("s", {"a": 1}, Writer(one)).digest == two.stage("s", {"b": 2}, Writer(two)).digest
    record = json.loads(next((tmp_path / "one" / "s").glob("*/stage.json")).read_text())
    assert record["seconds"] >= 0 and record["peak_rss_mib"] > 1


MAKER = """
import sys, time
from pathlib import Path
from edgekit.base.cache import SMALL, Cache
from edgekit.base.events import Alert, StageFinished

def tell(event):
    if isinstance(event, Alert): print("waits:", event.message, flush=True)
    if isinstance(event, StageFinished): print("cached" if event.cached else "made", flush=True)

def run(out, work):
    out.mkdir()
    (out / "half").write_text("of " + sys.argv[2])
    print("makes", flush=True)
    sys.stdin.readline()
    (out / "half").rename(out / "whole")

Cache(Path(sys.argv[1]), tell).stage("s", {}, run)
sys.stdin.readline()
"""


class Maker:
    """A process that makes the stage `s` and goes on when it is told to."""

    def __init__(self, root: Path, name: str) -> None:
        command = [sys.executable, "-c", MAKER, str(root), name]
        self.process = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def makers(tmp_path: Path) -> Iterator[tuple[Maker, Maker]]:
    """Two processes that need the same stage at once; the first one makes it, the second one came while it did."""
    first = Maker(tmp_path, "first")
    assert first.says() == "makes", first.process.communicate()
    second = Maker(tmp_path, "second")
    assert second.says() == "waits: Waiting for another edgekit process, which is making the stage 's'."
    yield first, second
    for maker in (first, second):
        maker.process.kill()
        maker.process.communicate()


def test_a_second_process_waits_and_takes_what_the_first_one_made(
    tmp_path: Path, makers: tuple[Maker, Maker]
) -> None:
    first, second = makers
    assert [file.read_text() for file in tmp_path.glob("s/*.partial/half")] == ["of first"]
    first.go_on()
    assert (first.says(), second.says()) == ("made", "cached")
    assert [file.read_text() for file in tmp_path.glob("s/*/whole")] == ["of first"]


def test_when_the_first_process_is_killed_the_second_one_makes_it(
    tmp_path: Path, makers: tuple[Maker, Maker]
) -> None:
    first, second = makers
    first.process.kill()
    assert second.says() == "makes"
    second.go_on()
    assert second.says() == "made"
    assert [file.read_text() for file in tmp_path.glob("s/*/whole")] == ["of second"]


def test_a_file_of_the_same_size_with_other_contents_is_noticed(tmp_path: Path) -> None:
    """A small file by its contents alone; a large one as soon as its time of change is another."""
    cache = Cache(tmp_path, lambda event: None)
    for text in ("done", "x" * (SMALL + 1)):
        writer = Writer(cache, text)
        made = cache.stage("s", {"size": len(text)}, writer)
        file = made.path / "file"
        at = file.stat()
        file.write_text("y" * len(text))
        os.utime(file, ns=(at.st_atime_ns, at.st_mtime_ns + (len(text) > SMALL)))
        assert cache.stage("s", {"size": len(text)}, writer).cached is False and writer.runs == 2


def test_a_copied_cache_is_taken(tmp_path: Path) -> None:
    """Other times of change, but the same contents."""
    cache = Cache(tmp_path, lambda event: None)
    made = cache.stage("s", {}, Writer(cache, "x" * (SMALL + 1)))
    os.utime(made.path / "file", (1, 1))
    assert cache.stage("s", {}, Writer(cache)).cached


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"files": 3}', '{"files": {"file": {}}}'])
def test_a_damaged_record_makes_the_stage_again(tmp_path: Path, record: str) -> None:
    cache = Cache(tmp_path, lambda event: None)
    made = cache.stage("s", {}, Writer(cache))
    (made.path / "stage.json").write_text(record)
    assert not cache.stage("s", {}, Writer(cache)).cached
