"""What a data file is, by its content: one of the kinds that edgekit reads, or a refusal that names it."""

from __future__ import annotations

import contextlib
import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgekit.base.errors import ConfigError, reason

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab", ".parquet", ".arrow")
"""Endings of data files; each text file may also end in `.gz`."""
READ = "CSV, TSV, JSONL, JSON, Parquet or Arrow"
DELIMITERS = ",;\t|"
HEAD = 1 << 16  # bytes at the start of a file that are looked at
GZIP = b"\x1f\x8b"
UNREADABLE = (OSError, EOFError, zlib.error)
"""What the system and a damaged gzip file raise."""

OTHERS = {
    b"\xd0\xcf\x11\xe0": ("an Excel or Word file of the old format", "Save it as CSV in UTF-8."),
    b"SQLite format 3\0": ("an SQLite database", "Export the table as CSV."),
    b"\x28\xb5\x2f\xfd": ("compressed with Zstandard", "Decompress it first: zstd -d FILE."),
    b"BZh": ("compressed with bzip2", "Decompress it first: bunzip2 FILE."),
    b"\xfd7zXZ": ("compressed with xz", "Decompress it first: xz -d FILE."),
    b"7z\xbc\xaf": ("a 7z archive", "Unpack it first."),
    b"ORC": ("an ORC file", "Convert it to Parquet."),
    b"Obj\x01": ("an Avro file", "Convert it to Parquet."),
    b"\x89HDF": ("an HDF5 file", "Convert it to Parquet."),
    b"GGUF": ("a GGUF model", "Give it with --model, and rows with --data."),
    b"%PDF": ("a PDF document", "Give a file of rows."),
    b"\xff\xfe": ("UTF-16 text", "Save it in UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW."),
    b"\xfe\xff": ("UTF-16 text", "Save it in UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW."),
}


@dataclass(frozen=True)
class Kind:
    """What a file is: `name` is jsonl, json, table, parquet, arrow or arrow stream; `delimiter` that of a table."""

    name: str
    delimiter: str = ""
    zipped: bool = False

    @property
    def is_text(self) -> bool:
        """Whether it is a text file, not one of pyarrow's."""
        return self.name in ("jsonl", "json", "table")

    @property
    def text(self) -> str:
        """Its name for people."""
        found = {
            "jsonl": "JSONL",
            "json": "JSON",
            "parquet": "Parquet",
            "arrow": "Arrow",
            "arrow stream": "Arrow",
        }
        text = found.get(self.name) or {"\t": "TSV", ";": "CSV with semicolons", "|": "CSV with |"}.get(
            self.delimiter, "CSV"
        )
        return f"{text}, gzip" if self.zipped else text


def kind_of(path: Path) -> Kind:
    """The kind of a file, by its content. Raises `ConfigError` for a missing file and one that edgekit does not read."""
    if path.exists() and not path.is_file():  # a device or a pipe may be endless
        raise ConfigError(
            f"{path} is not a file.",
            f"Give a file of rows ({READ})" + ("." if path.is_dir() else " or a folder of such files."),
        )
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        if zipped := head.startswith(GZIP):
            with gzip.open(path) as unzipped:
                head = unzipped.read(HEAD)
    except FileNotFoundError:
        here = [file.name for file in path.parent.glob("*")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, here, 1)
        hint = (
            f"Did you mean {path.with_name(near[0])}?"
            if near
            else "Check the path; `demo` is the built-in data set."
        )
        raise ConfigError(f"There is no data file {path}.", hint) from None
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    if (kind := _binary(head)) is None:
        _refuse(path, head)
        kind = _text(path, head.removeprefix(b"\xef\xbb\xbf"))
    elif zipped:
        raise ConfigError(f"{path} is {kind.text} compressed with gzip.", "Decompress it first: gunzip FILE.")
    return Kind(kind.name, kind.delimiter, zipped)


def named_as_rows(path: Path) -> bool:
    """Whether a file is one of rows by the ending of its name."""
    return path.name.lower().removesuffix(".gz").endswith(SUFFIXES)


def holds_rows(path: Path) -> bool:
    """Whether a file that may also be plain text holds rows: by its name, else because it begins as such files do.

    Only Parquet, Arrow and a JSON object on the first line tell; a text may look like a table by chance.
    """
    if named_as_rows(path) or not path.is_file():
        return named_as_rows(path)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:  # who reads it as text says why
        return False
    first = head.decode("utf-8-sig", "replace").lstrip().partition("\n")[0]
    return _binary(head) is not None or (first.startswith("{") and _is_json(first))


