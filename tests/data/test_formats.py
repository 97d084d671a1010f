"""Data files of every kind: the same rows come back, and what cannot be read is named once, by its content."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from edgekit.base.errors import ConfigError, MissingPartError
from edgekit.data.reading import Reader, read_rows
from edgekit.data.rows import Row

TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1).filter(
    str.strip
)
RECORDS = st.lists(
    st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT, "label": TEXT.map(str.strip)}),
    min_size=1,
    max_size=6,
)
CHAT = st.lists(
    st.lists(TEXT, min_size=1, max_size=3).map(
        lambda texts: {
            "messages": [
                message
                for text in texts
                for message in (
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": text[::-1]},
                )
            ]
        }
    ),
    min_size=1,
    max_size=4,
)
Record = dict[str, Any]


def as_jsonl(path: Path, records: list[Record]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8", newline="\n")


def as_json(path: Path, records: list[Record]) -> None:
    path.write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding="utf-8", newline="\n")


def as_csv(path: Path, records: list[Record], delimiter: str = ",", bom: bool = False) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(records[0])
    for record in records:
        writer.writerow(
            [json.dumps(record[key]) if isinstance(record[key], list) else record[key] for key in records[0]]
        )
    path.write_bytes(text.getvalue().encode("utf-8-sig" if bom else "utf-8"))


def as_tsv(path: Path, records: list[Record]) -> None:
    as_csv(path, records, "\t")


def as_excel_csv(path: Path, records: list[Record]) -> None:
    as_csv(path, records, ";", bom=True)


def as_gzip(path: Path, records: list[Record]) -> None:
    as_csv(path, records)
    path.write_bytes(gzip.compress(path.read_bytes()))


def as_parquet(path: Path, records: list[Record]) -> None:
    parquet.write_table(pa.Table.from_pylist(records), path, row_group_size=2)


def as_arrow(path: Path, records: list[Record]) -> None:
    table = pa.Table.from_pylist(records)
    with ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, 2)


def as_stream(path: Path, records: list[Record]) -> None:
    table = pa.Table.from_pylist(records)
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, 2)


WRITERS: dict[str, Callable[[Path, list[Record]], None]] = {
    "rows.jsonl": as_jsonl,
    "rows.json": as_json,
    "rows.csv": as_csv,
    "excel.csv": as_excel_csv,
    "rows.tsv": as_tsv,
    "rows.csv.gz": as_gzip,
    "rows.parquet": as_parquet,
    "rows.arrow": as_arrow,
    "stream.arrow": as_stream,
}


def same(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [(row.id, row.messages, row.label) for row in rows]


@settings(deadline=None, max_examples=40)
@given(st.one_of(RECORDS, CHAT))
def test_every_kind_gives_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record]
) -> None:
    folder = tmp_path_factory.mktemp("kinds")
    found = {}
    for name, write in WRITERS.items():
        write(folder / name, records)
        found[name] = same(read_rows(folder / name))
    expected = found.pop("rows.jsonl")
    assert {id for id, _, _ in expected} and len(expected) <= len(records)
    for name, rows in found.items():
        assert rows == expected, name


@settings(deadline=None, max_examples=40)
@given(RECORDS)
def test_named_columns_give_what_is_in_them(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record]
) -> None:
    """Columns of any name, in any order, beside others."""
    folder = tmp_path_factory.mktemp("named")
    renamed = [
        {"rest": "x", "the answer, in short": r["completion"], "frage": r["prompt"], "n": str(n)}
        for n, r in enumerate(records)
    ]
    for name in ("rows.csv", "rows.tsv", "rows.parquet", "rows.jsonl"):
        WRITERS[name](folder / name, renamed)
        rows = read_rows(folder / name, "id=n, prompt=frage, completion=the answer, in short")
        assert [(row.id, row.messages[0]["content"], row.answer) for row in rows] == [
            (str(n), r["prompt"], r["completion"]) for n, r in enumerate(records)
        ]


GUESSED = [
    ({"text": "q", "label": "a"}, "prompt=text,completion=label,label=label"),
    ({"Sentence": "q", "Intent": "a", "n": "1"}, "prompt=Sentence,completion=Intent,label=Intent"),
    ({"question": "q", "answer": "a"}, "prompt=question,completion=answer"),
    ({"instruction": "q", "response": "a", "category": "c"}, "prompt=instruction,completion=response"),
    ({"id": "7", "question": "q", "response": "a"}, "prompt=question,completion=response,id=id"),
    ({"prompt": "q", "response": "a", "label": "l"}, "prompt=prompt,completion=response,label=label"),
]
LATER: list[tuple[Record, Record, list[str]]] = [
    (
        {"question": "q", "answer": "a"},
        {"question": "r", "answer": "b", "system": "Be brief."},
        ["Be brief.", "r", "b"],
    ),
    (
        {"instruction": "q", "response": "a"},
        {"instruction": "r", "input": "Long.", "response": "b"},
        ["r\n\nLong.", "b"],
    ),
    (
        {"instruction": "q", "output": "a"},
        {"instruction": "r", "context": "Long.", "output": "b"},
        ["r\n\nLong.", "b"],
    ),
    ({"prompt": "q", "completion": "a"}, {"prompt": "r", "completion": "b", "note": "x"}, ["r", "b"]),
]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet", "rows.arrow"])
def test_other_columns_are_kept_where_they_are_asked_for(name: str, tmp_path: Path) -> None:
    records = [
        {"prompt": f"question {n}", "completion": "a", "language": "de" if n else "", "more": f"m{n}"}
        for n in range(3)
    ]
    WRITERS[name](tmp_path / name, records)
    reader = Reader(keep=("language", "missing"))
    reader.add(tmp_path / name)
    rows = reader.finish(name)
    assert [row.more for row in rows] == [{}, {"language": "de"}, {"language": "de"}]
    assert rows == read_rows(tmp_path / name)


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize(("record", "columns"), GUESSED, ids=[columns for _, columns in GUESSED])
def test_plain_columns_are_guessed(record: Record, columns: str, name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, [record])
    reader = Reader()
    reader.add(tmp_path / name)
    (row,) = reader.finish(name)
    assert (row.messages[0]["content"], row.answer) == ("q", "a")
    assert reader.columns is not None and reader.columns.text == columns and reader.columns.guessed
    assert "guessed" in reader.text


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize(("first", "later", "texts"), LATER, ids=range(len(LATER)))
def test_columns_that_only_later_rows_have_are_read(
    first: Record, later: Record, texts: list[str], name: str, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path / name, [first, later, {**first, next(iter(first)): "s"}])
    rows = read_rows(tmp_path / name)
    assert [[message["content"] for message in row.messages] for row in rows] == [
        ["q", "a"],
        texts,
        ["s", "a"],
    ]


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ({"question": "q", "answer": "a"}, {"context": "Long.", "question": "r", "answer": "b"}),
        ({"question": "q", "response": "a"}, {"question": "r", "response": "b", "answer": "c"}),
        ({"prompt": "q", "completion": "a"}, {"prompt": "r", "completion": "b", "context": "Long."}),
    ],
)
def test_a_later_row_with_columns_of_another_guess_is_a_fault(
    first: Record, later: Record, tmp_path: Path
) -> None:
    as_jsonl(tmp_path / "rows.jsonl", [first, later, {**first, next(iter(first)): "s"}, later])
    with pytest.raises(ConfigError) as caught:
        read_rows(tmp_path / "rows.jsonl")
    assert [fault.split(" ")[0] for fault in caught.value.faults] == ["rows.jsonl:2:", "rows.jsonl:4:"]
    assert all("--columns prompt=" in fault for fault in caught.value.faults)


@pytest.mark.parametrize(
    ("record", "proposal"),
    [
        ({"context": "c", "question": "q", "answer": "a"}, "prompt=question,completion=answer,input=context"),
        ({"prompt": "q", "completion": "a", "context": "c"}, "completion=completion,input=context"),
        ({"prompt": "q", "label": "safe"}, "--columns prompt=prompt,completion=label"),
        ({"text": "q", "summary": "a"}, "--columns prompt=text,completion=COLUMN"),
        ({"text": "q", "review": "a", "label": "x"}, "--columns prompt=text,completion=label"),
        ({"a": "q", "b": "a"}, "--columns prompt=COLUMN,completion=COLUMN"),
    ],
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_what_is_not_plain_is_asked_for_once(
    record: Record, proposal: str, name: str, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path / name, [{**record, next(iter(record)): str(n)} for n in range(50)])
    with pytest.raises(ConfigError) as caught:
        read_rows(tmp_path / name)
    assert caught.value.faults == [] and all(column in caught.value.message for column in record)
    assert proposal in caught.value.hint


def test_a_row_without_its_answer_is_not_read_by_its_label(tmp_path: Path) -> None:
    """Planted: the label of one row must not become its answer."""
    rows = [{"prompt": "q", "completion": "a", "label": "l"}, {"prompt": "r", "label": "l"}]
    as_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ConfigError) as caught:
        read_rows(tmp_path / "rows.jsonl")
    assert caught.value.faults == ["rows.jsonl:2: no answer: 'completion' is missing or empty"]


def test_names_of_integer_labels_are_the_answers(tmp_path: Path) -> None:
    features = {
        "label": {"names": ["negative", "positive"], "_type": "ClassLabel"},
        "text": {"_type": "Value"},
    }
    table = pa.table({"text": ["good", "bad", "odd"], "label": [1, 0, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "rows.parquet")
    rows = read_rows(tmp_path / "rows.parquet")
    assert [(row.answer, row.label) for row in rows] == [
        ("positive",) * 2,
        ("negative",) * 2,
        ("positive",) * 2,
    ]
    parquet.write_table(table.set_column(1, "label", [[1, -1, 2]]), tmp_path / "odd.parquet")
    with pytest.raises(ConfigError) as caught:
        read_rows(tmp_path / "odd.parquet")
    assert len(caught.value.faults) == 2 and "'label' is -1, which has no name" in caught.value.faults[0]


def test_nested_columns_and_conversations_of_other_tools(tmp_path: Path) -> None:
    as_jsonl(tmp_path / "nested.jsonl", [{"q": "q", "answers": {"text": ["a", "b"]}}])
    (row,) = read_rows(tmp_path / "nested.jsonl", "prompt=q,completion=answers.text.0")
    assert row.answer == "a"
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    as_parquet(tmp_path / "talk.parquet", [{"conversations": talk}])
    (row,) = read_rows(tmp_path / "talk.parquet")
    assert row.messages == ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})


def test_a_system_prompt_and_the_context_belong_to_the_row(tmp_path: Path) -> None:
    record = {"system": "Be brief.", "instruction": "Sum up.", "context": "Long.", "response": "Short."}
    as_csv(tmp_path / "rows.csv", [record])
    (row,) = read_rows(tmp_path / "rows.csv")
    assert [message["content"] for message in row.messages] == ["Be brief.", "Sum up.\n\nLong.", "Short."]
    alpaca = {"instruction": "Sum up.", "context": "Page 3", "input": "Long.", "output": "Short."}
    for name in ("rows.csv", "rows.jsonl"):
        WRITERS[name](tmp_path / name, [alpaca])
        (row,) = read_rows(tmp_path / name)
        assert row.messages[0]["content"] == "Sum up.\n\nLong."


BAD: dict[str, tuple[bytes, str]] = {
    "latin1.csv": ("prompt,completion\nq,a\ncaf\xe9,b\n".encode("latin-1"), "line 3 has the byte 0xE9"),
    "utf16.csv": ("prompt,completion\nq,a\n".encode("utf-16"), "UTF-16 text"),
    "twice.csv": (b"text,label,text\na,b,c\n", "two columns with the name 'text'"),
    "open.csv": (
        b'prompt,completion\nq,a\n"r,b\ns,c\n',
        "line 3: a cell begins with a quotation mark and never ends",
    ),
    "after.csv": (b'prompt,completion\n"q" x,a\n', "text after the closing quotation mark"),
    "empty.csv": (b"", "holds no rows"),
    "header.csv": (b"prompt,completion\n", "holds no rows"),
    "book.csv": (b"PK\x03\x04....[Content_Types].xml", "an Excel workbook"),
    "archive.jsonl": (b"PK\x03\x04....rows.jsonl", "a ZIP archive"),
    "pickle.parquet": (b"\x80\x04\x95\x00", "a Python pickle, which edgekit never opens"),
    "table.csv": (b"SQLite format 3\0", "an SQLite database"),
    "page.csv": (b"<!doctype html><html>", "HTML or XML"),
    "notes.jsonl": (
        b"Only words, and a comma.\nMore words\n",
        "plain text, not rows; it begins with 'Only words",
    ),
    "cut.parquet": (b"PAR1\x00\x00\x00", "a damaged Parquet file"),
    "cut.arrow": (b"ARROW1\x00\x00\x10\x00", "a damaged Arrow file"),
    "cut.csv.gz": (gzip.compress(b"prompt,completion\n" + b"q,a\n" * 9)[:-12], "cannot be read"),
    "bits.jsonl": (b"\x00\x01\x02\x03", "a binary file of an unknown kind"),
    "splits.json": (b'{\n"train": [["q", "a"]]}', "one JSON object with the keys train, not a list of rows"),
    "cut.json": (b'[{"prompt": "q"', "not valid JSON"),
    "digits.json": (
        b'[{"prompt": "q", "completion": ' + b"9" * 5000 + b"}]",
        "a number with too many digits",
    ),
    "blank.txt": (b"\n\nfoo", "plain text, not rows; it begins with 'foo'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_said_once(name: str, tmp_path: Path) -> None:
    content, words = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_rows(tmp_path / name)
    assert words in caught.value.message and name in caught.value.message
    assert caught.value.hint and not caught.value.faults


def test_a_table_with_the_name_of_another_kind_is_read_by_its_content(tmp_path: Path) -> None:
    records = [{"prompt": f"q{n}", "completion": "a"} for n in range(9)]
    for write in (as_csv, as_tsv, as_parquet, as_arrow):
        write(tmp_path / "rows.jsonl", records)
        assert len(read_rows(tmp_path / "rows.jsonl")) == 9


def test_every_bad_cell_is_named_with_the_line_where_its_row_begins(tmp_path: Path) -> None:
    text = 'prompt,completion\n"two\nlines",a\nq\nr,\n,b\n\n,\ns,c,d\nt,"e\nf"\n'
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_rows(tmp_path / "rows.csv")
    assert caught.value.faults == [
        "rows.csv:4: it has 1 cell, and the header has 2",
        "rows.csv:5: no answer: 'completion' is missing or empty",
        "rows.csv:6: no prompt: 'prompt' is missing or empty",
        "rows.csv:9: it has 3 cells, and the header has 2",
    ]
    assert caught.value.message.startswith("4 of 6 rows")


def test_a_column_that_is_not_there_is_named_once(tmp_path: Path) -> None:
    as_csv(tmp_path / "rows.csv", [{"text": "q", "label": "a"}] * 3)
    with pytest.raises(ConfigError, match=r"no column 'category'. Its columns are text, label"):
        read_rows(tmp_path / "rows.csv", "prompt=text,completion=category")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("prompt=a", "neither messages nor both prompt and completion"),
        ("promt=a,completion=b", "did you mean 'prompt'?"),
        ("prompt=a,prompt=b,completion=c", "'prompt' is named twice"),
        ("prompt=a,completion=", "names no column"),
        ("messages=m,prompt=a,completion=b", "messages contain the prompt"),
        ("text", "there is no part 'text'"),
    ],
)
def test_columns_that_are_not_understood_are_refused(columns: str, words: str, tmp_path: Path) -> None:
    as_csv(tmp_path / "rows.csv", [{"a": "q", "b": "r"}])
    with pytest.raises(ConfigError) as caught:
        read_rows(tmp_path / "rows.csv", columns)
    assert any(words in fault for fault in caught.value.faults)


def test_parquet_without_pyarrow_names_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_parquet(tmp_path / "rows.parquet", [{"prompt": "q", "completion": "a"}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPartError) as caught:
        read_rows(tmp_path / "rows.parquet")
    assert "pyarrow" in caught.value.message and "pip install 'edgekit[" in caught.value.hint


def test_a_damaged_arrow_file_never_ends_the_process(tmp_path: Path) -> None:
    """Planted: bytes of offsets and lengths are changed, on which pyarrow crashes unless each batch is validated."""
    as_stream(
        tmp_path / "rows.arrow", [{"prompt": f"question {n}", "completion": "a" * n} for n in range(1, 40)]
    )
    whole = (tmp_path / "rows.arrow").read_bytes()
    code = "import sys; from pathlib import Path; from edgekit.base.errors import ConfigError\n"
    code += "from edgekit.data.reading import read_rows\n"
    code += "file, step = Path(sys.argv[1]), 13\nwhole = file.read_bytes()\n"
    code += "for at in range(8, len(whole), step):\n"
    code += "    file.write_bytes(whole[:at] + b'\\xff' * 4 + whole[at + 4:])\n"
    code += "    try:\n        read_rows(file)\n    except ConfigError as error:\n        assert error.hint\n"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "rows.arrow")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and len(whole) > 5000, (done.returncode, done.stderr[-500:])


def test_messages_as_older_data_sets_store_them(tmp_path: Path) -> None:
    """A list of structures, which datasets keeps as a structure of lists."""
    as_parquet(
        tmp_path / "rows.parquet", [{"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}}]
    )
    (row,) = read_rows(tmp_path / "rows.parquet")
    assert row.messages == ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})


ROW = {"prompt": "question", "completion": "answer"}


def damage(path: Path, column: str) -> None:
    """Overwrite the pages of a Parquet column."""
    group = parquet.read_metadata(path).row_group(0)
    chunk = next(
        group.column(n) for n in range(group.num_columns) if group.column(n).path_in_schema == column
    )
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)


def test_a_parquet_column_that_is_not_read_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    as_parquet(path, [{**ROW, "prompt": f"question {n}", "more": f"more {n}"} for n in range(2)])
    damage(path, "more")
    assert [row.answer for row in read_rows(path)] == ["answer", "answer"]
    with pytest.raises(ConfigError, match="is a damaged Parquet file"):
        read_rows(path, "prompt=prompt,completion=more")


@pytest.mark.parametrize("name", ["rows.arrow", "stream.arrow"])
def test_an_arrow_column_that_is_not_read_is_not_decoded(tmp_path: Path, name: str) -> None:
    offsets = pa.py_buffer((0).to_bytes(4, "little") + (1).to_bytes(4, "little"))
    wild = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff")])
    batch = pa.record_batch([["question"], ["answer"], wild], names=["prompt", "completion", "more"])
    new = ipc.new_stream if name.startswith("stream") else ipc.new_file
    with pa.OSFile(str(tmp_path / name), "wb") as sink, new(sink, batch.schema) as writer:
        writer.write_batch(batch)
    (row,) = read_rows(tmp_path / name)
    assert row.answer == "answer"
    with pytest.raises(ConfigError, match="is a damaged Arrow file"):
        read_rows(tmp_path / name, "prompt=prompt,completion=more")


def test_a_column_within_another_is_read_with_the_outer_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    as_parquet(path, [{"a": {"text": ["answer"]}, "q.t": "question", "more": "x"}] * 2)
    damage(path, "more")
    (row,) = read_rows(path, "prompt=q.t,completion=a.text.0")
    assert row.messages[0]["content"] == "question" and row.answer == "answer"


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "rows.csv"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    table = pa.Table.from_arrays([["q"], ["a"], ["b"]], names=["prompt", "completion", "completion"])
    path = tmp_path / name
    if name.endswith(".parquet"):
        parquet.write_table(table, path)
    elif name.endswith(".arrow"):
        with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_text("prompt,completion, completion\nq,a,b\n")
    with pytest.raises(ConfigError, match="two columns with the name 'completion'"):
        read_rows(path)


def test_a_key_that_is_there_twice_and_columns_that_differ_in_case_are_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"prompt": "q", "completion": "a"}\n{"prompt": "q", "completion": "a", "completion": "b"}\n'
    )
    with pytest.raises(ConfigError) as caught:
        read_rows(path)
    assert caught.value.faults == ["rows.jsonl:2: it has the key 'completion' twice"]
    (tmp_path / "list.json").write_text('[{"prompt": "q", "completion": "a", "prompt": "b"}]')
    with pytest.raises(ConfigError) as caught:
        read_rows(tmp_path / "list.json")
    assert caught.value.faults == ["list.json:1: it has the key 'prompt' twice"]
    (tmp_path / "rows.csv").write_text("Prompt,prompt,completion\na,b,c\n")
    with pytest.raises(ConfigError, match="is not plain"):
        read_rows(tmp_path / "rows.csv")


def test_text_files_are_read_without_pyarrow(tmp_path: Path) -> None:
    as_csv(tmp_path / "rows.csv", [{"prompt": "q", "completion": "a"}])
    code = f"import sys; from pathlib import Path; from edgekit.data.reading import read_rows; read_rows(Path({str(tmp_path / 'rows.csv')!r}));"
    code += "sys.exit(any(name in sys.modules for name in ('pyarrow', 'numpy', 'huggingface_hub')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_large_file_is_not_held_beside_its_rows(tmp_path: Path) -> None:
    """The records are read one at a time: a file of 24 MB whose rows are copies of one takes no 8 MB."""
    import tracemalloc

    long = "word " * 2000
    as_csv(tmp_path / "rows.csv", [{"prompt": long, "completion": "a"}] * 2400)
    tracemalloc.start()
    try:
        assert len(read_rows(tmp_path / "rows.csv")) == 1
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
