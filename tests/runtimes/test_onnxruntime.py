from __future__ import annotations

import json
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from edgekit.base.errors import ConfigError, CorruptError
from edgekit.base.events import ignore
from edgekit.export.onnx import export as onnx
from edgekit.models.likelihood import answer_likelihood
from edgekit.models.sampling import Sampling
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.proof import text_path
from edgekit.proof.battery import battery
from edgekit.proof.facts import ReferenceFacts
from edgekit.registry import ExportContext, Runtime
from edgekit.runtimes.onnxruntime import open_model
from edgekit.targets.target import OnnxExport

END = 2  # <|im_end|>: the stop id, and the pad id that the builder writes


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "onnx"
    onnx.export(
        tiny_llama, out, OnnxExport(format="onnx", precision="fp32"), ExportContext(tiny_llama), ignore
    )
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return open_model(folder, threads=1, context=256)


def prompts() -> list[list[int]]:
    """Twenty prompts of many lengths; some end in the stop id, which a chat prompt may."""
    made = [[1, *range(100 + 7 * n, 100 + 9 * n + 2)] for n in range(16)]
    return [*made, [1, 4093, 198, END], [END, END], [1, 198, END, END, END], [5]]


def chain(model: Runtime, ids: list[int], count: int) -> list[int]:
    """The greedy answer by way of `logits` alone."""
    answer: list[int] = []
    while len(answer) < count:
        token = int(model.logits([*ids, *answer])[-1].argmax())
        if token in model.stop_ids:
            break
        answer.append(token)
    return answer


