"""The widths of a model, read from its `config.json`, from which the sizes of files and the memory of stages follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.models.source import parameter_count

COMFORT = 0.25  # of the available memory
MIB = 2**20
# Bytes of the keys and values of answers that torch computes together; one long prompt of a large model takes 100 MiB.
ANSWERS_CACHE = 2**30


@dataclass(frozen=True)
class Shape:
    """The number of weights, and the widths, in weights."""

    parameters: int
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    queries: int
    """Columns of all query heads."""
    keys: int
    """Columns of all key heads."""
    tied: bool
    """Whether the head is the embedding."""

    @property
    def embedding(self) -> int:
        """Weights of the embedding."""
        return self.vocabulary * self.hidden

    @classmethod
    def of(cls, config: Mapping[str, Any], parameters: int = 0) -> Shape:
        """The shape in a config; `parameters` is the exact number of weights where it is known."""
        hidden, heads = int(config.get("hidden_size", 0)), int(config.get("num_attention_heads", 1))
        head_size = int(config.get("head_dim") or hidden // max(heads, 1))
        return cls(
            parameters=parameters or parameter_count(config),
            vocabulary=int(config.get("vocab_size", 0)),
            hidden=hidden,
            intermediate=int(config.get("intermediate_size") or 4 * hidden),
            layers=int(config.get("num_hidden_layers", 0)),
            heads=heads,
            queries=heads * head_size,
            keys=int(config.get("num_key_value_heads") or heads) * head_size,
            tied=bool(config.get("tie_word_embeddings", False)),
        )


def fits_in_float32(parameters: int, available_mib: float) -> bool:
    """Whether a model of 16 bits is held in float32 while it answers: it then takes at most a quarter of the memory."""
    return 4 * parameters / MIB <= COMFORT * available_mib
