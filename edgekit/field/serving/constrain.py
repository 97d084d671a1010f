"""Answers constrained to a JSON schema or to a closed set of texts, the same for both formats.

Source of the method: llguidance (<https://github.com/guidance-ai/llguidance>) turns a schema and the tokenizer into the
set of tokens that may come next; all others get minus infinity before one is chosen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.base.errors import ConfigError, StageError
from edgekit.device.manifest import MANIFEST, check_files, read_manifest
from edgekit.models.tokenizer_files import without_rows
from edgekit.registry import LogitsProcessor, Runtime

if TYPE_CHECKING:
    import llguidance
    import numpy as np
    from numpy.typing import NDArray

IN_BUNDLE = "tokenizer/tokenizer.json"
# At most one space wherever JSON allows whitespace: an uncertain model could otherwise generate only whitespace.
OPTIONS: dict[str, Any] = {"whitespace_pattern": " ?"}


def of_schema(schema: Mapping[str, Any]) -> str:
    """The grammar of the JSON documents that `schema` allows; `Constraints.processor` refuses unsupported ones."""
    from llguidance import LLMatcher

    return str(LLMatcher.grammar_from_json_schema(dict(schema), overrides=OPTIONS))  # type: ignore[arg-type]


def of_choices(choices: Sequence[str]) -> str:
    """The grammar of exactly these texts."""
    from llguidance import LLMatcher

    texts = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    return LLMatcher.grammar_from_lark(f"start: {texts}")


class Constraints:
    """The tokenizer of one model as grammars need it, loaded for the first constrained answer (0.4 s)."""

    def __init__(self, source: Path | None, runtime: Runtime) -> None:
        self._source = source
        self._runtime = runtime
        self._tokenizer: llguidance.LLTokenizer | None = None

    def processor(self, grammar: str) -> LogitsProcessor:
        """A processor for one answer that leaves only what `grammar` allows.

        Raises `ConfigError` for a grammar that llguidance refuses, with its message, and for a model without a
        tokenizer.json; `CorruptError` when that file differs from the manifest.
        """
        from llguidance import LLMatcher

        if self._tokenizer is None:
            self._tokenizer = self._read()
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ConfigError(f"This schema or these choices are not supported: {matcher.get_error()}")
        return _Held(matcher, self._runtime.stop_ids)

    def _read(self) -> llguidance.LLTokenizer:
        from llguidance import LLTokenizer

        path = _tokenizer_file(self._source)
        if path is None:
            raise ConfigError(
                "Constrained answers need a tokenizer.json, and a plain model file has none.",
                "Serve the bundle of this file, or send the request without response_format and choices.",
            )
        runtime = self._runtime
        try:
            text = without_rows(path.read_text(encoding="utf-8"), runtime.vocab_size)
            return LLTokenizer(text, n_vocab=runtime.vocab_size, eos_token=sorted(runtime.stop_ids))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise StageError(f"{path} cannot be used for constrained answers: {error}") from error


def _tokenizer_file(source: Path | None) -> Path | None:
    """The tokenizer.json of a bundle, with its digest checked, or of an onnxruntime-genai folder; None without one."""
    if source is None:
        return None
    if (source / MANIFEST).is_file():
        check_files(source, read_manifest(source), IN_BUNDLE)
        return source / IN_BUNDLE
    plain = source / "tokenizer.json"
    return plain if plain.is_file() else None


class _Held:
    """A `LogitsProcessor` that follows one answer."""

    def __init__(self, matcher: llguidance.LLMatcher, stop_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._stop_ids = sorted(stop_ids)
        self._read = 0

    def __call__(self, ids: Sequence[int], logits: NDArray[np.float32]) -> None:
        import numpy as np

        matcher = self._matcher
        for token in ids[self._read :]:
            matcher.consume_token(token)
        self._read = len(ids)
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            raise StageError(f"The constrained answer cannot be continued: {matcher.get_error()}")
        allowed = np.zeros(len(logits), np.bool_)
        known = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(np.bool_)
        allowed[: len(known)] = known
        allowed[self._stop_ids] = matcher.is_accepting()
        if not allowed.any():
            raise StageError(
                "The constrained answer cannot be continued: no token of this model is allowed next."
            )
        logits[~allowed] = -np.inf
