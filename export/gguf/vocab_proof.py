"""Compares the vocabulary of a GGUF file with the tokenizer of the Hugging Face folder that it claims to be."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgekit.base.errors import CorruptError, UnsupportedError
from edgekit.base.events import GateResult
from edgekit.containers.gguf import GgufLayout
from edgekit.export.gguf.vocab import Tokens, read_vocabulary
from edgekit.export.weights.weight_proof import Facts

UNUSED = int(gguf.TokenType.UNUSED)


def listed(layout: GgufLayout, name: str) -> list[Any]:
    """A list of the file's tokenizer; empty when the file has none of that name."""
    found = layout.metadata.get(f"tokenizer.ggml.{name}")
    return found.tolist() if isinstance(found, np.ndarray) else found if isinstance(found, list) else []


def check_vocabulary(facts: Facts, layout: GgufLayout, rows: int, model: Path) -> None:
    """Check that the file has one token for each row of the embedding, and that tokens unknown to the tokenizer are unused."""
    types, count = listed(layout, "token_type"), len(listed(layout, "tokens"))
    facts.add(count == rows, f"the file has {count} tokens, the model {rows}")
    file = model / "tokenizer.json"
    if not types or not file.is_file():
        return
    try:
        rules = json.loads(file.read_text(encoding="utf-8"))
        ids = [*dict(rules["model"]["vocab"]).values(), *(token["id"] for token in rules["added_tokens"])]
        known = 1 + max(map(int, ids))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(
            f"{file} is not a tokenizer that GGUF can hold.", "Download the model again."
        ) from error
    padding = types[known:]
    wrong = [known + i for i, kind in enumerate(padding) if kind != UNUSED]
    facts.add(
        not wrong, f"token {wrong[0] if wrong else 0} is padding in the model and a real token in the file"
    )


def _check_scores(facts: Facts, found: list[float], own: Tokens) -> None:
    """Check that merging by the file's scores follows the order of the model's merges, or of its scores."""
    ids = {text: i for i, text in enumerate(own.texts)}
    if own.merges:
        order = [ids[text] for merge in own.merges if (text := merge.replace(" ", "")) in ids]
    else:
        order = sorted((i for i, score in enumerate(own.scores) if score < 0), key=lambda i: -own.scores[i])
    first: dict[int, int] = {}  # a token that several merges make ranks where the first of them does
    for rank, i in enumerate(order):
        if own.types[i] != gguf.TokenType.USER_DEFINED:  # found in the text before anything is merged
            first.setdefault(i, rank)
    ranked = sorted(first, key=lambda i: first[i])
    for before, after in pairwise(ranked):
        falls = max(before, after) < len(found) and found[after] <= found[before]
        facts.add(
            falls,
            f"token {after} ({own.texts[after]!r}) has a higher score than token {before}, which merges first",
        )


def prove_vocabulary(layout: GgufLayout, rows: int, model: Path, stage: str) -> list[GateResult]:
    """Compare tokens and merge rules one by one, because a rule out of order may not show in any test text.

    A file of the kind `llama` has scores instead of merges: they must fall, or stay equal, from each merge to the next. No
    gate for a tokenizer that edgekit cannot write; the ids that it gives to texts are compared in any case.
    """
    try:
        own = read_vocabulary(model, rows).tokens
    except UnsupportedError:
        return []
    tokens = {i: text for i, text in enumerate(own.texts) if own.types[i] != UNUSED}
    facts = Facts()
    by_scores = layout.metadata.get("tokenizer.ggml.model") == "llama" and not listed(layout, "merges")
    merges = {} if by_scores else dict(enumerate(own.merges))
    for name, wanted in (("token", tokens), ("merge", merges)):
        found = listed(layout, f"{name}s")
        for i, text in wanted.items():
            given = found[i] if i < len(found) else None
            facts.add(given == text, f"{name} {i} is {given!r}, the model's is {text!r}")
    if by_scores:
        _check_scores(facts, listed(layout, "scores"), own)
    return [facts.gate("gguf.vocabulary", stage)]
