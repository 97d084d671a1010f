"""The safetensors pre-parser: sound files as the library reads them, hostile ones refused with the place."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from edgekit.base.errors import ConfigError, CorruptError
from edgekit.containers.safetensors import DTYPE_BITS, StoredTensor, read_safetensors


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def whole(header: dict[str, Any] | bytes, data: int = 16) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(data)


VALID = whole(
    {
        "__metadata__": {"format": "pt", "by": "ä"},
        "b": entry("F16", [4], [16, 24]),
        "a": entry(),
        "none": entry("I64", [0, 3], [24, 24]),
        "": entry("BOOL", [], [24, 25]),
    },
    25,
)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "length of the header"),
    "length alone": (bytes(7), "length of the header"),
    "length of 2^64-1": ((2**64 - 1).to_bytes(8, "little") + b"{}", "18446744073709551615 bytes"),
    "length one too long": ((3).to_bytes(8, "little") + b"{}", "header of 3 bytes, and 2 are left"),
    "length of 0": (bytes(8), "not JSON"),
    "100 MB header": (whole(b" " * 100_000_001, 0), "header of 100000001"),
    "not JSON": (whole(b"{'a': 1}"), "not JSON"),
    "not UTF-8": (whole(b'{"\xff": 1}'), "not JSON"),
    "list": (whole(b"[]"), "not a JSON object"),
    "deep lists": (whole(b"[" * 200_000), "not JSON"),
    "deep objects": (whole(b'{"a":' * 100_000), "not JSON"),
    "many digits": (whole(b"9" * 1_000_000), "not JSON"),
    "many values": (whole(b"[" + b"0," * 3_000_000 + b"0]"), "more than any model needs"),
    "name twice": (whole(b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}"), "'a' appears twice"),
    "half a character": (whole(b'{"\\ud800":' + json.dumps(entry()).encode() + b"}"), "half a character"),
    "metadata of numbers": (whole({"__metadata__": {"a": 1}, "a": entry()}), "__metadata__"),
    "metadata a list": (whole({"__metadata__": [], "a": entry()}), "__metadata__"),
    "entry a list": (whole({"a": [0, 16]}), "not described"),
    "no offsets": (whole({"a": {"dtype": "F32", "shape": [4]}}), "not described"),
    "one field more": (whole({"a": entry(stride=[1])}), "not described"),
    "unknown dtype": (whole({"a": entry("F128")}), "unknown dtype"),
    "dtype a list": (whole({"a": entry(["F32"])}), "unknown dtype"),
    "negative sizes": (whole({"a": entry(shape=[-2, -2])}), "not sizes"),
    "sizes as floats": (whole({"a": entry(shape=[2.0, 2.0])}), "not sizes"),
    "sizes as truth": (whole({"a": entry(shape=[True, 4])}), "not sizes"),
    "sizes as infinity": (whole(b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,16]}}'), "not sizes"),
    "shape a number": (whole({"a": entry(shape=4)}), "not sizes"),
    "many dimensions": (whole({"a": entry(shape=[1] * 65)}), "not sizes"),
    "product of 2^4096": (whole({"a": entry(shape=[2**64 - 1] * 64)}), "is given 16 bytes"),
    "product wraps": (whole({"a": entry(shape=[1 << 32, 1 << 32, 4])}), "is given 16 bytes"),
    "three offsets": (whole({"a": entry(offsets=[0, 16, 16])}), "not sizes"),
    "offsets of 2^64": (whole({"a": entry(offsets=[2**64, 2**64 + 16])}), "not sizes"),
    "offsets backwards": (whole({"a": entry(offsets=[16, 0])}), "is given -16 bytes"),
    "wrong size": (whole({"a": entry(shape=[2, 3])}), "is given 16 bytes"),
    "half a byte": (whole({"a": entry("F4", [31], [0, 16])}), "is given 16 bytes"),
    "hole": (whole({"a": entry(), "b": entry(offsets=[20, 36])}, 36), "'b' leaves a hole"),
    "hole at the start": (whole({"a": entry(offsets=[4, 20])}, 20), "'a' leaves a hole"),
    "overlap": (whole({"a": entry(), "b": entry(offsets=[8, 24])}, 24), "'b' overlaps"),
    "same place": (whole({"a": entry(), "b": entry()}, 16), "overlaps"),
    "data missing": (whole({"a": entry()}, 15), "does not fit its size"),
    "data behind": (whole({"a": entry()}, 17), "does not fit its size"),
    "data of nobody": (whole({}, 1), "does not fit its size"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    data, reason = HOSTILE[case]
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    with pytest.raises(CorruptError, match=reason) as refusal:
        read_safetensors(file)
    assert "truncated or damaged" in refusal.value.message and str(file) in refusal.value.message
    assert refusal.value.hint and len(refusal.value.message) < 500


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no file"):
        read_safetensors(tmp_path / "none.safetensors")


def test_a_sound_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(VALID)
    start = len(VALID) - 25
    assert read_safetensors(file) == {
        "a": StoredTensor("F32", (2, 2), start, start + 16),
        "b": StoredTensor("F16", (4,), start + 16, start + 24),
        "none": StoredTensor("I64", (0, 3), start + 24, start + 24),
        "": StoredTensor("BOOL", (), start + 24, start + 25),
    }
    for length in reversed(range(len(VALID))):
        os.truncate(file, length)
        with pytest.raises(CorruptError):
            read_safetensors(file)


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_each_dtype_has_the_librarys_size(dtype: str, tmp_path: Path) -> None:
    size = DTYPE_BITS[dtype]  # bytes of 8 elements
    file = tmp_path / "model.safetensors"
    file.write_bytes(whole({"a": entry(dtype, [8], [0, size])}, size))
    with safe_open(file, "np") as opened:  # raises for another size
        assert opened.get_slice("a").get_dtype() == dtype
    assert read_safetensors(file)["a"].dtype == dtype


def test_no_dtype_of_the_library_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(whole({"a": entry("none")}))
    with pytest.raises(SafetensorError) as refusal:
        safe_open(file, "np").__enter__()
    known = str(refusal.value).split("expected one of ")[1].split(" at ")[0]
    assert {name.strip("` ") for name in known.split(",")} == set(DTYPE_BITS)


def test_a_written_file_reads_as_the_library_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    arrays = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3), "é🙂": np.array(7, np.int64),
        "h": np.ones((4, 1), np.float16), "n": np.zeros((0, 2), np.uint8), "t": np.array([True]),
    }  # fmt: skip
    safetensors.numpy.save_file(arrays, file, metadata={"format": "np"})
    raw, found = file.read_bytes(), read_safetensors(file)
    assert set(found) == set(arrays)
    for name, stored in found.items():
        assert stored.shape == arrays[name].shape
        assert raw[stored.start : stored.end] == arrays[name].tobytes()


FUZZ = settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(st.data())
def test_random_bytes_and_changed_files_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        content = whole(data.draw(st.binary(max_size=100)), data.draw(st.integers(0, 20)))
    else:
        changed = bytearray(VALID)
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(st.integers(0, len(VALID) - 1))] = data.draw(
                st.sampled_from(b'\0 "0189[]{},:\\aF\xc3\xff')
            )
        content = bytes(changed)
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    try:
        found = read_safetensors(file)
    except CorruptError:
        return
    with safe_open(file, "np") as opened:  # what is let through, the library reads, and as the same
        assert {
            name: (opened.get_slice(name).get_dtype(), tuple(opened.get_slice(name).get_shape()))
            for name in opened.offset_keys()
        } == {name: (stored.dtype, stored.shape) for name, stored in found.items()}
