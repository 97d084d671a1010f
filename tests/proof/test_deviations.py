"""Deviations: a runtime's own way is told and passes; a fault that looks like one, or a spoiled row, is refused."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from fake_runtime import CHATML, SPECIAL, FakeRuntime, bigram

from edgekit.base.events import GateResult
from edgekit.models.chat import ChatTemplate
from edgekit.models.words import Approximation
from edgekit.proof import text_path
from edgekit.proof.deviations import Deviation, Deviations
from edgekit.proof.facts import ReferenceFacts

TABLE = bigram(vocab_size=262, rows=262)
TOKENS = {**SPECIAL, "</s>": 259, "<unused0>": 260, "<tool_call>": 261}  # the last three are shown


@dataclass
class Shown(FakeRuntime):
    """A runtime that shows the tokens that it does not take for control tokens, and may end answers at some."""

    special: dict[str, int] = field(default_factory=lambda: dict(TOKENS))
    hides: tuple[int, ...] = ()
    guessed_stop_ids: frozenset[int] = frozenset()
    normalises: bool = False
    name: str = "llama.cpp"

    def decode(self, ids: Sequence[int]) -> str:
        texts = {id_: text.encode() for text, id_ in TOKENS.items() if id_ > 258 and id_ not in self.hides}
        return b"".join(bytes([i]) if i < 256 else texts.get(i, b"") for i in ids).decode(errors="replace")

    def encode(self, text: str) -> list[int]:
        return super().encode(unicodedata.normalize("NFC", text) if self.normalises else text)


def facts(*contents: str, normalises: bool = False) -> ReferenceFacts:
    return ReferenceFacts.of(Shown(TABLE, normalises=normalises), contents=contents)


def judged(
    runtime: FakeRuntime, reference: ReferenceFacts, *, own: bool = False
) -> tuple[dict[str, GateResult], list[Deviation]]:
    gates, found = text_path.identity(runtime, reference, "gguf", "export.gguf", own=own)
    return {gate.name.removeprefix("gguf."): gate for gate in gates if not gate.passed}, found


def test_a_runtime_like_the_reference_has_no_deviation() -> None:
    assert judged(Shown(TABLE), facts("a row with </s>")) == ({}, [])


def test_hidden_tokens_are_told_and_pass() -> None:
    failed, found = judged(Shown(TABLE, hides=(259, 260)), facts("a row"))
    assert failed == {}
    assert [(deviation.kind, deviation.texts) for deviation in found] == [
        ("hidden_tokens", ("</s>",)),
        ("marked_tokens", ("<unused0>",)),
    ]
    assert str(found[0]) == (
        "llama.cpp does not show 1 token of the model: '</s>'. An answer that contains such a text loses it."
    )


def test_what_llama_cpps_converter_leaves_out_is_a_fault_in_a_file_of_edgekit() -> None:
    hidden, plain = Shown(TABLE, hides=(260,)), Shown(TABLE)
    assert list(judged(hidden, facts(), own=True)[0]) == ["detokenization"]
    assert list(judged(plain, facts(normalises=True), own=True)[0]) == ["tokenizer_identity"]
    assert judged(Shown(TABLE, hides=(259,)), facts(), own=True)[0] == {}  # llama.cpp hides it in every file


def test_another_runtime_has_no_way_of_its_own() -> None:
    assert list(judged(Shown(TABLE, hides=(259,), name="onnxruntime"), facts())[0]) == ["detokenization"]
    failed, _ = judged(Shown(TABLE, name="onnxruntime"), facts(normalises=True))
    assert list(failed) == ["tokenizer_identity"]


def test_a_row_with_a_hidden_token_is_refused_with_the_reason() -> None:
    failed, _ = judged(Shown(TABLE, hides=(259,)), facts("fine", "close it with </s> here"))
    assert list(failed) == ["deviations"] and failed["deviations"].value == 0.0
    assert failed["deviations"].detail.startswith(
        "the rows contain 'close it with </s> here', and llama.cpp does not show 1 token of the model: '</s>'"
    )


def test_ends_that_the_runtime_chooses_are_told_and_pass_unless_a_row_contains_one() -> None:
    runtime = Shown(TABLE, guessed_stop_ids=frozenset({256, 258, 259}))
    failed, found = judged(runtime, facts("a row"))
    assert failed == {}
    assert [(deviation.kind, deviation.texts) for deviation in found] == [
        ("end_tokens", ("<|endoftext|>", "</s>"))
    ]
    assert list(judged(runtime, facts("</s>"))[0]) == ["deviations"]


def test_text_that_is_not_normalised_is_told_and_fails_where_the_rows_have_some() -> None:
    failed, found = judged(Shown(TABLE), facts("caf\u00e9", normalises=True))
    assert failed == {} and [deviation.kind for deviation in found] == ["unicode_form"]
    failed, _ = judged(Shown(TABLE), facts("cafe\u0301", normalises=True))
    assert list(failed) == ["deviations"] and "Normalise it first" in failed["deviations"].detail


@dataclass
class Spaces(Shown):
    """Shows U+2581 as a space, as vocabularies of SentencePiece do; may read two of them, typed, as one token."""

    joins: bool = False

    def encode(self, text: str) -> list[int]:
        ids = super().encode(text)
        pair = list("\u2581\u2581".encode())
        places = [n for n in range(len(ids)) if self.joins and ids[n : n + len(pair)] == pair]
        for place in reversed(places[:1]):
            ids[place : place + len(pair)] = [261]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return super().decode(ids).replace("<tool_call>", "  ").replace("\u2581", " ")


def test_typed_characters_that_stand_for_spaces_are_told_and_fail_where_the_rows_have_some() -> None:
    special = {text: id_ for text, id_ in TOKENS.items() if id_ != 261}
    reference, file = Spaces(TABLE, special=special, joins=True), Spaces(TABLE, special=special)
    failed, found = judged(file, ReferenceFacts.of(reference, ["a\u2581\u2581row"], contents=["a row"]))
    assert list(failed) == ["deviations"]  # the first text is a row as well
    assert [deviation.kind for deviation in found] == ["typed_spaces"]
    failed, _ = judged(file, ReferenceFacts.of(replace(reference, joins=False), contents=["a row"]))
    assert not failed


@dataclass
class SpellsAfterSpaces(Spaces):
    """Reads the added token after two spaces, typed in either way, as characters, which look the same when they are shown."""

    def encode(self, text: str) -> list[int]:
        for spelled in ("\u2581\u2581</s>", "  </s>"):
            if spelled in text:
                before, _, after = text.partition(spelled)
                return [*super().encode(before), *spelled.encode(), *self.encode(after)]
        return super().encode(text)


@dataclass
class SpellsSpaces(Spaces):
    """Reads a space beside a typed U+2581 as that character, as llama.cpp does in Gemma's files; may lose the space."""

    loses: bool = False

    def encode(self, text: str) -> list[int]:
        beside = " \u2581" in text
        return super().encode(
            text.replace(" \u2581", "\u2581\u2581") if beside else text.replace(" ", "", self.loses)
        )


