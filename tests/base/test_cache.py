"""The cache: a stage runs once, resumes from its work folder, and never leaves half an output."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.base.cache import Cache
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
    record = json.loads(next((tmp_path / "one" / "s").iterdir().__next__().glob("stage.json")).read_text())
    assert record["seconds"] >= 0 and record["peak_rss_mib"] > 1
