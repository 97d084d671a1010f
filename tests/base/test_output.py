"""An output folder shares large files with the cache, and the cache never takes a file that was edited there for good."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.base import output as outputs
from edgekit.base.cache import SMALL, Cache, StageOutput
from edgekit.base.cache_contents import clean, entries
from edgekit.base.errors import StageError
from edgekit.base.events import Alert, Event
from edgekit.base.output import output

LARGE = b"x" * (SMALL + 1)


@pytest.fixture(autouse=True)
def gives_from_a_mebibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "GIVEN", SMALL)


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def make(tmp_path: Path, events: list[Event]) -> Callable[[], tuple[Cache, StageOutput]]:
    """A process that uses the cache and needs the stage: a folder of a large file and a small one."""

    def run(out: Path, work: Path) -> None:
        (out / "onnx").mkdir(parents=True)
        (out / "onnx" / "large").write_bytes(LARGE)
        (out / "onnx" / "small").write_text("text")

    def made() -> tuple[Cache, StageOutput]:
        cache = Cache(tmp_path / "cache", events.append)
        return cache, cache.stage("s", {}, run)

    return made


def written(cache: Cache, stage: StageOutput, out: Path, **options: Any) -> Path:
    """The large file in a new output folder."""
    with output(cache, out, force=True) as made:
        made.folder.mkdir()
        made.put(stage, stage.path / "onnx", "onnx", **options)
    assert (out / "onnx" / "small").read_text() == "text"
    assert (out / "onnx" / "large").read_bytes() == LARGE
    return out / "onnx" / "large"


def edit(file: Path, *, keep_time: bool) -> None:
    """Change a file in place, as a program does that opens it for writing."""
    at = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"y")
    if keep_time:
        os.utime(file, ns=(at.st_atime_ns, at.st_mtime_ns))
    else:
        os.utime(file, ns=(at.st_atime_ns, at.st_mtime_ns + 1))


def test_a_large_file_is_shared_and_a_small_one_copied(tmp_path: Path, make: Any) -> None:
    cache, stage = make()
    large = written(cache, stage, tmp_path / "out")
    assert os.path.samefile(large, stage.path / "onnx" / "large")
    assert not os.path.samefile(tmp_path / "out" / "onnx" / "small", stage.path / "onnx" / "small")


def test_a_file_is_copied_where_no_link_can_be_made(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    cache, stage = make()
    for one_name in (False, True):
        large = written(cache, stage, tmp_path / f"out{one_name}", one_name=one_name)
        assert large.stat().st_nlink == 1 and not (stage.path / "onnx" / "large").is_symlink()


@pytest.mark.parametrize("one_name", [False, True])
def test_a_file_that_was_edited_in_the_output_is_made_again(
    tmp_path: Path, make: Any, events: list[Event], one_name: bool
) -> None:
    cache, stage = make()
    edit(written(cache, stage, tmp_path / "out", one_name=one_name), keep_time=False)
    cache, stage = make()
    assert not stage.cached
    assert any(
        isinstance(event, Alert) and "was changed after stage 's'" in event.message for event in events
    )
    written(cache, stage, tmp_path / "other", one_name=one_name)


def test_an_edited_file_with_its_old_time_is_refused_and_made_again(tmp_path: Path, make: Any) -> None:
    cache, stage = make()
    edit(written(cache, stage, tmp_path / "out"), keep_time=True)
    cache, stage = make()
    with pytest.raises(StageError, match="was changed after stage 's' wrote it"):
        written(cache, stage, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    cache, stage = make()
    assert not stage.cached
    written(cache, stage, tmp_path / "other")


def test_a_file_that_must_have_one_name_is_given_to_the_output_and_copied_back(
    tmp_path: Path, make: Any, events: list[Event]
) -> None:
    cache, stage = make()
    first = written(cache, stage, tmp_path / "first", one_name=True)
    assert first.stat().st_nlink == 1 and (stage.path / "onnx" / "large").readlink() == first
    cache, stage = make()
    kept = stage.path / "onnx" / "large"
    assert stage.cached and not kept.is_symlink() and kept.stat().st_nlink == 1
    assert f"Copying {first} back into the cache." in [getattr(event, "message", "") for event in events]
    second = written(cache, stage, tmp_path / "second", one_name=True)
    assert not os.path.samefile(first, second) and kept.readlink() == second
    cache, stage = make()
    assert stage.cached and [path.name for path in (tmp_path / "cache" / "s").iterdir()] == [stage.path.name]


def test_a_given_file_that_was_edited_with_its_old_time_is_made_again(tmp_path: Path, make: Any) -> None:
    cache, stage = make()
    edit(written(cache, stage, tmp_path / "out", one_name=True), keep_time=True)
    assert not make()[1].cached


def test_a_given_file_that_is_gone_is_made_again(tmp_path: Path, make: Any, events: list[Event]) -> None:
    cache, stage = make()
    written(cache, stage, tmp_path / "out", one_name=True).unlink()
    assert not make()[1].cached
    assert any("was moved or removed after stage 's'" in getattr(event, "message", "") for event in events)


def test_nothing_is_given_away_while_another_process_uses_the_cache(tmp_path: Path, make: Any) -> None:
    other, _ = make()
    cache, stage = make()
    large = written(cache, stage, tmp_path / "out", one_name=True)
    assert large.stat().st_nlink == 1 and not (stage.path / "onnx" / "large").is_symlink()
    assert other.stage  # it is still in use


@pytest.mark.parametrize("one_name", [False, True])
def test_a_failed_output_takes_nothing(tmp_path: Path, make: Any, one_name: bool) -> None:
    cache, stage = make()
    with pytest.raises(KeyError), output(cache, tmp_path / "out") as made:
        made.folder.mkdir()
        made.put(stage, stage.path / "onnx", "onnx", one_name=one_name)
        raise KeyError
    kept = stage.path / "onnx" / "large"
    assert kept.stat().st_nlink == 1 and not kept.is_symlink() and not (tmp_path / "out").exists()


def test_cleaning_the_cache_frees_what_no_output_holds(tmp_path: Path, make: Any) -> None:
    cache, stage = make()
    before = entries(cache.root)[0].bytes
    large = written(cache, stage, tmp_path / "out")
    assert before - entries(cache.root)[0].bytes == len(LARGE)
    del cache
    clean(tmp_path / "cache")
    assert large.read_bytes() == LARGE and not stage.path.exists()