def changed(folder: Path, tmp_path: Path, name: str, change: Callable[[Any], object]) -> Path:
    """A copy of `folder` in whose JSON file `name` something was changed."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    value = json.loads((copy / name).read_text(encoding="utf-8"))
    change(value)
    (copy / name).write_text(json.dumps(value), encoding="utf-8")
    return copy


def test_it_is_a_runtime(model: Any) -> None:
    assert isinstance(model, Runtime)
    assert (model.name, model.vocab_size, model.stop_ids) == ("onnxruntime", 49152, {END})


def test_logits_of_every_position_are_torchs(model: Any, tiny_llama: Path) -> None:
    import transformers

    ids = prompts()[9]
    network = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.inference_mode():
        expected = network(torch.tensor([ids])).logits[0].numpy()
    got = model.logits(ids)
    assert got.dtype == np.float32 and got.shape == (len(ids), 49152)
    assert np.abs(got - expected).max() < 1e-5


def test_generate_follows_the_logits(model: Any) -> None:
    for ids in prompts():
        assert list(model.generate(ids, 6)) == chain(model, ids, 6)


def test_batches_answer_as_single_prompts_do(model: Any) -> None:
    assert model.generate_batch(prompts(), 8) == [list(model.generate(ids, 8)) for ids in prompts()]
    assert model.generate_batch([], 8) == []


def test_answers_stop_before_the_stop_id(folder: Path, tmp_path: Path, model: Any) -> None:
    ids = prompts()[3]
    answer = list(model.generate(ids, 8))
    stop = answer[-1]
    until = answer[: answer.index(stop)]
    stopping = open_model(
        changed(
            folder,
            tmp_path,
            "genai_config.json",
            lambda config: config["model"].update(eos_token_id=[stop, 9]),
        )
    )
    assert list(stopping.generate(ids, 8)) == until
    assert stopping.generate_batch([ids, prompts()[4]], 8)[0] == until
    assert len(list(stopping.generate(ids, 8, ignore_stop=True))) == 8


def test_interleaved_answers_do_not_mix(model: Any) -> None:
    first, second = prompts()[2], prompts()[7]
    pairs = list(zip(model.generate(first, 6), model.generate(second, 6), strict=True))
    assert [a for a, _ in pairs] == list(model.generate(first, 6))
    assert [b for _, b in pairs] == list(model.generate(second, 6))


def test_sampling_is_seeded_and_follows_the_distribution(model: Any) -> None:
    ids = prompts()[5]
    hot = Sampling(temperature=2.0, seed=3)
    assert list(model.generate(ids, 8, hot)) == list(model.generate(ids, 8, hot))
    assert list(model.generate(ids, 8, hot)) != list(model.generate(ids, 8, Sampling(2.0, seed=4)))
    logits = model.logits(ids)[-1].astype(np.float64)
    order = np.argsort(-logits)

    def shares_at(temperature: float) -> np.ndarray:
        return np.exp((logits - logits.max()) / temperature)[order]

    def size_at(temperature: float) -> int:
        share = shares_at(temperature)
        return int(np.searchsorted(np.cumsum(share), 0.3 * share.sum())) + 1

    heat = next(float(t) for t in np.arange(0.05, 2.0, 0.005) if size_at(t) >= 2)
    share, nucleus = shares_at(heat), order[: size_at(heat)].tolist()
    drawn = [next(iter(model.generate(ids, 1, Sampling(heat, top_p=0.3, seed=seed)))) for seed in range(60)]
    assert 2 <= len(nucleus) <= 20 and set(drawn) <= set(nucleus)
    expected = share[0] / share[: len(nucleus)].sum()
    assert abs(drawn.count(nucleus[0]) / 60 - expected) < 4 * np.sqrt(expected * (1 - expected) / 60)


def test_what_cannot_be_answered_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match="prompt is empty"):
        list(model.generate([], 3))
    with pytest.raises(ConfigError, match="exceed the context of 256"):
        list(model.generate([1] * 250, 7))
    for ids in ([1, 49152], [-1]):
        with pytest.raises(ConfigError, match="outside the vocabulary"):
            model.logits(ids)
        with pytest.raises(ConfigError, match="outside the vocabulary"):
            model.decode(ids)


def test_text_path_is_the_models_own(model: Any, tiny_llama: Path) -> None:
    facts = ReferenceFacts.of(ModelTokenizer(tiny_llama))
    for gate in text_path.identity(model, facts, "onnx", "export.onnx")[0]:
        assert gate.passed, gate


def test_every_text_survives_encoding_and_decoding(model: Any) -> None:
    special = model.control_tokens
    for text in battery():
        if text not in special and not any(ord(character) in (4, 6, 19, 20, 22, 29) for character in text):
            assert model.decode(model.encode(text)) == text


def test_broken_utf8_does_not_end_a_text(model: Any, tiny_llama: Path) -> None:
    reference = Tokenizer.from_file(str(tiny_llama / "tokenizer.json"))
    smile = model.encode("a🙂b")
    for ids in ([smile[0], smile[1], smile[-1]], [smile[0], *smile[2:]], smile[1:2]):
        assert model.decode(ids) == reference.decode(ids)


def test_nul_and_its_neighbour_are_told_apart(model: Any, tiny_llama: Path) -> None:
    reference = Tokenizer.from_file(str(tiny_llama / "tokenizer.json"))
    for text in ("\0", "\1", "a\0\1\0b", "x  \0", "\0\0\0"):
        assert model.encode(text) == reference.encode(text, add_special_tokens=False).ids


def test_normalisation_is_done(folder: Path, tmp_path: Path) -> None:
    copy = changed(
        folder, tmp_path, "tokenizer.json", lambda tokenizer: tokenizer.update(normalizer={"type": "NFC"})
    )
    reference, opened = Tokenizer.from_file(str(copy / "tokenizer.json")), open_model(copy)
    for text in filter(lambda text: unicodedata.normalize("NFC", text) != text, battery()):
        assert opened.encode(text) == reference.encode(text, add_special_tokens=False).ids


def test_template_may_stand_in_the_tokenizer_config(folder: Path, tmp_path: Path, model: Any) -> None:
    def move(config: dict[str, Any]) -> None:
        config["chat_template"] = "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"
        config["bos_token"] = {"content": "<|im_start|>", "special": True}

    copy = changed(folder, tmp_path, "tokenizer_config.json", move)
    (copy / "chat_template.jinja").unlink()
    assert (
        open_model(copy).chat_template.render([{"role": "user", "content": "x"}]) == "<|im_start|>x<|im_end|>"
    )


def test_a_folder_without_template_says_so_when_asked(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "chat_template.jinja").unlink()
    opened = open_model(copy)
    with pytest.raises(ConfigError, match="no chat template"):
        _ = opened.chat_template


@pytest.mark.parametrize(
    "name", ["genai_config.json", "tokenizer.json", "tokenizer_config.json", "model.onnx", "model.onnx.data"]
)
@pytest.mark.parametrize("left", [None, 0, 0.5])
def test_missing_and_truncated_files_are_corrupt(
    folder: Path, tmp_path: Path, name: str, left: float | None
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    if left is None:
        (copy / name).unlink()
    else:
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[: int(left * len(whole))])
    with pytest.raises(CorruptError) as caught:
        open_model(copy)
    assert caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["model"]["decoder"].update(filename="../onnx/model.onnx"),
        lambda config: config["model"]["decoder"].update(filename="other.onnx"),
        lambda config: config["model"]["decoder"]["session_options"].update(custom_ops_library="evil.so"),
        lambda config: config["model"]["decoder"]["session_options"].update(enable_profiling="/tmp/profile"),
        lambda config: config["model"].update(embedding={"run_options": {"memory.enable_x": "1"}}),
        lambda config: config["model"].update(eos_token_id="two"),
        lambda config: config["model"].update(type="nonsense"),
        lambda config: config["model"].pop("vocab_size"),
        lambda config: config.pop("model"),
    ],
)
def test_hostile_configurations_are_corrupt(
    folder: Path, tmp_path: Path, change: Callable[[Any], object]
) -> None:
    copy = changed(folder, tmp_path, "genai_config.json", change)
    with pytest.raises(CorruptError):
        open_model(copy)


def test_every_model_file_that_is_named_is_checked(folder: Path, tmp_path: Path) -> None:
    pipeline = [{"embeddings": {"filename": "embeddings.onnx"}}]
    copy = changed(
        folder,
        tmp_path,
        "genai_config.json",
        lambda config: config["model"]["decoder"].update(pipeline=pipeline),
    )
    (copy / "embeddings.onnx").write_bytes(b"\x3a\xff")
    with pytest.raises(CorruptError, match=r"embeddings\.onnx is truncated or damaged"):
        open_model(copy)


def test_no_other_provider_is_loaded(folder: Path, tmp_path: Path, model: Any) -> None:
    ask = {"provider_options": [{"cuda": {"device_id": "0"}}]}
    copy = changed(
        folder,
        tmp_path,
        "genai_config.json",
        lambda config: config["model"]["decoder"]["session_options"].update(ask),
    )
    assert np.array_equal(open_model(copy, threads=1).logits(prompts()[0]), model.logits(prompts()[0]))


def test_weights_outside_the_folder_are_not_read(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.onnx.data").rename(tmp_path / "outside.data")
    graph = (copy / "model.onnx").read_bytes()
    (copy / "model.onnx").write_bytes(graph.replace(b"model.onnx.data", b"../outside.data"))
    with pytest.raises(CorruptError):
        open_model(copy)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        open_model(tmp_path / "nothing")


def test_a_device_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, edgekit.runtimes.onnxruntime\n"
        "loaded = {'torch', 'transformers', 'tokenizers', 'onnx'} & set(sys.modules)\n"
        "sys.exit(repr(loaded) if loaded else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_answers_are_scored_after_one_reading_of_the_prompt(model: Any, monkeypatch: Any) -> None:
    prompt, answers = [1, *range(100, 130)], [[7], [300, 301, 302], [7, 8]]
    stops = sorted(model.stop_ids)
    expected = [
        answer_likelihood(model.logits([*prompt, *answer], len(prompt) - 1), answer, stops)
        for answer in answers
    ]
    assert model.score_answers(prompt, answers) == pytest.approx(expected, abs=1e-3)
    monkeypatch.setattr(model, "_window", 64)  # as with a cache that cannot go back
    assert model.score_answers(prompt, answers) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ConfigError, match="token"):
        model.score_answers(prompt, [[7] * 300])
