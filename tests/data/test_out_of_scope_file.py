"""A person's own requests out of scope: plain lines, and rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.base.errors import ConfigError
from edgekit.data.out_of_scope_file import read_requests
from edgekit.data.rows import Row

SYSTEM = {"role": "system", "content": "Answer with the intent."}
LIKE = [Row("1", (SYSTEM, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}))]


def test_each_line_is_a_request_in_the_frame_of_the_rows(tmp_path: Path) -> None:
    file = tmp_path / "strange.txt"
    file.write_text("tell me a joke\n\n  who won, 1998?  \ntell me a joke\n")
    found = read_requests(file, LIKE)
    assert [row.messages[:-1] for row in found] == [
        (SYSTEM, {"role": "user", "content": text}) for text in ("tell me a joke", "who won, 1998?")
    ]
    assert [row.id for row in found] == ["strange.txt:1", "strange.txt:3"] and found[
        0
    ].label == "out_of_scope"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", "prompt,completion\ntell me a joke,none\n"),
        ("rows.jsonl", '{"prompt": "tell me a joke", "completion": "none"}\n'),
        ("rows.csv", "prompt,completion,system\ntell me a joke,none,Answer with the intent.\n"),
    ],
)
def test_rows_are_read_as_data_and_get_the_system_message_that_they_lack(
    tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    (found,) = read_requests(tmp_path / name, LIKE)
    assert found.messages[:-1] == (SYSTEM, {"role": "user", "content": "tell me a joke"})
    (plain,) = read_requests(tmp_path / name, [Row("1", LIKE[0].messages[1:])])
    assert len(plain.messages) == len(found.messages) - ("system" not in content)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), (b"\n \n", "no requests"), (b"\xff\xfe\0", "cannot be read")],
)
def test_a_file_without_requests_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "file.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_requests(tmp_path / "file.txt", LIKE)
