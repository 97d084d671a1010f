"""A random sample of redacted questions and answers, to examine drift; off by default.

Redacted are e-mail and web addresses, every number and every word with a digit in it, the words after "call", "ask",
"tell", "message" or a form of address, and pairs of capitalised words. Redaction works by patterns: a name in lower case
without such a word before it is not recognised. Switch the sample on only with the consent of the users.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import threading
from pathlib import Path

FILE = "reservoir.jsonl"
LONGEST = 600  # characters of one text

_ADDRESS = re.compile(r"\b(?:https?://|www\.)\S+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+", re.IGNORECASE)
_ANNOUNCED = re.compile(
    r"\b((?:call|ask|tell|message|text|mail|e-mail|email|phone|ring|remind|contact|inform|notify|assign|hand|"
    r"mr|mrs|ms|dr|dear|hi|hello|hey|name is|i am|this is|for)\b[.,:]?\s+)((?-i:[A-ZÀ-ÞĀ-ŽА-Я])[\w'’-]*(?:\s+(?-i:[A-ZÀ-ÞĀ-ŽА-Я])[\w'’-]*)*)",
    re.IGNORECASE,
)
_ANY_CASE = re.compile(
    r"\b((?:call|ask|tell|message|phone|ring|remind|contact|name is)\s+)(?!\[)([^\W\d_][\w'’-]*(?:\s+[A-ZÀ-ÞĀ-ŽА-Я][\w'’-]*)*)",
    re.IGNORECASE,
)
_NAMES = re.compile(r"\b[A-ZÀ-ÞĀ-ŽА-Я][^\W\d_A-Z]['’\w-]*(?:\s+[A-ZÀ-ÞĀ-ŽА-Я][^\W\d_A-Z]['’\w-]*)+")
_NUMBER = re.compile(r"\b[\w+-]*\d[\w.,:/-]*")


def redact(text: str) -> str:
    """`text` with possible names, places and numbers replaced by their kind in brackets."""
    text = _ADDRESS.sub("[address]", text)
    text = _ANNOUNCED.sub(r"\1[name]", text)
    text = _ANY_CASE.sub(r"\1[name]", text)
    text = _NAMES.sub("[name]", text)
    return _NUMBER.sub("[number]", text)[:LONGEST]


class Reservoir:
    """At most `size` redacted pairs in the file `path`, a uniform sample of all pairs, within `cap_kib`.

    Source: J. S. Vitter, Random Sampling with a Reservoir, algorithm R, TOMS 11 (1985). After a restart the pairs in the
    file are kept and count once each, so that later ones replace them.
    """

    def __init__(self, path: Path, size: int = 100, cap_kib: float = 256, *, seed: int | None = None) -> None:
        self.path = path
        self.size = size
        self.trouble = ""
        self._cap = int(cap_kib * 1024)
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._lines = self._read()
        self._seen = len(self._lines)

    def offer(self, prompt: str, answer: str) -> None:
        """Keep a question and its answer with the sampling probability; never raises because of the disk."""
        with self._lock:
            self._seen += 1
            place = len(self._lines) if len(self._lines) < self.size else self._random.randrange(self._seen)
            if place >= self.size:
                return
            line = json.dumps({"prompt": redact(prompt), "answer": redact(answer)}, ensure_ascii=False)
            self._lines[place : place + 1] = [line]
            while self._lines and sum(len(kept.encode()) + 1 for kept in self._lines) > self._cap:
                self._lines.pop(self._random.randrange(len(self._lines)))
            self._write()

    def _read(self) -> list[str]:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return self.path.read_text(encoding="utf-8").splitlines()[: self.size]
        return []

    def _write(self) -> None:
        staging = self.path.with_name(f".{self.path.name}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            staging.unlink(missing_ok=True)
            descriptor = os.open(
                staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600
            )  # private from the first byte
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in self._lines)
            os.replace(staging, self.path)
            self.trouble = ""
        except OSError as error:
            self.trouble = f"{self.path} cannot be written: {error}"