def test_typed_spaces_are_told_where_they_are_read_as_spaces_once_they_are_replaced() -> None:
    special = {text: id_ for text, id_ in TOKENS.items() if id_ != 261}
    reference = ReferenceFacts.of(Spaces(TABLE, special=special), ["a \u2581 row"])
    failed, found = judged(SpellsSpaces(TABLE, special=special), reference)
    assert "tokenizer_identity" not in failed and "typed_spaces" in {deviation.kind for deviation in found}
    assert "tokenizer_identity" in judged(SpellsSpaces(TABLE, special=special, loses=True), reference)[0]


def test_typed_spaces_beside_an_added_token_are_told_only_where_that_token_is_read() -> None:
    special = {text: id_ for text, id_ in TOKENS.items() if id_ != 261}
    reference = ReferenceFacts.of(Spaces(TABLE, special=special, joins=True), ["\u2581\u2581</s>"])
    failed, found = judged(Spaces(TABLE, special=special), reference)
    assert "tokenizer_identity" not in failed and "typed_spaces" in {deviation.kind for deviation in found}
    text, expected = "\u2581\u2581</s>", [261, 259]
    assert Deviations(Spaces(TABLE, special=special), reference).explains_encoding(text, expected)
    assert not Deviations(SpellsAfterSpaces(TABLE, special=special), reference).explains_encoding(
        text, expected
    )


