"""Models whose weights stay in their files compute what a model loaded in float32 computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
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
    assert torch.equal(
        logits(network), logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    )


def test_pieces_of_a_product_are_the_product(
    small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stored_as(small("qwen2"), torch.bfloat16, tmp_path / "narrow")
    whole = logits(mapped.load(folder))
    monkeypatch.setattr(mapped, "WIDENED", 64 * 7)
    torch.testing.assert_close(logits(mapped.load(folder)), whole)


def test_weights_of_several_types_are_loaded_in_float32(small: Callable[..., Path], tmp_path: Path) -> None:
    """Loaded as bfloat16, the finer weights would be rounded."""
    folder = stored_as(small("llama"), torch.bfloat16, tmp_path / "mixed")
    tensors = load_file(folder / FILE)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].float() * 1.001
    save_file(tensors, folder / FILE, {"format": "pt"})
    assert mapped.stored_dtype(folder) == torch.float32
    assert torch.equal(mapped.load(folder).get_parameter(name), tensors[name])


def test_the_type_in_the_config_does_not_count(small: Callable[..., Path], tmp_path: Path) -> None:
    folder = small("llama", dtype="bfloat16")
    assert mapped.stored_dtype(folder) == torch.float32


def test_shards_are_read(small: Callable[..., Path], tmp_path: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(small("llama"), dtype=torch.bfloat16)
    network.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert mapped.stored_dtype(tmp_path / "shards") == torch.bfloat16
    assert torch.equal(logits(mapped.load(tmp_path / "shards")), logits(network.float().eval()))


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