def unreadable(path: Path, error: Exception) -> ConfigError:
    """The error for a file that the system or its compression does not give."""
    return ConfigError(
        f"{path} cannot be read: {reason(error)}.", "Check the file and its permissions, or fetch it again."
    )


@contextlib.contextmanager
def open_text(path: Path, kind: Kind, newline: str | None = None) -> Iterator[IO[str]]:
    """The text of a file in UTF-8, with or without a byte order mark."""
    with (
        gzip.open(path) if kind.zipped else path.open("rb") as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline) as text,
    ):
        yield text


def not_utf8(path: Path, kind: Kind) -> ConfigError:
    """The error for text in another encoding, with the first line and byte that show it."""
    with gzip.open(path) if kind.zipped else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                return ConfigError(
                    f"{path} is not UTF-8: line {number} has the byte 0x{byte:02X}, in Windows-1252 "
                    f"'{bytes([byte]).decode('cp1252', 'replace')}'. Nothing was started.",
                    f"Save it in UTF-8: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > NEW.",
                )
    return ConfigError(f"{path} is not UTF-8.", "Save it in UTF-8.")


def _binary(head: bytes) -> Kind | None:
    if head.startswith(b"PAR1"):
        return Kind("parquet")
    if head.startswith(b"ARROW1"):
        return Kind("arrow")
    return Kind("arrow stream") if head.startswith(b"\xff\xff\xff\xff") else None


def _refuse(path: Path, head: bytes) -> None:
    """Raise `ConfigError` for what has no rows that edgekit reads."""
    found = next((about for magic, about in OTHERS.items() if head.startswith(magic)), None)
    if head.startswith(b"PK\x03\x04"):
        is_book = b"[Content_Types].xml" in head or b"xl/" in head
        found = (
            ("an Excel workbook", "Save it as CSV in UTF-8.")
            if is_book
            else ("a ZIP archive", "Unpack it first.")
        )
    elif path.suffix == ".safetensors":
        found = ("the weights of a model", "Give its folder with --model, and rows with --data.")
    elif head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        found = ("a Python pickle, which edgekit never opens", "Convert it to JSONL or Parquet.")
    elif head.lstrip()[:1] == b"<":
        found = ("HTML or XML", "Give the file itself, not a web page about it.")
    elif found is None and b"\0" in head:
        found = ("a binary file of an unknown kind", f"Give {READ}.")
    if found:
        raise ConfigError(f"{path} is {found[0]}, not rows. Nothing was started.", found[1])


def _text(path: Path, head: bytes) -> Kind:
    text = head.decode("utf-8", "replace")
    name = path.name.lower().removesuffix(".gz")
    lines = [line for line in text.split("\n") if line.strip()]
    first = lines[0].strip() if lines else ""
    if not first:
        return Kind("table", ",") if name.endswith((".csv", ".tsv", ".tab")) else Kind("jsonl")
    if first.startswith("["):
        return Kind("json")
    if first.startswith("{"):
        return Kind("jsonl") if not name.endswith(".json") or _is_json(first) else Kind("json")
    if name.endswith((".tsv", ".tab")):
        return Kind("table", "\t")
    delimiter = max(DELIMITERS, key=_outside_quotes(lines[0]).count)
    if name.endswith(".csv"):
        return Kind("table", delimiter)
    if any(line.lstrip().startswith("{") for line in lines[:20]):
        return Kind("jsonl")  # its first line is at fault
    counts = [
        len(cells)
        for cells in csv.reader(text[: text.rfind("\n") + 1 or None].splitlines(True), delimiter=delimiter)
    ]
    counts = [count for count in counts[:20] if count]
    if not counts or min(counts) < 2 or len(set(counts)) > 1:
        shown = first if len(first) <= 40 else f"{first[:40]}..."
        raise ConfigError(
            f"{path} is plain text, not rows; it begins with '{shown}'. Nothing was started.",
            f"Give {READ}, with a prompt and its answer in each row.",
        )
    return Kind("table", delimiter)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _outside_quotes(line: str) -> str:
    return "".join(line.split('"')[::2])