def test_a_text_that_the_runtime_reads_as_a_token_by_its_own_choice_is_told() -> None:
    special = {
        text: id_ for text, id_ in TOKENS.items() if text != "</s>"
    }  # "</s>" is four characters, and a token too
    known = Shown(TABLE, special=special)
    reference = replace(ReferenceFacts.of(known, contents=["a row"]), vocabulary=TOKENS)
    failed, found = judged(Shown(TABLE), reference)
    assert "tokenizer_identity" not in failed
    assert [deviation.texts for deviation in found if deviation.kind == "claimed_texts"] == [("</s>",)]
    assert "deviations" in judged(Shown(TABLE), replace(reference, contents=("one </s> here",)))[0]


def test_several_ways_of_a_runtime_in_one_text_are_told_together() -> None:
    special = {text: id_ for text, id_ in TOKENS.items() if text != "</s>"}
    known = Shown(TABLE, special=special, normalises=True)
    text = "cafe\u0301 </s>"
    reference = replace(ReferenceFacts.of(known, [text, "</s>"], contents=["a row"]), vocabulary=TOKENS)
    failed, found = judged(Shown(TABLE), reference)
    assert "tokenizer_identity" not in failed
    assert {deviation.kind for deviation in found} >= {"claimed_texts", "unicode_form"}
    lossy = Shown(TABLE, special={**TOKENS, "caf": 258})
    assert "tokenizer_identity" in judged(lossy, reference)[0]


@dataclass
class Frames(Shown):
    """Puts these ids before and after plain text."""

    before: tuple[int, ...] = (256,)
    after: tuple[int, ...] = ()

    def framed(self, text: str) -> list[int]:
        return [*self.before, *self.encode(text), *self.after]


@dataclass
class AsSet(Frames):
    """A reference whose maker's settings ask for no BOS, which its tokenizer adds nevertheless."""

    def framed_as_set(self, text: str) -> list[int]:
        return self.encode(text)


def test_plain_text_that_is_framed_as_the_makers_settings_ask_is_told() -> None:
    reference = ReferenceFacts.of(AsSet(TABLE), contents=["a row"])
    failed, found = judged(Frames(TABLE, before=()), reference)
    assert failed == {} and [deviation.kind for deviation in found] == ["frame"]
    assert "as tokenizer_config.json asks, and transformers does not" in str(found[0])
    assert judged(Frames(TABLE), reference) == ({}, [])  # as transformers does: no deviation


@pytest.mark.parametrize(
    "frame", [{"before": (257,)}, {"before": (256, 256)}, {"before": (), "after": (258,)}]
)
def test_plain_text_that_nobody_asked_to_frame_so_is_a_fault(frame: dict[str, tuple[int, ...]]) -> None:
    failed, found = judged(Frames(TABLE, **frame), ReferenceFacts.of(AsSet(TABLE)))
    assert list(failed) == ["tokenizer_identity"] and found == []
    assert "with the BOS and EOS that are added to it" in failed["tokenizer_identity"].detail


class Parts(Approximation):
    """A form of a rule for words that takes a sharp s for a word of its own, which gets another id."""

    def __init__(self) -> None:
        pass

    def differs_at(self, text: str) -> int | None:
        return None if (at := text.find("\u00df")) < 0 else at

    def encode(self, text: str) -> list[int]:
        return Shown(TABLE).encode(text.replace("\u00df", "ss"))


@dataclass
class Approximated(Shown):
    """A reference whose rule for words both runtimes have in this form only."""

    @property
    def approximations(self) -> dict[str, Approximation]:
        return {"llama.cpp": Parts(), "onnxruntime": Parts()}


@dataclass
class Splits(Shown):
    """A runtime with this form of the rule; with another if it `loses` capitals as well."""

    loses: bool = False

    def encode(self, text: str) -> list[int]:
        return Parts().encode(text.replace("B", "b") if self.loses else text)


@pytest.mark.parametrize(("name", "kind"), [("llama.cpp", "split_words"), ("onnxruntime", "split_slashes")])
def test_words_that_a_runtime_splits_otherwise_are_told_and_fail_where_the_rows_have_some(
    name: str, kind: str
) -> None:
    def reference(row: str, **changes: Any) -> ReferenceFacts:
        return ReferenceFacts.of(Approximated(TABLE, **changes), contents=[row])

    runtime = Splits(TABLE, name=name)
    for own in (False, True):
        failed, found = judged(runtime, reference("a row"), own=own)
        assert failed == {} and [deviation.kind for deviation in found] == [kind]
    failed, _ = judged(runtime, reference("the Stra\u00dfe here"))
    assert list(failed) == ["deviations"]
    assert failed["deviations"].detail.startswith(
        "the rows or the chat template contain '\u00dfe here', and "
    )
    template = ChatTemplate(CHATML.replace("You help.", "Hei\u00dft"), "<|im_start|>", "<|im_end|>")
    changed = Splits(TABLE, name=name, chat_template=template)
    assert list(judged(changed, reference("a row", chat_template=template))[0]) == ["deviations"]


