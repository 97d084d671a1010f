"""A runtime whose tokens are the bytes of an answer that is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgekit.base.errors import StageError
from edgekit.models.sampling import Sampling


class Bytewise:
    """Answers `text`, as sure of each byte as `sure` says; with `fails_after` it breaks after so many."""

    name = "bytewise"

    def __init__(self, text: str, *, sure: float = 50.0, fails_after: int | None = None) -> None:
        self.text, self.sure, self.fails_after = text.encode(), sure, fails_after

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling = Sampling(), *, process: Any = None
    ) -> Iterator[int]:
        for place, byte in enumerate(self.text[:max_tokens]):
            if place == self.fails_after:
                raise StageError("broken")
            if process:
                process(list(self.text[:place]), np.eye(256, dtype=np.float32)[byte] * self.sure)
            yield byte
