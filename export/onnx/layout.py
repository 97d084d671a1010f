"""Where the tensors of a Hugging Face model are in the builder's graph."""

from __future__ import annotations

from typing import Any

PACKED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "input_linear": ("gate_proj", "up_proj"),
}
"""Modules that stack the rows of several."""


def head_size(config: Any) -> int:
    """Columns of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def stacked(name: str, rows: int, config: Any) -> list[tuple[str, int]]:
    """The modules that the linear layer `name` with `rows` rows stacks, by their full names, and their rows."""
    prefix, _, module = name.rpartition(".")
    if module == "qkv_proj":
        heads = config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads
        sizes = [head_size(config) * count for count in heads]
    else:
        sizes = [rows // len(PACKED.get(module, "x"))] * len(PACKED.get(module, "x"))
    parts = PACKED.get(module, (module,))
    return [(f"{prefix}.{part}", size) for part, size in zip(parts, sizes, strict=True)]
