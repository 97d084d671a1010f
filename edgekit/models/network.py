"""A model's modules without weights, made of its `config.json` in moments, whatever its size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def without_weights(config: Mapping[str, Any] | Any) -> Any | None:
    """transformers' own class of the causal language model with this config, with weights that take no memory.

    `config` holds what `config.json` does, or is transformers' own object. None when transformers cannot make the model.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        if isinstance(config, Mapping):
            values = dict(config)
            config = AutoConfig.for_model(values.pop("model_type"), **values)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError):
        return None
