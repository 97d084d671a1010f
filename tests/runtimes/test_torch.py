"""The torch runtime against plain transformers, and folders that must be refused."""

from __future__ import annotations

import gc
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from edgekit import registry
from edgekit.base.errors import ConfigError, EdgekitError
from edgekit.models.sampling import Sampling
from edgekit.runtimes import torch as torch_runtime
from edgekit.runtimes.torch import open_model

PROMPTS = [[5, 900, 31], [7], [44, 45, 46, 47, 48, 49, 50, 51], [1000, 2000]]


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Iterator[Any]:
    opened = open_model(tiny_llama, threads=1)
    yield opened
    opened.close()


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_it_is_a_runtime(model: Any) -> None:
    assert isinstance(model, registry.Runtime)
    assert model.vocab_size == 49152
    assert model.stop_ids == {2}


def test_logits_are_those_of_transformers(model: Any, tiny_llama: Path) -> None:
    with torch.no_grad():
        expected = plain(tiny_llama)(input_ids=torch.tensor([PROMPTS[2]])).logits[0].numpy()
    rows = model.logits(PROMPTS[2])
    assert rows.shape == (8, 49152)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, expected)


def test_the_last_logits_choose_each_token(model: Any) -> None:
    ids = list(PROMPTS[0])
    for token in model.generate(PROMPTS[0], 5, ignore_stop=True):
        assert token == int(model.logits(ids)[-1].argmax())
        ids.append(token)
    assert len(ids) == len(PROMPTS[0]) + 5


def test_text_and_template_are_the_tokenizers_own(model: Any) -> None:
    reference = tiny.tokenizer()
    text = "<|im_start|>user\nnaïve , 你好 👩<|im_end|>"
    assert model.encode(text) == reference(text, add_special_tokens=False).input_ids
    assert model.decode(model.encode(text)) == "user\nnaïve , 你好 👩"
    messages = [{"role": "user", "content": "Hi"}]
    assert model.chat_template.render(messages) == reference.apply_chat_template(messages, tokenize=False)


def test_a_batch_gives_what_one_by_one_gives(model: Any) -> None:
    assert model.generate_batch(PROMPTS, 6) == [list(model.generate(ids, 6)) for ids in PROMPTS]
    assert model.generate_batch([], 6) == []


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_a_common_beginning_is_computed_once_and_changes_no_answer(
    family: str, tmp_path: Path, monkeypatch: Any
) -> None:
    opened: Any = open_model(tiny.make(tmp_path / family, family), threads=1)
    prompts = [[*range(100, 130), *prompt] for prompt in PROMPTS]
    alone = [list(opened.generate(ids, 6)) for ids in prompts]
    begun = []
    begin = opened._begin
    monkeypatch.setattr(opened, "_begin", lambda ids: begun.append(list(ids)) or begin(ids))
    monkeypatch.setattr(torch_runtime, "SHARED", 8)
    assert opened.generate_batch(prompts, 6) == alone
    assert opened.generate_batch([prompts[0], prompts[0]], 6) == alone[:1] * 2
    # The layers of gemma3 with a sliding window would count the padding, so it computes the beginning with each prompt.
    assert begun == ([] if family == "gemma3" else [list(range(100, 130)), prompts[0][:-1]])
    opened.close()


def copy_with(folder: Path, tmp_path: Path, file: str, **values: Any) -> Path:
    copied = shutil.copytree(folder, tmp_path / "copy")
    path = copied / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return copied


def test_every_stop_id_of_the_generation_config_stops(model: Any, tiny_llama: Path, tmp_path: Path) -> None:
    answer = list(model.generate(PROMPTS[0], 6))
    folder = copy_with(tiny_llama, tmp_path, "generation_config.json", eos_token_id=[2, answer[3]])
    opened = open_model(folder, threads=1)
    cut = answer[: answer.index(answer[3])]
    assert opened.stop_ids == {2, answer[3]}
    assert list(opened.generate(PROMPTS[0], 6)) == cut
    assert list(opened.generate(PROMPTS[0], 6, ignore_stop=True)) == answer
    assert opened.generate_batch([PROMPTS[0], PROMPTS[0]], 6) == [cut, cut]


