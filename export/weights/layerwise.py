"""A decoder run one layer at a time over calibration text, so that quantizers see the inputs of every layer.

One layer is in memory in float32, with the hidden states of all sequences. On a processor several sequences are computed at
a time, each in one thread, and summed in their order: the results do not depend on the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch

from edgekit.base.errors import CorruptError
from edgekit.models import accelerator

Given = TypeVar("Given")
Made = TypeVar("Made")
Report = Callable[[int, int, str, str], None]
"""Called with what is done, of how many, their unit, and what is being done."""


def quietly(done: int, total: int, unit: str, activity: str) -> None:
    """Report nothing."""


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch use one thread: work is shared out by `in_order`, and threads of both kinds would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_order(work: Callable[[Given], Made], items: Iterable[Given], threads: int) -> Iterator[Made]:
    """`work` of each item, in order; `threads` of them are computed at a time, in threads in which torch uses one."""
    if threads < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
        rest = iter(items)
        while batch := list(islice(rest, threads)):
            yield from pool.map(work, batch)


def finite(values: torch.Tensor) -> torch.Tensor:
    """`values`, which the calibration text gave. Raises `CorruptError` unless all of them are finite numbers."""
    if not torch.isfinite(values).all():
        raise CorruptError(
            "The model's activations on the calibration text are not finite numbers. No file was written.",
            "The model is damaged: download or tune it again.",
        )
    return values


def outer(network: Any) -> dict[str, Any]:
    """Head and embedding of `network` by their names; where the two are tied, the head, by the embedding's name."""
    paths = {module: path for path, module in network.named_modules()}
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    if head.weight is embedding.weight:
        return {paths[embedding]: head}
    return {paths[module]: module for module in (head, embedding)}


class Layerwise:
    """The hidden states of sequences of token ids on their way through the decoder of `network`, a transformers model."""

    def __init__(
        self, network: Any, sequences: Sequence[Sequence[int]], weights: Sequence[float], threads: int
    ) -> None:
        """`weights` is what a token of each sequence counts in `moments`."""
        self._decoder: Any = network.get_decoder()
        self.layers: torch.nn.ModuleList = self._decoder.layers
        self.place = next(name for name, module in network.named_modules() if module is self.layers)
        self.weights = weights
        self.threads = 1 if network.device.type == "cuda" else threads
        self.hidden, self._arguments = _first_inputs(network, self.layers, sequences)

    def linear(self, number: int) -> dict[str, torch.nn.Linear]:
        """The linear layers of a layer, by their names in the network."""
        return {
            f"{self.place}.{number}.{name}": module
            for name, module in self.layers[number].named_modules()
            if isinstance(module, torch.nn.Linear)
        }

    def moments(
        self, number: int, modules: Sequence[torch.nn.Linear], *, advance: bool = False
    ) -> dict[torch.nn.Linear, torch.Tensor]:
        """The second moment of the inputs of each of a layer's `modules`, `(columns, columns)`, summed over all tokens.

        Modules with the same input share one tensor. With `advance` the layer's outputs become the hidden states. Raises
        `CorruptError` for inputs that are not finite.
        """
        seen = threading.local()

        def collect(module: Any, args: tuple[torch.Tensor, ...]) -> None:
            seen.inputs.setdefault(id(args[0]), (args[0], []))[1].append(module)

        def work(row: int) -> list[tuple[tuple[torch.nn.Linear, ...], torch.Tensor]]:
            seen.inputs = {}
            out = self._run(number, row)
            if advance:
                self.hidden[row] = out
            tokens = [(tuple(users), given.flatten(0, -2)) for given, users in seen.inputs.values()]
            return [(users, given.T @ given) for users, given in tokens]

        sums: dict[tuple[torch.nn.Linear, ...], torch.Tensor] = {}
        with ExitStack() as hooks, torch.inference_mode():
            for module in modules:
                hooks.enter_context(module.register_forward_pre_hook(collect))
            products = in_order(work, range(len(self.hidden)), self.threads)
            for weight, found in zip(self.weights, products, strict=True):
                for users, product in found:
                    if users in sums:
                        sums[users].add_(product, alpha=weight)
                    else:
                        sums[users] = product.mul_(weight)
            for total in sums.values():
                finite(total)
        return {module: total for users, total in sums.items() for module in users}

    def advance(self, number: int) -> None:
        """Run layer `number`: its outputs become the hidden states."""
        rows = range(len(self.hidden))
        self.hidden = list(in_order(partial(self._run, number), rows, self.threads))

    def head_moment(self) -> torch.Tensor:
        """The second moment of the head's inputs, `(hidden, hidden)`, once all layers have run."""

        def work(row: int) -> torch.Tensor:
            with torch.inference_mode():
                given: torch.Tensor = self._decoder.norm(self.hidden[row]).flatten(0, -2)  # (T, hidden)
                return given.T @ given

        found = in_order(work, range(len(self.hidden)), self.threads)
        total = torch.zeros(())
        for weight, product in zip(self.weights, found, strict=True):
            total = total + weight * product
        return finite(total)

    def _run(self, number: int, row: int) -> torch.Tensor:
        with torch.inference_mode():  # holds for one thread only
            out = self.layers[number](self.hidden[row], **self._arguments[number][row])
        result: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return result


@torch.inference_mode()
def _first_inputs(
    network: Any, layers: torch.nn.ModuleList, sequences: Sequence[Sequence[int]]
) -> tuple[list[torch.Tensor], list[list[dict[str, Any]]]]:
    """The first layer's input for each sequence, `(1, T, hidden)`, and each layer's other arguments for each.

    No layer computes anything here: each one passes its input on.
    """
    inputs: list[torch.Tensor] = []
    arguments: list[list[dict[str, Any]]] = [[] for _ in layers]

    def collector(number: int) -> Callable[[Any, tuple[torch.Tensor, ...], dict[str, Any]], None]:
        def collect(module: Any, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
            arguments[number].append(kwargs)
            if number == 0:
                inputs.append(args[0])

        return collect

    with ExitStack() as restored:
        for number, layer in enumerate(layers):
            restored.enter_context(layer.register_forward_pre_hook(collector(number), with_kwargs=True))
            restored.callback(vars(layer).pop, "forward")
            vars(layer)["forward"] = lambda hidden, *args, **kwargs: hidden
        for ids in sequences:
            network.get_decoder()(accelerator.ids_for(network, [ids]), use_cache=False)
    return inputs, arguments
