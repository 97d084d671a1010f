"""The bare runtime: the text path that an app gets from llama-cpp-python or onnxruntime-genai without edgekit.

edgekit's runtimes handle what those packages do not: Unicode normalisation, NUL, bytes without a token, and bytes that
are not UTF-8. The other proofs compare edgekit's runtimes with the reference; this one compares the packages themselves,
over the same texts and conversations.

A difference with a known cause is reported, because an app can avoid it. So is a difference in a test string of
`proof.battery`, because no user writes such text. A difference without a known cause in ordinary text fails the gate
`bare_runtime`, because an app would get other prompts than the model was tuned on. Ordinary text is the rows of the task
and the prompts and passages of `proof.texts`. A cause counts as known when its remedy was tried and worked. Bytes that
are not UTF-8 have no remedy; they count as the cause when they occur in the reference's text. Nor have words that
a runtime splits otherwise (`models.words`); they count when its ids are exactly those of its rule.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.base.events import GateResult
from edgekit.data.rows import Message
from edgekit.models.chat import ChatTemplate
from edgekit.proof.battery import conversations
from edgekit.proof.facts import ReferenceFacts
from edgekit.registry import BareText, HasBare, Runtime

LONG_WORD = re.compile(
    r"[^ \u2581]{100,}"
)  # onnxruntime-genai 0.18 cuts such words in vocabularies of SentencePiece
SHORT_WORD = 64  # characters
LONGEST_PIECE = 32  # bytes; llama-cpp-python 0.3 omits longer tokens (`LlamaModel.detokenize`)
EXAMPLES = 2  # for each cause
OTHER = "other"
REFUSED = "(refused) "


@dataclass(frozen=True)
class Cause:
    """A kind of text that a bare runtime treats differently, and what an app can do about it."""

    texts: str
    advice: str


CAUSES = {
    "nul": Cause("texts with the character NUL (U+0000)", "Remove it from every text."),
    "not_nfc": Cause(
        "texts that are not in the Unicode form NFC",
        'Normalise every text first, in Python with unicodedata.normalize("NFC", text).',
    ),
    "long_words": Cause(
        "texts with a word of 100 characters or more without a space, which include Chinese text and addresses",
        "Encode with edgekit.load where texts may hold them.",
    ),
    "split_words": Cause(
        "texts with words that the runtime splits otherwise, as the deviations say",
        "No setting changes this; use another format for them.",
    ),
    "no_token": Cause(
        "texts with bytes that have no token",
        "Remove negative token ids before the model reads them.",
    ),
    "control_tokens": Cause("sequences of control tokens only", "Remove control tokens before decoding."),
    "not_utf8": Cause(
        "answers with characters or bytes that are not valid Unicode text",
        "Decode with edgekit.load where answers may hold them.",
    ),
    "long_tokens": Cause(
        f"answers with tokens of more than {LONGEST_PIECE} bytes, such as long runs of spaces or dashes",
        "Decode with edgekit.load where answers may hold them.",
    ),
    OTHER: Cause(
        "texts without a known cause", "Use edgekit.load for texts like the examples in manifest.json."
    ),
}


@dataclass(frozen=True)
class Difference:
    """A text that the bare runtime treats differently: at which step, why, and whether the text is ordinary."""

    step: str
    text: str
    causes: tuple[str, ...]
    ordinary: bool
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.step} {_short(self.text)}: reference {_short(self.expected)}, bare {_short(self.got)}"


@dataclass(frozen=True)
class BareResult:
    """What was compared, how much of it is ordinary text, and what differs."""

    texts: int
    conversations: int
    ordinary: int
    differences: list[Difference] = field(default_factory=list)

    def gate(self, prefix: str, stage: str) -> GateResult:
        """Share of ordinary texts and conversations that have no difference of unknown cause."""
        failed = [found for found in self.differences if found.ordinary and OTHER in found.causes]
        share = 1 - len({(found.step, found.text) for found in failed}) / max(self.ordinary, 1)
        detail = (
            f"{len(failed)} differences in ordinary text, the first: {failed[0]}"
            if failed
            else self.summary()
        )
        return GateResult(f"{prefix}.bare_runtime", share, 1.0, not failed, detail, stage)

    def summary(self) -> str:
        """How many texts and conversations were compared, how many differ, and why."""
        counted = ", ".join(f"{cause} {count}" for cause, count in self.causes().items())
        compared = f"{self.texts} texts and {self.conversations} conversations"
        return f"{compared}; {self.differ} differ without edgekit ({counted})" if counted else compared

    @property
    def differ(self) -> int:
        """How many texts and conversations differ, whatever the step."""
        return len({(found.step == "render", found.text) for found in self.differences})

    def causes(self) -> dict[str, int]:
        """How many differences each cause has, the most frequent first."""
        return dict(Counter(cause for found in self.differences for cause in found.causes).most_common())

    def to_json(self) -> dict[str, Any]:
        """The entry of the bundle's manifest for this format."""
        by_cause = groupby(
            sorted(self.differences, key=lambda found: found.causes), lambda found: found.causes
        )
        shown = [found for _, group in by_cause for found in sorted(group, key=_length)[:EXAMPLES]]
        return {
            "texts": self.texts,
            "conversations": self.conversations,
            "differ": self.differ,
            "causes": self.causes(),
            "examples": [
                {
                    "step": found.step,
                    "text": found.text[:80],
                    "causes": list(found.causes),
                    "expected": found.expected[:80],
                    "got": found.got[:80],
                }
                for found in shown
            ],
            "advice": " ".join(
                f"For {CAUSES[cause].texts}: {CAUSES[cause].advice}" for cause in self.causes()
            ),
        }


