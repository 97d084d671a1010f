"""A tokenizer written into a GGUF file gives the same ids in llama.cpp, or is refused by name."""

from __future__ import annotations

import functools
import json
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import pytest
import tiny
import transformers
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, processors

from edgekit.base.errors import CorruptError, UnsupportedError
from edgekit.export.gguf.vocab import UNICODE_FORM, read_tokens, read_vocabulary
from edgekit.models.words import Approximation, approximations

BYTE_LEVEL = list(vocabularies.PRE_TOKENIZERS)
SPECIAL = vocabularies.SPECIAL
PIECES = [
    *"abrtW019.,;'!()_-/\n\t =é日ж½²🚀",
    *["  ", "    ", "\r\n", "\n\n\n", "'s", "'RE", "'ll", "don't", "return", "pump", "1234", "٣٤", "�"],
    *[
        "<|im_start|>",
        "<|endoftext|>",
        "<unk>",
        "<eos>",
        "<0x0A>",
        "▁",
        "e\u0301",
        "\u00a0",
        "\u3000",
        "ÜBER",
        "Мир",
    ],
]
texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=40).map("".join)


def opened(folder: Path, rows: int) -> llama_cpp.Llama:
    vocabularies.write_gguf(read_vocabulary(folder, rows), folder / "vocab.gguf")
    return llama_cpp.Llama(str(folder / "vocab.gguf"), vocab_only=True, verbose=False)


def ids(model: llama_cpp.Llama, text: str) -> list[int]:
    found: list[int] = model.tokenize(text.encode(), add_bos=False, special=True)
    return found


Pair = tuple[Tokenizer, llama_cpp.Llama]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Every kind of small tokenizer, and llama.cpp with the same one out of a GGUF file."""
    kinds = {kind: vocabularies.byte_level(kind) for kind in BYTE_LEVEL}
    kinds |= {"llama": vocabularies.sentencepiece(True), "gemma4": vocabularies.sentencepiece(False)}
    made: dict[str, Pair] = {}
    for kind, tokenizer in kinds.items():
        bos = "<bos>" if kind in ("llama", "gemma4") else SPECIAL[1]
        folder = vocabularies.save(tokenizer, tmp_path_factory.mktemp("vocab") / kind, bos_token=bos)
        made[kind] = tokenizer, opened(folder, tokenizer.get_vocab_size() + 3)
    return made


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, "llama", "gemma4"])
@given(text=texts)
@settings(max_examples=150, deadline=None)
def test_ids_are_the_tokenizers_own(kind: str, pairs: dict[str, Pair], text: str) -> None:
    """Or exactly what edgekit says that llama.cpp makes of a rule for words that it does not reproduce."""
    tokenizer, model = pairs[kind]
    own = tokenizer.encode(text, add_special_tokens=False).ids
    form = approximation(kind)
    assert ids(model, text) == (form.encode(text) if form else own)
    if form and form.differs_at(text) is None:
        assert form.encode(text) == own


@functools.cache
def approximation(kind: str) -> Approximation | None:
    byte_level = kind in BYTE_LEVEL
    return approximations(vocabularies.byte_level(kind)).get("llama.cpp") if byte_level else None


@pytest.mark.parametrize("kind", ["tekken", "gpt-4o"])
@pytest.mark.parametrize("word", ["ÜBER", "مَضَخَّة"])
def test_words_that_llama_cpp_splits_otherwise_are_found(
    kind: str, word: str, pairs: dict[str, Pair]
) -> None:
    tokenizer, model = pairs[kind]
    text, form = f"the pump {word}", approximation(kind)
    assert form and form.differs_at(text) == len("the pump")  # a word begins with the space before it
    assert ids(model, text) == form.encode(text) != tokenizer.encode(text, add_special_tokens=False).ids
    assert form.differs_at("The pump, Über, über ДОМ") is None


OTHER_RULES = [
    ("smollm", "gpt-2"), ("llama-bpe", "qwen2"), ("qwen2", "gpt-2"), ("tekken", "pixtral"), ("tekken", "gpt-4o"),
    ("gpt-4o", "llama-bpe"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "other"), OTHER_RULES)
def test_another_splitting_rule_is_seen(
    kind: str, other: str, pairs: dict[str, Pair], tmp_path: Path
) -> None:
    """The texts above tell the rules apart: with the wrong name some ids are neither the tokenizer's nor an approximation."""
    tokenizer = pairs[kind][0]
    folder = vocabularies.save(tokenizer, tmp_path / kind)
    rule = read_vocabulary(folder, tokenizer.get_vocab_size())
    vocabularies.write_gguf(replace(rule, tokens=replace(rule.tokens, pre=other)), tmp_path / "wrong.gguf")
    wrong = llama_cpp.Llama(str(tmp_path / "wrong.gguf"), vocab_only=True, verbose=False)
    samples = ["Ankara'daki", *(a + b + c for a in PIECES for b in PIECES for c in ("1234", "  x\n"))]
    form = approximation(kind)
    for text in samples:
        found, own = ids(wrong, text), tokenizer.encode(text, add_special_tokens=False).ids
        if found not in (own, form.encode(text) if form else own):
            return
    pytest.fail("no text tells the rules apart")


