"""The tail of a growing file: whole lines, bounded, and no file that breaks it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekit.app.views.tail import Tail


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_lines_come_once_and_whole(log: Path) -> None:
    tail = Tail(log)
    log.write_bytes(b"one\ntwo\nthr")
    assert tail.read().lines == ("one", "two")
    assert tail.read().lines == ()
    with log.open("ab") as file:
        file.write(b"ee\r\n\nfour")
    assert tail.read().lines == ("three", "")


def test_a_letter_cut_in_two_is_whole_again_and_bytes_that_are_no_text_are_shown(log: Path) -> None:
    tail, letter = Tail(log), "ü".encode()
    log.write_bytes(letter[:1])
    assert tail.read().lines == ()
    with log.open("ab") as file:
        file.write(letter[1:] + b"\n\xff\xfe\n")
    assert tail.read().lines == ("ü", "\N{REPLACEMENT CHARACTER}" * 2)


def test_of_a_large_file_only_the_end_is_read_and_it_says_so(log: Path) -> None:
    with log.open("wb") as file:
        file.truncate(1 << 30)  # a hole: it takes no room
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"".join(b"line %d\n" % n for n in range(10)))
    size = log.stat().st_size
    look = Tail(log, first_bytes=200).read()
    assert look.lines[-1] == "line 9" and look.skipped_bytes == size - 200


def test_a_line_cut_by_the_beginning_is_never_taken_for_a_whole_one(log: Path) -> None:
    log.write_bytes(b"aaaa-secret\nwhole\n")
    assert Tail(log, first_bytes=12).read().lines == ("whole",)


def test_what_came_too_fast_is_skipped_and_counted(log: Path) -> None:
    tail = Tail(log, first_bytes=100)
    log.write_bytes(b"begun ")
    tail.read()
    with log.open("ab") as file:
        file.write(b"x" * 500 + b"\n" + b"y\n" * 3)
    look = tail.read()
    assert look.lines == ("y", "y", "y") and look.skipped_bytes == 407


def test_a_line_without_an_end_takes_no_memory_and_the_next_one_is_read(log: Path) -> None:
    tail = Tail(log, longest_line=1000)
    dropped = 0
    for _ in range(5):
        with log.open("ab") as file:
            file.write(b"x" * 900)
        look = tail.read()
        dropped += look.dropped_lines
        assert not look.lines and len(tail._rest) <= 1001
    with log.open("ab") as file:
        file.write(b"x\nnext\n")
    look = tail.read()
    assert look.lines == ("next",) and dropped + look.dropped_lines == 1


def test_a_truncated_file_begins_anew(log: Path) -> None:
    tail = Tail(log)
    log.write_bytes(b"old one\nold two\n")
    tail.read()
    log.write_bytes(b"new\n")
    look = tail.read()
    assert look.lines == ("new",) and look.anew


def test_a_replaced_file_begins_anew_even_when_it_begins_alike(log: Path) -> None:
    tail = Tail(log)
    log.write_bytes(b"new one, longer\nhalf a li")
    tail.read()
    other = log.with_name("other")
    other.write_bytes(
        b"new one, longer\nnew two, longer as well\nthird\n"
    )  # begins alike, and is another file
    os.replace(other, log)
    look = tail.read()
    assert look.anew and len(look.lines) == 3


def test_a_file_that_goes_and_comes_again(log: Path) -> None:
    tail = Tail(log)
    assert tail.read().lines == () and not tail.read().anew
    log.write_bytes(b"one\n")
    assert tail.read().lines == ("one",)
    log.unlink()
    assert tail.read().anew and not tail.read().anew
    log.write_bytes(b"one\n")
    assert tail.read().lines == ("one",)


def test_what_is_no_file_is_a_sentence(tmp_path: Path, log: Path) -> None:
    assert "not a file" in Tail(tmp_path).read().trouble
    os.mkfifo(log)
    assert "not a file" in Tail(log).read().trouble  # and does not wait for a writer
