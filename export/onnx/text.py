"""Rewrites rules of a `tokenizer.json` that onnxruntime-genai 0.18 does not follow into ones that it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.models.words import GPT2_PATTERN


def adapt(tokenizer: dict[str, Any], added: Mapping[int, Any]) -> bool:
    """Change the rules of `tokenizer` in place where needed; returns whether one was changed.

    `added` are the added tokens by id as transformers reads them.
    """
    return bool(sum((_spell_out_digits(tokenizer), _mark_special(tokenizer, added), _show_spaces(tokenizer))))


def _spell_out_digits(tokenizer: dict[str, Any]) -> bool:
    """Replace `Digits` before byte-level splitting, which is ignored, by equivalent patterns."""
    steps = (tokenizer.get("pre_tokenizer") or {}).get("pretokenizers", [])
    if [step["type"] for step in steps] != ["Digits", "ByteLevel"]:
        return False
    digits, byte_level = steps
    if not digits["individual_digits"] or byte_level["add_prefix_space"] or not byte_level["use_regex"]:
        return False
    tokenizer["pre_tokenizer"]["pretokenizers"] = [
        *({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
          for regex in (r"\p{N}", GPT2_PATTERN)),
        byte_level | {"use_regex": False},
    ]  # fmt: skip
    return True


def _mark_special(tokenizer: dict[str, Any], added: Mapping[int, Any]) -> bool:
    """Mark the tokens as special that only transformers' class of the tokenizer makes so, such as Gemma's `<mask>`."""
    found = [
        token
        for token in tokenizer.get("added_tokens", [])
        if not token["special"] and getattr(added.get(token["id"]), "special", False)
    ]
    for token in found:
        token["special"] = True
    return bool(found)


def _show_spaces(tokenizer: dict[str, Any]) -> bool:
    """Spell added tokens of several `▁` as the spaces that they stand for; else they are shown as `▁` in answers."""
    if (tokenizer.get("normalizer") or {}).get("content") != "▁":
        return False
    found = [
        token
        for token in tokenizer.get("added_tokens", [])
        if len(token["content"]) > 1 and not token["content"].strip("▁")
    ]
    for token in found:
        token["content"] = token["content"].replace("▁", " ")
    return bool(found)
