"""The text path beside the tokenizers library, without a model: spaces, bytes, and words that would be cut."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import makers
import pytest
import vocabularies
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers

from edgekit.export.onnx.text import adapt
from edgekit.models.tokenizer import load_tokenizer
from edgekit.proof.battery import battery
from edgekit.runtimes.longwords import LongWords
from edgekit.runtimes.onnxtext import OnnxText

CHANCE = random.Random(0)
LONG = [
    "ab" * 60, "a" * 130, "x" * 99 + " " + "y" * 101, "温度は" * 40, "é" * 120 + "\n" + "<eos>" + "z" * 120,
    "".join(CHANCE.choices("pump hall12345.;", k=400)).replace(" ", ""), "\t" * 110, " " * 120, "▁" * 7 + "a" * 101,
]  # fmt: skip


def gemma_like() -> Tokenizer:
    """A small vocabulary with the rules of Gemma's: `▁` for spaces, bytes, and runs of spaces as added tokens."""
    tokenizer = vocabularies.sentencepiece(space_in_front=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    vocabulary = tokenizer.get_vocab()
    runs = [piece for piece in vocabulary if len(piece) > 1 and not piece.strip("▁")]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in [*runs, "▁" * 5]])
    return tokenizer


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    vocabularies.save(tokenizer, folder, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")
    return folder


def test_long_words_are_joined_as_the_tokenizers_library_joins_them(tmp_path: Path) -> None:
    tokenizer = gemma_like()
    whole = LongWords(saved(tokenizer, tmp_path))
    assert whole.usable
    for text in [*LONG, *battery()]:
        assert whole.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize(
    "change",
    [
        lambda rules: rules.update(normalizer={"type": "NFC"}),
        lambda rules: rules["model"].update(byte_fallback=False),
        lambda rules: rules["added_tokens"][0].update(lstrip=True),
        lambda rules: rules.update(pre_tokenizer={"type": "Whitespace"}),
    ],
)
def test_other_rules_are_left_to_the_runtime(change: Any, tmp_path: Path) -> None:
    folder = saved(gemma_like(), tmp_path)
    rules = json.loads((folder / "tokenizer.json").read_text())
    change(rules)
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    assert not LongWords(folder).usable


def test_pieces_are_shown_as_the_tokenizers_library_shows_them(tmp_path: Path) -> None:
    tokenizer = gemma_like()
    text = OnnxText(saved(tokenizer, tmp_path))
    size = tokenizer.get_vocab_size()
    drawn = [[CHANCE.randrange(size) for _ in range(CHANCE.randint(1, 12))] for _ in range(500)]
    for ids in [*drawn, *(tokenizer.encode(words).ids for words in battery())]:
        assert text.decode(ids) == tokenizer.decode(ids), ids


def test_spaces_in_front_are_stripped_once(tmp_path: Path) -> None:
    tokenizer = gemma_like()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    text = OnnxText(saved(tokenizer, tmp_path))
    for words in (" a", "   a", "a ", " ", ""):
        ids = tokenizer.encode(words, add_special_tokens=False).ids
        assert text.decode(ids) == tokenizer.decode(ids)


def test_runs_of_spaces_are_tokens_in_either_spelling(tmp_path: Path) -> None:
    tokenizer = gemma_like()
    text = OnnxText(saved(tokenizer, tmp_path))
    run = tokenizer.token_to_id("▁▁")
    assert list(text.parts("a  b▁▁c")) == ["a", run, "b", run, "c"]
    assert list(text.parts("a b")) == ["a b"] and list(text.parts("")) == []


def test_nul_is_its_byte_where_a_letter_looks_like_one(tmp_path: Path) -> None:
    folder = saved(gemma_like(), tmp_path)
    rules = json.loads((folder / "tokenizer.json").read_text())
    rules["model"]["vocab"] |= {"Ā": 9000, "\1": 9001}
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    byte = rules["model"]["vocab"]["<0x00>"]
    assert OnnxText(folder).control_ids == {"\0": byte, "\1": 9001}


def test_an_exported_tokenizer_shows_spaces_and_hides_what_transformers_hides(tmp_path: Path) -> None:
    folder = saved(gemma_like(), tmp_path)
    rules = json.loads((folder / "tokenizer.json").read_text())
    run = next(token for token in rules["added_tokens"] if token["content"] == "▁▁")
    added = load_tokenizer(folder).added_tokens_decoder
    added[run["id"]] = AddedToken("▁▁", special=True)
    assert adapt(rules, added)
    assert (run["content"], run["special"]) == ("  ", True)
    assert not adapt(rules, added)


def test_gemmas_own_vocabulary(tmp_path: Path) -> None:
    folder = makers.tokenizer_folder("gemma3")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = OnnxText(folder)
    whole = text.long_words
    assert whole is not None
    for words in [*battery(), *LONG]:
        ids = tokenizer.encode(words, add_special_tokens=False).ids
        assert whole.encode(words) == ids and text.decode(ids) == tokenizer.decode(ids), words