def test_the_sample_models_tokenizer_is_written_as_its_own_file_has_it(tiny_llama: Path) -> None:
    found = read_vocabulary(tiny_llama, len(tiny.tokenizer()))
    source = gguf.GGUFReader(tiny.sample_gguf())

    def key(name: str) -> Any:
        field = source.get_field(name)
        return None if field is None else field.contents()

    assert found.tokens.model == key("tokenizer.ggml.model")
    assert found.tokens.pre == key("tokenizer.ggml.pre") == "smollm"
    assert found.tokens.texts == key("tokenizer.ggml.tokens")
    assert found.tokens.types == key("tokenizer.ggml.token_type")
    assert found.tokens.merges == key("tokenizer.ggml.merges")
    assert found.chat_template == key("tokenizer.chat_template")
    assert found.add_bos == key("tokenizer.ggml.add_bos_token")
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    assert found.special_ids == {
        short: key(f"tokenizer.ggml.{name}_token_id") for short, name in names.items()
    }


def rules(tokenizer: Tokenizer) -> dict[str, Any]:
    """What `tokenizer.json` holds."""
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found


def test_rows_without_a_token_are_filled_and_too_few_rows_refused() -> None:
    tokenizer = vocabularies.byte_level()
    size = tokenizer.get_vocab_size()
    found = read_tokens(rules(tokenizer), size + 2)
    assert found.texts[-2:] == [f"[PAD{size}]", f"[PAD{size + 1}]"]
    assert found.types[-1] == gguf.TokenType.UNUSED
    with pytest.raises(CorruptError, match=f"only {size - 1} rows"):
        read_tokens(rules(tokenizer), size - 1)


def test_added_tokens_keep_their_kind() -> None:
    tokenizer = vocabularies.byte_level()
    tokenizer.add_tokens(["<tool_call>"])
    found = read_tokens(rules(tokenizer), tokenizer.get_vocab_size())
    assert found.types[tokenizer.token_to_id("<tool_call>")] == gguf.TokenType.USER_DEFINED
    assert found.types[tokenizer.token_to_id(SPECIAL[2])] == gguf.TokenType.CONTROL


def test_a_unicode_form_that_llama_cpp_does_not_make_is_written_down(tmp_path: Path) -> None:
    tokenizer = vocabularies.byte_level("qwen2")
    assert read_tokens(rules(tokenizer), 1000).unicode_form == ""
    tokenizer.normalizer = normalizers.NFC()
    model = opened(vocabularies.save(tokenizer, tmp_path / "model"), tokenizer.get_vocab_size())
    form = model.metadata[UNICODE_FORM]
    text = "l'e\u0301te\u0301"
    assert ids(model, unicodedata.normalize(form, text)) == tokenizer.encode(text).ids != ids(model, text)


@pytest.mark.parametrize("given", [True, False, None])
def test_add_bos_follows_the_tokenizer_as_transformers_loads_it(given: bool | None, tmp_path: Path) -> None:
    settings = {"bos_token": "<bos>"} | ({} if given is None else {"add_bos_token": given})
    folder = vocabularies.save(vocabularies.sentencepiece(True), tmp_path / "model", **settings)
    found = read_vocabulary(folder, 1000)
    ids = transformers.AutoTokenizer.from_pretrained(folder)("pump").input_ids
    assert found.add_bos is (ids[0] == found.special_ids["bos"])
    assert found.add_eos is False


def small(tmp_path: Path, **settings: Any) -> tuple[Path, int]:
    """A folder with a small byte-level tokenizer, and its number of tokens."""
    tokenizer = vocabularies.byte_level()
    return vocabularies.save(tokenizer, tmp_path / "model", **settings), tokenizer.get_vocab_size()


@pytest.mark.parametrize(
    ("generation", "config", "named"),
    [
        ([10, 2, 11], 2, {"eos": 2, "eot": 10, "eom": 11}),  # the tokenizer's own EOS keeps its place
        ([10, 11], 2, {"eos": 10, "eot": 11}),  # an answer does not end at the tokenizer's EOS
        (None, [2, 12], {"eos": 2, "eot": 12}),
        (None, None, {"eos": 2}),
    ],
)
def test_every_stop_id_is_named(generation: Any, config: Any, named: dict[str, int], tmp_path: Path) -> None:
    folder, size = small(tmp_path, eos_token=SPECIAL[2])
    (folder / "config.json").write_text(json.dumps({"eos_token_id": config}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert read_vocabulary(folder, size).special_ids == named
    model = opened(folder, size)
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    assert all(llama_cpp.llama_vocab_is_eog(vocab, token) for token in named.values())


def test_more_stop_ids_than_a_file_can_name_are_refused(tmp_path: Path) -> None:
    folder, size = small(tmp_path, eos_token=SPECIAL[2])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 10, 11, 12]}))
    with pytest.raises(UnsupportedError, match="more than a GGUF file can name"):
        read_vocabulary(folder, size)


