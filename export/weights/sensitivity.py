"""How much each tensor's type costs the whole model: an estimate of the KL divergence, in nats a token.

Let y = W x be the outputs of a layer, and g the gradient of the log-likelihood of a token that is drawn from the model's own
distribution. To second order, an error D of the weight costs E[(g^T D x)^2] / 2, because the Hessian of the divergence is the
Fisher information (Amari 1998, <https://doi.org/10.1162/089976698300017746>). With the outputs taken as independent of each
other and of the inputs it is the sum over rows r of E[g_r^2] (D H D^T)_rr / 2, H = E[x x^T] (Martens and Grosse 2015,
<https://arxiv.org/abs/1503.05671>). One backward pass gives E[g^2] for all tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from edgekit.base.memory import give_back
from edgekit.export.weights.feedback import Moment
from edgekit.export.weights.layerwise import Layerwise, Report, finite, in_order, outer, quietly
from edgekit.export.weights.rounding import Result, Text, all_damped, even, weighted
from edgekit.models import accelerator

Option = TypeVar("Option", bound=Hashable)
TOKENS = 2048  # of each kind of text whose gradients are taken
SEED = 0
LOOKUPS = "lookups"


class Part(NamedTuple, Generic[Option]):
    """Rows of a weight that get the same form."""

    name: str
    rows: int
    options: Sequence[Option]
    """The forms that these rows may have."""


Candidates = Callable[[str, tuple[int, int]], Sequence[Part[Option]]]


def output_moments(
    network: Any, texts: Sequence[Text], threads: int, report: Report = quietly
) -> dict[str, torch.Tensor]:
    """The mean of g^2 for each output of each linear layer of `network`, a transformers model, `(rows,)`, by the layer's name,
    and for the entries of each row of the embedding, by `LOOKUPS`.
    """
    sequences, weights = weighted([text.beginning(TOKENS) for text in texts])
    decoder, head = network.get_decoder(), network.get_output_embeddings()
    names = {
        module: path
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    seen = threading.local()

    def collect(module: Any, _: Any, gradients: tuple[torch.Tensor, ...]) -> None:
        seen.squares[names[module]] = gradients[0].flatten(0, -2).square().sum(0)

    def work(row: int) -> dict[str, torch.Tensor]:
        seen.squares = {}
        ids = accelerator.ids_for(network, [sequences[row]])
        with torch.enable_grad():
            inputs = network.get_input_embeddings()(ids).detach().requires_grad_()
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
        name = next(path for path, module in outer(network).items() if module is head)
        return {**seen.squares, name: at_head_outputs, LOOKUPS: _of_rows(network, inputs.grad)}

    sums: dict[str, torch.Tensor] = {}
    with ExitStack() as restored:
        for module in names:
            restored.enter_context(module.register_full_backward_hook(collect))
        for layer in decoder.layers:  # activations of one layer at a time
            restored.callback(vars(layer).pop, "forward")
            vars(layer)["forward"] = partial(checkpoint, layer.forward, use_reentrant=False)
        found = in_order(work, range(len(sequences)), 1 if network.device.type == "cuda" else threads)
        for done, (weight, squares) in enumerate(zip(weights, found, strict=True), start=1):
            for name, square in squares.items():
                sums[name] = sums.get(name, 0) + weight * square.cpu()
            report(done, len(sequences), "rows", "gradients")
    return sums


def _scaled(values: torch.Tensor, config: Any) -> tuple[torch.Tensor, Any]:
    """The logits that the model makes of its head's outputs, and the square of their derivative."""
    cap, scale = getattr(config, "final_logit_softcapping", None), getattr(config, "logits_scaling", 1.0)
    if cap is None:
        return values / scale, 1 / scale**2
    capped = torch.tanh(values / cap)
    return cap * capped, (1 - capped.detach().square()).square()


def _of_rows(network: Any, gradient: torch.Tensor | None) -> torch.Tensor:
    """The sum of g^2 over tokens, spread over the rows of the embedding: every token counts the same."""
    assert gradient is not None
    embedding = network.get_input_embeddings()
    rows, scale = (
        len(embedding.weight),
        float(getattr(embedding, "embed_scale", 1.0)),
    )  # Gemma scales what it looks up
    return (scale**2 * gradient.square().mean(-1).sum() / rows).expand(rows)


def costs(
    network: Any,
    texts: Sequence[Text],
    candidates: Candidates[Option],
    rounded: Callable[[torch.Tensor, Moment, Option], Result],
    threads: int,
    report: Report = quietly,
) -> dict[str, dict[Option, float]]:
    """The estimated KL divergence of each option for each weight of `network`, by the names that `candidates` gives them.

    `candidates(path, shape)` divides the rows of the weight of the module `path`. `rounded` rounds a whole one.
    """
    outputs = output_moments(network, texts, threads, report)
    walk = Layerwise(network, *weighted(texts), threads)
    embedding = next(
        path for path, module in network.named_modules() if module is network.get_input_embeddings()
    )
    found: dict[str, dict[Option, float]] = {}

    def measure(path: str, weight: torch.Tensor, moment: Moment) -> None:
        parts = candidates(path, (weight.shape[0], weight.shape[1]))
        options = dict.fromkeys(option for part in parts for option in part.options)
        made = {option: rounded(weight, moment, option) for option in options}
        start = 0
        for part in parts:
            rows = slice(start, start := start + part.rows)
            for option in part.options:
                result, cost = made[option], 0.0
                if path in outputs:
                    cost += float((outputs[path][rows] * result.cost[rows]).double().sum()) / 2
                if path == embedding:  # its own, or tied to the head
                    cost += float((outputs[LOOKUPS][rows] * result.distance[rows]).double().sum()) / 2
                found.setdefault(part.name, {})[option] = cost

    total = len(walk.layers) + 1
    for number in range(len(walk.layers)):
        linear = walk.linear(number)
        moments = walk.moments(number, list(linear.values()), advance=True)
        damped = all_damped(moments, threads)
        for path, module in linear.items():
            measure(path, module.weight, damped[module])
        give_back()
        report(number + 1, total, "layers", "sensitivity")
    moment = Moment.of(walk.head_moment())
    for path, module in outer(network).items():
        measure(path, module.weight, moment if isinstance(module, torch.nn.Linear) else even(moment))
    report(total, total, "layers", "sensitivity")
    return found
