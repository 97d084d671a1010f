"""A network that is run layer by layer computes what the whole network computes, in any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from edgekit.base.errors import CorruptError
from edgekit.export.weights.layerwise import Layerwise, in_order, one_torch_thread
from edgekit.models import mapped

MIXED = [[1, 5, 9, 40, 41, 7], [300, 4, 17], [8, 8, 9, 30, 2, 60, 61, 62, 63], [11]]
WEIGHTS = [1.0, 0.25, 3.0, 0.5]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma3": {"sliding_window": 4},  # layers differ in what they are given: windows, and rope of two kinds
    "phi3-untied": {},
}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return tiny.maker(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


def linear(network: Any) -> dict[str, nn.Linear]:
    """The linear layers of the decoder."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and "layers." in name
    }


def of_the_whole(network: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The moment of the inputs of each linear layer and of the head, in float64, from runs of the whole network."""
    sums: dict[str, Any] = {}

    def collect(name: str, weight: float) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        def add(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            tokens = args[0].flatten(0, -2).double()
            sums[name] = sums.get(name, 0) + weight * tokens.T @ tokens

        return add

    watched = {**linear(network), "head": network.get_output_embeddings()}
    for ids, weight in zip(MIXED, WEIGHTS, strict=True):
        hooks = [module.register_forward_pre_hook(collect(name, weight)) for name, module in watched.items()]
        with torch.inference_mode():
            network(torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
    return sums, sums.pop("head")


def walked(network: Any, threads: int, advance: bool = False) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The same, layer by layer."""
    walk = Layerwise(network, MIXED, WEIGHTS, threads)
    found: dict[str, torch.Tensor] = {}
    for number in range(len(walk.layers)):
        modules = walk.linear(number)
        moments = walk.moments(number, list(modules.values()), advance=advance)
        found |= {name: moments[module] for name, module in modules.items()}
        if not advance:
            walk.advance(number)
    return found, walk.head_moment()


def hooks_of(network: Any) -> int:
    """How many hooks there are, and layers with a `forward` of their own."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    hooks = sum(len(getattr(module, kind)) for module in network.modules() for kind in kinds)
    return hooks + sum("forward" in vars(layer) for layer in network.get_decoder().layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_moments_are_those_of_the_whole_network(family: str, make: Callable[..., Path]) -> None:
    network = mapped.load(make(family, **FAMILIES[family]))
    expected, at_head = of_the_whole(network)
    found, head = walked(network, threads=1)
    assert found.keys() == expected.keys() and len(expected) == len(linear(network))
    for name, moment in expected.items():
        torch.testing.assert_close(found[name].double(), moment, rtol=1e-4, atol=1e-5 * float(moment.max()))
    torch.testing.assert_close(head.double(), at_head, rtol=1e-4, atol=1e-5 * float(at_head.max()))
    assert hooks_of(network) == 0


def test_threads_and_the_way_through_do_not_show_in_the_bits(make: Callable[..., Path]) -> None:
    network = mapped.load(make("llama"))
    found, head = walked(network, threads=1)
    for threads, advance in ((3, False), (3, True)):
        again, also = walked(network, threads, advance)
        assert all(torch.equal(found[name], again[name]) for name in found) and torch.equal(head, also)


def test_changed_weights_reach_the_layers_that_follow(make: Callable[..., Path]) -> None:
    network = mapped.load(make("llama"))
    before, _ = walked(network, threads=1)
    walk = Layerwise(network, MIXED, WEIGHTS, threads=1)
    weight = walk.linear(0)["model.layers.0.mlp.down_proj"].weight
    original = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.5)
    walk.advance(0)
    query = walk.linear(1)["model.layers.1.self_attn.q_proj"]
    assert not torch.allclose(walk.moments(1, [query])[query], before["model.layers.1.self_attn.q_proj"])
    with torch.no_grad():
        weight.copy_(original)


def test_layers_with_the_same_input_share_its_moment(make: Callable[..., Path]) -> None:
    walk = Layerwise(mapped.load(make("llama")), MIXED, WEIGHTS, threads=2)
    modules = {name.rpartition(".")[2]: module for name, module in walk.linear(0).items()}
    moments = walk.moments(0, list(modules.values()))
    groups = {
        frozenset(name for name, module in modules.items() if moments[module] is moment)
        for moment in moments.values()
    }
    together = [{"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj"}, {"down_proj"}]
    assert groups == {frozenset(names) for names in together}


@pytest.mark.parametrize("threads", [1, 3])
def test_a_layer_that_fails_is_told_and_leaves_nothing_behind(
    threads: int, make: Callable[..., Path]
) -> None:
    network = mapped.load(make("llama"))
    walk = Layerwise(network, MIXED, WEIGHTS, threads)
    modules = list(walk.linear(1).values())

    def fail(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        raise MemoryError("no room")

    for part in (network.get_decoder().layers[1].mlp, network.get_decoder().norm):
        with part.register_forward_pre_hook(fail), pytest.raises(MemoryError, match="no room"):
            walk.moments(1, modules)
            walk.head_moment()
        assert hooks_of(network) == 0
    with pytest.raises(IndexError):  # an id beyond the vocabulary
        Layerwise(network, [*MIXED, [10**6]], [*WEIGHTS, 1.0], threads)
    assert hooks_of(network) == 0


def test_activations_that_are_not_finite_are_refused(make: Callable[..., Path]) -> None:
    network = mapped.load(make("llama"))
    walk = Layerwise(network, MIXED, WEIGHTS, threads=2)
    walk.hidden[2] = walk.hidden[2] * torch.nan
    modules = list(walk.linear(0).values())
    with pytest.raises(CorruptError, match="not finite"):
        walk.moments(0, modules)
    with pytest.raises(CorruptError, match="not finite"):
        walk.head_moment()
    assert hooks_of(network) == 0


def test_threads_of_work_use_one_thread_of_torch_each_and_keep_the_order() -> None:
    def work(item: int) -> tuple[int, int]:
        return item, torch.get_num_threads()

    assert list(in_order(work, range(7), 3)) == [(item, 1) for item in range(7)]
    torch.set_num_threads(2)
    with one_torch_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda item: 1 // item, [1, 0, 2], 2))
