"""Where the tensors of a Hugging Face model are in the builder's graph, and which it stacks into one.

A place is named as the builder names its nodes: `layers.3.attn.o_proj`, `layers.3.input_layernorm`, `final_norm`,
`embed_tokens`, `lm_head`.
"""

from __future__ import annotations

import re
from typing import Any

PACKED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "input_linear": ("gate_proj", "up_proj"),
}
"""Modules that stack the rows of several."""
GROUPS = {"self_attn": "attn", "feed_forward": "mlp", "shared_mlp": "mlp"}
RENAMED = {
    "attn.dense": "attn.o_proj",
    "attn.out_proj": "attn.o_proj",
    "attn.q_layernorm": "attn.q_norm",
    "attn.k_layernorm": "attn.k_norm",
    "attn.query_layernorm": "attn.q_norm",
    "attn.key_layernorm": "attn.k_norm",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
    "mlp.output_linear": "mlp.down_proj",
    "operator_norm": "operator_layernorm",
    "ffn_norm": "ffn_layernorm",
}  # fmt: skip
LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.+)")
NODE = re.compile(r"/model/layers\.(\d+)/(?:(attn|mlp|conv)/)?(\w+)/\w+")
EMBEDDING, HEAD, FINAL = "embed_tokens", "lm_head", "final_norm"


def place_of_module(name: str) -> str:
    """The place of the Hugging Face module `name`."""
    if not (found := LAYER.fullmatch(name)):
        last = name.rpartition(".")[2]
        return last if last in (EMBEDDING, HEAD) else FINAL
    layer, path = found.groups()
    group, _, module = path.rpartition(".")
    group = GROUPS.get(group, group)
    path = f"{group}.{module}" if group else module
    return f"layers.{layer}.{RENAMED.get(path, path)}"


def place_of_node(name: str) -> str:
    """The place that the node `name` computes a part of; empty for other nodes."""
    for place in (EMBEDDING, HEAD):
        if name.startswith((f"/{place}/", f"/model/{place}/")):
            return place
    if not (found := NODE.fullmatch(name)):
        return ""
    layer, group, module = found.groups()
    if module == "final_norm_layernorm":
        return FINAL
    return ".".join(filter(None, ("layers", layer, group, module)))


def head_size(config: Any) -> int:
    """Columns of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def stacked(name: str, rows: int, config: Any) -> list[tuple[str, int]]:
    """The modules that the linear layer `name` with `rows` rows stacks, by their full names, and their rows."""
    module = name.rpartition(".")[2]
    parts = PACKED.get(module, (module,))
    sizes = [rows // len(parts)] * len(parts)
    if module == "qkv_proj":
        heads = config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads
        sizes = [head_size(config) * count for count in heads]
    prefix = name.removesuffix(module)
    return [(prefix + part, size) for part, size in zip(parts, sizes, strict=True)]
