"""The estimate of a tuning step's memory, held against the tensors that torch keeps for the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from edgekit.base import hardware
from edgekit.build import needs
from edgekit.build import plan as planning
from edgekit.data.rows import Row
from edgekit.data.splits import Dataset
from edgekit.targets.target import Tune
from edgekit.tuning.memory import MIB, SPARE, Batch, Need, base_dtype, estimate
from edgekit.tuning.trainer import answer_loss

SHAPE = {
    "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 700, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
RANK = 8


@pytest.mark.parametrize(
    ("family", "dtype", "plain", "recomputed"),
    [
        ("Llama", "float32", False, False),
        ("Llama", "float32", True, False),
        ("Llama", "bfloat16", False, False),
        ("Llama", "bfloat16", True, False),
        ("Llama", "float32", False, True),
        ("Llama", "bfloat16", False, True),
        ("Qwen3", "float32", False, False),
        ("Gemma3Text", "float32", False, False),
        ("Gemma3Text", "bfloat16", True, False),
    ],
)
def test_the_estimate_is_what_torch_keeps(family: str, dtype: str, plain: bool, recomputed: bool) -> None:
    batch = Batch(4, 192, 24, plain)
    need = estimate(SHAPE, Tune(rank=RANK), batch, dtype, 0)
    layer = (need.kept - need.recomputed) / (SHAPE["num_hidden_layers"] - 1)
    expected = (
        need.recomputed - layer if recomputed else need.kept
    )  # a layer is recomputed after the forward pass
    assert kept_mib(family, dtype, batch, recomputed) == pytest.approx(expected, rel=0.3)


def kept_mib(family: str, dtype: str, batch: Batch, recomputed: bool) -> float:
    """MiB of the tensors that a forward pass keeps, weights left out."""
    config = getattr(transformers, f"{family}Config")(**SHAPE)
    base = transformers.AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, dtype), attn_implementation="eager" if batch.plain_attention else "sdpa"
    )
    if recomputed:
        base.activation_checkpointing_enable()
    model = get_peft_model(
        base, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    ).train()
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if (place := value.untyped_storage().data_ptr()) not in own:
            kept[place] = value
        return value

    labels = torch.full((batch.rows, batch.tokens), -100)
    labels[:, -batch.answer :] = 5
    rows: dict[str, Any] = {"input_ids": torch.full_like(labels, 7), "labels": labels}
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"),
    ):
        answer_loss(model, model.get_output_embeddings(), rows)
    return sum(value.untyped_storage().nbytes() for value in kept.values()) / MIB


@pytest.mark.parametrize(
    ("wish", "available", "on"),
    [
        ("auto", 1000 / SPARE + 1, False),
        ("auto", 1000 / SPARE - 1, True),
        ("on", 9e9, True),
        ("off", 1, False),
    ],
)
def test_activations_are_recomputed_where_they_would_not_fit_or_where_it_is_asked_for(
    wish: Any, available: float, on: bool
) -> None:
    need = Need(weights=600, kept=400, recomputed=50)
    assert need.checkpoints(Tune(gradient_checkpointing=wish), available) is on


def test_the_base_computes_in_bfloat16_where_that_is_native() -> None:
    assert [base_dtype(Tune(), native) for native in (True, False)] == ["bfloat16", "float32"]
    assert base_dtype(Tune(dtype="bfloat16"), native_bf16=False) == "bfloat16"


def test_a_model_of_3_billion_weights_fits_16_gb_with_gradient_checkpointing() -> None:
    qwen = {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151936,
    }  # fmt: skip
    need = estimate(qwen, Tune(max_length=512), Batch(8, 512, 64), "float32", 2 * 3.1e9)
    assert need.weights + need.kept > 16000 > need.weights + need.recomputed
    assert need.checkpoints(Tune(), 14000)


@pytest.mark.parametrize(("available", "shown"), [(1, True), (1 << 40, False)])
def test_the_plan_says_whether_activations_are_recomputed(
    available: int, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "gpu", lambda: None)
    rows = [
        Row("a", ({"role": "user", "content": "on " * 40}, {"role": "assistant", "content": "ok"}), None, 1)
    ]
    data = Dataset("rows", rows, [], [])
    config = {**SHAPE, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    source = needs.Source.of(config, 10_000_000)
    for options, expected in ((Tune(), shown), (tune("on"), True), (tune("off"), False)):
        assert planning._recomputes(needs.tuning(source, options, data), options, available) is expected


def tune(gradient_checkpointing: Any) -> Tune:
    return Tune(gradient_checkpointing=gradient_checkpointing)
