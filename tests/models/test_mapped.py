"""Models whose weights stay in their files compute what a model loaded in float32 computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from edgekit.models import mapped

IDS = torch.arange(3, 27).reshape(2, 12) * 17
FILE = "model.safetensors"


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny layers are treated like those of a large model."""
    monkeypatch.setattr(mapped, "KEPT", 200)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return tiny.maker(tmp_path_factory.mktemp("small"))


def stored_as(folder: Path, dtype: torch.dtype, out: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(out)
    return out


def logits(network: object) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = network(IDS % 520).logits  # type: ignore[operator]
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_it_computes_what_the_float32_model_computes(
    small: Callable[..., Path], tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    folder = stored_as(small(family), dtype, tmp_path / "narrow")
    network = mapped.load(folder)
    assert network.model.layers[0].self_attn.o_proj.weight.dtype == dtype  # nothing was widened for good
    assert same_as_float32(folder, network)


def same_as_float32(folder: Path, network: torch.nn.Module) -> bool:
    return torch.equal(
        logits(network), logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    )


def test_pieces_of_a_product_are_the_product(
    small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stored_as(small("qwen2"), torch.bfloat16, tmp_path / "narrow")
    whole = logits(mapped.load(folder))
    monkeypatch.setattr(mapped, "WIDENED", 64 * 7)
    torch.testing.assert_close(logits(mapped.load(folder)), whole)


def with_finer(folder: Path, *names: str) -> dict[str, torch.Tensor]:
    """The tensors of `folder`, after those of `names` got float32 values that 16 bits cannot hold."""
    tensors = load_file(folder / FILE)
    for name in names:
        tensors[name] = tensors.get(name, torch.ones(8)).float() * 1.001
    save_file(tensors, folder / FILE, {"format": "pt"})
    return tensors


LARGE = "model.layers.0.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.embed_tokens.weight"),  # which is the head too
        ("llama-untied", "lm_head.weight"),
        ("llama-untied", "model.layers.1.mlp.up_proj.weight"),
        ("llama-untied", "model.norm.weight"),
    ],
)
def test_each_weight_keeps_its_own_type(
    small: Callable[..., Path], tmp_path: Path, family: str, name: str
) -> None:
    folder = stored_as(small(family), torch.bfloat16, tmp_path / "mixed")
    tensors = with_finer(folder, name)
    network = mapped.load(folder)
    assert torch.equal(network.get_parameter(name), tensors[name])
    assert network.get_parameter(LARGE).dtype == torch.bfloat16
    assert same_as_float32(folder, network)


