"""onnxruntime-genai's model builder with edgekit's corrections: the builder's classes, fed with a loaded network.

The builder derives a graph from `config.json` and, in version 0.18, gets parts of some architectures wrong: it leaves out
most kinds of rope scaling, turns layers that have no rope, normalises OLMo as if it were Llama, rounds Gemma's embedding
scale, and takes a fixed epsilon for norms that state none. Here these parts are read from transformers' own modules, for
every architecture alike. What is still wrong is found by `proof.py` and by the runtime's answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from edgekit.export.onnx.halves import store_halves
from edgekit.export.onnx.network import (
    embedding_scale,
    has_types,
    layer_type,
    measure,
    rope_frequencies,
    turns,
    window,
)


class Corrections:
    """Takes the place of the methods of a builder class that depend on its reading of `config.json`."""

    network: Any
    """The transformers model; linear layers may be `rounding.RoundedLinear`."""

    def load_weights(self, input_path: str) -> Any:
        """The loaded network instead of the files at `input_path`."""
        return self.network

    def make_rope_init(self: Any, config: Any) -> None:
        """Leave the tables to the network; only Phi-3's pair of tables is made by the builder."""
        rope = getattr(config, "rope_parameters", None) or {}
        if "sliding_attention" in rope:
            config.rope_local_base_freq = (rope["sliding_attention"] or rope["full_attention"])["rope_theta"]
        elif rope.get("rope_type") == "longrope":
            rope.setdefault("type", "longrope")  # the builder reads this older name of it
            super().make_rope_init(config)  # type: ignore[misc]
            if "multi_cache" not in self.rope_attrs:
                raise NotImplementedError(
                    "the builder has no rope scaling of type 'longrope' for this architecture"
                )
        elif rope.get("rope_type") == "dynamic" and not rope.get("alpha"):
            raise NotImplementedError("rope scaling of type 'dynamic' depends on the length of the text")

    def make_rotary_embedding_multi_cache(self: Any, **names: str) -> None:
        """Make Phi-3's tables for short and long texts; those of Gemma 3 come from the network, layer by layer."""
        if "multi_cache" in self.rope_attrs:
            super().make_rotary_embedding_multi_cache(**names)  # type: ignore[misc]

    def make_rotary_embedding_caches(self: Any, **names: str) -> Any:
        """The names of the tables for the current layer, which are added to the graph when they are first needed."""
        if "multi_cache" in self.rope_attrs:
            return super().make_rotary_embedding_caches(**names)  # type: ignore[misc]
        kind = layer_type(self.network, self.layer_id)
        suffix = f"_{kind.partition('_')[0]}" if has_types(self.network.get_decoder().rotary_emb) else ""
        named = f"cos_cache{suffix}", f"sin_cache{suffix}"
        if named[0] not in self.graph.initializers:
            frequencies, factor = rope_frequencies(self.network, kind)
            angles = torch.arange(self.context_length).float()[:, None] * frequencies
            self.make_initializer(angles.cos() * factor, named[0], to=self.io_dtype)
            self.make_initializer(angles.sin() * factor, named[1], to=self.io_dtype)
        return named

    def is_local(self, layer_id: int) -> bool:
        """Whether a layer's attention has a window; the builder knows it only from `layer_types`."""
        return window(self.network, layer_id) is not None

    def uses_windowed_kv_cache(self) -> bool:
        """Keep all tokens in the cache; onnxruntime-genai's shorter ones fail for batches and prompts shorter than the window."""
        return False

    def make_attention(self: Any, layer_id: int, attention: Any, root_input: str, **more: Any) -> None:
        """Turn queries and keys only in layers whose attention does so."""
        usual = dict(self.attention_attrs)
        if not turns(self.network, attention):
            self.attention_attrs |= {"rope": False, "use_rope_in_attn": False}
        try:
            super().make_attention(layer_id, attention, root_input, **more)  # type: ignore[misc]
        finally:
            self.attention_attrs |= {name: usual[name] for name in ("rope", "use_rope_in_attn")}

    def make_layernorm(
        self: Any, layer_id: int, layernorm: Any, skip: bool, simple: bool, location: str
    ) -> None:
        """Normalise as the network's own layer does."""
        found = measure(layernorm, self.hidden_size)
        self.layernorm_attrs |= {"epsilon": found.epsilon, "add_offset": found.offset}
        super().make_layernorm(layer_id, layernorm, skip, not found.centred, location)  # type: ignore[misc]

    def make_embedding(self: Any, embedding: torch.Tensor) -> None:
        """Scale the embedding by the network's own factor."""
        self.embed_attrs["scale"] = embedding_scale(self.network)
        super().make_embedding(embedding)  # type: ignore[misc]

    def make_attention_unpacked_regular(
        self: Any, layer_id: int, attention: Any, qkv_linear: Any, root_input: str, **more: Any
    ) -> None:
        """Give a rounded projection of queries, keys and values as three."""
        if not _unpacked(attention, qkv_linear):
            super().make_attention_unpacked_regular(  # type: ignore[misc]
                layer_id, attention, qkv_linear, root_input, **more
            )

    def is_qkv_projection_packable(self: Any, layer_id: int, attention: Any) -> bool:
        """Compute queries, keys and values as one product only where they have the same bits and blocks."""
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        forms = {(getattr(each, "bits", None), getattr(each, "group_size", None)) for each in projections}
        return len(forms) == 1 and bool(super().is_qkv_projection_packable(layer_id, attention))  # type: ignore[misc]

    def make_mlp_unpacked_regular(
        self: Any, layer_id: int, mlp: Any, gate_up_linear: Any, root_input: str
    ) -> None:
        """Give a rounded projection of gate and up as two."""
        if not _unpacked(mlp, gate_up_linear):
            super().make_mlp_unpacked_regular(layer_id, mlp, gate_up_linear, root_input)  # type: ignore[misc]

    def to_nbits(self: Any) -> Any:
        """Round what is still in floats; where nothing is, the graph is kept, and not copied to look for it.

        The scales of what edgekit has rounded are stored as halves.
        """
        store_halves(self.model.graph)
        left = [
            node
            for node in self.model.graph
            if node.op_type == "MatMul" and node.inputs[1].const_value is not None
        ]
        return super().to_nbits() if left else self.model  # type: ignore[misc]


def _unpacked(module: torch.nn.Module, linear: Any) -> bool:
    parts = getattr(linear, "parts", {})
    for name, part in parts.items():
        setattr(module, name, part)
    return bool(parts)


@contextmanager
def corrected(builder: ModuleType, network: Any) -> Iterator[None]:
    """Put corrected classes that build `network` in the place of those in the namespace of `builder`."""
    usual = {
        name: found
        for name, found in vars(builder).items()
        if isinstance(found, type) and issubclass(found, builder.Model)
    }
    vars(builder).update(
        {name: type(name, (Corrections, found), {"network": network}) for name, found in usual.items()}
    )
    try:
        yield
    finally:
        vars(builder).update(usual)
