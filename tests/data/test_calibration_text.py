"""What quantizers calibrate on: the text that comes with edgekit, a person's own, and its pieces of tokens."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from fake_runtime import FakeRuntime
from hypothesis import given
from hypothesis import strategies as st

from edgekit.base.errors import ConfigError
from edgekit.data import calibration_text
from edgekit.data.calibration_text import (
    HELD_OUT_TEXTS,
    Calibration,
    calibration_of,
    passages,
    set_aside,
    split_rows,
    split_windows,
    windows,
)
from edgekit.data.rows import Row, evenly_spaced
from edgekit.proof import battery, texts

TEXT = "One passage\nof two lines.\n\n  \n    indented = True\n\n\nThe last.\n"
SPLIT = ["One passage\nof two lines.", "    indented = True", "The last."]
ROWS = '{"prompt": "Is it on?", "completion": "yes"}\n{"prompt": "And now?", "completion": "no"}\n'


def test_the_text_that_comes_with_edgekit_is_of_many_kinds() -> None:
    found = passages()
    text = "\n\n".join(found)
    assert 110_000 <= len(text.encode()) <= 130_000 and len(found) > 150
    assert len(set(found)) == len(found)
    kinds = ("the 18th century", "\nclass ", '"items": [', "<h1>", "|---|", "Subject: ", "était", " liegt ")
    assert not [kind for kind in kinds if kind not in text]
    for script in ("一-鿿", "぀-ヿ", "Ѐ-ӿ", "؀-ۿ", "ऀ-ॿ"):
        assert re.search(f"[{script}]{{3}}", text), script


def test_it_holds_no_text_that_judges() -> None:
    """Calibrated on its own test, a file would look better than it is."""

    def sequences(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[place : place + 8]) for place in range(len(words) - 7)}

    shipped = "\n\n".join(passages())
    asked = [*texts.conversations(), *battery.conversations()]
    judging = [*texts.TEXTS, *battery.battery(), *(turn["content"] for turns in asked for turn in turns)]
    assert not [text for text in judging if len(text.strip()) > 6 and text.strip() in shipped]
    assert not sequences(shipped) & set().union(*map(sequences, judging))


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_of_plain_text_is_split_at_blank_lines(tmp_path: Path, ends: str, mark: str) -> None:
    file = tmp_path / "own.txt"
    file.write_bytes((mark + TEXT.replace("\n", ends)).encode())
    assert passages(file) == SPLIT
    assert calibration_of(file) == Calibration([], SPLIT)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.txt", "rows"])
def test_a_file_of_rows_is_read_as_data(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(ROWS)
    found = calibration_of(tmp_path / name)
    assert [row.answer for row in found.rows] == ["yes", "no"] and not found.passages


def test_the_columns_of_rows_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b,c\nIs it on?,x,yes\n")
    (row,) = calibration_of(tmp_path / "rows.csv", "prompt=a,completion=c").rows
    assert row.answer == "yes"


@pytest.mark.parametrize(
    "text", ["Well, yes.\n", "{braces} begin it\n\n[1] and brackets\n", '<p>It is "HTML".</p>\n', "[\n"]
)
def test_text_that_resembles_rows_is_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.md").write_text(text)
    assert calibration_of(tmp_path / "own.md").passages == passages(tmp_path / "own.md") != []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "holds no text"),
        (b" \n\n\t\n", "holds no text"),
        ("Grün".encode("cp1252"), "not text in UTF-8"),
        ("Grün".encode("utf-16"), "not text in UTF-8"),
        (b"a\0b", "binary file"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "own.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as refusal:
        calibration_of(file)
    assert str(file) in refusal.value.message and "UTF-8" in refusal.value.hint


def test_a_folder_and_a_device_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="is not a file"):
            calibration_of(path)


def test_rows_that_are_missing_or_wrong_are_refused_as_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no data file"):
        calibration_of(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Is it on?"}\n')
    with pytest.raises(ConfigError):
        calibration_of(tmp_path / "rows.jsonl")


def test_a_very_long_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_text, "MAX_CHARACTERS", 100)
    (tmp_path / "own.txt").write_text("a" * 100)
    assert passages(tmp_path / "own.txt") == ["a" * 100]
    (tmp_path / "own.txt").write_text("a" * 101)
    with pytest.raises(ConfigError, match="longer than 100 characters"):
        passages(tmp_path / "own.txt")


def test_a_short_text_is_taken_whole() -> None:
    found = windows(FakeRuntime(), ["abcd", "efgh"], length=5, count=9)
    assert found == [[256, *b"abcd"], [256, *b"\n\nef"], [256, *b"gh"]]
    assert windows(FakeRuntime(), [], length=5) == []


def test_windows_are_spread_over_a_long_text() -> None:
    given = [f"passage {number}" for number in range(900)]
    text = "\n\n".join(given).encode()
    found = windows(FakeRuntime(), given, length=33, count=10)
    assert {len(ids) for ids in found} == {33} and {ids[0] for ids in found} == {256}
    starts = [text.index(bytes(ids[1:])) for ids in found]
    gaps = [after - before for before, after in pairwise(starts)]
    assert len(starts) == 10 and starts[0] == 0
    assert max(gaps) - min(gaps) <= 32 and len(text) - starts[-1] <= max(gaps)


def test_the_same_windows_come_every_time() -> None:
    found = windows(FakeRuntime(), passages())
    assert len(found) == 40 and {len(ids) for ids in found} == {256}
    assert found == windows(FakeRuntime(), passages())


@given(number=st.integers(0, 200), count=st.integers(0, 80), held=st.integers(0, 40))
def test_what_is_set_aside_is_not_used(number: int, count: int, held: int) -> None:
    used, others = set_aside(range(number), count, held)
    assert not {*used} & {*others} and len({*used}) == len(used) and len(others) <= held
    assert len(others) >= min(held, number // 4)
    if number >= count + held:
        assert used == evenly_spaced(range(number), count) and len(others) == held
    assert len(used) >= min(count, number - number // 4)


def test_the_pieces_that_are_used_are_those_without_a_comparison() -> None:
    used, others = split_windows(FakeRuntime(), passages())
    assert used == windows(FakeRuntime(), passages()) and len(others) == HELD_OUT_TEXTS
    assert not {*map(tuple, used)} & {*map(tuple, others)}


def test_a_piece_that_is_used_is_not_compared_on_again() -> None:
    used, others = split_windows(FakeRuntime(), ["ab" * 4000], length=21)
    assert len(used) == 40 and others == []


def test_a_row_that_is_used_is_not_compared_on_again() -> None:
    same, other = (Row(f"{n}", ({"role": "user", "content": f"{n}"},)) for n in (1, 2))
    used, others = split_rows([same] * 6 + [other] * 2, 8)
    assert len(used) == 6 and others == []  # both of the others have the content of a used one
