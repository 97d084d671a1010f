"""The text path of onnxruntime-genai's tokenizer, completed where it leaves something undone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from edgekit.models.tokenizer_files import chat_template
from edgekit.runtimes.checks import nfc
from edgekit.runtimes.longwords import LONG, LongWords

BYTE = re.compile("<0x[0-9A-F]{2}>")


class OnnxText:
    """What a folder's tokenizer files say, and what onnxruntime-genai's tokenizer leaves undone of it.

    Version 0.18 skips Unicode normalisation, ends a text at NUL, gives id -1 to a byte without a token, ends a decoded
    text at the first byte that is not UTF-8, and neither joins nor shows long runs of spaces as the tokens that they are
    in vocabularies with `▁` for a space.
    """

    def __init__(self, folder: Path) -> None:
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        added = {token["id"]: token for token in tokenizer.get("added_tokens", [])}
        vocabulary = tokenizer["model"]["vocab"]
        self.special = {id_ for id_, token in added.items() if token["special"]}
        self.control_tokens = frozenset(added[id_]["content"] for id_ in self.special)
        self.nfc = '{"type": "NFC"}' in json.dumps(tokenizer.get("normalizer"))
        self.control_ids = {}
        self.pieces: list[bytes] | None = None
        self.runs: dict[str, int] = {}
        self.byte_ids: frozenset[int] = frozenset()
        self.stripped = 0
        if isinstance(vocabulary, dict):
            decoder = tokenizer.get("decoder") or {}
            byte_level = decoder.get("type") == "ByteLevel"
            for character, byte, spelling in (("\0", "<0x00>", "Ā"), ("\1", "<0x01>", "ā")):
                spellings = (spelling,) if byte_level else (character, byte)
                self.control_ids[character] = next((vocabulary[s] for s in spellings if s in vocabulary), -1)
            if byte_level:
                self.pieces = self._spelled(vocabulary, added, _bytes)
            elif (steps := spaces_and_bytes(decoder)) is not None:
                self.stripped = steps
                self.byte_ids = frozenset(id_ for piece, id_ in vocabulary.items() if BYTE.fullmatch(piece))
                self.pieces = self._spelled(vocabulary, added, _piece)
                self.runs = _runs(tokenizer, vocabulary, added)
        self._runs = re.compile("|".join(map(re.escape, sorted(self.runs, key=len, reverse=True))))
        self.chat_template = chat_template(folder)
        self._folder = folder

    @cached_property
    def long_words(self) -> LongWords | None:
        """The tokenizer for texts with long words; None where onnxruntime-genai's own does not cut them."""
        whole = LongWords(self._folder) if self.byte_ids else None
        return whole if whole is not None and whole.usable else None

    def whole(self, text: str) -> list[int] | None:
        """Token ids of a text with a word that onnxruntime-genai would cut; None for other texts."""
        if not self.byte_ids or not LONG.search(text) or self.long_words is None:
            return None
        return self.long_words.encode(text)

    def _spelled(
        self, vocabulary: Mapping[str, int], added: Mapping[int, Any], read: Callable[[str], bytes]
    ) -> list[bytes]:
        spelled = dict(vocabulary)
        spelled |= {token["content"]: id_ for id_, token in added.items()}
        pieces = [b""] * (max(spelled.values()) + 1)
        for spelling, id_ in spelled.items():
            pieces[id_] = b"" if id_ in self.special else read(spelling)
        return pieces

    def parts(self, text: str) -> Iterator[str | int]:
        """The text cut at runs of spaces that are one token; the ids of these, and the texts between them."""
        start = 0
        for found in self._runs.finditer(text) if self.runs else ():
            if start < found.start():
                yield text[start : found.start()]
            yield self.runs[found.group()]
            start = found.end()
        if start < len(text):
            yield text[start:]

    def before_encoding(self, text: str) -> str:
        """The text as onnxruntime-genai must be given it: normalised, with U+0001 for NUL."""
        return nfc(text, self.nfc).replace("\0", "\1")

    def after_encoding(self, text: str, ids: Sequence[int]) -> list[int]:
        """The ids it gave, with NUL's own where `text` has one, and without those of bytes that have no token."""
        if "\0" in text:
            controls = (self.control_ids[character] for character in text if character in "\0\1")
            ids = [next(controls) if id_ == self.control_ids["\1"] else id_ for id_ in ids]
        return [id_ for id_ in ids if id_ >= 0]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` from their pieces; bytes that are not UTF-8 become U+FFFD."""
        assert self.pieces is not None
        pieces = [(self.pieces[id_], id_ in self.byte_ids) for id_ in ids if id_ < len(self.pieces)]
        if not self.byte_ids:
            return b"".join(piece for piece, _ in pieces).decode(errors="replace")
        texts = []
        for bytewise, group in groupby((piece for piece in pieces if piece[0]), key=itemgetter(1)):
            joined = b"".join(piece for piece, _ in group)
            texts.append(_fallback(joined) if bytewise else joined.decode(errors="replace"))
        text = "".join(texts)
        return text[min(self.stripped, len(text) - len(text.lstrip(" "))) :]


def spaces_and_bytes(decoder: Mapping[str, Any]) -> int | None:
    """How many leading spaces a decoder strips that shows `▁` as a space and joins bytes; None for other decoders."""
    steps: Sequence[Mapping[str, Any]] = (
        decoder.get("decoders", []) if decoder.get("type") == "Sequence" else []
    )
    kinds = [step.get("type") for step in steps]
    if kinds[:3] != ["Replace", "ByteFallback", "Fuse"] or kinds[3:] not in ([], ["Strip"]):
        return None
    if steps[0].get("pattern") != {"String": "▁"} or steps[0].get("content") != " ":
        return None
    if len(steps) == 3:
        return 0
    plain = steps[3].get("content") == " " and steps[3].get("stop") == 0
    return int(steps[3].get("start", 0)) if plain else None


def _runs(
    tokenizer: Mapping[str, Any], vocabulary: Mapping[str, int], added: Mapping[int, Any]
) -> dict[str, int]:
    """The added tokens that are runs of spaces, as `▁` and as spaces, where the tokenizer replaces one by the other."""
    normalizer = tokenizer.get("normalizer") or {}
    if normalizer.get("type") != "Replace" or normalizer.get("content") != "▁":
        return {}
    runs = {
        piece: id_
        for piece, id_ in vocabulary.items()
        if id_ in added and len(piece) > 1 and not piece.strip("▁")
    }
    return runs | {piece.replace("▁", " "): id_ for piece, id_ in runs.items()}


def _piece(spelling: str) -> bytes:
    """The bytes that a piece with `▁` for a space stands for."""
    return (
        bytes([int(spelling[3:5], 16)]) if BYTE.fullmatch(spelling) else spelling.replace("▁", " ").encode()
    )


def _fallback(joined: bytes) -> str:
    """The text of the bytes between two pieces; all of them become U+FFFD when they are not UTF-8."""
    try:
        return joined.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(joined)


def _bytes(spelling: str) -> bytes:
    """The bytes that a byte-level token stands for; an added token may be plain text instead."""
    try:
        return bytes(BYTE_OF[character] for character in spelling)
    except KeyError:
        return spelling.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of each byte as one printable character (`bytes_to_unicode`, openai/gpt-2, encoder.py)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()