def compare(runtime: Runtime, facts: ReferenceFacts) -> BareResult | None:
    """Compare the bare text path of an opened file with the reference; None if the runtime has no bare text path."""
    bare = runtime.bare() if isinstance(runtime, HasBare) else None
    if bare is None:
        return None
    fixtures = [(messages, False) for messages in conversations()] if facts.template else []
    asked = [*((messages, True) for messages in facts.conversations), *fixtures]
    differences = [
        *_encoded(bare, runtime, facts),
        *_decoded(bare, runtime, facts),
        *(_rendered(bare, facts.template, asked) if facts.template else ()),
    ]
    ordinary = len(facts.ordinary) + len(facts.conversations)
    return BareResult(len(facts.texts), len(asked), ordinary, differences)


def _encoded(bare: BareText, runtime: Runtime, facts: ReferenceFacts) -> Iterator[Difference]:
    split = facts.split.get(runtime.name)
    for text, ids in zip(facts.texts, facts.ids, strict=True):
        got = bare.encode(text)
        if got != list(ids):
            own_way = split and split.ids.get(text) == tuple(got) == tuple(runtime.encode(text))
            causes = ("split_words",) if own_way else _why_encoded(bare, runtime, text, list(ids), got)
            yield Difference("encode", text, causes, text in facts.ordinary, _ids(ids), _ids(got))


def cuts_long_words(runtime: Runtime, facts: ReferenceFacts) -> bool:
    """Whether the bare runtime gives other ids to a text with a long word, and the right ones to it with the word parted."""
    bare = runtime.bare() if isinstance(runtime, HasBare) else None
    for text, ids in zip(facts.texts, facts.ids, strict=True):
        if bare is None or not LONG_WORD.search(text) or (got := bare.encode(text)) == list(ids):
            continue
        if "long_words" in _why_encoded(bare, runtime, text, list(ids), got):
            return True
    return False


def _why_encoded(
    bare: BareText, runtime: Runtime, text: str, expected: list[int], got: list[int]
) -> tuple[str, ...]:
    """The causes whose remedies, tried here one by one and then together, give the ids of edgekit's runtime."""

    def cured(causes: Sequence[str]) -> bool:
        prepared = _prepared(text, causes)
        # if NFC changes what the model reads, it is not a remedy
        wanted = expected if causes == ["not_nfc"] else runtime.encode(prepared)
        found = bare.encode(prepared)
        return ([id_ for id_ in found if id_ >= 0] if "no_token" in causes else found) == wanted

    present = [cause for cause, remedy in REMEDIES.items() if remedy(text) != text]
    seen = [*got, *bare.encode(_prepared(text, present))]  # a text that is cut at NUL hides the rest
    present += ["no_token"] if any(id_ < 0 for id_ in seen) else []
    return _enough(present, cured) or (OTHER,)


