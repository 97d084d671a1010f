"""The store: what is written can be read, and nothing that happens to its file stops what it listens to."""

from __future__ import annotations

import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from field.telemetry.made import ALARM, SEEN, T0

from edgekit.base.errors import CorruptError
from edgekit.field.telemetry.machine import Machine
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.store import KEPT_MINUTES, Store


def seen(**changes: Any) -> Observation:
    return replace(SEEN, **changes)


def until(happened: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def child(program: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, **options)


def test_a_window_says_what_happened(tmp_path: Path) -> None:
    store = Store(tmp_path / "state" / "telemetry.sqlite")
    for index in range(20):
        store.add(seen(time=T0 + index, confidence=0.8 + 0.01 * index))
    store.add(
        seen(finish="error", error="StageError", label=None, ttft_s=None, answer_tokens=0, confidence=None)
    )
    store.add(seen(finish="length", label="other"))
    store.add(seen(finish="cancelled", label=None))
    store.add(seen(answer_tokens=0, ttft_s=None))
    store.add(seen(release="def", time=T0 + 60))
    store.sample(Machine(T0, 100.0, 50.0, 1.0, 0.5), "abc")
    store.sample(Machine(T0 + 5, 140.0, None, 2.0, 0.5), "abc")
    store.alarm(ALARM, "abc")
    store.heartbeat(T0 + 9)
    before = store.window(T0, T0 + 59, "abc")  # from memory
    assert store.flush() and store.trouble == ""
    for window in (before, store.window(T0, T0 + 59, "abc"), Store(store.path).window(T0, T0 + 59, "abc")):
        assert (window.requests, window.errors, window.empty, window.truncated, window.cancelled) == (
            24,
            1,
            1,
            1,
            1,
        )
        assert window.error_kinds == {"StageError": 1} and window.classes == {"close_job": 21, "other": 1}
        assert window.tokens_per_s == pytest.approx(20, rel=0.15) and window.ttft_p95_s == pytest.approx(
            0.1, rel=0.2
        )
        assert window.duration_p95_s == pytest.approx(0.6, rel=0.2) and window.queue_p95_s
        assert window.confidence == pytest.approx((sum(0.8 + 0.01 * i for i in range(20)) + 3 * 0.9) / 23)
        assert (window.rss_mib, window.temperature_c, window.throttled_s) == (140.0, 50.0, 3.0)
        assert window.prompt_tokens == 24 * 30 and window.last_seen == T0 + 9
        (alarm,) = window.alarms
        assert alarm["words"] == "The confidence fell." and alarm["release"] == "abc" and alarm["since"] == T0
    assert store.window(T0, T0 + 119).requests == 25
    assert store.window(T0, T0 + 119, "def").requests == 1 and not store.window(T0, T0 + 119, "def").alarms
    store.close()


def test_reading_writes_nothing_and_nothing_is_an_empty_window(tmp_path: Path) -> None:
    window = Store(tmp_path / "none" / "telemetry.sqlite").window(0, 1e12)
    assert window.requests == 0 and window.ttft_p95_s is None and window.last_seen is None
    assert not (tmp_path / "none").exists()


def test_the_thread_writes_by_itself_and_two_processes_add_up(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.sqlite"
    program = """
        import sys
        sys.path.insert(0, sys.argv[2])
        from pathlib import Path
        from made import SEEN
        from edgekit.field.telemetry.store import Store
        store = Store(Path(sys.argv[1]), every_s=0.01)
        for _ in range(500):
            store.add(SEEN)
        print("added", flush=True)
        sys.stdin.readline()
        store.close()
    """
    other = child(program, path, Path(__file__).parent, stdin=subprocess.PIPE)
    assert other.stdout and other.stdout.readline() == "added\n"
    store = Store(path, every_s=0.01)
    for _ in range(300):
        store.add(SEEN)
    until(lambda: Store(path).window(T0, T0).requests == 800)  # while both still write
    other.communicate("\n", timeout=30)
    store.close()
    assert other.returncode == 0 and Store(path).window(T0, T0).requests == 800


def test_kill_9_of_a_writing_process_leaves_a_readable_store(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.sqlite"
    program = """
        import sys
        sys.path.insert(0, sys.argv[2])
        from pathlib import Path
        from dataclasses import replace
        from made import ALARM, SEEN
        from edgekit.field.telemetry.store import Store
        store, minute = Store(Path(sys.argv[1]), every_s=3600), int(sys.argv[3])
        while True:
            store.add(replace(SEEN, time=SEEN.time + 60 * minute))
            store.alarm(ALARM)
            assert store.flush(), store.trouble
            minute += 1
            print(minute, flush=True)
    """
    told = 0
    for wait in (0, 5, 20):
        process = child(program, path, Path(__file__).parent, told)
        assert process.stdout
        for _ in range(wait + 1):
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split("\n")
        told = max([told, *(int(line) for line in rest[:-1])])
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert told <= Store(path).window(T0, T0 + 60 * 100_000).requests <= told + 2
        told = Store(path).window(T0, T0 + 60 * 100_000).requests
    store = Store(path)
    store.add(SEEN)
    assert store.flush() and not list(tmp_path.glob("*.damaged"))
    store.close()


@pytest.mark.parametrize("damage", ["no database", "a hole"])
def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "telemetry.sqlite"
    store = Store(path, every_s=3600)
    for minute in range(200):
        store.add(seen(time=T0 + 60 * minute))
        if minute % 100 == 99:
            store.flush()
    store.close()
    if damage == "no database":
        path.write_bytes(b"this is not a database " * 400)
    else:
        whole = path.read_bytes()
        path.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
    store = Store(path, every_s=3600)
    assert store.window(T0, T0).requests in (0, 1)  # damage does not stop a reader either
    store.add(SEEN)
    assert not store.flush() and store.trouble
    assert store.flush() and store.trouble == "" and "damaged" in store.note
    assert store.window(T0, T0 + 60 * 200).requests == 1, "what waited in memory is in the new file"
    assert path.with_name("telemetry.sqlite.damaged").is_file()
    store.close()


@pytest.mark.parametrize(
    "damage", ["a hole", "a foreign row", "a huge number", "a foreign alarm", "no rights"]
)
def test_a_reader_that_asks_is_told_what_cannot_be_read(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "telemetry.sqlite"
    last = T0 + 60 * 199
    store = Store(path, every_s=3600)
    for minute in range(200):
        store.add(seen(time=T0 + 60 * minute))
        if minute % 100 == 99:
            store.flush()
    store.alarm(ALARM, "abc")
    store.heartbeat(last)
    store.close()
    reader = Store(path)
    assert reader.window(T0, last, strict=True).requests == 200 and reader.releases(T0, strict=True) == [
        "abc"
    ]
    with sqlite3.connect(path) as connection:
        if damage == "a foreign row":
            connection.execute("UPDATE minutes SET body = '[1]' WHERE minute = ?", (int(T0 // 60) + 90,))
        elif damage == "a huge number":
            body = '{"counts": {"requests": 1e999}}'
            connection.execute("UPDATE minutes SET body = ? WHERE minute = ?", (body, int(T0 // 60) + 90))
        elif damage == "a foreign alarm":
            connection.execute("UPDATE alarms SET body = '[1'")
        pages = connection.execute("SELECT pageno FROM dbstat WHERE name = 'minutes' AND pagetype = 'leaf'")
        inner = [number for (number,) in pages][1:-1] if damage == "a hole" else []
    connection.close()
    whole = bytearray(path.read_bytes())
    for number in inner:
        whole[4096 * (number - 1) : 4096 * number] = b"\xa5" * 4096
    assert bool(inner) == (damage == "a hole")
    path.write_bytes(whole)
    if damage == "no rights":
        path.unlink()
        path.mkdir()
    with pytest.raises(CorruptError, match=r"telemetry.sqlite cannot be read") as told:
        reader.window(T0, last, strict=True)
    assert f"mv {path}" in told.value.hint
    window = reader.window(T0, last)  # who does not ask is told what is left
    assert damage == "no rights" or window.last_seen == last
    assert reader.window(last, last).requests == (0 if damage == "no rights" else 1)


def test_no_file_is_nothing_and_no_fault(tmp_path: Path) -> None:
    store = Store(tmp_path / "none" / "telemetry.sqlite")
    assert store.window(0, 1e12, strict=True).requests == 0
    assert store.releases(0, strict=True) == store.latest_releases(2, strict=True) == []


def test_over_the_cap_the_oldest_minutes_go(tmp_path: Path) -> None:
    store = Store(tmp_path / "telemetry.sqlite", cap_mib=0.5, every_s=3600)
    for minute in range(1200):
        for release in ("a" * 12, "b" * 12):
            store.add(seen(time=T0 + 60 * minute, release=release))
        if minute % 50 == 49:
            assert store.flush(), store.trouble
            used = sum(file.stat().st_size for file in tmp_path.iterdir() if not file.name.endswith("-shm"))
            assert used <= 0.5 * 2**20 + 64 * 1024
    assert store.window(T0, T0).requests == 0 and store.window(T0 + 60 * 1199, T0 + 60 * 1199).requests == 2
    assert store.window(T0, T0 + 60 * 1200).requests > 200
    store.close()


def test_a_folder_that_cannot_be_written_is_said_and_got_over(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    store = Store(tmp_path / "state" / "telemetry.sqlite", every_s=0.01)
    store.add(SEEN)
    store.alarm(ALARM)
    until(lambda: "cannot be written" in store.trouble)
    store.add(SEEN)
    assert store.window(T0, T0).requests == 2 and len(store.window(T0, T0 + 60).alarms) == 1
    (tmp_path / "state").unlink()
    until(lambda: store.trouble == "" and store.path.exists())
    store.close()
    window = Store(store.path).window(T0, T0 + 60)
    assert window.requests == 2 and len(window.alarms) == 1


def test_a_full_disk_is_survived(tmp_path: Path) -> None:
    """A real failure of write(2): the process may not make a file larger than it is."""
    program = """
        import resource, sys
        sys.path.insert(0, sys.argv[2])
        from pathlib import Path
        from dataclasses import replace
        from made import SEEN
        from edgekit.field.telemetry.store import Store
        store = Store(Path(sys.argv[1]), every_s=3600)
        store.add(SEEN)
        assert store.flush()
        largest = Path(sys.argv[1]).stat().st_size
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
        for minute in range(1, 60):
            store.add(replace(SEEN, time=SEEN.time + 60 * minute))
            full = minute % 10 != 9 or not store.flush()
        assert full and "cannot be written" in store.trouble, store.trouble
        assert store.window(SEEN.time, SEEN.time + 3600).requests == 60
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert store.flush() and not store.trouble and not store.note and not store.dropped
        store.close()
    """
    path = tmp_path / "telemetry.sqlite"
    done = child(program, path, Path(__file__).parent, stderr=subprocess.PIPE)
    errors = done.communicate(timeout=60)[1]
    assert done.returncode == 0, errors
    assert Store(path).window(T0, T0 + 3600).requests == 60
    assert resource.RLIM_INFINITY == resource.getrlimit(resource.RLIMIT_FSIZE)[1]


def test_memory_is_bounded_while_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("edgekit.field.telemetry.store.sqlite3.connect", full)
    store = Store(tmp_path / "telemetry.sqlite", every_s=3600)
    for minute in range(2 * KEPT_MINUTES):
        store.add(seen(time=T0 + 60 * minute))
        store.alarm(ALARM)
        if minute % 40 == 0:
            assert not store.flush() and "full" in store.trouble
    assert store.window(T0, T0 + 60 * 10_000).requests == KEPT_MINUTES and store.dropped >= KEPT_MINUTES
    monkeypatch.undo()
    assert store.flush() and store.trouble == ""
    store.close()
    assert Store(store.path).window(T0 + 60 * (2 * KEPT_MINUTES - 1), T0 + 1e9).requests == 1, (
        "the newest are kept"
    )


def test_a_file_that_another_process_moved_aside_is_left_behind(tmp_path: Path) -> None:
    store = Store(tmp_path / "telemetry.sqlite", every_s=3600)
    store.add(SEEN)
    assert store.flush()
    shutil.move(store.path, tmp_path / "aside")
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"telemetry.sqlite{suffix}").unlink(missing_ok=True)
    store.add(SEEN)
    assert store.flush() and Store(store.path).window(T0, T0).requests == 1
    store.close()


def test_one_foreign_row_costs_no_other_minute(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.sqlite"
    store = Store(path, every_s=3600)
    for minute in range(3):
        store.add(seen(time=T0 + 60 * minute))
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE minutes SET body = '[1]' WHERE minute = ?", (int(T0 // 60),))
    store = Store(path, every_s=3600)
    store.add(SEEN)
    assert store.flush() and not store.trouble
    assert store.window(T0, T0 + 120).requests == 3
    assert [file.name for file in tmp_path.glob("*damaged*")] == []
    store.close()


def test_a_second_damaged_file_does_not_replace_the_first(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.sqlite"
    for text in (b"first", b"second"):
        path.write_bytes(text * 2000)
        store = Store(path, every_s=3600)
        store.add(SEEN)
        assert not store.flush() and store.flush()
        store.close()
    kept = {file.read_bytes()[:6] for file in tmp_path.glob("*.damaged*")}
    assert kept == {b"firstf", b"second"}