def test_only_the_ids_of_the_runtimes_own_form_are_a_deviation() -> None:
    reference = ReferenceFacts.of(Approximated(TABLE))
    assert list(judged(Splits(TABLE, loses=True), reference)[0]) == ["tokenizer_identity"]
    assert list(judged(Splits(TABLE, name="another"), reference)[0]) == ["tokenizer_identity"]
    assert judged(Approximated(TABLE), reference) == ({}, [])  # a runtime that has the rule itself


@dataclass
class Package:
    """A runtime's package without edgekit, which reads the end of a word of `longest` characters otherwise."""

    runtime: FakeRuntime
    longest: int

    def encode(self, text: str) -> list[int]:
        ids = self.runtime.encode(text)
        return [*ids[:-1], 0] if max(map(len, text.split(" "))) >= self.longest else ids


@dataclass
class Packaged(Shown):
    """A runtime with such a package."""

    name: str = "onnxruntime"
    longest: int = 100

    def bare(self) -> Package:
        return Package(self, self.longest)


def test_long_words_that_a_package_cuts_are_told_and_fail_where_the_rows_have_some() -> None:
    failed, found = judged(Packaged(TABLE), facts("a row of short words"))
    assert failed == {} and [deviation.kind for deviation in found] == ["long_words"]
    assert "edgekit.load reads it as the model does" in str(found[0])
    failed, _ = judged(Packaged(TABLE), facts("see https://example.org/" + "a/" * 60))
    assert list(failed) == ["deviations"]
    assert (
        judged(Packaged(TABLE, longest=50), facts("a row"))[1] == []
    )  # parted words differ as well: another cause
    assert judged(Shown(TABLE), facts("a" * 200))[1] == []


class HidesAWord(Shown):
    """Drops a common word, as a file that types it as a control token."""

    def decode(self, ids: Sequence[int]) -> str:
        return super().decode(ids).replace("the", "")


class LosesAMark(Shown):
    """Reads composed characters wrongly, normalised or not."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text.replace("\u00e9", "e"))


@pytest.mark.parametrize(
    ("runtime", "gate"),
    [
        (HidesAWord(TABLE, hides=(259,)), "detokenization"),
        (Shown(TABLE, hides=(261,)), "detokenization"),  # "<tool_call>" marked as a control token
        (LosesAMark(TABLE, hides=(259,)), "tokenizer_identity"),
        (Shown(TABLE, hides=(259,), special={**TOKENS, "</s>": 260, "<unused0>": 259}), "tokenizer_identity"),
        (Shown(TABLE, guessed_stop_ids=frozenset({ord(",")})), "stop_ids"),  # an ordinary token ends answers
        (Shown(TABLE, stop_ids=frozenset({258, 259})), "stop_ids"),  # the file itself names a wrong one
        (
            Shown(TABLE, stop_ids=frozenset(), guessed_stop_ids=frozenset({258})),
            "stop_ids",
        ),  # serves without a stop
    ],
    ids=["word", "tool call", "mark", "swapped", "comma", "named", "missing"],
)
def test_a_fault_is_no_deviation(runtime: FakeRuntime, gate: str) -> None:
    failed, _ = judged(runtime, facts(normalises=isinstance(runtime, LosesAMark)))
    assert gate in failed


def test_examples_name_rare_tokens_before_those_kept_for_later() -> None:
    special = {**TOKENS, "<|a|>": 259}
    del special["</s>"]

    class Other(Shown):
        def decode(self, ids: Sequence[int]) -> str:
            return super().decode(ids).replace("</s>", "<|a|>")

    reference = ReferenceFacts.of(Other(TABLE, special=special))
    (found,) = judged(Other(TABLE, special=special, hides=(259, 260)), reference)[1]
    assert found.texts == ("<|a|>", "<unused0>")
    assert found.to_json()["texts"] == list(found.texts)
