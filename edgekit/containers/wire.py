"""The protobuf wire format, walked in place: no message is read as a whole.

Encoding: <https://protobuf.dev/programming-guides/encoding>.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.containers.reader import Reader

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
FIELD_LIMIT = 1_000_000  # in one file; the graph of a model of 8 billion parameters has 40,000
TEXT_LIMIT = 1 << 16


class Wire:
    """The fields of a file of protobuf messages; raises `CorruptError` for what no writer writes."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._count = 0

    def fields(self, end: int) -> Iterator[tuple[int, int, int]]:
        """Number, wire type and value of each field up to `end`; of a length-delimited one, where it ends.

        The caller may read on inside such a field; the next one is found behind it either way.
        """
        reader = self._reader
        while reader.position < end:
            self._count += 1
            if self._count > FIELD_LIMIT:
                raise reader.corrupt(f"there are more than {FIELD_LIMIT} fields in it")
            at, tag = reader.position, self.varint(end)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:
                raise reader.corrupt(f"a field has the impossible number {number}", at)
            if wire == VARINT:
                yield number, wire, self.varint(end)
                continue
            if wire == LENGTH:
                length = self.varint(end)
            elif wire in (FIXED32, FIXED64):
                length = 4 if wire == FIXED32 else 8
            else:
                raise reader.corrupt(f"field {number} has wire type {wire}, which ONNX does not use", at)
            stop = reader.position + length
            if stop > end:
                raise reader.corrupt(
                    f"field {number} takes {length} bytes, and {end - reader.position} are left", at
                )
            yield number, wire, stop
            reader.skip_to(stop)

    def varint(self, end: int) -> int:
        """An unsigned number of 64 bits that ends before `end`; int32 and int64 stand in two's complement."""
        reader, value = self._reader, 0
        at = reader.position
        for shift in range(0, 70, 7):
            if reader.position >= end:
                raise reader.corrupt("a number is cut off", at)
            byte = reader.take(1, "a number")[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    break
                return value
        raise reader.corrupt("a number takes more than 64 bits", at)

    def text(self, end: int, what: str) -> str:
        """The rest up to `end` as text."""
        reader = self._reader
        if end - reader.position > TEXT_LIMIT:
            raise reader.corrupt(f"{what} is {end - reader.position} bytes long")
        try:
            return reader.take(end - reader.position, what).decode()
        except UnicodeDecodeError as error:
            raise reader.corrupt(f"{what} is not UTF-8") from error
