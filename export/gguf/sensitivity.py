"""How much each tensor's type costs the whole model: an estimate of the KL divergence, in nats a token.

Let y = W x be the outputs of a layer, and g the gradient of the log-likelihood of a token that is drawn from the model's own
distribution. To second order, an error D of the weight costs E[(g^T D x)^2] / 2, because the Hessian of the divergence is the
Fisher information (Amari 1998, <https://doi.org/10.1162/089976698300017746>). With the outputs taken as independent of each
other and of the inputs it is the sum over rows r of E[g_r^2] (D H D^T)_rr / 2, H = E[x x^T] (Martens and Grosse 2015,
<https://arxiv.org/abs/1503.05671>). One backward pass gives E[g^2] for all tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from edgekit.base.events import Emit, Progress, ignore
from edgekit.base.memory import give_back
from edgekit.export.gguf.feedback import Moment
from edgekit.export.gguf.rounding import STAGE, Network, Text, all_damped, even, round_weight, weighted
from edgekit.export.gguf.stream import EMBEDDING
from edgekit.export.weights.layerwise import Layerwise, finite, in_order
from edgekit.models import accelerator

TOKENS = 2048  # of each kind of text whose gradients are taken
SEED = 0
LOOKUPS = "lookups"


def output_moments(
    network: Network, texts: Sequence[Text], threads: int, emit: Emit = ignore
) -> dict[str, torch.Tensor]:
    """The mean of g^2 for each output of each linear layer, `(rows,)`, by GGUF name, and for the entries of each row of the
    embedding, by `LOOKUPS`.
    """
    sequences, weights = weighted([text.beginning(TOKENS) for text in texts])
    decoder, head = network.torch.get_decoder(), network.torch.get_output_embeddings()
    names = {
        module: network.name(path)
        for path, module in network.torch.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    seen = threading.local()

    def collect(module: Any, _: Any, gradients: tuple[torch.Tensor, ...]) -> None:
        seen.squares[names[module]] = gradients[0].flatten(0, -2).square().sum(0)

    def work(row: int) -> dict[str, torch.Tensor]:
        seen.squares = {}
        ids = accelerator.ids_for(network.torch, [sequences[row]])
        with torch.enable_grad():
            inputs = network.torch.get_input_embeddings()(ids).detach().requires_grad_()
            hidden = decoder(inputs_embeds=inputs, use_cache=False)[0]
            at_head = hidden.detach().requires_grad_()
            logits, slope = _scaled(head(at_head)[0], network.config)  # (T, V)
            shares = finite(logits.detach()).softmax(-1)
            drawn = torch.multinomial(
                shares, 1, generator=torch.Generator(shares.device).manual_seed(SEED + row)
            )
            loss = torch.nn.functional.cross_entropy(logits, drawn[:, 0], reduction="sum")
            (gradient,) = torch.autograd.grad(loss, at_head)
            torch.autograd.backward(hidden, gradient)
        at_head_outputs = (
            (shares * (1 - shares)).mul_(slope).sum(0)
        )  # the mean over all tokens that can be drawn
        name = next(name for name, module in network.outer().items() if module is head)
        return {**seen.squares, name: at_head_outputs, LOOKUPS: _of_rows(network, inputs.grad)}

    sums: dict[str, torch.Tensor] = {}
    with ExitStack() as restored:
        for module in names:
            restored.enter_context(module.register_full_backward_hook(collect))
        for layer in decoder.layers:  # activations of one layer at a time
            restored.callback(vars(layer).pop, "forward")
            vars(layer)["forward"] = partial(checkpoint, layer.forward, use_reentrant=False)
        found = in_order(work, range(len(sequences)), 1 if network.torch.device.type == "cuda" else threads)
        for done, (weight, squares) in enumerate(zip(weights, found, strict=True), start=1):
            for name, square in squares.items():
                sums[name] = sums.get(name, 0) + weight * square.cpu()
            emit(Progress(STAGE, done, len(sequences), "rows", "gradients"))
    return sums


def _scaled(values: torch.Tensor, config: Any) -> tuple[torch.Tensor, Any]:
    """The logits that the model makes of its head's outputs, and the square of their derivative."""
    cap, scale = getattr(config, "final_logit_softcapping", None), getattr(config, "logits_scaling", 1.0)
    if cap is None:
        return values / scale, 1 / scale**2
    capped = torch.tanh(values / cap)
    return cap * capped, (1 - capped.detach().square()).square()


def _of_rows(network: Network, gradient: torch.Tensor | None) -> torch.Tensor:
    """The sum of g^2 over tokens, spread over the rows of the embedding: every token counts the same."""
    assert gradient is not None
    embedding = network.torch.get_input_embeddings()
    rows, scale = (
        len(embedding.weight),
        float(getattr(embedding, "embed_scale", 1.0)),
    )  # Gemma scales what it looks up
    return (scale**2 * gradient.square().mean(-1).sum() / rows).expand(rows)


def costs(
    network: Network,
    texts: Sequence[Text],
    candidates: Mapping[str, Sequence[str]],
    threads: int,
    emit: Emit = ignore,
) -> dict[str, dict[str, float]]:
    """The estimated KL divergence of each candidate type of each tensor, by GGUF name; `candidates` gives their names."""
    outputs = output_moments(network, texts, threads, emit)
    walk = Layerwise(network.torch, *weighted(texts), threads)
    found: dict[str, dict[str, float]] = {}

    def measure(name: str, weight: torch.Tensor, moment: Moment) -> None:
        for type in candidates.get(name, ()):
            made, cost = round_weight(weight, moment, type, 0, threads), 0.0
            if name in outputs:
                cost += float((outputs[name] * made.cost).double().sum()) / 2
            if name == EMBEDDING:  # its own, or tied to the head
                cost += float((outputs[LOOKUPS] * made.distance).double().sum()) / 2
            found.setdefault(name, {})[type] = cost

    total = len(walk.layers) + 1
    for number in range(len(walk.layers)):
        linear = walk.linear(number)
        moments = walk.moments(number, list(linear.values()), advance=True)
        damped = all_damped(moments, threads)
        for path, module in linear.items():
            measure(network.name(path), module.weight, damped[module])
        give_back()
        emit(Progress(STAGE, number + 1, total, "layers", "sensitivity"))
    moment = Moment.of(walk.head_moment())
    for name, module in network.outer().items():
        measure(name, module.weight, moment if isinstance(module, torch.nn.Linear) else even(moment))
    emit(Progress(STAGE, total, total, "layers", "sensitivity"))
    return found
