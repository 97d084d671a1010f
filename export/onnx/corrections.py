"""onnxruntime-genai's model builder with edgekit's corrections: the builder's classes, fed with a loaded network.

The builder derives a graph from `config.json` and, in version 0.18, gets parts of some architectures wrong: it leaves out
most kinds of rope scaling, turns layers that have no rope, normalises OLMo as if it were Llama, rounds Gemma's embedding
scale, and takes a fixed epsilon for norms that state none. Here these parts are read from transformers' own modules, for
every architecture alike. What is still wrong is found by `proof.py` and by the runtime's answers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch

LARGE, SMALL = (
    1e3,
    1e-3,
)  # inputs of a norm: epsilon vanishes beside the first, and weighs as much as the second


class Norm(NamedTuple):
    """What a normalisation layer computes; what it does not state is measured by calling it."""

    centred: bool
    """Whether the mean is subtracted first (LayerNorm), or not (RMSNorm)."""
    epsilon: float
    offset: float
    """The constant that is added to the stored weight."""


def measure(norm: torch.nn.Module, width: int) -> Norm:
    """Measure the normalisation layer `norm` of `width` columns, whose own weights may be on the meta device."""
    probe = copy.deepcopy(norm).to_empty(device="cpu").float()
    for name, parameter in probe.named_parameters():
        torch.nn.init.constant_(parameter, 0.0 if name == "bias" else 1.0)
    weighted = any(name == "weight" for name, _ in probe.named_parameters())
    signs = torch.tensor([1.0, -1.0]).repeat(width // 2).unsqueeze(0)
    with torch.no_grad():
        gain = float(probe(LARGE * signs)[0, 0])
        damped = float(probe(SMALL * signs)[0, 0]) / gain
        centred = float(probe(LARGE * torch.ones(1, width))[0, 0].abs()) < 0.5 * gain
    stated = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    epsilon = SMALL**2 * (damped**-2 - 1) if stated is None else float(stated)
    return Norm(centred, epsilon, round(gain) - 1.0 if weighted else 0.0)


def rope_tables(rotary: torch.nn.Module, kind: str, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines `(length, columns / 2)` of transformers' module `rotary` for layers of the type `kind`."""
    prefix = f"{kind}_" if hasattr(rotary, f"{kind}_inv_freq") else ""
    frequencies = getattr(rotary, f"{prefix}inv_freq").float()
    factor = float(getattr(rotary, f"{prefix}attention_scaling", 1.0))
    angles = torch.arange(length).float()[:, None] * frequencies
    return angles.cos() * factor, angles.sin() * factor


def turns(network: Any, attention: torch.nn.Module) -> bool:
    """Whether the queries and keys of a layer's `attention` are turned by rope."""
    rotary = getattr(network.get_decoder(), "rotary_emb", None)
    return rotary is not None and bool(getattr(attention, "use_rope", True))


def window(network: Any, layer: int) -> int | None:
    """How many tokens the attention of a layer sees, its own included; None for all."""
    attention: Any = getattr(network.get_decoder().layers[layer], "self_attn", None)
    if hasattr(attention, "sliding_window"):
        own: int | None = attention.sliding_window
        return own
    uniform = getattr(network.config, "layer_types", None) is None
    return getattr(network.config, "sliding_window", None) if uniform else None


class Corrections:
    """Takes the place of the methods of a builder class that depend on its reading of `config.json`."""

    network: Any
    """The transformers model; linear layers may be `gptq.RoundedLinear`."""

    def load_weights(self, input_path: str) -> Any:
        """The loaded network instead of the files at `input_path`."""
        return self.network

    def make_rope_init(self: Any, config: Any) -> None:
        """Leave the tables to the network; only Phi-3's pair of tables is made by the builder."""
        rope = getattr(config, "rope_parameters", None) or {}
        if "sliding_attention" in rope:
            config.rope_local_base_freq = (rope["sliding_attention"] or rope["full_attention"])["rope_theta"]
        elif rope.get("rope_type") == "longrope":
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
        rotary = self.network.get_decoder().rotary_emb
        kind = "sliding_attention" if (self.window_size or -1) > 0 else "full_attention"
        suffix = f"_{kind.partition('_')[0]}" if hasattr(rotary, f"{kind}_inv_freq") else ""
        named = f"cos_cache{suffix}", f"sin_cache{suffix}"
        if named[0] not in self.graph.initializers:
            for name, table in zip(named, rope_tables(rotary, kind, self.context_length), strict=True):
                self.make_initializer(table, name, to=self.io_dtype)
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
        own = getattr(self.network.get_input_embeddings(), "scalar_embed_scale", None)
        if own is not None:
            self.embed_attrs["scale"] = own
        super().make_embedding(embedding)  # type: ignore[misc]

    def make_attention_unpacked_regular(
        self: Any, layer_id: int, attention: Any, qkv_linear: Any, root_input: str, **more: Any
    ) -> None:
        """Give a rounded projection of queries, keys and values as three."""
        if not _unpacked(attention, qkv_linear):
            super().make_attention_unpacked_regular(  # type: ignore[misc]
                layer_id, attention, qkv_linear, root_input, **more
            )

    def make_mlp_unpacked_regular(
        self: Any, layer_id: int, mlp: Any, gate_up_linear: Any, root_input: str
    ) -> None:
        """Give a rounded projection of gate and up as two."""
        if not _unpacked(mlp, gate_up_linear):
            super().make_mlp_unpacked_regular(layer_id, mlp, gate_up_linear, root_input)  # type: ignore[misc]


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
