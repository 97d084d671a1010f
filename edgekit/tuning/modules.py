"""Which modules of a model get an adapter.

transformers holds the experts of a layer as one parameter, and peft then adapts the parameter. Such an adapter cannot be
merged, exported or left unmerged in a runtime, so the feed-forward blocks that hold experts get none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgekit.base.errors import ConfigError
from edgekit.models.network import without_weights
from edgekit.targets.target import Tune

# Keys of config.json that say how many experts a layer has.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Modules:
    """The modules that get an adapter, as peft takes them, and a sentence on those that are left out, or nothing."""

    names: Literal["all-linear"] | list[str]
    left_out: str = ""


def chosen(config: Mapping[str, Any], options: Tune) -> Modules:
    """The modules that `options` ask for, of a model with this `config.json`, without experts.

    Raises `ConfigError` when `options` name modules that are experts.
    """
    if not any(config.get(key) for key in EXPERTS):
        return Modules(options.modules)
    if (network := without_weights(config)) is None:
        return Modules(options.modules)
    blocks = {
        _kind(name.rpartition(".")[0]) for name, module in network.named_modules() if _is_experts(module)
    }
    if not blocks:
        return Modules(options.modules)
    inside: set[str] = set()
    outside: set[str] = set()
    for name, module in network.named_modules():
        if _is_linear(module) and module is not network.get_output_embeddings():
            within = any(f"{_kind(name)}.".startswith(f"{block}.") for block in blocks)
            (inside if within else outside).add(name.rpartition(".")[2])
    names = sorted(outside - inside)
    if options.modules == "all-linear":
        left = "The experts of this model cannot be merged with an adapter: it changes only "
        return Modules(names, f"{left}{', '.join(names)}.")
    if adapted := _adapted_parameters(network, options):
        raise ConfigError(
            f"modules = {options.modules} would put an adapter on {', '.join(adapted)}, in which this model holds its experts "
            "together; it could not be merged. Nothing was started.",
            f'Set modules = "all-linear", which leaves the experts out, or choose among {", ".join(names)}.',
        )
    return Modules(options.modules)


def _is_linear(module: Any) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear)


def _is_experts(module: Any) -> bool:
    """Whether a module holds the weights of several experts in one parameter."""
    own = not type(module).__module__.startswith("torch.nn")  # a convolution has three dimensions too
    return own and any(value.ndim == 3 for value in module.parameters(recurse=False))


def _kind(name: str) -> str:
    """The name of a module without the number of its layer."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _adapted_parameters(network: Any, options: Tune) -> list[str]:
    """The parameters that peft would adapt for the modules of `options`."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=1, target_modules=options.modules, task_type="CAUSAL_LM")
    try:
        get_peft_model(network, config)
    except ValueError as error:  # peft: a name that the model does not have
        raise not_added(options, error) from error
    return sorted(config.target_parameters or ())


def not_added(options: Tune, error: ValueError) -> ConfigError:
    """The error for modules that peft does not find, or cannot adapt."""
    return ConfigError(
        f"An adapter cannot be added to the modules {options.modules}: {error}", 'Set modules = "all-linear".'
    )
