"""Byte-pair encoding of texts that onnxruntime-genai's tokenizer cuts: those with a word of more than 100 characters.

Version 0.18 cuts words of vocabularies with `▁` for a space after 100 characters, which also happens in Chinese text and
in long addresses, and gives other tokens than the model was trained on.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LONG = re.compile(r"[^ ▁]{100,}")


class LongWords:
    """The whole tokenizer of a folder; `usable` is false for rules that are not known here."""

    def __init__(self, folder: Path) -> None:
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        self.vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
        added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
        # A run of spaces is spelled with spaces in some folders and with `▁` in others; both are the token.
        runs = {
            text.replace(" ", "▁"): id_
            for text, id_ in added.items()
            if len(text) > 1 and not text.strip(" ")
        }
        self.added = added | runs
        ordered = sorted(self.added, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, ordered)) or "(?!)")
        self.usable = _usable(tokenizer)
        self._pairs, self._ranks = _ranked(self.vocabulary, tokenizer["model"].get("merges", []))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, in which added tokens are recognised."""
        ids: list[int] = []
        start = 0
        for found in self.pattern.finditer(text):
            ids += self._merge(text[start : found.start()])
            ids.append(self.added[found.group()])
            start = found.end()
        return ids + self._merge(text[start:])

    def _merge(self, text: str) -> list[int]:
        """Join the neighbours whose merge comes first, again and again, the leftmost of equal ones first."""
        pieces = [piece for character in text.replace(" ", "▁") for piece in self._first(character)]
        after = [*range(1, len(pieces)), -1] if pieces else []
        before = list(range(-1, len(pieces) - 1))
        waiting = [pair for at in range(len(pieces)) if (pair := self._pair(pieces, at, after))]
        heapq.heapify(waiting)
        while waiting:
            *_, at, left, right = heapq.heappop(waiting)
            if pieces[at] != left or after[at] < 0 or pieces[after[at]] != right:
                continue  # one of the two was joined with another in the meantime
            gone = after[at]
            pieces[at], pieces[gone], after[at] = left + right, "", after[gone]
            if after[at] >= 0:
                before[after[at]] = at
            for place in (at, before[at]):
                if place >= 0 and (pair := self._pair(pieces, place, after)):
                    heapq.heappush(waiting, pair)
        return [self.vocabulary[piece] for piece in pieces if piece]

    def _first(self, character: str) -> Iterator[str]:
        """The piece of one character, or of its bytes."""
        if character in self.vocabulary:
            yield character
        else:
            yield from (f"<0x{byte:02X}>" for byte in character.encode())

    def _pair(self, pieces: list[str], at: int, after: list[int]) -> tuple[int, int, str, str] | None:
        """The rank and the place of the merge of a piece and the next; None when there is none."""
        if after[at] < 0:
            return None
        left, right = pieces[at], pieces[after[at]]
        pair = _key(self.vocabulary[left], self.vocabulary[right])
        found = int(np.searchsorted(self._pairs, pair))
        known = found < len(self._pairs) and self._pairs[found] == pair
        return (int(self._ranks[found]), at, left, right) if known else None


def _key(left: int, right: int) -> int:
    return left << 32 | right


def _ranked(
    vocabulary: Mapping[str, int], merges: Sequence[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of ids that are merged, sorted, and the rank of each: arrays need a tenth of a dictionary's memory."""
    halves = (merge if isinstance(merge, list) else merge.split(" ") for merge in merges)
    pairs = np.array([_key(vocabulary[left], vocabulary[right]) for left, right in halves], np.int64)
    order = np.argsort(pairs)
    return pairs[order], order


def _usable(tokenizer: dict[str, Any]) -> bool:
    """Whether the rules are exactly those that are followed here."""
    model, normalizer = tokenizer["model"], tokenizer.get("normalizer") or {}
    splits = tokenizer.get("pre_tokenizer") or {"type": "Split", "pattern": {"String": " "}}
    plain = all(
        not (token["lstrip"] or token["rstrip"] or token["single_word"] or token["normalized"])
        for token in tokenizer.get("added_tokens", [])
    )
    rules = (
        normalizer.get("type") == "Replace"
        and (normalizer.get("pattern"), normalizer.get("content")) == ({"String": " "}, "▁")
        and (splits.get("type"), splits.get("pattern")) == ("Split", {"String": " "})
        and model.get("byte_fallback") is True
        and not model.get("ignore_merges")
        and not model.get("dropout")
        and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
    )
    return plain and rules
