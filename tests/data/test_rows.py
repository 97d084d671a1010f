"""Rows of JSONL: three shapes in, every fault with its line, and splits that never move."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.base.errors import ConfigError
from edgekit.data.reading import read_rows
from edgekit.data.rows import Row, evenly_spaced
from edgekit.data.splits import split_by_id

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1).filter(str.strip)


def write(path: Path, *rows: object) -> Path:
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8"
    )
    return path


def test_three_shapes_give_the_same_conversation(tmp_path: Path) -> None:
    file = write(
        tmp_path / "rows.jsonl",
        {"id": "a", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]},
        {"id": "b", "prompt": "q", "completion": "r", "label": "x"},
        {"id": "c", "instruction": "q", "input": "", "output": "r"},
    )
    rows = read_rows(file)
    assert {tuple(message["content"] for message in row.messages) for row in rows} == {("q", "r")}
    assert [row.label for row in rows] == [None, "x", None]


def test_alpaca_input_follows_the_instruction(tmp_path: Path) -> None:
    rows = read_rows(
        write(tmp_path / "rows.jsonl", {"instruction": "Sum up.", "input": "Long.", "output": "Short."})
    )
    assert rows[0].messages[0]["content"] == "Sum up.\n\nLong."


def test_every_bad_row_is_named_with_its_line(tmp_path: Path) -> None:
    file = write(
        tmp_path / "rows.jsonl",
        {"prompt": "fine", "completion": "fine"},
        "{not json",
        {"prompt": "no answer", "completion": "  "},
        {"messages": [{"role": "user", "content": "q"}]},
        {"messages": [{"role": "tool", "content": "q"}, {"role": "assistant", "content": "r"}]},
        [],
        {"text": "no conversation"},
    )
    with pytest.raises(ConfigError) as caught:
        read_rows(file)
    assert [fault.split(" ")[0] for fault in caught.value.faults] == [f"rows.jsonl:{n}:" for n in range(2, 8)]
    assert "no answer" in caught.value.faults[1]


def test_what_is_not_text_is_named_with_its_column(tmp_path: Path) -> None:
    """Planted: half of a surrogate pair in each place, a number that Python does not read, lists of unequal length."""
    talk = [{"role": "user", "content": "q\ud83d"}, {"role": "assistant", "content": "r"}]
    file = write(
        tmp_path / "rows.jsonl",
        {"prompt": "q\ud83d", "completion": "r"},
        {"prompt": "q", "completion": "\ude00r"},
        {"prompt": "q", "completion": "r", "id": "a\ud83d"},
        {"messages": talk},
        '{"prompt": "q", "completion": ' + "9" * 5000 + "}",
        {"messages": {"role": ["user", "assistant", "user"], "content": ["q", "r"]}},
        {"prompt": "\U0001f600", "completion": "a whole pair"},
    )
    with pytest.raises(ConfigError) as caught:
        read_rows(file)
    words = [
        "'prompt' has half",
        "'completion' has half",
        "'id' has half",
        "message 1 of 'messages' has half",
    ]
    words += ["a number with too many digits", "lists of unequal length under 'role', 'content'"]
    assert len(caught.value.faults) == len(words)
    for number, (fault, word) in enumerate(zip(caught.value.faults, words, strict=True), start=1):
        assert fault.startswith(f"rows.jsonl:{number}: ") and word in fault and fault.isascii()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_half_of_a_surrogate_pair_in_a_key_is_named(tmp_path: Path, name: str) -> None:
    rows = ['{"prompt": "q", "completion": "a"}', '{"prompt": "q", "completion": "a", "\\ud800": "x"}']
    (tmp_path / name).write_text("\n".join(rows) if name == "rows.jsonl" else f"[{', '.join(rows)}]")
    with pytest.raises(ConfigError) as caught:
        read_rows(tmp_path / name)
    assert caught.value.faults == [
        f"{name}:2: a key has half of a surrogate pair (\\ud800), which is not text"
    ]


def test_an_id_with_two_texts_is_a_fault_and_an_exact_copy_is_not(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "q", "completion": "r"}
    assert len(read_rows(write(tmp_path / "copy.jsonl", row, row))) == 1
    with pytest.raises(ConfigError, match="1 of 2 rows"):
        read_rows(write(tmp_path / "clash.jsonl", row, {**row, "completion": "other"}))


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(ConfigError, match="no rows"):
        read_rows(tmp_path / "rows.jsonl")


def test_a_missing_file_names_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no data file .*nowhere\.jsonl"):
        read_rows(tmp_path / "nowhere.jsonl")


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write(file, *({"id": str(n), "prompt": q, "completion": r} for n, (q, r) in enumerate(pairs)))
    assert [(row.messages[0]["content"], row.answer) for row in read_rows(file)] == pairs


def test_a_row_keeps_its_split_when_others_are_added() -> None:
    rows = [
        Row(str(n), ({"role": "user", "content": str(n)}, {"role": "assistant", "content": "r"}))
        for n in range(500)
    ]
    few, all_ = split_by_id(rows[:200]), split_by_id(rows)
    for split in few:
        assert {row.id for row in few[split]} <= {row.id for row in all_[split]}
    assert 30 <= len(all_["test"]) <= 70


def test_a_pipe_is_refused_because_it_may_have_no_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(ConfigError, match="not a file"):
        read_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(("rows", "count"), [(39, 20), (300, 20), (21, 20), (7, 20), (5, 0), (0, 3)])
def test_chosen_rows_are_spread_over_all_of_them(rows: int, count: int) -> None:
    found = evenly_spaced(range(rows), count)
    assert len(found) == min(rows, count)
    if found:
        distances = [after - before for before, after in zip(found, [*found[1:], rows], strict=True)]
        assert found[0] == 0 and max(distances) - min(distances) <= 1