def test_a_folders_sampling_habits_do_not_leak_into_greedy_answers(
    model: Any, tiny_llama: Path, tmp_path: Path
) -> None:
    """Instruction models ship repetition penalties; the exported files' runtimes are asked without one."""
    folder = copy_with(
        tiny_llama, tmp_path, "generation_config.json", repetition_penalty=9.0, no_repeat_ngram_size=1
    )
    prompts = [ids * 4 for ids in PROMPTS]
    assert open_model(folder, threads=1).generate_batch(prompts, 8) == model.generate_batch(prompts, 8)


def test_sampling_follows_its_seed(model: Any) -> None:
    answers = [list(model.generate(PROMPTS[0], 8, Sampling(3.0, 1.0, seed))) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    assert list(model.generate(PROMPTS[0], 8, Sampling(3.0, 1e-6, 1))) == list(model.generate(PROMPTS[0], 8))


def test_a_context_is_held(tiny_llama: Path) -> None:
    small = open_model(tiny_llama, threads=1, context=8)
    assert len(list(small.generate(PROMPTS[2][:4], 4, ignore_stop=True))) == 4
    for ask in (
        lambda: list(small.generate(PROMPTS[2][:4], 5)),
        lambda: small.generate_batch([PROMPTS[1], PROMPTS[2][:4]], 5),
        lambda: small.logits(list(range(9))),
    ):
        with pytest.raises(ConfigError, match="exceed the context of 8"):
            ask()
    with pytest.raises(ConfigError, match="exceed the context of 512"):  # the model was made for no more
        open_model(tiny_llama, threads=1, context=4096).logits(list(range(513)))


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    tuned = get_peft_model(plain(tiny_llama), LoraConfig(r=4, lora_alpha=16, target_modules="all-linear"))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    folder = tmp_path_factory.mktemp("adapter")
    tuned.save_pretrained(folder)
    return folder


def test_an_adapter_is_applied_unmerged(model: Any, tiny_llama: Path, adapter: Path) -> None:
    from peft import PeftModel

    rows = open_model(tiny_llama, threads=1, adapter=adapter).logits(PROMPTS[2])
    with torch.no_grad():
        tuned = PeftModel.from_pretrained(plain(tiny_llama), str(adapter)).eval()
        expected = tuned(input_ids=torch.tensor([PROMPTS[2]])).logits[0].numpy()
    np.testing.assert_array_equal(rows, expected)
    assert np.abs(rows - model.logits(PROMPTS[2])).max() > 0.1


def test_pickled_weights_are_not_loaded(tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "pickled")
    torch.save(plain(tiny_llama).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(EdgekitError):
        open_model(folder, threads=1)


def test_a_pickled_adapter_is_not_loaded(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = shutil.copytree(adapter, tmp_path / "pickled")
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(EdgekitError):
        open_model(tiny_llama, threads=1, adapter=folder)


@pytest.mark.parametrize("fault", ["cut", "empty", "none", "config"])
def test_broken_folders_are_refused(tiny_llama: Path, tmp_path: Path, fault: str) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "broken")
    weights = folder / "model.safetensors"
    match fault:
        case "cut":
            with weights.open("r+b") as file:
                file.truncate(weights.stat().st_size // 2)
        case "empty":
            weights.write_bytes(b"")
        case "none":
            shutil.rmtree(folder)
        case "config":
            (folder / "config.json").write_text("{")
    with pytest.raises(EdgekitError) as refusal:
        open_model(folder, threads=1)
    assert str(folder) in refusal.value.message
    assert refusal.value.hint


def test_fewer_answers_are_computed_together_where_their_cache_would_be_large(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = model._model.config
    one = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim  # bytes of a token
    sizes: list[int] = []
    generate = model._model.generate

    def counted(input_ids: torch.Tensor, **options: Any) -> Any:
        sizes.append(len(input_ids))
        return generate(input_ids=input_ids, **options)

    monkeypatch.setattr(model._model, "generate", counted)
    whole = model.generate_batch(PROMPTS, 4)
    monkeypatch.setattr(torch_runtime, "ANSWERS_CACHE", 3 * one * (max(map(len, PROMPTS)) + 4))
    assert model.generate_batch(PROMPTS, 4) == whole
    assert sizes == [4, 3, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_closed_model_maps_no_file(tmp_path: Path) -> None:
    folder = tiny.make_small(tmp_path / "model", dtype="bfloat16")
    gc.disable()  # a collection by chance would free it too
    try:
        opened = open_model(folder, threads=1)
        assert str(folder) in Path("/proc/self/maps").read_text()
        opened.close()
        assert str(folder) not in Path("/proc/self/maps").read_text()
    finally:
        gc.enable()
