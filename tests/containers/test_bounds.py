"""The worst files for each pre-parser, read in a process that may take 512 MB and 20 seconds of processor time."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

READ = """
import resource, sys
from pathlib import Path
from edgekit.containers.gguf import read_gguf
from edgekit.containers.onnx import check_onnx
from edgekit.containers.safetensors import read_safetensors
from edgekit.base.errors import CorruptError
path = Path(sys.argv[1])
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (512 << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
try:
    if path.suffix == ".gguf":
        read_gguf(path)
    elif path.suffix == ".onnx":
        check_onnx(path.parent, path.name)
    else:
        read_safetensors(path)
    print("read")
except CorruptError as error:
    print("refused:", error.message)
"""


def length(value: int) -> bytes:
    return value.to_bytes(8, "little")


def gguf_strings(text: bytes, size: int = 40_000_000) -> Iterator[bytes]:
    """A metadata array of short strings as large as the header may be."""
    unit = length(len(text)) + text
    count = size // len(unit)
    yield b"GGUF" + (3).to_bytes(4, "little") + length(0) + length(1)
    yield length(1) + b"a" + (9).to_bytes(4, "little") + (8).to_bytes(4, "little") + length(count)
    yield unit * count


def gguf_text(size: int) -> Iterator[bytes]:
    """One text of `size` bytes whose last character makes each take four bytes in Python."""
    yield b"GGUF" + (3).to_bytes(4, "little") + length(0) + length(1)
    yield length(1) + b"a" + (8).to_bytes(4, "little") + length(size) + b"a" * (size - 4) + "🙂".encode()


def gguf_tensors() -> Iterator[bytes]:
    """As many tensors as are allowed, each of one value, in reverse order."""
    count = 1 << 16
    yield b"GGUF" + (3).to_bytes(4, "little") + length(count) + length(0)
    for i in reversed(range(count)):
        name = f"{i:0500}".encode()
        yield length(500) + name + (1).to_bytes(4, "little") + length(1) + bytes(4) + length(32 * i)
    yield bytes(32 * count + 32)


def onnx_fields(count: int) -> Iterator[bytes]:
    """Empty fields of two bytes each."""
    yield b"\x10\x00" * count


def onnx_names(count: int) -> Iterator[bytes]:
    """Initializers with long names."""
    for i in range(count):
        tensor = b"\x08\x00\x10\x01\x42\xc8\x01" + f"{i:0200}".encode()
        graph = b"\x2a" + bytes([len(tensor) & 127 | 128, len(tensor) >> 7]) + tensor
        if i == 0:
            total = len(graph) * count
            yield b"\x3a" + bytes([total >> s & 127 | 128 for s in (0, 7, 14, 21)] + [total >> 28])
        yield graph


def safetensors_header(header: bytes) -> Iterator[bytes]:
    yield length(len(header)) + header


WORST = {
    "gguf: strings of one character": ("a.gguf", lambda: gguf_strings("Ā".encode()), "read"),
    "gguf: more strings than the header may hold": ("a.gguf", lambda: gguf_strings(b"ab", 45_000_000), "refused"),
    "gguf: one long text": ("a.gguf", lambda: gguf_text(41_000_000), "read"),
    "gguf: a longer text": ("a.gguf", lambda: gguf_text(45_000_000), "refused"),
    "gguf: many tensors": ("a.gguf", gguf_tensors, "read"),
    "onnx: many fields": ("a.onnx", lambda: onnx_fields(1_500_000), "refused"),
    "onnx: many names": ("a.onnx", lambda: onnx_names(120_000), "read"),
    "onnx: more names": ("a.onnx", lambda: onnx_names(140_000), "refused"),
    "safetensors: many lists": (
        "a.safetensors", lambda: safetensors_header(b'{"a":[' + b"[]," * 900_000 + b"[]]}"), "refused",
    ),
    "safetensors: many names": (
        "a.safetensors",
        lambda: safetensors_header(b"{" + b",".join(b'"%06x":{}' % i for i in range(660_000)) + b"}"),
        "refused",
    ),
    "safetensors: one long name": (
        "a.safetensors", lambda: safetensors_header(b'{"' + b"a" * 24_900_000 + "🙂".encode() + b'":[]}'), "refused",
    ),
    "safetensors: a sound header of 150,000 tensors": (
        "a.safetensors",
        lambda: safetensors_header(
            b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(150_000)) + b"}"
        ),
        "read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WORST)
def test_the_worst_files_stay_within_memory_and_time(case: str, tmp_path: Path) -> None:
    name, parts, outcome = WORST[case]
    with (tmp_path / name).open("wb") as file:
        file.writelines(parts())
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / name)], capture_output=True, text=True, check=False
    )
    (tmp_path / name).unlink()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(outcome), done.stdout
    assert len(done.stdout) < 1000