def test_a_router_in_float32_stays_so_beside_experts_under_other_names(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    """transformers stacks the experts, so no tensor of that name is in the file."""
    folder = stored_as(small("qwen3-moe"), torch.bfloat16, tmp_path / "mixed")
    name = "model.layers.1.mlp.gate.weight"
    tensors = with_finer(folder, name)
    assert not any("gate_up_proj" in name for name in tensors)
    network = mapped.load(folder)
    assert torch.equal(network.get_parameter(name), tensors[name])
    assert network.get_parameter("model.layers.1.mlp.experts.gate_up_proj").dtype == torch.bfloat16
    assert same_as_float32(folder, network)


def test_a_finer_weight_that_is_loaded_under_another_name_is_not_rounded(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    folder = stored_as(small("qwen3-moe"), torch.bfloat16, tmp_path / "mixed")
    with_finer(folder, "model.layers.1.mlp.experts.3.up_proj.weight")
    network = mapped.load(folder)
    assert network.get_parameter("model.layers.1.mlp.experts.gate_up_proj").dtype == torch.float32
    assert same_as_float32(folder, network)


def test_a_tensor_that_is_not_loaded_does_not_count(small: Callable[..., Path], tmp_path: Path) -> None:
    folder = stored_as(small("llama"), torch.bfloat16, tmp_path / "old")
    with_finer(folder, "model.layers.0.self_attn.rotary_emb.inv_freq")
    network = mapped.load(folder)
    assert network.get_parameter(LARGE).dtype == torch.bfloat16
    assert same_as_float32(folder, network)


def test_few_weights_in_16_bits_are_widened(small: Callable[..., Path], tmp_path: Path) -> None:
    folder = stored_as(small("llama"), torch.float32, tmp_path / "mixed")
    tensors = load_file(folder / FILE)
    tensors[LARGE] = tensors[LARGE].bfloat16()
    save_file(tensors, folder / FILE, {"format": "pt"})
    network = mapped.load(folder)
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert same_as_float32(folder, network)


def test_the_type_in_the_config_does_not_count(small: Callable[..., Path], tmp_path: Path) -> None:
    network = mapped.load(small("llama", dtype="bfloat16"))
    assert {value.dtype for value in network.parameters()} == {torch.float32}


def test_whole_tensors_of_an_adapter_are_not_rounded(small: Callable[..., Path], tmp_path: Path) -> None:
    folder = stored_as(small("llama-untied"), torch.bfloat16, tmp_path / "narrow")
    adapter = tiny.adapter(
        folder, tmp_path / "adapter", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], bias="all"
    )
    trained = load_file(adapter / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    finer = {"base_model.model.lm_head.weight": trained.float() * 1.001}
    stored = load_file(adapter / "adapter_model.safetensors")
    save_file(stored | finer, adapter / "adapter_model.safetensors", {"format": "pt"})
    network = mapped.with_adapter(mapped.load(folder), adapter)
    wide = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = PeftModel.from_pretrained(wide, str(adapter)).eval()
    assert torch.equal(network.base_model.model.lm_head.weight, *finer.values())
    assert network.get_parameter(f"base_model.model.{LARGE}").dtype == torch.bfloat16
    assert torch.equal(logits(network), logits(expected))


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3-moe"])
def test_an_adapter_gets_the_gradients_of_the_float32_model(
    small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, recomputed: bool
) -> None:
    monkeypatch.setattr(mapped, "WIDENED", 64 * 7)  # every product takes several pieces
    folder = stored_as(small(family), torch.bfloat16, tmp_path / "narrow")
    wide = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected, loss = gradients(wide)
    network = mapped.load(folder)
    if recomputed:
        network.activation_checkpointing_enable()
    found, own_loss = gradients(network)
    assert network.get_parameter(LARGE).dtype == torch.bfloat16
    torch.testing.assert_close(own_loss, loss, rtol=1e-5, atol=0)
    assert found.keys() == expected.keys() and any("lora_A" in name for name in found)
    for name, gradient in expected.items():
        # Gradients in float32 differ by 1e-6 to 4e-6 from those in float64; those of a bfloat16 model by 1e-2.
        assert gradient.norm() > 0
        assert (found[name] - gradient).norm() < 5e-5 * gradient.norm(), name


def gradients(network: torch.nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The gradients of a seeded adapter on `network`, and the loss."""
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(network, config).train()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in (value for value in model.parameters() if value.requires_grad):
            value.copy_(0.05 * torch.randn(value.shape, generator=generator))
    loss = model(input_ids=IDS % 478, labels=IDS % 478).loss
    loss.backward()
    return {
        name: value.grad for name, value in model.named_parameters() if value.grad is not None
    }, loss.detach()


def test_shards_are_read(small: Callable[..., Path], tmp_path: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(small("llama"), dtype=torch.bfloat16)
    network.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    found = mapped.load(tmp_path / "shards")
    assert found.get_parameter(LARGE).dtype == torch.bfloat16
    assert torch.equal(logits(found), logits(network.float().eval()))


@pytest.mark.parametrize(("available_mib", "widened"), [(1 << 20, True), (0, False)])
def test_a_model_that_fits_well_is_widened_in_memory_and_computes_the_same(
    small: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    available_mib: int,
    widened: bool,
) -> None:
    monkeypatch.setattr(mapped, "available_memory_mib", lambda: available_mib)
    folder = stored_as(small("llama"), torch.bfloat16, tmp_path / "narrow")
    network = mapped.load(folder)
    before = logits(network)
    mapped.widen_where_it_fits(network)
    assert (network.get_parameter(LARGE).dtype == torch.float32) is widened
    assert network.lm_head.weight is network.model.embed_tokens.weight  # tied, once in memory
    assert torch.equal(logits(network), before)


def test_a_layer_gets_weights_of_its_own(small: Callable[..., Path], tmp_path: Path) -> None:
    folder = stored_as(small("llama"), torch.bfloat16, tmp_path / "narrow")
    network = mapped.load(folder)
    before = logits(network)
    layer = network.model.layers[1]
    mapped.in_float32(layer)
    assert layer.mlp.up_proj.weight.dtype == torch.float32
    assert torch.equal(logits(network), before)
    with torch.no_grad():
        layer.mlp.up_proj.weight.zero_()
    assert not torch.equal(logits(network), before)
    assert torch.equal(logits(mapped.load(folder)), before)  # the file is unchanged
