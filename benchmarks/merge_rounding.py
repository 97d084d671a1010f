"""What storing a merge in 16 bits costs, beside what faults of a merge cost: KL divergence from the exact merge.

    python benchmarks/merge_rounding.py [BASE_FOLDER ADAPTER_FOLDER]

The base of the demo is rounded to bfloat16 or float16 first, as a model that was published so. The adapter's update is
scaled, because a light update is smaller than the distance between two numbers of 16 bits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from common import newest
from torch import Tensor
from transformers import AutoModelForCausalLM

from edgekit.base import hardware
from edgekit.data.dataset import load_dataset
from edgekit.export.weights.merge import apply, plan_edits
from edgekit.export.weights.safetensors_io import Weights
from edgekit.models.tokenizer import ModelTokenizer

ROWS = 4
SETTINGS = ((torch.bfloat16, 0.25), (torch.bfloat16, 1.0), (torch.bfloat16, 4.0), (torch.float16, 1.0))
Merge = Callable[[str, Tensor, Tensor], Tensor]


def main() -> None:
    """Print one row for each type and strength."""
    base, adapter = map(Path, sys.argv[1:]) if sys.argv[1:] else (newest("model"), newest("tune"))
    rows = ModelTokenizer(base).render_ids(load_dataset("demo").validation[:ROWS])
    print(hardware.fingerprint()["cpu"], "\n")
    names = list(merges(torch.bfloat16, ""))
    print(
        "| stored as | update times | tuned against base | update lost by rounding |", " | ".join(names), "|"
    )
    print("|---|--:|--:|--:|" + "--:|" * len(names))
    for dtype, strength in SETTINGS:
        model = Merged(base, adapter, dtype, strength)
        exact = model.distributions(lambda name, start, update: start + update, rows)
        untuned = model.distributions(lambda name, start, update: start, rows)
        found = [
            f"{divergence(exact, model.distributions(merge, rows)):.1e}"
            for merge in merges(dtype, model.middle).values()
        ]
        print(
            f"| {str(dtype).removeprefix('torch.')} | {strength} | {divergence(exact, untuned):.2f} "
            f"| {model.lost(dtype):.0%} | {' | '.join(found)} |",
            flush=True,
        )


def merges(dtype: torch.dtype, middle: str) -> dict[str, Merge]:
    """Ways to merge: the right one, and faults; each makes the stored tensor of a name from the base's and its update."""

    def right(name: str, start: Tensor, update: Tensor) -> Tensor:
        return (start + update).to(dtype)

    return {
        "right": right,
        "update times 0.9": lambda name, start, update: right(name, start, 0.9 * update),
        "one layer not merged": lambda name, start, update: right(
            name, start, update * (not name.startswith(middle))
        ),
        "rounded twice": lambda name, start, update: start.to(dtype) + update.to(dtype),
    }


@dataclass
class Merged:
    """A model in float32 whose adapted weights are set to those of a merge."""

    base: Path
    adapter: Path
    dtype: torch.dtype
    strength: float

    def __post_init__(self) -> None:
        self.network = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32).eval()
        edits = plan_edits(self.base, Weights(self.base).shapes, self.adapter)
        self.starts: dict[str, Tensor] = {}
        self.updates: dict[str, Tensor] = {}
        for name, value in self.network.named_parameters():
            value.data = value.data.to(self.dtype).float()
            if name in edits:
                self.starts[name] = value.data.clone()
                self.updates[name] = self.strength * (apply(edits[name], value.data) - value.data)
        self.middle = f"model.layers.{self.network.config.num_hidden_layers // 2}."

    @torch.inference_mode()
    def distributions(self, merge: Merge, rows: list[list[int]]) -> Tensor:
        """The log-probabilities `(T, V)` of the next token after each token of `rows`."""
        parameters: Mapping[str, Tensor] = dict(self.network.named_parameters())
        for name, start in self.starts.items():
            parameters[name].copy_(merge(name, start, self.updates[name]))
        return torch.cat([self.network(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in rows])

    def lost(self, dtype: torch.dtype) -> float:
        """Norm of the rounding errors over the norm of the update."""
        errors = energy = 0.0
        for name, update in self.updates.items():
            exact = self.starts[name] + update
            errors += float((exact.to(dtype).float() - exact).square().sum())
            energy += float(update.square().sum())
        return (errors / energy) ** 0.5


def divergence(expected: Tensor, actual: Tensor) -> float:
    """Mean KL divergence, nats."""
    p, q = expected.double(), actual.double()
    return float((p.exp() * (p - q)).sum(-1).mean())


if __name__ == "__main__":
    main()
