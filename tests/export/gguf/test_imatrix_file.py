"""Files of an importance matrix: as llama.cpp's source describes both forms, and nothing else is believed."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from edgekit.base.errors import ConfigError, CorruptError
from edgekit.export.gguf.imatrix_file import read, write

Floats = NDArray[np.float32]

Q, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"
SHARED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def entry(name: bytes, calls: int, sums: list[float]) -> bytes:
    """An entry of the older form, as `save_imatrix_legacy` writes it."""
    return struct.pack(f"<i{len(name)}sii{len(sums)}f", len(name), name, calls, len(sums), *sums)


def older(
    *entries: bytes, count: int | None = None, end: bytes = struct.pack("<ii4s", 2, 4, b"a.in")
) -> bytes:
    return struct.pack("<i", len(entries) if count is None else count) + b"".join(entries) + end


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def newer(tensors: dict[str, tuple[tuple[int, ...], list[float]]], kind: bytes = b"imatrix") -> bytes:
    """A GGUF file as `save_imatrix` writes it; shapes as in the file, the columns first."""
    number = struct.Struct("<II")
    keys = [
        text(b"general.type") + struct.pack("<I", 8) + text(kind),
        text(b"imatrix.datasets") + struct.pack("<IIQ", 9, 8, 1) + text(b"a.in"),
        text(b"imatrix.chunk_count") + number.pack(4, 2),
        text(b"imatrix.chunk_size") + number.pack(4, 512),
    ]
    data, table = b"", b""
    for name, (shape, values) in tensors.items():
        table += text(name.encode()) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        stored = struct.pack(f"<{len(values)}f", *values)
        data += stored + bytes(-len(stored) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + table
    return head + bytes(-len(head) % 32) + data


OLDER = older(entry(Q.encode(), 2, [2, 4, 6, 8]), entry(EXPERTS.encode(), 4, [4, 8, 12, 16, 1, 1]))
NEWER = newer(
    {
        f"{Q}.in_sum2": ((4,), [8, 16, 24, 32]),
        f"{Q}.counts": ((1,), [8]),
        f"{Q}.in_sum": ((4,), [-1, -1, -1, -1]),
        f"{EXPERTS}.in_sum2": ((2, 3), [6, 12, 0, 0, 5, 10]),
        f"{EXPERTS}.counts": ((1, 3), [3, 0, 5]),
    }
)
FILES = {"older": OLDER, "newer": NEWER}


def stored(file: Path, data: bytes) -> Path:
    file.write_bytes(data)
    return file


def assert_sound(found: dict[str, Floats]) -> None:
    for values in found.values():
        assert values.dtype == np.float32 and values.size and values.ndim <= 2
        assert np.isfinite(values).all() and (values >= 0).all()


def test_the_gguf_form_is_read(tmp_path: Path) -> None:
    found = read(stored(tmp_path / "a.gguf", NEWER))
    assert list(found) == [Q, EXPERTS]
    assert found[Q].tolist() == [1, 2, 3, 4]
    assert found[EXPERTS].tolist() == [[2, 4], [1, 1], [1, 2]]  # no token reached the second expert
    assert_sound(found)


def test_the_older_form_is_read(tmp_path: Path) -> None:
    found = read(stored(tmp_path / "a.dat", OLDER))
    assert {name: values.tolist() for name, values in found.items()} == {
        Q: [1, 2, 3, 4],
        EXPERTS: [1, 2, 3, 4, 0.25, 0.25],
    }
    assert_sound(found)
    short = stored(tmp_path / "b.dat", older(entry(b"a", 0, [3]), end=b""))
    assert read(short)["a"].tolist() == [3]  # llama.cpp divides by no number of calls


def test_a_written_file_is_as_llama_imatrix_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    values = {EXPERTS: np.array([[2, 4], [1, 1], [1, 2]], np.float32), Q: np.arange(4, dtype=np.float32)}
    write(values, file, tokens=1000, chunks=3, datasets=["rows", "text"])
    reader = gguf.GGUFReader(file)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert keys == {
        "general.type": "imatrix",
        "imatrix.datasets": ["rows", "text"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 334,
    }
    assert [(tensor.name, tensor.shape.tolist(), tensor.tensor_type.name) for tensor in reader.tensors] == [
        (f"{Q}.in_sum2", [4], "F32"),
        (f"{Q}.counts", [1], "F32"),
        (f"{EXPERTS}.in_sum2", [2, 3], "F32"),
        (f"{EXPERTS}.counts", [1, 3], "F32"),
    ]
    sums, counts = reader.tensors[0].data, reader.tensors[3].data
    assert sums.tolist() == [0, 1000, 2000, 3000] and counts.ravel().tolist() == [1000] * 3


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    values = {"a": np.ones(3, np.float32), "b": np.zeros(2, np.float32)}
    for name, ordered in (("a", values), ("b", dict(reversed(values.items())))):
        write(ordered, tmp_path / name, tokens=10, chunks=1, datasets=["text"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@SHARED
@given(
    values=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20),
        arrays.arrays(
            np.float32,
            st.one_of(st.tuples(st.integers(1, 9)), st.tuples(st.integers(2, 4), st.integers(1, 9))),
            elements=st.floats(0, 2.0**90, width=32, allow_subnormal=False),
        ),
        min_size=1,
        max_size=4,
    ),
    tokens=st.integers(1, 1 << 26),
)
def test_what_is_written_is_read(tmp_path: Path, values: dict[str, Floats], tokens: int) -> None:
    file = tmp_path / "a.gguf"
    write(values, file, tokens=tokens, chunks=1, datasets=["text"])
    found = read(file)
    assert found.keys() == values.keys()
    for name, means in values.items():
        np.testing.assert_allclose(found[name], means, rtol=2e-7)
        assert found[name].shape == means.shape


@pytest.mark.parametrize("form", FILES)
def test_a_file_cut_anywhere_is_refused_or_whole(form: str, tmp_path: Path) -> None:
    file = stored(tmp_path / "a", FILES[form])
    whole = {name: values.tolist() for name, values in read(file).items()}
    for length in reversed(range(len(FILES[form]))):
        os.truncate(file, length)
        try:
            found = {name: values.tolist() for name, values in read(file).items()}
        except CorruptError:
            continue
        assert found == whole and length >= len(FILES[form]) - 28  # the padding, or the older form's end


@SHARED
@pytest.mark.parametrize("form", FILES)
@given(data=st.data())
def test_changed_bytes_are_refused_or_harmless(form: str, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(FILES[form])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read(stored(tmp_path / "a", bytes(content)))
    except CorruptError as error:
        assert error.hint and len(error.message) < 500
    else:
        assert found
        assert_sound(found)


@SHARED
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused_or_harmless(tmp_path: Path, content: bytes) -> None:
    for start in (b"", struct.pack("<i", 1), b"GGUF\3\0\0\0"):
        try:
            assert_sound(read(stored(tmp_path / "a", start + content)))
        except CorruptError:
            pass


SUM, COUNT = ((2,), [1.0, 2.0]), ((1,), [1.0])
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "damaged"),
    "a text": (b"Some plain text that is no matrix.\n", "not an importance matrix"),
    "no entries": (older(), "not an importance matrix"),
    "2^31 - 1 entries": (older(entry(b"a", 1, [1]), count=2**31 - 1), "not an importance matrix"),
    "-1 entries": (older(entry(b"a", 1, [1]), count=-1), "not an importance matrix"),
    "more entries than there are": (older(entry(b"a", 1, [1]), count=2, end=bytes(17)), "empty or holds a NUL"),
    "a name of 2^31 - 1": (older(struct.pack("<iQQ", 2**31 - 1, 0, 0)), "2147483647 bytes"),
    "a name of -1": (older(struct.pack("<iQQ", -1, 0, 0)), "4294967295 bytes"),
    "a name with NUL": (older(entry(b"a\0", 1, [1])), "NUL"),
    "a name not in UTF-8": (older(entry(b"\xff", 1, [1])), "not UTF-8"),
    "an entry twice": (older(entry(b"a", 1, [1]), entry(b"a", 1, [1])), "'a' appears twice"),
    "2^31 - 1 values": (older(struct.pack("<i1sii", 1, b"a", 1, 2**31 - 1)), "8589934588 bytes"),
    "-1 values": (older(struct.pack("<i1sii", 1, b"a", 1, -1)), "has -1 values"),
    "no values": (older(entry(b"a", 1, [])), "has 0 values"),
    "a value that is no number": (older(entry(b"a", 1, [1, float("nan")])), "'a' holds a value"),
    "a negative value": (older(entry(b"a", 1, [-1])), "negative"),
    "a model": (newer({"a.in_sum2": SUM, "a.counts": COUNT}, b"model"), "but not an importance matrix"),
    "a kind that is an array": (newer({}).replace(
        text(b"imatrix"), struct.pack("<IQ3B", 0, 3, 1, 2, 3), 1).replace(
        b"type" + struct.pack("<I", 8), b"type" + struct.pack("<I", 9)), "but not an importance matrix"),
    "no tensors": (newer({}), "no entries"),
    "other tensors": (newer({"a.weight": SUM}), "no entries"),
    "no counts": (newer({"a.in_sum2": SUM}), r"no tensor 'a.counts'"),
    "no sums": (newer({"a.counts": COUNT}), r"no tensor 'a.in_sum2'"),
    "sums of another type": (newer({"a.in_sum2": SUM, "a.counts": COUNT}).replace(
        struct.pack("<QIQ", 2, 0, 0), struct.pack("<QIQ", 2, 26, 0)), r"no tensor 'a.in_sum2' of type F32"),
    "counts that do not divide": (newer({"a.in_sum2": SUM, "a.counts": ((1, 3), [1.0] * 3)}), "3 matrices"),
    "an infinite sum": (newer({"a.in_sum2": ((1,), [float("inf")]), "a.counts": COUNT}), "not finite"),
    "a negative count": (newer({"a.in_sum2": SUM, "a.counts": ((1,), [-1.0])}), "'a.counts' holds"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    data, reason = HOSTILE[case]
    file = stored(tmp_path / "a.imatrix", data)
    with pytest.raises(CorruptError, match=reason) as refusal:
        read(file)
    assert str(file) in refusal.value.message and refusal.value.hint and len(refusal.value.message) < 500


def test_other_things_than_files_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(CorruptError, match="not a regular file"):
            read(path)
    with pytest.raises(ConfigError, match="no file"):
        read(tmp_path / "none")
