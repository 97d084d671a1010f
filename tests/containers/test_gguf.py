"""The GGUF pre-parser: sound files as gguf reads them, hostile ones refused with the place, nothing else ever."""

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.base.errors import ConfigError, CorruptError
from edgekit.containers.ggml_types import GGML_TYPES
from edgekit.containers.gguf import GgufLayout, read_gguf

F32, Q8_0 = 0, 8
UINT8, UINT32, BOOL, STRING, ARRAY = 0, 4, 7, 8, 9


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def tensor(name: bytes, shape: tuple[int, ...] = (32,), kind: int = F32, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def head(tensors: int, keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def whole(
    keys: Sequence[bytes] = (), tensors: Sequence[bytes] = (), data: int = 0, alignment: int = 32
) -> bytes:
    header = head(len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % alignment + data)


ALIGNED = [key(b"general.alignment", UINT32, struct.pack("<I", 64))]
VALID = whole(
    [
        key(b"general.architecture", STRING, text(b"llama")),
        key(b"tokens", ARRAY, array(STRING, 3, text(b"a") + text("ä".encode()) + text(b""))),
        key(b"flags", ARRAY, array(BOOL, 2, b"\0\1")),
        *ALIGNED,
    ],
    [tensor(b"a", (32, 2)), tensor(b"b", (64,), Q8_0, 256)],
    256 + 68,
    alignment=64,
)
HANG = head(0, 1) + key(b"a", ARRAY, array(STRING, 1 << 63))

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF file"),
    "magic": (b"GGML" + bytes(60), "not a GGUF file"),
    "version 1": (head(0, 0, 1), "version 1"),
    "version 4": (head(0, 0, 4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "array of 2^63 strings": (HANG, "claims 9223372036854775808 strings"),
    "array of 2^63 bytes": (head(0, 1) + key(b"a", ARRAY, array(UINT8, 1 << 63)), "9223372036854775808 elements"),
    "array size wraps": (head(0, 1) + key(b"a", ARRAY, array(UINT32, (1 << 62) + 1, bytes(4))), "elements"),
    "array one short": (head(0, 1) + key(b"a", ARRAY, array(UINT32, 3, bytes(11))), "claims 3 elements"),
    "string array short": (whole([key(b"a", ARRAY, array(STRING, 3, text(b"")))]), "claims 3 strings"),
    "2^64-1 keys": (head(0, 2**64 - 1) + bytes(64), "metadata keys"),
    "2^64-1 tensors": (head(2**64 - 1, 0) + bytes(64), "tensors"),
    "more keys than fit": (head(0, 5) + bytes(60), "metadata keys"),
    "100,000 keys": (head(0, 100_000) + bytes(2_000_000), "metadata keys"),
    "2^64-1 key bytes": (head(0, 1) + struct.pack("<Q", 2**64 - 1) + bytes(64), "18446744073709551615 bytes"),
    "long string": (head(0, 1) + key(b"a", STRING, struct.pack("<Q", 1 << 40)), "1099511627776 bytes"),
    "long string in array": (whole([key(b"a", ARRAY, array(STRING, 1, struct.pack("<Q", 99)))]), "99 bytes"),
    "array of arrays": (whole([key(b"a", ARRAY, array(ARRAY, 1, array(UINT8, 0)))]), "array of arrays"),
    "deep arrays": (head(0, 1) + key(b"a", ARRAY, array(ARRAY, 1) * 100_000), "array of arrays"),
    "unknown value type": (whole([key(b"a", 13, bytes(8))]), "unknown type 13"),
    "unknown element type": (whole([key(b"a", ARRAY, array(2**32 - 1, 1, bytes(8)))]), "unknown type"),
    "empty array of unknown type": (whole([key(b"a", ARRAY, array(77, 0))]), "unknown type 77"),
    "bool of 2": (whole([key(b"a", BOOL, b"\2")]), "truth value"),
    "bool array with 255": (whole([key(b"a", ARRAY, array(BOOL, 2, b"\1\xff"))]), "truth value"),
    "key twice": (whole([key(b"a", BOOL, b"\0")] * 2), "'a' appears twice"),
    "key without name": (whole([key(b"", BOOL, b"\0")] * 2), "0 characters"),
    "key too long": (whole([key(b"k" * 65536, BOOL, b"\0")]), "65536 characters"),
    "key not UTF-8": (whole([key(b"\xff", BOOL, b"\0")]), "UTF-8"),
    "key with NUL": (whole([key(b"a\0b", BOOL, b"\0")]), "NUL"),
    "text not UTF-8": (whole([key(b"a", STRING, text(b"\xc3"))]), "UTF-8"),
    "token not UTF-8": (whole([key(b"a", ARRAY, array(STRING, 1, text(b"\xed\xa0\x80")))]), "UTF-8"),
    "template with NUL": (whole([key(b"tokenizer.chat_template", STRING, text(b"good\0bad"))]), "NUL"),
    "alignment of 0": (whole([key(b"general.alignment", UINT32, bytes(4))]), "power of two"),
    "alignment of 48": (whole([key(b"general.alignment", UINT32, struct.pack("<I", 48))]), "power of two"),
    "alignment of 2^31": (whole([key(b"general.alignment", UINT32, struct.pack("<I", 1 << 31))]), "power of"),
    "alignment as text": (whole([key(b"general.alignment", STRING, text(b"32"))]), "instead of 4"),
    "alignment as array": (whole([key(b"general.alignment", ARRAY, array(UINT32, 1, bytes(4)))]), "instead of 4"),
    "no dimensions": (whole([], [tensor(b"a", ())] * 2, 128), "0 dimensions"),
    "5 dimensions": (whole([], [tensor(b"a", (1,) * 5)], 128), "5 dimensions"),
    "2^32-1 dimensions": (
        whole([], [text(b"a") + struct.pack("<I", 2**32 - 1) + bytes(64)], 64),
        "4294967295 dimensions",
    ),
    "dimension of 0": (whole([], [tensor(b"a", (32, 0))], 128), "dimension of 0"),
    "product wraps to 0": (whole([], [tensor(b"a", (1 << 32, 1 << 32))], 128), "ends at byte"),
    "product wraps to 32": (whole([], [tensor(b"a", (32, (1 << 63) + 1, 2))], 128), "ends at byte"),
    "row not in blocks": (whole([], [tensor(b"a", (33, 32), Q8_0)], 4096), "blocks of 32"),
    "removed type": (whole([], [tensor(b"a", (32,), 4)], 128), "unknown type 4"),
    "unknown type": (whole([], [tensor(b"a", (32,), 2**32 - 1)], 128), "unknown type 4294967295"),
    "offset wraps": (whole([], [tensor(b"a", offset=2**64 - 64)], 128), "ends at byte"),
    "offset past the end": (whole([], [tensor(b"a", offset=4096)], 128), "ends at byte"),
    "one byte short": (whole([], [tensor(b"a")], 127), "ends at byte"),
    "misaligned": (whole([], [tensor(b"a", offset=4)], 256), "not aligned to 32"),
    "misaligned to 64": (whole(ALIGNED, [tensor(b"a", offset=32)], 256, 64), "not aligned to 64"),
    "overlap": (whole([], [tensor(b"a"), tensor(b"b", offset=96)], 512), "'b' overlaps tensor 'a'"),
    "same place": (whole([], [tensor(b"a"), tensor(b"b")], 512), "overlaps"),
    "tensor twice": (whole([], [tensor(b"a"), tensor(b"a", offset=128)], 512), "'a' appears twice"),
    "tensor with NUL": (whole([], [tensor(b"a\0")], 512), "NUL"),
    "terminal codes": (whole([], [tensor(b"\x1b[2J"), tensor(b"\x1b[2J")], 512), r"'\\x1b\[2J' appears twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    data, reason = HOSTILE[case]
    file = tmp_path / "model.gguf"
    file.write_bytes(data)
    with pytest.raises(CorruptError, match=reason) as refusal:
        read_gguf(file)
    assert str(file) in refusal.value.message and refusal.value.hint and len(refusal.value.message) < 500


def test_the_file_that_hangs_gguf_is_small() -> None:
    assert len(HANG) <= 49


def test_a_sound_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(VALID)
    assert read_gguf(file).trailing_bytes == 0
    for length in reversed(range(len(VALID))):
        os.truncate(file, length)
        with pytest.raises(CorruptError):
            read_gguf(file)


def test_what_stands_behind_the_data_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    padding = -(256 + 68) % 64  # writers pad the last tensor as well
    file.write_bytes(VALID + bytes(padding) + b"more")
    assert read_gguf(file).trailing_bytes == 4
    file.write_bytes(head(0, 0))
    assert read_gguf(file).trailing_bytes == 0


def test_other_things_than_files_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(CorruptError, match="not a regular file"):
            read_gguf(path)
    for path in (tmp_path / "none", tmp_path / "a\0b", tmp_path / ("n" * 5000)):
        with pytest.raises(ConfigError):
            read_gguf(path)


def test_the_types_are_those_of_gguf() -> None:
    assert {(kind.value, kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()} == {
        (kind, *stored) for kind, stored in GGML_TYPES.items()
    }


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def assert_as_gguf_reads(file: Path, layout: GgufLayout) -> None:
    reader = gguf.GGUFReader(file)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert list(layout.metadata) == list(fields)
    for name, field in fields.items():
        if not (field.types[0] == ARRAY and not field.data):  # gguf makes None of an empty array
            expected = field.contents()
            found = plain(layout.metadata[name])
            assert repr(found) == repr(expected), name  # types as well, and NaN as itself
    assert (layout.alignment, layout.data_start) == (reader.alignment, reader.data_offset)
    assert [(t.name, t.type, t.shape, t.offset, t.nbytes) for t in layout.tensors.values()] == [
        (t.name, t.tensor_type.value, tuple(t.shape.tolist()), t.data_offset, t.n_bytes)
        for t in reader.tensors
    ]


def test_a_written_file_reads_as_gguf_reads_it(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_custom_alignment(128)
    numbers: dict[str, tuple[Callable[[str, Any], None], Any]] = {
        "u8": (writer.add_uint8, 255), "i8": (writer.add_int8, -128), "u16": (writer.add_uint16, 65535),
        "i16": (writer.add_int16, -32768), "u32": (writer.add_uint32, 2**32 - 1), "i32": (writer.add_int32, -(2**31)),
        "u64": (writer.add_uint64, 2**64 - 1), "i64": (writer.add_int64, -(2**63)), "f32": (writer.add_float32, 0.1),
        "f64": (writer.add_float64, 0.1), "bool": (writer.add_bool, True), "string": (writer.add_string, "ä🙂\n"),
        "ints": (writer.add_array, [1, -2]), "floats": (writer.add_array, [0.5, float("inf")]),
        "bools": (writer.add_array, [True, False]), "strings": (writer.add_array, ["a", "", "🙂"]),
    }  # fmt: skip
    for name, (add, value) in numbers.items():
        add(name, value)
    writer.add_tensor("dense", np.arange(35, dtype=np.float32).reshape(5, 7))
    for kind in ("Q8_0", "Q4_0", "BF16", "F16"):
        values = np.ones((3, 2, 64), np.float32)
        quantized = gguf.quantize(values, gguf.GGMLQuantizationType[kind])
        writer.add_tensor(kind, quantized, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    layout = read_gguf(tmp_path / "model.gguf")
    assert_as_gguf_reads(tmp_path / "model.gguf", layout)
    assert layout.alignment == 128 and layout.trailing_bytes == 0
    assert layout.tensors["dense"].shape == (7, 5)
    assert layout.metadata["u64"] == 2**64 - 1 and layout.metadata["bool"] is True


def test_the_sample_model_reads_as_gguf_reads_it() -> None:
    layout = read_gguf(tiny.sample_gguf())
    assert_as_gguf_reads(tiny.sample_gguf(), layout)
    assert len(layout.metadata["tokenizer.ggml.tokens"]) == 49_152 and layout.trailing_bytes == 0  # type: ignore[arg-type]


FUZZ = settings(
    deadline=None,
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(st.sampled_from([b"", b"GGUF", head(0, 1), head(1, 0), head(1, 1)]), st.binary(max_size=400))
def test_random_bytes_are_read_or_refused(tmp_path: Path, start: bytes, data: bytes) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(start + data)
    try:
        read_gguf(file)
    except CorruptError:
        return
    assert_as_gguf_reads(file, read_gguf(file))


@FUZZ
@given(st.data())
def test_a_changed_file_is_refused_or_read_as_gguf_reads_it(tmp_path: Path, data: st.DataObject) -> None:
    changed = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(VALID) - 1))
        width = data.draw(st.sampled_from([1, 4, 8]))
        extremes = st.sampled_from([0, 1, 1 << 63, 2**64 - 1, 2**32, 12, 13, 64])
        value = data.draw(st.one_of(extremes, st.integers(0, 2**64 - 1)))
        changed[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    file = tmp_path / "model.gguf"
    file.write_bytes(changed)
    try:
        layout = read_gguf(file)
    except CorruptError:
        return
    assert_as_gguf_reads(file, layout)
