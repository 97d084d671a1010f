"""llama.cpp on the sample file: ids, answers and stops, and files that must be refused."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import registry
from edgekit.base.errors import ConfigError, CorruptError, MissingPartError, UnsupportedError
from edgekit.models.sampling import Sampling
from edgekit.runtimes.llamacpp import open_model

TEXTS = [
    "",
    "Hello world",
    "  two spaces, a\ttab\n\nand lines ",
    "1234567890 3.14159 -7e10",
    "don't, won't! I'LL",
    "naïve café — “quotes”…",
    "Привет, мир. 你好，世界 こんにちは",
    "👩‍👩‍👧 🏳️‍🌈 z͑̓a͂l̽g̈o",
    "<|im_start|>user\nHi<|im_end|>\n",
    "not a token: <|im_star|> <|endoftext|><|endoftext|>",
    "a\x00b",
    "def f(x):\n\treturn x ** 2  # no",
]


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    opened = open_model(tiny.sample_gguf(), threads=1, context=128)
    yield opened
    opened.close()


def ask(model: Any, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    return list(model.encode(model.chat_template.render(messages, add_generation_prompt=True)))


def test_it_is_a_runtime(model: Any) -> None:
    assert isinstance(model, registry.Runtime)
    assert model.vocab_size == 49152


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_those_of_transformers(model: Any, text: str) -> None:
    reference = tiny.tokenizer()
    ids = reference(text, add_special_tokens=False).input_ids
    assert model.encode(text) == ids
    assert model.decode(ids) == reference.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


# Left out: control characters that the vocabulary has no byte for (transformers drops them before it merges,
# llama.cpp after), and code points that Unicode has not assigned (the two split them by other tables).
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"]), max_size=40))
def test_any_text_has_the_ids_of_transformers(model: Any, text: str) -> None:
    assert model.encode(text) == tiny.tokenizer()(text, add_special_tokens=False).input_ids


def test_decode_joins_bytes_and_drops_special_tokens(model: Any) -> None:
    emoji = model.encode("👩")
    assert len(emoji) > 1
    assert model.decode(emoji) == "👩"
    assert model.decode(emoji[:1]) == "\ufffd"
    assert model.decode([1, *model.encode(" , . !"), 2]) == " , . !"


def test_ids_outside_the_vocabulary_are_refused(model: Any) -> None:
    for id_ in (-1, model.vocab_size):
        with pytest.raises(ConfigError, match="outside the vocabulary"):
            model.decode([id_])


def test_template_and_stops_are_the_files_own(model: Any) -> None:
    template = model.chat_template
    reference = tiny.tokenizer()
    assert (template.bos_token, template.eos_token) == (reference.bos_token, reference.eos_token)
    messages = [{"role": "user", "content": "Hi"}]
    assert template.render(messages, add_generation_prompt=True) == reference.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    assert model.stop_ids == {0, 2, 4}  # no file of edgekit's: it ends where llama.cpp's own tools end
    assert model.guessed_stop_ids == {0, 4}  # "<|endoftext|>" and "<reponame>", whose texts llama.cpp knows


def test_logits_are_those_of_a_longer_prompt_cut_short(model: Any) -> None:
    ids = ask(model, "Name a river.")
    rows = model.logits(ids)
    assert rows.shape == (len(ids), model.vocab_size)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(model.logits(ids[:20]), rows[:20], atol=1e-3)


def test_logits_of_many_chunks_have_no_seams(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    ids = ask(model, "Name a river.")
    whole = model.logits(ids)
    monkeypatch.setattr("edgekit.runtimes.llamacpp.LOGITS_CHUNK", 8)
    pieces = model.logits(ids)
    assert (pieces.argmax(axis=1) == whole.argmax(axis=1)).mean() > 0.9
    assert np.abs(pieces - whole).mean() < 0.5  # a lost or repeated chunk differs by several units


def test_generate_follows_the_logits_and_is_the_same_each_time(model: Any) -> None:
    ids = ask(model, "What is the capital of France?")
    answer = list(model.generate(ids, 6))
    assert len(answer) == 6
    assert answer[0] == int(model.logits(ids)[-1].argmax())
    assert list(model.generate(ids, 6)) == answer
    assert list(itertools.islice(model.generate(ids, 6), 3)) == answer[:3]


def test_interleaved_answers_do_not_mix(model: Any) -> None:
    prompts = [ask(model, "Name a river."), ask(model, "Who wrote Hamlet?")]
    apart = [list(model.generate(ids, 4)) for ids in prompts]
    together = list(zip(*(model.generate(ids, 4) for ids in prompts), strict=True))
    assert [list(answer) for answer in zip(*together, strict=True)] == apart


def test_it_stops_at_a_stop_id_unless_told_not_to(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ask(model, "Name a river.")
    answer = list(model.generate(ids, 5))
    monkeypatch.setattr(model, "_stop_ids", frozenset({answer[2]}))
    cut = answer[: answer.index(answer[2])]
    assert list(model.generate(ids, 5)) == cut
    assert list(model.generate(ids, 5, ignore_stop=True)) == answer
    assert model.generate_batch([ids, ids], 5) == [cut, cut]


def test_sampling_follows_its_seed(model: Any) -> None:
    ids = ask(model, "Tell me a story.")
    answers = {seed: list(model.generate(ids, 6, Sampling(1.0, 0.95, seed))) for seed in (1, 2)}
    assert list(model.generate(ids, 6, Sampling(1.0, 0.95, 1))) == answers[1] != answers[2]
    assert list(model.generate(ids, 6, Sampling(1.0, 1e-6, 1))) == list(model.generate(ids, 6))


def test_a_batch_gives_what_one_by_one_gives(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.runtimes.llamacpp.SEQUENCES", 2)  # the third takes a place that becomes free
    prompts = [ask(model, f"Name {thing}.") for thing in ("a river", "one very large and old city", "a tree")]
    assert model.generate_batch(prompts, 4) == [list(model.generate(ids, 4)) for ids in prompts]
    assert model.generate_batch([], 4) == []
    assert model.generate_batch(prompts, 0) == [[], [], []]


def test_prompts_that_do_not_fit_are_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match="exceed the context of 128") as refusal:
        list(model.generate([5] * 120, 9))
    assert "context=129" in refusal.value.hint
    with pytest.raises(ConfigError, match="prompt is empty"):
        model.logits([])
    with pytest.raises(ConfigError, match="prompt is empty"):
        model.generate_batch([[5], []], 2)


def test_an_answer_under_way_outlives_close() -> None:
    opened = open_model(tiny.sample_gguf(), threads=1, context=64)
    answer = opened.generate(opened.encode("The capital of France is"), 3)
    first = next(answer)
    opened.close()
    opened.close()
    assert isinstance(first, int)
    assert len(list(answer)) == 2


@pytest.mark.parametrize("kept", [0, 3, 20, 1000, 97_000_000, -1])
def test_a_cut_off_file_is_refused(tmp_path: Path, kept: int) -> None:
    source = tiny.sample_gguf()
    size = source.stat().st_size
    cut = tmp_path / "cut.gguf"
    with source.open("rb") as whole, cut.open("wb") as file:
        file.write(whole.read(min(kept % size, 2_000_000)))  # the header is inside; zeros stand for weights
        file.truncate(kept % size)
    with pytest.raises(CorruptError) as refusal:
        open_model(cut, threads=1)
    assert str(cut) in refusal.value.message
    assert refusal.value.hint


def test_other_files_are_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.gguf"
    page.write_text("<html>not found</html>")
    with pytest.raises(CorruptError, match="not a GGUF file"):
        open_model(page)
    big_endian = tmp_path / "big.gguf"
    big_endian.write_bytes(b"GGUF\x00\x00\x00\x03" + bytes(32))
    with pytest.raises(CorruptError, match="version"):
        open_model(big_endian)
    with pytest.raises(ConfigError, match="There is no file"):
        open_model(tmp_path / "none.gguf")


def test_one_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    """llama.cpp would look for the other parts by name and read them unchecked."""
    key = b"split.count"
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    (tmp_path / "part.gguf").write_bytes(header + struct.pack("<IH", 2, 3))
    with pytest.raises(UnsupportedError, match="one of 3 parts"):
        open_model(tmp_path / "part.gguf")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edgekit.runtimes.llamacpp")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MissingPartError, match="llama_cpp"):
        registry.load("runtimes", "llama.cpp")


def test_it_opens_silently_and_without_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from edgekit.runtimes.llamacpp import open_model\n"
        "model = open_model(Path(sys.argv[1]), threads=1, context=64); list(model.generate([5, 6], 2))\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny.sample_gguf())], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
