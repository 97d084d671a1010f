"""How byte-level tokenizers split a text into words before they merge bytes, and what runtimes make of these rules.

llama.cpp and onnxruntime-genai reproduce most rules exactly, and have an approximation of two. llama.cpp's regular
expressions know neither the case of letters beyond ASCII nor, there, combining marks (`llama-vocab.cpp`,
`LLAMA_VOCAB_PRE_TYPE_TEKKEN` and `..._GPT4O`); onnxruntime-genai 0.18 takes no slash after a line break. A word that a
runtime splits otherwise gets other token ids; nothing in a file changes that.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer, pre_tokenizers

# GPT-2's rule (Radford et al. 2019), which byte-level pre-tokenizers of other models have too.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _by_case(upper: str, lower: str, ending: str, number: str) -> str:
    """A rule by which a word is capitals and then small letters, each kind given as a set of characters."""
    return (
        rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{ending}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{ending}|{number}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


CASES = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ASCII_CASES = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
ENDING = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
TEKKEN = _by_case(*CASES, "", r"\p{N}")
GPT4O = _by_case(*CASES, ENDING, r"\p{N}{1,3}")
# The forms of rules that a runtime does not reproduce, by the runtime's name.
FORMS = {
    "llama.cpp": {
        TEKKEN: _by_case(*ASCII_CASES, "", r"\p{N}"),
        GPT4O: _by_case(*ASCII_CASES, ENDING, r"\p{N}{1,3}"),
    },
    "onnxruntime": {rule: rule.replace(r"[\r\n/]*", r"[\r\n]*") for rule in (TEKKEN, GPT4O)},
}


class Approximation:
    """What a runtime makes of a tokenizer whose rule for words it does not reproduce."""

    def __init__(self, rules: dict[str, Any], step: dict[str, Any], form: str) -> None:
        """`rules` are those of the tokenizer, and `step` is the one among them to which the runtime gives another form."""
        from tokenizers import Tokenizer

        self._own, self._form = pattern_of(step), form
        pattern, step["pattern"] = step["pattern"], {"Regex": form}
        self._tokenizer = Tokenizer.from_str(json.dumps(rules))
        step["pattern"] = pattern

    def differs_at(self, text: str) -> int | None:
        """The place of the first word of `text` that the runtime splits otherwise; None when there is none."""
        pairs = zip(_words(self._own, text), _words(self._form, text), strict=False)
        return next((start for (start, end), (_, other) in pairs if end != other), None)

    def encode(self, text: str) -> list[int]:
        """The token ids of `text` in the runtime, with special tokens recognised."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def approximations(tokenizer: Tokenizer) -> dict[str, Approximation]:
    """What each runtime makes of `tokenizer`, by the runtime's name, as far as it does not reproduce its rule for words."""
    rules: dict[str, Any] = json.loads(tokenizer.to_str())
    return {
        runtime: Approximation(rules, step, forms[rule])
        for step in steps(rules.get("pre_tokenizer"), "pretokenizers")
        for runtime, forms in FORMS.items()
        if (rule := pattern_of(step)) in forms
    }


def steps(part: dict[str, Any] | None, children: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer of `tokenizer.json`, with nested sequences flattened."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for child in part[children] for step in steps(child, children)]
    return [part]


def pattern_of(step: dict[str, Any]) -> str:
    """The regular expression of a step that splits a text into words; empty for any other."""
    if step["type"] != "Split" or step["behavior"] != "Isolated" or step["invert"]:
        return ""
    found: str = step["pattern"].get("Regex", "")
    return found.replace("\r", r"\r").replace("\n", r"\n")


def _words(pattern: str, text: str) -> list[tuple[int, int]]:
    """Where each word of `text` starts and ends."""
    return [place for _, place in _splitter(pattern).pre_tokenize_str(text)]


@functools.cache
def _splitter(pattern: str) -> pre_tokenizers.PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(pattern), "isolated")
