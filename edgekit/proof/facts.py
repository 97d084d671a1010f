"""What a reference does with text: token ids, decoded texts, chat template and stop ids, recorded as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edgekit.base.errors import ConfigError
from edgekit.data.rows import Message, contents_of
from edgekit.models.chat import ChatTemplate
from edgekit.models.words import Approximation
from edgekit.proof import texts as general
from edgekit.proof.battery import battery, random_sequences, special_strings

PLAIN = "a"  # one token in every vocabulary


class ReferenceTokenizer(Protocol):
    """The text path of a reference model."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with special tokens recognised."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens."""

    def framed(self, text: str) -> list[int]:
        """Token ids of `text` with the special tokens, such as BOS, that the tokenizer adds by itself."""

    def framed_as_set(self, text: str) -> list[int]:
        """The same as the maker's settings ask for it, which the tokenizer may not follow."""

    @property
    def approximations(self) -> Mapping[str, Approximation]:
        """What runtimes make of the tokenizer, by their names, as far as they do not reproduce its rule for words."""

    @property
    def template(self) -> ChatTemplate | None:
        """The reference's chat template; None if it has none, as a base model."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids at which the reference stops."""

    @property
    def added_tokens(self) -> list[str]:
        """Texts of the added tokens."""

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The id of each token, by the token's text as the tokenizer stores it."""


@dataclass(frozen=True)
class Split:
    """What a runtime's own form of the rule for words makes of texts: its ids of those that get others than the reference's.

    `first` is the first such text of the task's rows or of the template, from the word on that is split otherwise; empty
    when there is none.
    """

    ids: Mapping[str, tuple[int, ...]]
    first: str

    @classmethod
    def of(
        cls, form: Approximation, reference: ReferenceTokenizer, texts: Iterable[str], own: Iterable[str]
    ) -> Split:
        """What `form` makes of `texts`, and of the task's `own`."""

        def from_it(text: str) -> str:
            at = form.differs_at(text)
            return "" if at is None or form.encode(text) == reference.encode(text) else text[at:]

        ids = {text: tuple(form.encode(text)) for text in texts if from_it(text)}
        return cls(ids, next(filter(None, map(from_it, own)), ""))


@dataclass(frozen=True)
class ReferenceFacts:
    """The text path of a reference, as plain data.

    `ids[i]` are the token ids of `texts[i]`, `decoded[i]` is the reference's text of these ids, and `token_texts` holds
    the texts of added tokens, for messages. `ordinary` holds the texts, and `conversations` the conversations, that a
    person might write. Without a `template` there are no conversations. `contents` are the texts of the task's rows:
    no deviation of a runtime may spoil them. `vocabulary` has the id of each token, by its stored text. `framed` has the
    ids of the text `PLAIN` with BOS and EOS as the tokenizer adds them, `framed_as_set` as the maker's settings ask.
    `split` has what each runtime, by its name, makes of the tokenizer's rule for words where it does not reproduce it.
    """

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    decoded: tuple[str, ...]
    template: ChatTemplate | None
    stop_ids: frozenset[int]
    token_texts: Mapping[int, str]
    conversations: tuple[Sequence[Message], ...] = ()
    ordinary: frozenset[str] = frozenset()
    contents: tuple[str, ...] = ()
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    framed: tuple[int, ...] = ()
    framed_as_set: tuple[int, ...] = ()
    split: Mapping[str, Split] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        reference: ReferenceTokenizer,
        rows_text: Sequence[str] = (),
        rows: Sequence[Sequence[Message]] = (),
        contents: Iterable[str] = (),
    ) -> ReferenceFacts:
        """Record what `reference` does with the test strings, its added tokens and ordinary text.

        Ordinary text is `rows_text`, the conversations `rows`, and the prompts and passages of `proof.texts`.
        `contents` are all texts of the task, which may be many: they are searched, not encoded.
        """
        template = reference.template
        conversations = [*rows, *general.conversations()] if template else []
        prompts = [rendered(template, messages, True) for messages in conversations] if template else []
        ordinary = list(dict.fromkeys([*rows_text, *prompts, *general.TEXTS]))
        written = [*special_strings(reference.added_tokens), *battery(ordinary)]
        drawn = [reference.decode(ids) for ids in random_sequences(reference.vocab_size)]
        texts = list(dict.fromkeys([*written, *drawn]))
        ids = [reference.encode(text) for text in texts]
        added = set(reference.added_tokens)
        own = tuple(dict.fromkeys([*rows_text, *contents_of(rows), *contents]))
        searched = [*own, template.source] if template else own
        return cls(
            texts=tuple(texts),
            ids=tuple(map(tuple, ids)),
            decoded=tuple(reference.decode(found) for found in ids),
            template=template,
            stop_ids=reference.stop_ids,
            token_texts={
                f[0]: text for text, f in zip(texts, ids, strict=True) if text in added and len(f) == 1
            },
            conversations=tuple(conversations),
            ordinary=frozenset(ordinary),
            vocabulary=reference.vocabulary,
            framed=tuple(reference.framed(PLAIN)),
            framed_as_set=tuple(reference.framed_as_set(PLAIN)),
            contents=own,
            split={
                name: Split.of(form, reference, texts, searched)
                for name, form in reference.approximations.items()
            },
        )


def rendered(template: ChatTemplate, messages: Sequence[Message], prompt: bool) -> str:
    """The rendered conversation, or the message of the refusal."""
    try:
        return template.render(messages, add_generation_prompt=prompt)
    except ConfigError as refusal:
        return refusal.message
