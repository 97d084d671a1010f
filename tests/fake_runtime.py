"""A runtime in numpy: a bigram model over bytes and a few special tokens, whose parts a test can spoil."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.models.chat import ChatTemplate
from edgekit.models.sampling import Sampling
from edgekit.models.words import Approximation

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATE = ChatTemplate(CHATML, "<|im_start|>", "<|im_end|>")
SPECIAL = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}


def bigram(vocab_size: int = 259, rows: int = 259, seed: int = 0) -> NDArray[np.float32]:
    """Heavy-tailed next-token logits `(rows, V)`, one row for each token id that sequences use."""
    rng = np.random.default_rng(seed)
    rank = rng.permuted(np.tile(np.arange(1, vocab_size + 1), (rows, 1)), axis=1)
    return (-1.1 * np.log(rank) + 0.3 * rng.standard_normal((rows, vocab_size))).astype(np.float32)


@dataclass
class FakeRuntime:
    """A bigram model: the logits after a token are that token's row of `table`."""

    table: NDArray[np.float32] = field(default_factory=bigram)
    special: dict[str, int] = field(default_factory=lambda: dict(SPECIAL))
    chat_template: ChatTemplate = TEMPLATE
    stop_ids: frozenset[int] = frozenset({258})
    name: str = "fake"

    def but(self, **changes: Any) -> FakeRuntime:
        """A copy with other parts."""
        return replace(self, **changes)

    @property
    def template(self) -> ChatTemplate:
        return self.chat_template

    @property
    def approximations(self) -> dict[str, Approximation]:
        return {}

    @property
    def begin_ids(self) -> list[int]:
        return [256]

    @property
    def vocab_size(self) -> int:
        return self.table.shape[1]

    @property
    def added_tokens(self) -> list[str]:
        return list(self.special)

    @property
    def vocabulary(self) -> dict[str, int]:
        return dict(self.special)

    def encode(self, text: str) -> list[int]:
        parts = re.split("|".join(f"({re.escape(token)})" for token in self.special), text)
        ids: list[int] = []
        for part in filter(None, parts):
            ids += [self.special[part]] if part in self.special else part.encode()
        return ids

    def framed(self, text: str) -> list[int]:
        return [*self.begin_ids, *self.encode(text)]

    def framed_as_set(self, text: str) -> list[int]:
        return self.framed(text)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def logits(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        return self.table[list(ids)[first:]]

    def generate(self, ids: Sequence[int], max_tokens: int, sampling: Sampling = Sampling()) -> Iterator[int]:
        token = ids[-1]
        for _ in range(max_tokens):
            token = int(self.table[token].argmax())
            if token in self.stop_ids:
                return
            yield token

    def generate_batch(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        return [list(self.generate(prompt, max_tokens)) for prompt in prompts]

    def close(self) -> None:
        pass