def test_the_template_file_wins_over_the_settings(tmp_path: Path) -> None:
    folder, size = small(tmp_path, chat_template="old")
    assert read_vocabulary(folder, size).chat_template == "old"
    (folder / "chat_template.jinja").write_text("new\n")
    assert read_vocabulary(folder, size).chat_template == "new\n"


def phi3(folder: Path, **changes: bool) -> Path:
    """A tokenizer whose special tokens take the spaces after them, as Phi-3's; `changes` say which do otherwise."""
    text = vocabularies.sentencepiece(True).to_str().replace("<bos>", "<s>").replace("<eos>", "</s>")
    tokenizer = Tokenizer.from_str(text)
    taking = {
        "<s>": False,
        "</s>": True,
        "<unk>": False,
        "<|endoftext|>": False,
        "<|user|>": True,
        "<|end|>": True,
        **changes,
    }
    tokenizer.add_special_tokens([AddedToken(name, rstrip=taking[name], normalized=False) for name in taking])
    return vocabularies.save(tokenizer, folder, bos_token="<s>", eos_token="</s>")


def test_spaces_after_special_tokens_are_taken_as_phi_3_does(tmp_path: Path) -> None:
    folder = phi3(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert read_vocabulary(folder, 1000).tokens.strips
    model = opened(folder, len(tokenizer))
    for text in ("<|user|>\n  the pump<|end|> \n<|end|>x</s>  y", "pump  <|user|> a"):
        assert ids(model, text) == tokenizer(text, add_special_tokens=False).input_ids
    assert not read_vocabulary(
        vocabularies.save(vocabularies.sentencepiece(True), tmp_path / "b"), 1000
    ).tokens.strips


@pytest.mark.parametrize("change", [{"<|end|>": False}, {"<s>": True}])
def test_other_tokens_that_take_spaces_are_refused(change: dict[str, bool], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="rstrip"):
        read_vocabulary(phi3(tmp_path / "model", **change), 1000)


Change = Callable[[dict[str, Any]], Any]
PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
BYTE_LEVEL_REFUSED: dict[str, tuple[Change, str]] = {
    "model": (lambda t: t["model"].update(type="Unigram"), "Unigram"),
    "pattern": (
        lambda t: t["pre_tokenizer"].update(
            type="Sequence",
            pretokenizers=[
                {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        ),
        "no name in llama.cpp",
    ),
    "no pre-tokenizer": (lambda t: t.update(pre_tokenizer=None), "does not end in ByteLevel"),
    "prefix space": (lambda t: t["pre_tokenizer"].update(add_prefix_space=True), "add_prefix_space"),
    "whole words": (lambda t: t["model"].update(ignore_merges=True), "ignore_merges True"),
    "normalizer": (lambda t: t.update(normalizer={"type": "Lowercase"}), "Lowercase"),
    "stripping": (lambda t: t["added_tokens"][0].update(rstrip=True), "rstrip"),
    "twice": (lambda t: t["added_tokens"][0].update(content="a"), "same text"),
}
SENTENCEPIECE_REFUSED: dict[str, tuple[Change, str]] = {
    "space at the very front": (
        lambda t: t.update(
            normalizer=None,
            pre_tokenizer={
                "type": "Metaspace",
                "replacement": "▁",
                "prepend_scheme": "first",
                "split": False,
            },
        ),
        "first",
    ),
    "bytes": (lambda t: t["model"]["vocab"].pop("<0x41>"), "1 of the 256 bytes"),
    "missing merge": (lambda t: t["model"]["merges"].pop(0), "not in its merges"),
    "mingled merges": (lambda t: t["model"]["merges"].append(t["model"]["merges"][0]), "interleaved"),
    "other order": (
        lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [REPLACE, PREPEND]}),
        "leading space",
    ),
}


@pytest.mark.parametrize("case", BYTE_LEVEL_REFUSED)
def test_byte_level_tokenizers_without_a_counterpart_are_refused(case: str) -> None:
    change, message = BYTE_LEVEL_REFUSED[case]
    refused(vocabularies.byte_level(), change, message)


@pytest.mark.parametrize("case", SENTENCEPIECE_REFUSED)
def test_sentencepiece_tokenizers_without_a_counterpart_are_refused(case: str) -> None:
    change, message = SENTENCEPIECE_REFUSED[case]
    refused(vocabularies.sentencepiece(True), change, message)


def refused(tokenizer: Tokenizer, change: Change, message: str) -> None:
    changed = rules(tokenizer)
    assert read_tokens(changed, 1000).texts
    change(changed)
    with pytest.raises(UnsupportedError, match=message):
        read_tokens(changed, 1000)


def test_no_bos_in_front_is_refused_where_llama_cpp_always_puts_one(tmp_path: Path) -> None:
    tokenizer = vocabularies.sentencepiece(False)
    tokenizer.post_processor = processors.TemplateProcessing("$A")
    folder = vocabularies.save(tokenizer, tmp_path / "model", bos_token="<bos>")
    with pytest.raises(UnsupportedError, match="no BOS"):
        read_vocabulary(folder, 1000)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="cannot read the tokenizer"):
        read_vocabulary(tmp_path, 10)
