from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from edgekit.base.artifacts import sha256_tree
from edgekit.base.errors import ConfigError, CorruptError, UnsupportedError
from edgekit.base.events import Event, Measured
from edgekit.export.weights.prune import prune, pruned_config
from edgekit.export.weights.safetensors_io import Weights
from edgekit.targets.target import Prune

LAYERS = 8
ROWS = [[1, 5, 9, 33, 70, 2], list(range(3, 60, 3)), [4]]
LAYER_TYPES = ["sliding_attention", "full_attention"] * 4


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model(folder: Path, family: str = "Llama", idle: tuple[int, ...] = (), **changes: Any) -> Path:
    """A seeded model of eight layers; the layers `idle` add next to nothing to the hidden state."""
    shape = {
        "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**{**shape, **changes})
    torch.manual_seed(3)
    network = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
        for layer in idle:
            network.model.layers[layer].self_attn.o_proj.weight.mul_(1e-5)
            network.model.layers[layer].mlp.down_proj.weight.mul_(1e-5)
    network.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def by_hand(folder: Path, dropped: list[int]) -> Any:
    """The model with the layers `dropped` taken out of it in memory, with no help from what is tested."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    kept = [layer for layer in range(LAYERS) if layer not in dropped]
    network.model.layers = torch.nn.ModuleList(network.model.layers[layer] for layer in kept)
    for new, layer in enumerate(network.model.layers):
        layer.self_attn.layer_idx = new
    for key in ("layer_types", "no_rope_layers"):
        if hasattr(network.config, key):
            setattr(network.config, key, [getattr(network.config, key)[layer] for layer in kept])
    network.config.num_hidden_layers = len(kept)
    return network.eval()


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama untied": ("Llama", {"tie_word_embeddings": False}),
    "mistral": ("Mistral", {"sliding_window": 6}),
    "qwen2 with a window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    ),
    "qwen3": ("Qwen3", {}),
    "gemma2": ("Gemma2", {"sliding_window": 4}),
    "gemma3": ("Gemma3Text", {"sliding_window": 4, "sliding_window_pattern": 3}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 3, "pad_token_id": 0}),
}


@pytest.mark.parametrize(("family", "changes"), FAMILIES.values(), ids=FAMILIES.keys())
def test_pruned_folder_is_the_model_without_those_layers(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    source = model(tmp_path / "model", family, idle=(2, 5, 6), **changes)
    result = prune(source, tmp_path / "out", Prune(drop_layers=3), calibration=ROWS)
    assert result["dropped"] == [2, 5, 6]
    pruned, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager", output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert pruned.config.num_hidden_layers == 5
    expected = by_hand(source, result["dropped"])
    for ids in ROWS:
        with torch.inference_mode():
            answers = [network(torch.tensor([ids])).logits for network in (pruned.eval(), expected)]
        torch.testing.assert_close(*answers, rtol=0, atol=1e-5)
    prompt = torch.tensor([ROWS[1]])
    texts = [
        m.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0) for m in (pruned, expected)
    ]
    assert torch.equal(*texts)


def test_the_layer_types_that_are_left_are_spelled_out(tmp_path: Path) -> None:
    source = model(tmp_path / "gemma", "Gemma3Text", idle=(1, 2), sliding_window=4)
    raw = json.loads((source / "config.json").read_text())
    assert raw["layer_types"][5] == "full_attention"
    del raw["layer_types"]  # as on the hub: a rule instead of a list
    (source / "config.json").write_text(
        json.dumps({**raw, "sliding_window_pattern": 3, "_sliding_window_pattern": 3})
    )
    assert prune(source, tmp_path / "out", Prune(drop_layers=2), calibration=ROWS)["dropped"] == [1, 2]
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    sliding, full = "sliding_attention", "full_attention"
    assert written["layer_types"] == [sliding, sliding, sliding, full, sliding, sliding]
    assert "sliding_window_pattern" not in written
    assert "_sliding_window_pattern" not in written
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").layer_types == written["layer_types"]


def test_only_lists_with_an_entry_for_each_layer_are_pruned() -> None:
    raw = {
        "num_hidden_layers": 4,
        "eos_token_id": [1, 2, 3, 4],
        "custom": [10, 11, 12, 13],
        "short": [1, 2],
        "kept": "x",
    }
    resolved = {**raw, "max_window_layers": 2, "layer_types": ["a", "b", "c", "d"]}
    assert pruned_config(raw, resolved, [0, 2, 3]) == {
        "num_hidden_layers": 3,
        "eos_token_id": [1, 2, 3, 4],
        "custom": [10, 12, 13],
        "short": [1, 2],
        "kept": "x",
        "max_window_layers": 1,
        "layer_types": ["a", "c", "d"],
    }


def test_influence_is_one_minus_the_cosine_of_a_layers_ends(tmp_path: Path) -> None:
    source = model(tmp_path / "model", idle=(4,))
    events: list[Event] = []
    influence = prune(source, tmp_path / "out", Prune(drop_layers=1), calibration=ROWS, emit=events.append)[
        "influence"
    ]
    network = transformers.AutoModelForCausalLM.from_pretrained(source)
    sums, count = torch.zeros(LAYERS), sum(map(len, ROWS))
    for ids in ROWS:
        states = network(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for layer in range(LAYERS - 1):  # the last state that transformers gives is already normed
            cosine = (states[layer] * states[layer + 1]).sum(-1) / (
                states[layer].norm(dim=-1) * states[layer + 1].norm(dim=-1)
            )
            sums[layer] += (1 - cosine).sum().item()
    assert influence[:-1] == pytest.approx((sums / count).tolist()[:-1], abs=1e-5)
    assert min(range(LAYERS), key=lambda layer: influence[layer]) == 4
    assert [e.value for e in events if isinstance(e, Measured)] == influence


def test_first_and_last_layer_stay_even_when_idle(tmp_path: Path) -> None:
    source = model(tmp_path / "model", idle=(0, 3, 7))
    result = prune(source, tmp_path / "out", Prune(drop_layers=1), calibration=ROWS)
    assert max(result["influence"][layer] for layer in (0, 3, 7)) < 0.01
    assert result["dropped"] == [3]


def test_pruning_keeps_dtypes_and_companions_and_is_repeatable(tmp_path: Path) -> None:
    source = model(tmp_path / "model")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    for out in ("first", "second"):
        prune(source, tmp_path / out, Prune(drop_layers=2), calibration=ROWS)
    assert sha256_tree(tmp_path / "first") == sha256_tree(tmp_path / "second")
    assert {dtype for dtype, _ in Weights(tmp_path / "first").layout.values()} == {torch.bfloat16}
    assert (tmp_path / "first" / "tokenizer.json").exists()
    assert (tmp_path / "first" / "generation_config.json").exists()


def test_nothing_dropped_is_the_same_model(tmp_path: Path) -> None:
    source = model(tmp_path / "model")
    assert prune(source, tmp_path / "out", Prune(drop_layers=0), calibration=ROWS)["dropped"] == []
    before, after = Weights(source), Weights(tmp_path / "out")
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_too_many_layers_and_no_rows_are_refused(tmp_path: Path) -> None:
    source = model(tmp_path / "model")
    with pytest.raises(ConfigError, match="6 of 8") as caught:
        prune(source, tmp_path / "out", Prune(drop_layers=6), calibration=ROWS)
    assert "at most 5" in caught.value.hint
    for rows in ([], [[]]):
        with pytest.raises(ConfigError, match="calibration"):
            prune(source, tmp_path / "out", Prune(drop_layers=1), calibration=rows)
    assert not (tmp_path / "out").exists()


def test_settings_for_layer_numbers_are_refused_by_name(tmp_path: Path) -> None:
    source = model(
        tmp_path / "model", "Qwen3Moe", mlp_only_layers=[1], num_experts=4, moe_intermediate_size=16
    )
    with pytest.raises(UnsupportedError, match="mlp_only_layers"):
        prune(source, tmp_path / "out", Prune(drop_layers=1), calibration=ROWS)


def test_a_rule_over_layer_numbers_that_is_not_known_is_found(tmp_path: Path) -> None:
    # Every second layer is a mixture of experts: dropping one shifts which, and the weights no longer fit.
    sizes = {
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "decoder_sparse_step": 2,
        "num_experts_per_tok": 2,
    }
    source = model(tmp_path / "model", "Qwen3Moe", **sizes)
    with pytest.raises(UnsupportedError, match="would not fit"):
        prune(source, tmp_path / "out", Prune(drop_layers=1), calibration=ROWS)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_damaged_models_are_named(tmp_path: Path) -> None:
    source = model(tmp_path / "model")
    file = source / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CorruptError, match=r"layers\.3\.mlp\.up_proj"):
        prune(source, tmp_path / "out", Prune(drop_layers=1), calibration=ROWS)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptError, match=r"model\.safetensors"):
        prune(source, tmp_path / "out", Prune(drop_layers=1), calibration=ROWS)
