from __future__ import annotations

import functools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import psutil
import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file

from edgekit.base.artifacts import sha256_tree
from edgekit.base.errors import ConfigError, CorruptError, UnsupportedError
from edgekit.base.events import Event, Progress
from edgekit.build.stages import MERGE_LOGIT_TOLERANCE
from edgekit.containers.safetensors import INDEX
from edgekit.export.weights import merge as merge_code
from edgekit.export.weights.merge import merge
from edgekit.export.weights.merge_check import measure_rounding, merge_proof
from edgekit.export.weights.safetensors_io import Weights
from edgekit.models import mapped

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SEQUENCES = [[1, 5, 9, 33, 70, 2], list(range(3, 60, 3)), [4]]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one thread, and with tiny layers treated like those of a large model."""
    torch.set_num_threads(1)
    monkeypatch.setattr(mapped, "KEPT", 100)


def base_model(folder: Path, family: str = "Llama", shards: str = "1GB", **changes: Any) -> Path:
    """A seeded model whose weights are large enough for answers to differ clearly."""
    shape = {
        "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 12, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**{**shape, **changes})
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder, max_shard_size=shards)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "edgekit.json").write_text("{}")
    return folder


adapter_for = functools.partial(tiny.adapter, r=4, lora_alpha=12, target_modules=LINEAR)


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    return {
        name: tensor
        for name, tensor in merged.items()
        if name != "lm_head.weight" or "lm_head.weight" in Weights(base)
    }


def changed_config(adapter: Path, **changes: Any) -> Path:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return adapter


def changed_tensors(adapter: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return adapter


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {r"layers\.0\..*q_proj": 7, "down_proj": 2},
        "alpha_pattern": {r"model.layers.1.self_attn.(k|v)_proj": 31, "^model.layers.2.mlp.up_proj": 0.5},
    },
    "rslora patterns": {"use_rslora": True, "rank_pattern": {"v_proj": 9}, "alpha_pattern": {"gate_proj": 3}},
    "dora": {"use_dora": True},
    "dora rslora": {"use_dora": True, "use_rslora": True, "alpha_pattern": {"o_proj": 5}},
    "modules_to_save": {"modules_to_save": ["lm_head", "norm"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "dora embedding": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "head": {"target_modules": ["lm_head", "v_proj"]},
    "trained biases": {"bias": "all"},
    "biases of the targets": {"bias": "lora_only", "target_modules": ["q_proj", "down_proj"]},
    "lora_bias": {"lora_bias": True, "target_modules": ["q_proj", "k_proj"]},
    "some layers": {"layers_to_transform": [0, 2], "target_modules": ["q_proj"]},
    "pattern target": {"target_modules": r".*\.1\.mlp\..*_proj"},
    "excluded": {"exclude_modules": ["o_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_merged_as_peft_merges(tmp_path: Path, options: dict[str, Any]) -> None:
    base = base_model(tmp_path / "base", attention_bias=True)
    adapter = adapter_for(base, tmp_path / "adapter", **options)
    merge(base, adapter, tmp_path / "out")
    merged, expected, before = Weights(tmp_path / "out"), merged_by_peft(base, adapter), Weights(base)
    assert set(merged) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-6)
    assert any(not torch.equal(merged[name], before[name]) for name in merged)
    proof = merge_proof(base, adapter, tmp_path / "out", SEQUENCES)
    assert proof["max_abs_logit_difference"] < MERGE_LOGIT_TOLERANCE
    assert proof["top1_agreement"] == 1.0
    assert proof["mean_kld_nats"] < 1e-9
    assert proof["n_tokens"] == sum(map(len, SEQUENCES))


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Mistral", "Gemma3Text"])
def test_tied_families_merge_as_peft_merges(tmp_path: Path, family: str) -> None:
    base = base_model(tmp_path / "base", family, tie_word_embeddings=True)
    adapter = adapter_for(base, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "out")
    merged, expected = Weights(tmp_path / "out"), merged_by_peft(base, adapter)
    assert "lm_head.weight" not in merged
    assert set(merged) == set(expected)
    assert all(torch.allclose(merged[name], tensor, rtol=0, atol=1e-6) for name, tensor in expected.items())
    assert (
        merge_proof(base, adapter, tmp_path / "out", SEQUENCES)["max_abs_logit_difference"]
        < MERGE_LOGIT_TOLERANCE
    )


def test_the_real_tokenizer_and_its_companions_come_along(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = adapter_for(tiny_llama, tmp_path / "adapter", r=8)
    merge(tiny_llama, adapter, tmp_path / "out")
    assert {f.name for f in tiny_llama.iterdir()} == {f.name for f in (tmp_path / "out").iterdir()}
    read = [transformers.AutoTokenizer.from_pretrained(folder) for folder in (tiny_llama, tmp_path / "out")]
    text = "Pump 7 leaks — été\n  <|im_start|>user"
    assert read[0].encode(text) == read[1].encode(text)
    proof = merge_proof(tiny_llama, adapter, tmp_path / "out", [read[0].encode(text)])
    assert proof["max_abs_logit_difference"] < MERGE_LOGIT_TOLERANCE


def test_sharded_in_sharded_out_and_twice_the_same_bytes(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", shards="1MB", hidden_size=128, vocab_size=2000)
    assert (base / INDEX).exists()
    adapter = adapter_for(base, tmp_path / "adapter", use_rslora=True)
    for out in ("first", "second"):
        merge(base, adapter, tmp_path / out, max_shard_mib=1)
    assert len(list((tmp_path / "first").glob("model-*-of-*.safetensors"))) > 1
    assert sha256_tree(tmp_path / "first") == sha256_tree(tmp_path / "second")
    merge(base, adapter, tmp_path / "single")
    expected = merged_by_peft(base, adapter)
    for folder in ("first", "single"):
        merged = Weights(tmp_path / folder)
        assert set(merged) == set(expected)
        assert all(
            torch.allclose(merged[name], tensor, rtol=0, atol=1e-6) for name, tensor in expected.items()
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_product_is_float32_whatever_is_stored(tmp_path: Path, dtype: str) -> None:
    base = base_model(tmp_path / "base")
    adapter = adapter_for(base, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "out", dtype=dtype)
    merged = Weights(tmp_path / "out")
    for name, tensor in merged_by_peft(base, adapter).items():
        torch.testing.assert_close(merged[name], tensor.to(getattr(torch, dtype)), rtol=0.01, atol=1e-6)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").dtype == getattr(torch, dtype)


def test_config_loses_its_quantization_and_gets_its_dtype(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config |= {"torch_dtype": "bfloat16", "dtype": "bfloat16", "quantization_config": {"load_in_4bit": True}}
    (base / "config.json").write_text(json.dumps(config))
    merge(base, adapter_for(base_model(tmp_path / "same"), tmp_path / "adapter"), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["torch_dtype"], config["quantization_config"]
    assert written == {**config, "dtype": "float32"}
    assert (tmp_path / "out" / "chat_template.jinja").exists()
    assert (tmp_path / "out" / "edgekit.json").exists()


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    events: list[Event] = []
    merge(base, adapter_for(base, tmp_path / "adapter"), tmp_path / "out", emit=events.append)
    steps = [event for event in events if isinstance(event, Progress)]
    assert len(steps) == len(Weights(base))
    assert steps[-1].done == steps[-1].total


@pytest.mark.skipif(sys.platform != "linux", reason="reads what is shared from /proc")
def test_memory_holds_a_tensor_and_not_the_model(tmp_path: Path) -> None:
    base = base_model(
        tmp_path / "base", hidden_size=320, intermediate_size=1280, num_hidden_layers=8, num_attention_heads=5,
        num_key_value_heads=5, head_dim=64,
    )  # fmt: skip
    adapter = adapter_for(base, tmp_path / "adapter")
    model_bytes = (base / "model.safetensors").stat().st_size
    largest = 4 * 320 * 1280
    process = psutil.Process(os.getpid())
    peak = 0

    def anonymous() -> int:
        memory = process.memory_info()
        return int(memory.rss - memory.shared)

    def watch(event: Event) -> None:
        nonlocal peak
        peak = max(peak, anonymous())

    merge(base, adapter, tmp_path / "warm")  # imports and buffers that stay
    before = anonymous()
    merge(base, adapter, tmp_path / "out", emit=watch)
    assert model_bytes > 50e6
    assert peak - before < 4 * largest


# What cannot be merged rightly is refused by name.


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"peft_type": None}, "None"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"use_qalora": True}, "use_qalora"),
        ({"a_later_invention": 1}, "a_later_invention"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
    ],
)
def test_options_beyond_merging_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    base = base_model(tmp_path / "base")
    adapter = changed_config(adapter_for(base, tmp_path / "adapter"), **changes)
    with pytest.raises(UnsupportedError, match=named):
        merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
    ],
)
def test_adapters_on_tied_weights_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    base = base_model(tmp_path / "base", tie_word_embeddings=True)
    adapter = adapter_for(base, tmp_path / "adapter", **options)
    with pytest.raises(UnsupportedError, match="lm_head|embed_tokens"):
        merge(base, adapter, tmp_path / "out")


def test_a_pickled_adapter_is_refused(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    adapter = adapter_for(base, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UnsupportedError, match=r"adapter_model\.bin"):
        merge(base, adapter, tmp_path / "out")
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors"):
        merge(base, adapter, tmp_path / "out")


def test_a_quantized_base_is_refused(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    adapter = adapter_for(base, tmp_path / "adapter")
    tensors = load_file(base / "model.safetensors")
    save_file({**tensors, "extra.qweight": torch.zeros(3, dtype=torch.int32)}, base / "model.safetensors")
    changed = json.loads((base / "config.json").read_text()) | {
        "quantization_config": {"quant_method": "gptq"}
    }
    (base / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UnsupportedError, match="quantized"):
        merge(base, adapter, tmp_path / "out")


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="int4"):
        merge(tmp_path, tmp_path, tmp_path / "out", dtype="int4")


# An adapter that does not fit its base, or is damaged, is found and named.


def test_an_adapter_of_another_base_names_both_shapes(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    adapter = adapter_for(base_model(tmp_path / "wider", intermediate_size=96), tmp_path / "adapter")
    with pytest.raises(ConfigError) as caught:
        merge(base, adapter, tmp_path / "out")
    assert "(96, 48)" in caught.value.message
    assert "(80, 48)" in caught.value.message
    assert len(caught.value.faults) == 9


def test_an_adapter_of_another_depth_is_found(tmp_path: Path) -> None:
    shallow, deep = base_model(tmp_path / "shallow"), base_model(tmp_path / "deep", num_hidden_layers=4)
    with pytest.raises(ConfigError, match=r"layers\.3\..*no such module"):
        merge(shallow, adapter_for(deep, tmp_path / "a"), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"layers\.3\..*no adapter is stored"):
        merge(deep, adapter_for(shallow, tmp_path / "b"), tmp_path / "out")


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(f"{Q}.lora_B.weight"), "q_proj: expected lora_A, lora_B, found lora_A"),
        (lambda t: t.update({f"{Q}.lora_C.weight": torch.zeros(1)}), "lora_C"),
        (lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(48)}), "lora_magnitude_vector"),
        (lambda t: t.update({"base_model.model.score.weight": torch.zeros(2, 48)}), "score"),
        (lambda t: t.update({"base_model.model.model.norm.weight": torch.zeros(7)}), r"\(7,\).*\(48,\)"),
        (
            lambda t: t.update(
                {f"{Q}.lora_{x}.weight": torch.zeros(s) for x, s in (("A", (6, 48)), ("B", (48, 6)))}
            ),
            "rank 6 stored, rank 4",
        ),
        (
            lambda t: [t.pop(k) for k in list(t) if k.startswith(Q)],
            "q_proj: in target_modules, but no adapter",
        ),
    ],
)
def test_no_adapter_tensor_is_dropped_or_made_up(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], named: str
) -> None:
    base = base_model(tmp_path / "base")
    adapter = changed_tensors(adapter_for(base, tmp_path / "adapter"), change)
    with pytest.raises(ConfigError, match=named):
        merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rank", [0, 8])
def test_a_rank_other_than_the_stored_one_is_found(tmp_path: Path, rank: int) -> None:
    base = base_model(tmp_path / "base")
    adapter = changed_config(adapter_for(base, tmp_path / "adapter"), rank_pattern={"q_proj": rank})
    with pytest.raises(ConfigError, match=f"rank 4 stored, rank {rank}"):
        merge(base, adapter, tmp_path / "out")


def test_a_saved_module_that_is_missing_is_found(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    adapter = changed_config(adapter_for(base, tmp_path / "adapter"), modules_to_save=["lm_head"])
    with pytest.raises(ConfigError, match="lm_head: in modules_to_save"):
        merge(base, adapter, tmp_path / "out")


def test_a_bias_without_a_place_is_found(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    adapter = adapter_for(base, tmp_path / "adapter", lora_bias=True)
    with pytest.raises(ConfigError, match="a LoRA bias and the base has no bias"):
        merge(base, adapter, tmp_path / "out")


@pytest.mark.parametrize("which", ["base/model.safetensors", "adapter/adapter_model.safetensors"])
def test_truncated_files_are_named(tmp_path: Path, which: str) -> None:
    base = base_model(tmp_path / "base")
    adapter = adapter_for(base, tmp_path / "adapter")
    file = tmp_path / which
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CorruptError, match=file.name):
        merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    adapter = adapter_for(base, tmp_path / "adapter")
    broken = changed_tensors(adapter, lambda t: t[f"{Q}.lora_B.weight"].fill_(3e6))
    with pytest.raises(CorruptError, match=r"q_proj\.weight.*float16"):
        merge(base, broken, tmp_path / "overflow", dtype="float16")
    broken = changed_tensors(adapter, lambda t: t[f"{Q}.lora_B.weight"].fill_(float("nan")))
    with pytest.raises(CorruptError, match=r"q_proj\.weight"):
        merge(base, broken, tmp_path / "nan")


# Planted faults: a wrong merge must be seen by the proof.


@pytest.mark.parametrize(
    "fault", ["alpha doubled", "B transposed", "one layer left out", "not merged", "rounded"]
)
def test_the_proof_finds_a_wrong_merge(tmp_path: Path, fault: str) -> None:
    base = base_model(tmp_path / "base")
    options = {"r": 48, "lora_alpha": 4, "target_modules": ["q_proj"]}
    right = adapter_for(base, tmp_path / "right", **options)
    wrong = adapter_for(base, tmp_path / "wrong", **options)
    if fault == "alpha doubled":
        changed_config(wrong, lora_alpha=8)
    elif fault == "B transposed":
        changed_tensors(wrong, lambda t: t.update({k: v.T for k, v in t.items() if "lora_B" in k}))
    elif fault == "one layer left out":
        changed_tensors(wrong, lambda t: t[f"{Q}.lora_B.weight"].zero_())
    elif fault == "not merged":
        changed_config(wrong, lora_alpha=0)
    merge(base, wrong, tmp_path / "out", dtype="bfloat16" if fault == "rounded" else "own")
    found = merge_proof(base, right, tmp_path / "out", SEQUENCES)
    assert found["max_abs_logit_difference"] > 10 * MERGE_LOGIT_TOLERANCE
    assert found["mean_kld_nats"] > 1e-6
    merge(base, right, tmp_path / "good")
    assert (
        merge_proof(base, right, tmp_path / "good", SEQUENCES)["max_abs_logit_difference"]
        < MERGE_LOGIT_TOLERANCE
    )


def narrow_base(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    base = base_model(folder)
    transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(base)
    return base


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_16_bits_is_merged_into_16_bits_and_rounded_once(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    base = narrow_base(tmp_path / "base", dtype)
    adapter = adapter_for(base, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "out")
    merged = Weights(tmp_path / "out")
    assert {kind for kind, _ in merged.layout.values()} == {dtype}
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").dtype == dtype
    exact = merged_by_peft(base, adapter)
    for name in merged:
        torch.testing.assert_close(merged[name].float(), exact[name], rtol=2**-8, atol=1e-6)
    proof = merge_proof(base, adapter, tmp_path / "out", SEQUENCES)
    assert proof["max_abs_logit_difference"] < MERGE_LOGIT_TOLERANCE
    rounding = proof["rounding"]
    assert rounding["wrong"] == [] and rounding["tensors"] == len(merged)
    assert 0 < rounding["relative_error"] < 2**-8
    assert rounding["relative_error"] < rounding["update_error"] < 0.1
    assert 0 < proof["mean_kld_nats"] < 0.01  # of the stored model
    assert (
        merge_proof(base_model(tmp_path / "wide"), adapter, tmp_path / "out", SEQUENCES)["rounding"] is None
    )


@pytest.mark.parametrize(
    "fault", ["alpha doubled", "one layer left out", "not merged", "rounded twice", "one weight", "lost"]
)
def test_the_proof_finds_a_wrong_merge_below_the_rounding(tmp_path: Path, fault: str) -> None:
    """The change is so small that the logits of the stored model hardly show it."""
    base = narrow_base(tmp_path / "base")
    right = adapter_for(base, tmp_path / "right", target_modules=["q_proj"])
    changed_tensors(right, lambda t: [t[key].mul_(0.1) for key in t if "lora_B" in key])
    merge(base, right, tmp_path / "good")
    assert merge_proof(base, right, tmp_path / "good", SEQUENCES)["rounding"]["wrong"] == []
    wrong = tmp_path / "wrong"
    shutil.copytree(right, wrong)
    if fault == "alpha doubled":
        changed_config(wrong, lora_alpha=24)
    elif fault == "one layer left out":
        changed_tensors(wrong, lambda t: t[f"{Q}.lora_B.weight"].zero_())
    elif fault == "not merged":
        changed_config(wrong, lora_alpha=0)
    merge(base, wrong, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "q_proj" in name)
    if fault == "rounded twice":
        by_8_bits = tensors[name].float().mul_(64).round_().div_(64)
        tensors[name] = by_8_bits.bfloat16()
    elif fault == "one weight":
        tensors[name][3, 5] *= 1 + 2**-7
    elif fault == "lost":
        del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    assert measure_rounding(base, right, tmp_path / "out").wrong


FINER = [
    "lm_head.weight",
    f"{Q.removeprefix('base_model.model.')}.weight",
    "model.layers.1.input_layernorm.weight",
]


def mixed_base(folder: Path) -> Path:
    """A base in bfloat16 with float32 weights that bfloat16 cannot hold: a head, an adapted layer and a norm."""
    base = narrow_base(folder)
    file = base / "model.safetensors"
    tensors = load_file(file)
    for name in FINER:
        tensors[name] = tensors[name].float() * 1.001
    save_file(tensors, file, {"format": "pt"})
    return base


def test_each_weight_of_a_mixed_base_keeps_its_type(tmp_path: Path) -> None:
    base = mixed_base(tmp_path / "base")
    adapter = adapter_for(base, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "out")
    assert Weights(tmp_path / "out").layout == Weights(base).layout
    proof = merge_proof(base, adapter, tmp_path / "out", SEQUENCES)
    assert proof["max_abs_logit_difference"] < MERGE_LOGIT_TOLERANCE
    assert proof["rounding"]["wrong"] == [] and proof["rounding"]["dtype"] == "bfloat16"
    assert 0 < proof["mean_kld_nats"] < 0.01


@pytest.mark.parametrize("name", FINER)
@pytest.mark.parametrize("fault", ["one weight", "stored in bfloat16"])
def test_the_proof_finds_a_fault_in_a_float32_weight_of_a_mixed_base(
    tmp_path: Path, name: str, fault: str
) -> None:
    base = mixed_base(tmp_path / "base")
    adapter = adapter_for(base, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    if fault == "one weight":
        tensors[name].view(-1)[7] *= 1 + 2**-20
    else:
        tensors[name] = tensors[name].bfloat16()
    save_file(tensors, file, {"format": "pt"})
    assert measure_rounding(base, adapter, tmp_path / "out").wrong == [name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_modules_trained_whole_are_held_against_their_float32_values(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    base = narrow_base(tmp_path / "base", dtype)
    adapter = adapter_for(base, tmp_path / "adapter", modules_to_save=["lm_head", "embed_tokens"])
    generator = torch.Generator().manual_seed(1)

    def train(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("lm_head", "model.embed_tokens"):
            key = f"base_model.model.{name}.weight"
            tensors[key] = tensors[key].float() + 0.01 * torch.randn(tensors[key].shape, generator=generator)

    changed_tensors(adapter, train)
    merge(base, adapter, tmp_path / "out")
    proof = merge_proof(base, adapter, tmp_path / "out", SEQUENCES)
    assert proof["max_abs_logit_difference"] < MERGE_LOGIT_TOLERANCE
    assert proof["rounding"]["wrong"] == [] and proof["mean_kld_nats"] > 0
    trained = load_file(adapter / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    merged = Weights(tmp_path / "out")["lm_head.weight"]
    assert torch.equal(merged, trained.to(dtype)) and not torch.equal(merged.float(), trained)


def test_the_proof_says_how_much_of_a_light_update_rounding_removes(tmp_path: Path) -> None:
    base = narrow_base(tmp_path / "base")
    adapter = adapter_for(base, tmp_path / "adapter")
    errors = []
    for factor in (1, 0.1, 0.001):
        changed_tensors(adapter, lambda t, by=factor: [t[key].mul_(by) for key in t if "lora_B" in key])  # type: ignore[misc]
        merge(base, adapter, tmp_path / str(factor))
        errors.append(measure_rounding(base, adapter, tmp_path / str(factor)).update_error)
    assert errors[0] < 0.1 and errors == sorted(errors)
    assert errors[2] == pytest.approx(1, abs=0.05)  # nothing is left of it


def test_the_proof_finds_wrong_arithmetic_where_rounding_hides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merge and its check use the same arithmetic; peft's is another."""
    base = narrow_base(tmp_path / "base")
    adapter = adapter_for(base, tmp_path / "adapter")
    right = merge_code._add_low_rank

    def wrong(a: Any, b: Any, scaling: float, *rest: Any) -> torch.Tensor:
        return right(a, b, scaling * 1.01, *rest)

    monkeypatch.setattr(merge_code, "_add_low_rank", wrong)
    merge(base, adapter, tmp_path / "out")
    proof = merge_proof(base, adapter, tmp_path / "out", SEQUENCES)
    assert proof["rounding"]["wrong"] == []
    assert proof["max_abs_logit_difference"] > MERGE_LOGIT_TOLERANCE
