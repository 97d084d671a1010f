"""Deviations: how a runtime treats a model's tokens in its own way, although the file is right.

llama.cpp takes `</s>` or `<|fim_prefix|>` for a control token in every file: it does not show it, and may end an answer
there. Nobody who writes a file can change that, so it is not a fault of the file; but a person whose answers contain
such a text would lose it. So each deviation is told, with its consequence, and the gate `deviations` fails only if the
rows, answers or prompts contain a text that it spoils.

llama.cpp has ways of its own for the texts that it knows (`battery.MARKERS`) and for those that its converter takes for
control tokens (`LOOKS_SPECIAL`). Both runtimes have their own form of two rules that split text into words
(`models.words`): a difference counts only if the ids are exactly those of that form. The package onnxruntime-genai, which
edgekit's runtime completes, cuts long words (`proof.bare`): that concerns an app without edgekit. Whatever else differs is
a fault, and fails the gates in `proof.text_path`. What other converters leave out, edgekit's own files hold: in a build it
is a fault (`own`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from edgekit.base.events import GateResult
from edgekit.proof.bare import LONG_WORD, cuts_long_words
from edgekit.proof.battery import MARKERS
from edgekit.proof.facts import ReferenceFacts
from edgekit.registry import GuessesStops, Runtime

EXAMPLES = 8
FILLER = ("<unused", "<|reserved", "<reserved")  # tokens that makers keep for later; named after all others
NAMES_TOKENS = "llama.cpp"  # the runtime that knows tokens by their text
# What llama.cpp's converter takes for a control token (`does_token_look_special` in `conversion/base.py`).
LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL)
META_SPACE = "\u2581"  # stands for a space in the vocabularies of SentencePiece
OTHER_IDS = "Such a text gets other token ids than the model was trained on, so answers to it may be worse."
SPLITS = {"llama.cpp": "split_words", "onnxruntime": "split_slashes"}  # by the runtime's name


@dataclass(frozen=True)
class Kind:
    """A kind of deviation: what it concerns, and what it means for a person."""

    concerns: str
    consequence: str


KINDS = {
    "hidden_tokens": Kind(
        "{runtime} does not show {tokens} of the model",
        "An answer that contains such a text loses it.",
    ),
    "marked_tokens": Kind(
        "The file marks {tokens} as control tokens, which the model shows",
        "An answer that contains such a text loses it. llama.cpp's converter does so; a file written by edgekit shows them.",
    ),
    "end_tokens": Kind(
        "The tools of {runtime} end an answer also at {tokens} that the model goes on after",
        "An answer that contains such a text ends there.",
    ),
    "claimed_texts": Kind(
        "{runtime} reads {tokens} where the model's tokenizer reads single characters",
        "Such a text gets other token ids, and the runtime may end an answer there.",
    ),
    "unicode_form": Kind(
        "{runtime} does not normalise text to the Unicode form NFC, as the model's tokenizer does",
        'Text in another form gets other token ids. Normalise it first: unicodedata.normalize("NFC", text).',
    ),
    "split_words": Kind(
        "{runtime} splits words with combining marks (as in vowelled Arabic, Hindi or Thai) and words with accented capitals "
        "(such as \u00dcBER) otherwise than the model's tokenizer",
        OTHER_IDS,
    ),
    "split_slashes": Kind(
        "{runtime} takes a slash for a word of its own where it follows punctuation and a line break, as in code with "
        "comments, and the model's tokenizer does not",
        OTHER_IDS,
    ),
    "frame": Kind(
        "{runtime} adds BOS or EOS to plain text as tokenizer_config.json asks, and transformers does not",
        "Text without the chat template gets other token ids at its start or end; conversations are not affected.",
    ),
    "long_words": Kind(
        "The tokenizer of {runtime} itself cuts words of 100 characters or more without a space, as in Chinese text",
        "An app without edgekit gives such a text other token ids; edgekit.load reads it as the model does.",
    ),
    "typed_spaces": Kind(
        f"{{runtime}} gives other token ids to text that contains {META_SPACE} (U+2581), which the vocabulary uses for spaces",
        "Replace the character by a space first.",
    ),
}


@dataclass(frozen=True)
class Deviation:
    """One deviation of a runtime: its kind, what it concerns, how many tokens, and the first of their texts."""

    kind: str
    concerns: str
    consequence: str
    count: int
    texts: tuple[str, ...]
    spoiled: str = ""
    """The first text of the rows that it spoils; empty when there is none."""

    def __str__(self) -> str:
        named = f": {', '.join(map(repr, self.texts))}" if self.texts else ""
        return (
            f"{self.concerns}{named}{', ...' if self.count > len(self.texts) > 0 else ''}. {self.consequence}"
        )

    def to_json(self) -> dict[str, Any]:
        """The entry of a report or a manifest."""
        return asdict(self) | {"texts": list(self.texts)}


class Deviations:
    """The deviations of one opened file; the gates ask it whether a difference is explained by one of them."""

    def __init__(self, runtime: Runtime, facts: ReferenceFacts, *, own: bool = False) -> None:
        self._runtime = runtime
        self._facts = facts
        self._by_text = runtime.name == NAMES_TOKENS
        # another converter may have left out what edgekit writes
        self._lacking = self._by_text and not own
        self._split = facts.split.get(runtime.name)
        self._seen: set[str] = set()

    @cached_property
    def markers(self) -> dict[int, str]:
        """The tokens that the runtime knows by their text."""
        vocabulary = self._facts.vocabulary
        return {vocabulary[text]: text for text in MARKERS if self._by_text and text in vocabulary}

    @cached_property
    def marked(self) -> dict[int, str]:
        """The other tokens that a converter may have taken for control tokens."""
        if not self._lacking:
            return {}
        added = self._facts.token_texts.items()
        return {id_: text for id_, text in added if LOOKS_SPECIAL.fullmatch(text) and id_ not in self.markers}

    @cached_property
    def hidden(self) -> dict[int, str]:
        """The markers and marked tokens that the reference shows and the runtime does not."""
        shown = {
            ids[0]
            for ids, text in zip(self._facts.ids, self._facts.decoded, strict=True)
            if len(ids) == 1 and text
        }
        asked = {
            id_: text
            for id_, text in {**self.markers, **self.marked}.items()
            if id_ in shown and id_ < self._runtime.vocab_size
        }
        return {id_: text for id_, text in asked.items() if not self._runtime.decode([id_])}

    @cached_property
    def ends(self) -> dict[int, str]:
        """The markers at which the runtime's tools end an answer by their own choice, and the reference does not."""
        guessed = self._runtime.guessed_stop_ids if isinstance(self._runtime, GuessesStops) else frozenset()
        return {
            id_: self.markers[id_] for id_ in sorted(guessed - self._facts.stop_ids) if id_ in self.markers
        }

    def explains_frame(self, framed: Sequence[int]) -> bool:
        """Whether the runtime adds BOS and EOS to plain text as the maker's settings ask, which the reference does not."""
        if tuple(framed) != self._facts.framed_as_set:
            return False
        self._seen.add("frame")
        return True

    def explains_encoding(self, text: str, expected: Sequence[int]) -> bool:
        """Whether the runtime's own ways, alone or several together, explain that `text` gets other ids than the `expected` ones.

        The text is read as it is, or prepared as the advice of a deviation asks. The ids must then be the expected ones, or
        exactly those that the runtime's form of the tokenizer's rule for words makes; a marker that the runtime reads as
        one token counts as the characters that the reference reads.
        """
        wanted = {"": tuple(expected)}
        if self._split and text in self._split.ids:
            wanted[SPLITS[self._runtime.name]] = self._split.ids[text]
        for kind, prepared in (("", text), *self._prepared(text)):
            ids = self._runtime.encode(prepared)
            read = (tuple(ids), tuple(self._spelled(prepared, ids)))
            split = next((split for split, form in wanted.items() if form in read), None)
            if split is None and self._reads_spaces(prepared, expected):
                split = "typed_spaces"
            if split is not None:
                self._seen |= {kind, split} - {""}
                return True
        return False

    def _spelled(self, text: str, ids: Sequence[int]) -> list[int]:
        """The `ids` of `text` with the markers that the runtime claims as the reference reads them."""
        spelled = {id_: self._ids_of(marker) for id_, marker in self._claimed.items() if marker in text}
        return [part for id_ in ids for part in spelled.get(id_, [id_])]

    def _reads_spaces(self, text: str, expected: Sequence[int]) -> bool:
        """Whether `text`, as it is or with spaces for U+2581 as advised, gets ids that are shown as the `expected` ones are.

        It may also be shown as it was typed. Of the ids, those of added tokens must be the expected ones, but for runs of
        that character.
        """
        if META_SPACE not in text or not self._by_text or not self._uses_meta_space:
            return False
        added = {id_ for id_, token in self._facts.token_texts.items() if token.strip(META_SPACE)}
        kept, shown = [id_ for id_ in expected if id_ in added], self._runtime.decode(expected)
        for read, alike in ((text, (shown, text)), (text.replace(META_SPACE, " "), (shown,))):
            ids = self._runtime.encode(read)
            if [id_ for id_ in ids if id_ in added] == kept and self._runtime.decode(ids) in alike:
                return True
        return False

    @cached_property
    def _uses_meta_space(self) -> bool:
        """Whether the reference shows the character as a space."""
        shown = dict(zip(self._facts.texts, self._facts.decoded, strict=True))
        return shown.get(META_SPACE) == " "

    @cached_property
    def _claimed(self) -> dict[int, str]:
        """The markers that the runtime reads as one token, and the reference as several."""
        return {
            id_: text
            for id_, text in self.markers.items()
            if len(self._ids_of(text)) > 1 and self._runtime.encode(text) == [id_]
        }

    def _ids_of(self, text: str) -> Sequence[int]:
        """The reference's ids of a text of the battery."""
        return self._facts.ids[self._facts.texts.index(text)] if text in self._facts.texts else []

    def _prepared(self, text: str) -> Iterable[tuple[str, str]]:
        """Each kind of text that deviates, with `text` as the advice for that kind asks."""
        if self._lacking and (normal := unicodedata.normalize("NFC", text)) != text:
            yield "unicode_form", normal

    def explains_decoding(self, ids: Sequence[int], expected: str, got: str) -> bool:
        """Whether `got` is the `expected` text without its hidden tokens."""
        without = expected
        for id_ in sorted(set(ids) & self.hidden.keys(), key=lambda id_: -len(self.hidden[id_])):
            without = without.replace(self.hidden[id_], "")
        return without != expected and without == got

    def found(self) -> list[Deviation]:
        """Every deviation, after the gates have asked about all differences."""
        if cuts_long_words(self._runtime, self._facts):
            self._seen.add("long_words")
        return [
            *self._of_tokens(
                "hidden_tokens", {i: text for i, text in self.hidden.items() if i in self.markers}
            ),
            *self._of_tokens(
                "marked_tokens", {i: text for i, text in self.hidden.items() if i in self.marked}
            ),
            *self._of_tokens("end_tokens", self.ends),
            *self._of_tokens("claimed_texts", self._claimed),
            *self._of_text("unicode_form", lambda text: not unicodedata.is_normalized("NFC", text)),
            *self._of_words(),
            *self._of_text("frame", lambda text: False),
            *self._of_text("long_words", lambda text: bool(LONG_WORD.search(text))),
            *self._of_text("typed_spaces", lambda text: META_SPACE in text),
        ]

    def _of_tokens(self, kind: str, tokens: Mapping[int, str]) -> list[Deviation]:
        if not tokens:
            return []
        ordered = sorted(tokens.items(), key=lambda token: (token[1].startswith(FILLER), token[0]))
        texts = [text for _, text in ordered]
        spoiled = self._first(lambda content: any(text in content for text in texts))
        return [self._told(kind, len(tokens), texts[:EXAMPLES], spoiled)]

    def _of_text(self, kind: str, affected: Callable[[str], bool]) -> list[Deviation]:
        return [self._told(kind, 0, [], self._first(affected))] if kind in self._seen else []

    def _of_words(self) -> list[Deviation]:
        kind = SPLITS.get(self._runtime.name, "")
        return [self._told(kind, 0, [], self._split.first)] if self._split and kind in self._seen else []

    def _told(self, kind: str, count: int, texts: Sequence[str], spoiled: str) -> Deviation:
        named = KINDS[kind]
        tokens = "1 token" if count == 1 else f"{count} tokens"
        concerns = named.concerns.format(tokens=tokens, runtime=self._runtime.name)
        return Deviation(kind, concerns, named.consequence, count, tuple(texts), spoiled)

    def _first(self, spoils: Callable[[str], bool]) -> str:
        """The first text of the rows that `spoils` says is spoiled; empty when none is."""
        return next((text for text in self._facts.contents if spoils(text)), "")


def gate(found: Sequence[Deviation], prefix: str, stage: str) -> GateResult:
    """Share of the deviations that no text of the rows meets."""
    spoiling = [deviation for deviation in found if deviation.spoiled]
    if spoiling:
        first = spoiling[0]
        where = "rows or the chat template" if first.kind in SPLITS.values() else "rows"
        detail = f"the {where} contain {_around(first)}, and {first}"
    else:
        detail = "; ".join(map(str, found)) or "none"
    share = 1 - len(spoiling) / max(len(found), 1)
    return GateResult(f"{prefix}.deviations", share, 1.0, not spoiling, detail, stage)


def _around(deviation: Deviation, width: int = 60) -> str:
    """The spoiled text, cut around what spoils it."""
    text = deviation.spoiled
    at = min((place for token in deviation.texts if (place := text.find(token)) >= 0), default=0)
    start = max(at - width // 3, 0)
    cut = text[start : start + width]
    return repr(f"{'...' if start else ''}{cut}{'...' if start + width < len(text) else ''}")
