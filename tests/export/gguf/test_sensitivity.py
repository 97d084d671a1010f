"""The estimate of what a type costs a tensor is the divergence that is measured when that tensor alone has the type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch

from edgekit.export.gguf.fit import _estimates as costs
from edgekit.export.gguf.rounding import Network, round_weight
from edgekit.export.weights.feedback import Moment
from edgekit.export.weights.layerwise import Layerwise, one_torch_thread
from edgekit.export.weights.rounding import Text, even, weighted
from edgekit.export.weights.sensitivity import LOOKUPS, output_moments

TYPE = "Q4_0"
TWICE = 2.0  # an estimate may be that far away
# In the order of their cost, the greatest first; each costs at least a fifth more than the next.
TENSORS = {
    "llama": [
        "token_embd.weight", "blk.0.attn_v.weight", "blk.0.ffn_down.weight", "blk.1.ffn_up.weight", "blk.0.attn_q.weight",
        "blk.1.attn_k.weight",
    ],
    "qwen3": ["token_embd.weight", "blk.0.attn_v.weight", "output.weight", "blk.0.ffn_down.weight", "blk.1.ffn_down.weight"],
    "gemma3": ["token_embd.weight", "blk.0.attn_v.weight", "blk.1.attn_k.weight"],
    "granite-biases": ["token_embd.weight", "blk.0.ffn_up.weight", "blk.1.attn_output.weight", "blk.0.attn_k.weight"],
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {  # models that cap or scale their logits
    "gemma3": {"layer_types": ["sliding_attention", "full_attention"], "final_logit_softcapping": 0.5},
    "granite-biases": {"logits_scaling": 4.0},
}


@dataclass(frozen=True)
class World:
    """A tiny network, the text that it reads, and its inputs' moments by tensor."""

    network: Network
    texts: list[Text]
    reference: list[torch.Tensor]
    """Log-probabilities of each sequence, `(T, V)`, float64."""
    inputs: dict[str, tuple[Any, Moment]]
    """The module and the moment of its inputs."""

    @property
    def sequences(self) -> list[Any]:
        return [ids for text in self.texts for ids in text.sequences]

    def logs(self) -> list[torch.Tensor]:
        """What the network says now."""
        with torch.inference_mode():
            logits = [self.network.torch(torch.tensor([ids])).logits[0] for ids in self.sequences]
        return [each.double().log_softmax(-1) for each in logits]

    def divergence(self, name: str, weight: torch.Tensor) -> float:
        """Mean over all tokens of both texts with `weight` in the place of the tensor's own, nats."""
        module, _ = self.inputs[name]
        own, modules = (
            module.weight,
            [each for each in self.network.torch.modules() if getattr(each, "weight", None) is module.weight],
        )
        for each in modules:  # the head and the embedding, where they are tied
            each.weight = torch.nn.Parameter(weight, False)
        found = [
            (before.exp() * (before - after)).sum(-1)
            for before, after in zip(self.reference, self.logs(), strict=True)
        ]
        for each in modules:
            each.weight = own
        return float(torch.cat(found).mean())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], World]]:
    make, made = tiny.maker(tmp_path_factory.mktemp("models")), dict[str, World]()

    def of(family: str) -> World:
        if family not in made:
            network = Network(make(family, num_hidden_layers=2, **CHANGES.get(family, {})))
            random = torch.Generator().manual_seed(0)
            ids = torch.randint(3, 470, (12, 24), generator=random).tolist()
            texts = [Text("rows", ids[:6]), Text("text", ids[6:])]
            found = World(network, texts, [], inputs_of(network, texts))
            found.reference.extend(found.logs())
            made[family] = found
        return made[family]

    with one_torch_thread():
        yield of


def inputs_of(network: Network, texts: list[Text]) -> dict[str, tuple[Any, Moment]]:
    walk = Layerwise(network.torch, *weighted(texts), threads=1)
    found: dict[str, tuple[Any, Moment]] = {}
    for number in range(len(walk.layers)):
        modules = walk.linear(number)
        moments = walk.moments(number, list(modules.values()), advance=True)
        found |= {
            network.name(path): (module, Moment.of(moments[module])) for path, module in modules.items()
        }
    head = Moment.of(walk.head_moment())
    for name, module in network.outer().items():
        found[name] = (module, head if isinstance(module, torch.nn.Linear) else even(head))
    return found


@pytest.mark.parametrize("family", TENSORS)
def test_the_estimate_is_the_divergence_that_is_measured(family: str, world: Callable[[str], World]) -> None:
    this, names = world(family), TENSORS[family]
    estimates = costs(this.network, this.texts, {name: [TYPE] for name in names}, threads=1)
    assert estimates.keys() == {*names}
    measured = {}
    for name in names:
        module, moment = this.inputs[name]
        measured[name] = this.divergence(name, round_weight(module.weight, moment, TYPE, 0, 1).values)
        assert measured[name] / TWICE < estimates[name][TYPE] < measured[name] * TWICE, name
    assert sorted(names, key=lambda name: -measured[name]) == names
    assert sorted(names, key=lambda name: -estimates[name][TYPE]) == names


def test_noise_costs_what_the_moments_say(world: Callable[[str], World]) -> None:
    """For noise of any origin: half of the sum over outputs of E[g^2] times the noise's effect on the output."""
    this = world("qwen3")
    outputs = {
        at if at == LOOKUPS else this.network.name(at): found
        for at, found in output_moments(this.network.torch, this.texts, threads=1).items()
    }
    random = torch.Generator().manual_seed(1)
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_gate.weight", "output.weight", "token_embd.weight"):
        module, moment = this.inputs[name]
        noise = 0.02 * module.weight.detach().std() * torch.randn(module.weight.shape, generator=random)
        at = LOOKUPS if name == "token_embd.weight" else name
        expected = float((outputs[at] * ((noise @ moment.single) * noise).sum(1)).sum()) / 2
        measured = this.divergence(name, module.weight + noise)
        assert measured / TWICE < expected < measured * TWICE, name


def test_more_bits_cost_less_and_threads_do_not_show(world: Callable[[str], World]) -> None:
    this, types = world("qwen3"), ["Q4_0", "Q5_0", "Q8_0"]
    candidates = {"blk.1.attn_v.weight": types, "output.weight": types[1:], "blk.0.ffn_up.weight": []}
    found = costs(this.network, this.texts, candidates, threads=1)
    assert {name: list(types) for name, types in found.items()} == {
        name: types for name, types in candidates.items() if types
    }
    four, five, eight = found["blk.1.attn_v.weight"].values()
    assert four > 2 * five > 8 * eight > 0  # an error of half the size costs a quarter
    assert costs(this.network, this.texts, candidates, threads=3) == found


def test_each_kind_of_text_counts_the_same(world: Callable[[str], World]) -> None:
    this = world("qwen3")
    short, long = Text("short", this.sequences[:1]), Text("long", this.sequences[1:])
    both, first, second = (
        output_moments(this.network.torch, texts, 1) for texts in ([short, long], [short], [long])
    )
    for name, found in both.items():
        # The draw of a sequence depends on its place.
        assert float(found.sum()) == pytest.approx(float((first[name] + second[name]).sum()) / 2, rel=0.2)


def test_a_failure_leaves_no_hooks(world: Callable[[str], World]) -> None:
    this = world("llama")
    with pytest.raises(IndexError):
        output_moments(this.network.torch, [Text("ids", [[3, 4], [10**6]])], threads=1)
    assert not any(module._backward_hooks for module in this.network.torch.modules())