REMEDIES: dict[str, Callable[[str], str]] = {
    "nul": lambda text: text.replace("\0", ""),
    "not_nfc": lambda text: unicodedata.normalize("NFC", text),
    "long_words": lambda text: LONG_WORD.sub(_parted, text),
}


def _parted(word: re.Match[str]) -> str:
    """The word in pieces with spaces between them."""
    return " ".join(word[0][at : at + SHORT_WORD] for at in range(0, len(word[0]), SHORT_WORD))


def _prepared(text: str, causes: Sequence[str]) -> str:
    for cause in causes:
        text = REMEDIES[cause](text) if cause in REMEDIES else text
    return text


def _decoded(bare: BareText, runtime: Runtime, facts: ReferenceFacts) -> Iterator[Difference]:
    for text, ids, expected in zip(facts.texts, facts.ids, facts.decoded, strict=True):
        if max(ids, default=0) < runtime.vocab_size and (got := bare.decode(ids)) != expected:
            causes = _why_decoded(bare, runtime, ids, expected)
            yield Difference("decode", text, causes, text in facts.ordinary, expected, got)


def _why_decoded(bare: BareText, runtime: Runtime, ids: Sequence[int], expected: str) -> tuple[str, ...]:
    """The causes whose token ids, removed one kind at a time and then together, make both texts equal."""
    pieces = {id_: runtime.decode([id_]) for id_ in set(ids)}
    kinds = {
        "control_tokens": {id_ for id_, piece in pieces.items() if not piece},
        "nul": {id_ for id_, piece in pieces.items() if piece == "\0"},
        "long_tokens": {id_ for id_, piece in pieces.items() if len(piece.encode()) > LONGEST_PIECE},
    }

    def cured(causes: Sequence[str]) -> bool:
        left_out = set().union(*(kinds[cause] for cause in causes))
        kept = [id_ for id_ in ids if id_ not in left_out]
        return bare.decode(kept) == runtime.decode(kept)

    found = _enough([cause for cause, of_kind in kinds.items() if of_kind], cured)
    if not found and any(character == "\ufffd" or _is_noncharacter(character) for character in expected):
        found = ("not_utf8",)
    return found or (OTHER,)


def _enough(present: Sequence[str], cured: Callable[[Sequence[str]], bool]) -> tuple[str, ...]:
    """The first of the causes `present` whose remedy suffices; all of them if only all suffice; none otherwise."""
    attempts = [[cause] for cause in present] + ([list(present)] if len(present) > 1 else [])
    return tuple(next((causes for causes in attempts if cured(causes)), []))


def _is_noncharacter(character: str) -> bool:
    """Whether Unicode reserves the code point for internal use (Unicode Standard, section 23.7)."""
    code = ord(character)
    return code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF


def _rendered(
    bare: BareText, template: ChatTemplate, asked: Sequence[tuple[Sequence[Message], bool]]
) -> Iterator[Difference]:
    for messages, ordinary in asked:
        expected, got = _both(bare, template, messages)
        if expected != got:
            without = [{**message, "content": _prepared(message["content"], ["nul"])} for message in messages]
            cured = (
                without != [dict(message) for message in messages]
                and len({*_both(bare, template, without)}) == 1
            )
            at = next((n for n, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), 0)
            start = max(at - 20, 0)
            text = json.dumps([dict(message) for message in messages], ensure_ascii=False)
            causes = ("nul",) if cured else (OTHER,)
            yield Difference("render", text, causes, ordinary, expected[start:], got[start:])


def _both(bare: BareText, template: ChatTemplate, messages: Sequence[Message]) -> tuple[str, str]:
    """The prompt of the reference and the bare one; if both refuse the conversation, they agree."""
    expected = _prompt(partial(template.render, add_generation_prompt=True), messages)
    got = _prompt(bare.render, messages)
    return expected, expected if expected.startswith(REFUSED) and got.startswith(REFUSED) else got


def _prompt(render: Callable[[Sequence[Message]], str], messages: Sequence[Message]) -> str:
    try:
        return render(messages)
    except ConfigError as refusal:
        return REFUSED + refusal.message


def _length(found: Difference) -> int:
    return len(found.text)


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else repr(text[:60]) + "..."


def _ids(ids: Sequence[int]) -> str:
    return str(list(ids[:8]))
