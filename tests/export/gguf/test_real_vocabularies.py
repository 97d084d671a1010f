"""The makers' own vocabularies, written into a GGUF file: what llama.cpp then reads and shows is what transformers does."""

from __future__ import annotations

import ctypes
import json
import random
import re
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import makers
import pytest
import tiny
import transformers
import vocabularies

from edgekit.containers.gguf import read_gguf
from edgekit.export.gguf import converter
from edgekit.export.gguf.vocab import SPACE, Vocabulary, read_vocabulary
from edgekit.models.tokenizer import ModelTokenizer, load_tokenizer
from edgekit.models.tokenizer_files import without_rows
from edgekit.proof.facts import ReferenceFacts

# Tokens that are shown by transformers, and that llama.cpp by their text makes control tokens, which it does not show.
HIDDEN = {
    "qwen3": {f"<|{name}|>" for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")},
    "gemma3": {"</s>"},
    "llama3.1": set(),
    "deepseek-v3": {"<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"},
}  # fmt: skip
ARCHITECTURES = {
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "llama3.1": "LlamaForCausalLM",
    "deepseek-v3": "LlamaForCausalLM",
}
# Of the special ids, the converter names one end of an answer, and no mask. Of the kinds, it chooses other names for two,
# which llama.cpp treats alike.
MORE_IDS = {f"tokenizer.ggml.{name}_token_id" for name in ("eot", "eom", "mask")}
OTHER_NAMES = {"gemma3": ("gpt2", "granite-embed-multi-311m"), "deepseek-v3": ("gpt2", "joyai-llm")}
LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<｜.*｜>|<unused\d+>")
CODE = "def read(x):\n    if x  > 10:\n\t\treturn x ** 2\n        # eight\n\n\n                                 end\r\n"
PIECES = [
    *(" " * n for n in range(1, 40)),
    *[
        "\t",
        "\n",
        "\n\n",
        "\r\n",
        "def",
        "return",
        " the",
        "1234",
        ".",
        "//",
        "{",
        "日本",
        "ひらがな",
        "é",
        "ß",
        "🚀",
    ],
    *["'s", "'RE", "½", "٣٤", "\u00a0", "\u3000", "ÀÉ", "µ", "<0x0A>", "<unused0>", "<|im_end|>"],
]


@pytest.fixture(scope="module", params=list(makers.MODELS))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    makers.tokenizer_folder(found)  # skips the test where the files were not fetched
    return found


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The maker's files, with what the model's own settings say of the tokens."""
    return model_folder(name, tmp_path_factory.mktemp(name))


def model_folder(name: str, folder: Path) -> Path:
    for file in makers.tokenizer_folder(name).iterdir():
        (folder / file.name).symlink_to(file)
    family, settings = makers.MODELS[name]
    config_class, extra = tiny.FAMILIES[family]
    config = getattr(transformers, config_class)(**{**tiny.SHAPE, **extra, **settings})
    config.architectures = [ARCHITECTURES[name]]
    config.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": settings["eos_token_id"]}))
    return folder


@pytest.fixture(scope="module")
def vocabulary(name: str, folder: Path) -> Vocabulary:
    return read_vocabulary(folder, makers.MODELS[name][1]["vocab_size"])


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


def opened(found: Vocabulary, folder: Path) -> llama_cpp.Llama:
    vocabularies.write_gguf(found, folder / "vocab.gguf")
    return llama_cpp.Llama(str(folder / "vocab.gguf"), vocab_only=True, verbose=False)


@pytest.fixture(scope="module")
def model(vocabulary: Vocabulary, folder: Path) -> llama_cpp.Llama:
    return opened(vocabulary, folder)


def piece(model: llama_cpp.Llama, token: int, special: bool) -> str:
    buffer = ctypes.create_string_buffer(512)
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    length = llama_cpp.llama_token_to_piece(vocab, token, buffer, 512, 0, special)
    return buffer.raw[:length].decode()


def test_ids_are_the_tokenizers_own(tokenizer: Any, vocabulary: Vocabulary, model: llama_cpp.Llama) -> None:
    pick = random.Random(0)
    texts = ["".join(pick.choice(PIECES) for _ in range(pick.randint(1, 14))) for _ in range(500)]
    texts = [CODE, *(" " * n for n in range(1, 80)), *texts]
    if form := vocabulary.tokens.unicode_form:
        texts = [unicodedata.normalize(form, text) for text in texts]
    own = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    for text, wanted in zip(texts, own, strict=True):
        assert model.tokenize(text.encode(), add_bos=False, special=True) == wanted.ids, text


def test_text_comes_back_as_it_was(model: llama_cpp.Llama) -> None:
    for text in (CODE, *(f"a{' ' * n}b" for n in range(1, 80))):
        ids = model.tokenize(text.encode(), add_bos=False, special=True)
        assert "".join(piece(model, token, special=True) for token in ids) == text


def test_added_tokens_are_read_and_shown(name: str, tokenizer: Any, model: llama_cpp.Llama) -> None:
    """Each added token is one id. The tokens that a tokenizer shows are shown, but for those that llama.cpp hides."""
    hidden, runs = set(), 0
    for id_, token in tokenizer.added_tokens_decoder.items():
        text = token.content
        if not text.strip(SPACE):  # stands for spaces, which are what people type
            text, runs = text.replace(SPACE, " "), runs + 1
        assert model.tokenize(text.encode(), add_bos=False, special=True) == [id_]
        assert piece(model, id_, special=True) == text
        if not token.special and piece(model, id_, special=False) != text:
            hidden.add(text)
    assert hidden == HIDDEN[name]
    assert runs == (30 if name == "gemma3" else 0)


@pytest.mark.skipif(
    converter.kept() is None, reason="no converter of llama.cpp; keep it: edgekit setup converter"
)
@pytest.mark.parametrize(
    "name",
    ["qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in makers.MODELS if name != "qwen3")],
    indirect=True,
)
def test_the_converters_file_differs_only_where_that_is_right(
    name: str, folder: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """What llama.cpp's own converter writes of the same folder, key by key and token by token."""
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    if name == "gemma3":  # the converter fails on the token without an embedding
        (tmp_path / "tokenizer.json").write_text(
            without_rows((folder / "tokenizer.json").read_text("utf-8"), len(vocabulary.tokens.texts)),
            "utf-8",
        )
        settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        for key in ("image_token", "boi_token", "eoi_token", "extra_special_tokens", "added_tokens_decoder"):
            settings.pop(key, None)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    script, out = converter.place() / converter.SCRIPT, tmp_path / "converted.gguf"
    command = [sys.executable, str(script), str(tmp_path), "--vocab-only", "--outfile", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    vocabularies.write_gguf(vocabulary, tmp_path / "own.gguf")
    own, theirs = (
        {
            key: value
            for key, value in read_gguf(tmp_path / file).metadata.items()
            if key.startswith("tokenizer.")
        }
        for file in ("own.gguf", "converted.gguf")
    )
    types, others = (found.pop("tokenizer.ggml.token_type") for found in (own, theirs))
    kinds = tuple(theirs.pop(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    named = tuple(own.pop(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    assert kinds == OTHER_NAMES.get(name, named)
    assert theirs.pop("tokenizer.ggml.add_sep_token", False) is False  # llama.cpp's default
    assert own.pop("tokenizer.ggml.add_space_prefix", False) is False  # the default of this kind
    assert {key for key in own if own[key] != theirs.get(key)} <= MORE_IDS
    assert theirs.keys() <= own.keys()
    different = {i: (types[i], others[i]) for i in range(len(types)) if types[i] != others[i]}
    for i, pair in different.items():
        text = vocabulary.tokens.texts[i]
        if pair != (gguf.TokenType.BYTE, gguf.TokenType.NORMAL):
            assert pair == (gguf.TokenType.USER_DEFINED, gguf.TokenType.CONTROL) and LOOKS_SPECIAL.fullmatch(
                text
            )
    assert len(different) == {"qwen3": 6, "gemma3": 6498, "llama3.1": 0, "deepseek-v3": 14}[name]


def test_every_stop_id_ends_an_answer(name: str, model: llama_cpp.Llama) -> None:
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    stops = makers.MODELS[name][1]["eos_token_id"]
    for token in stops if isinstance(stops, list) else [stops]:
        assert llama_cpp.llama_vocab_is_eog(vocab, token)


@pytest.mark.parametrize("name", ["gemma3"], indirect=True)
def test_runs_of_spaces_as_the_tokenizer_json_has_them_would_be_shown_as_such(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """The fault that these tests exist for; the ids alone do not show it."""
    tokens = vocabulary.tokens
    texts = [text.replace(" ", SPACE) if not text.strip(" ") else text for text in tokens.texts]
    wrong = opened(replace(vocabulary, tokens=replace(tokens, texts=texts)), tmp_path)
    ids = wrong.tokenize(b"a  b", add_bos=False, special=True)
    assert [piece(wrong, token, special=True) for token in ids] == ["a", SPACE * 2, "b"]


@pytest.mark.slow
def test_gpt_oss_is_read_as_llama_cpps_form_of_its_rule_says(tmp_path: Path) -> None:
    """Exactly so, over the whole battery, and otherwise than by the model for some of it."""
    folder = makers.tokenizer_folder("gpt-oss")
    found = read_vocabulary(folder, 201088)
    assert found.tokens.pre == "gpt-4o"
    model, facts = opened(found, tmp_path), ReferenceFacts.of(ModelTokenizer(folder))
    split = facts.split["llama.cpp"].ids
    for text, own in zip(facts.texts, facts.ids, strict=True):
        assert model.tokenize(text.encode(), add_bos=False, special=True) == list(split.get(text, own)), text
    assert len(split) > 100
