"""A causal language model in torch that computes in float32 and leaves its weights in their files, in their own type.

A model in 16 bits takes twice its size when it is loaded in float32. Here the weights stay mapped from the safetensors
files, and each module widens its own when it is called, a few rows at a time. Widening is exact, so the products are
those of the float32 model. Memory holds the mapped pages, which the system may drop, and a few MiB. The weights are frozen:
gradients reach what is in front of them and adapters on them, in tuning.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from edgekit.base.hardware import available_memory_mib
from edgekit.base.memory import page_out
from edgekit.containers.safetensors import (
    ADAPTER_PREFIX,
    ADAPTER_WEIGHTS,
    INDEX,
    SINGLE,
    StoredTensor,
    read_safetensors,
)
from edgekit.models.folder_check import check_weights
from edgekit.models.shape import fits_in_float32

WIDENED = 1 << 22  # weights of one product that are in float32 at a time, 16 MiB
KEPT = 1 << 16  # parameters of a module that are widened once, when it is loaded: norms and the like
Edit = Callable[[Tensor], Tensor]
NARROW = (torch.float16, torch.bfloat16)
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def load(folder: Path, edits: Mapping[str, Edit] | None = None, **options: Any) -> Any:
    """The model of a Hugging Face folder with frozen weights; `options` are those of transformers' `from_pretrained`.

    Each weight keeps the type in which it is stored. `edits` changes weights when they are used: for the name of a tensor,
    its value in float32 from the stored one in float32. With `output_loading_info` the second value is transformers' own.
    Raises what transformers and `check_weights` raise, and `KeyError` for an edit of a tensor that the model does not have.
    """
    check_weights(folder)
    stored = _stored(folder)
    dtype = _usual_type(stored)
    found = _from_pretrained(folder, dtype, options)
    if dtype in NARROW and not _restore_types(_network(found), stored, dtype):
        found = _from_pretrained(folder, torch.float32, options)
    network = _network(found)
    _restore_buffers(network)
    for module in list(network.modules()):
        _widen_when_called(module)
    _edit_when_called(network, dict(edits or {}))
    return found


def with_adapter(base: Any, adapter: Path) -> Any:
    """`base`, a model of `load`, with the PEFT LoRA folder `adapter` on top, unmerged.

    Tensors that the adapter holds whole, such as a head in `modules_to_save`, keep their float32 values; peft alone would
    round them to the base's type. Raises what peft raises, and `OSError` when the folder holds no safetensors.
    """
    from peft import PeftModel

    file = adapter / ADAPTER_WEIGHTS
    if not file.is_file():  # peft would unpickle adapter_model.bin
        raise OSError(f"{adapter} holds no {file.name}")
    trained = {
        name.removeprefix(ADAPTER_PREFIX).replace(".base_layer.", ".") for name in read_safetensors(file)
    }
    narrow = {name for name, value in base.named_parameters() if value.dtype in NARROW}
    for module in {name.rpartition(".")[0] for name in trained & narrow}:
        in_float32(base.get_submodule(module))
    return PeftModel.from_pretrained(base, str(adapter), torch_device="cpu").eval()


def _network(found: Any) -> Any:
    return found[0] if isinstance(found, tuple) else found


def _from_pretrained(folder: Path, dtype: torch.dtype, options: Mapping[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    safe = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **safe, **options)
    _network(found).eval()
    return found


def _stored(folder: Path) -> dict[Path, dict[str, StoredTensor]]:
    """The tensors of each file of weights that transformers reads."""
    files = [folder / SINGLE]
    if not files[0].is_file():
        files = sorted(folder.glob("*.safetensors")) if (folder / INDEX).is_file() else []
    return {file: read_safetensors(file) for file in files}


def _usual_type(stored: Mapping[Path, Mapping[str, StoredTensor]]) -> torch.dtype:
    """The type of most weights; float32 where some have a type that is no plain float, as quantized ones."""
    sizes: Counter[str] = Counter()
    for tensors in stored.values():
        for tensor in tensors.values():
            sizes[tensor.dtype] += math.prod(tensor.shape)
    kinds = [kind for kind, _ in sizes.most_common() if kind[0] in "FB" and kind != "BOOL"]
    return FLOATS[kinds[0]] if kinds and FLOATS.keys() >= set(kinds) else torch.float32


def _restore_types(
    network: nn.Module, stored: Mapping[Path, Mapping[str, StoredTensor]], dtype: torch.dtype
) -> bool:
    """Put back, mapped, the weights that loading as `dtype` rounded; False when one cannot be found by its name."""
    places = network.state_dict()
    held = {name for tensors in stored.values() for name in tensors}
    renamed = any(name not in held for name, _ in network.named_parameters())  # loaded under another name
    for file, tensors in stored.items():
        with safe_open(file, framework="pt") as handle:
            for name, tensor in tensors.items():
                if FLOATS.get(tensor.dtype, dtype) == dtype or (name not in places and not renamed):
                    continue
                exact = handle.get_tensor(name)
                place = places.get(name)
                if place is None or not torch.equal(exact.to(place.dtype), place):
                    return False
                _owner(network, name).data = exact
    return True


def _owner(network: nn.Module, name: str) -> Tensor:
    path, _, last = name.rpartition(".")
    found: Tensor = getattr(network.get_submodule(path), last)
    return found


def in_float32(module: nn.Module) -> None:
    """Give `module` and all modules in it float32 weights of their own, in memory, that may be changed; tied ones stay tied.

    The pages of those that they replace leave memory.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        vars(part).pop("forward", None)
        for name, value in part.named_parameters(recurse=False):
            if value not in made:
                made[value] = nn.Parameter(value.detach().to(torch.float32, copy=True), False)
                if value.device.type == "cpu":
                    page_out(value.data_ptr(), value.nbytes)
            part.register_parameter(name, made[value])


def widen_where_it_fits(network: nn.Module) -> None:
    """Hold 16-bit weights in float32 in memory if they take at most a quarter of what is available.

    The numbers stay the same. Decoding a batch of 8 with SmolLM2-135M takes about half of the processor time, because nothing
    is widened on each call; a product over hundreds of tokens takes as long as before.
    """
    if any(value.dtype in NARROW for value in network.parameters()):
        count = sum(value.numel() for value in network.parameters())
        if fits_in_float32(count, available_memory_mib()):
            in_float32(network)


def unmap(network: nn.Module) -> None:
    """Copy the weights that are still mapped, so that the files and all that was read of them leave memory."""
    for part in network.modules():
        for name, value in part.named_parameters(recurse=False):
            part.register_parameter(name, nn.Parameter(value.detach().clone(), False))


def _restore_buffers(network: nn.Module) -> None:
    """Give constants that are not stored, such as the scale of an embedding, the values they have in a float32 model."""
    if not any(value.dtype in NARROW for value in network.buffers()):
        return  # making the twin fills an embedding in memory before it is dropped
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model: Any = type(network)
        twin = model._from_config(copy.deepcopy(network.config), dtype=torch.float32)
    places = dict(network.named_modules())
    for path, module in twin.named_modules():
        for name, value in module.named_buffers(recurse=False):
            if name in module._non_persistent_buffers_set and value is not None:
                places[path].register_buffer(name, value, persistent=False)


def _widen_when_called(module: nn.Module) -> None:
    plain = type(module).forward
    narrow = {name: value for name, value in module.named_parameters(recurse=False) if value.dtype in NARROW}
    large = sum(value.numel() for value in narrow.values()) > KEPT
    for name, value in narrow.items():
        if value.ndim < 2 or not large:
            module.register_parameter(name, nn.Parameter(value.detach().float(), False))
    if not large:
        return
    if isinstance(module, nn.Linear) and plain is nn.Linear.forward:
        forward: Any = partial(_linear, module)
    elif isinstance(module, nn.Embedding):
        forward = partial(_embedding, module)
    else:
        forward = partial(_edited, module, {})
    vars(module)["forward"] = forward


def _edit_when_called(network: nn.Module, edits: dict[str, Edit]) -> None:
    for path, module in network.named_modules():
        own = {name: f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)}
        mine = {name: edits.pop(full) for name, full in own.items() if full in edits}
        if mine:
            vars(module)["forward"] = partial(_edited, module, mine)
    if edits:
        raise KeyError(f"the model has no tensor {', '.join(edits)}")


def _linear(module: nn.Linear, values: Tensor) -> Tensor:
    product: Tensor = _Product.apply(values, module.weight, module.bias)  # type: ignore[no-untyped-call]
    return product


class _Product(torch.autograd.Function):
    """`F.linear` with a frozen weight, a few of its rows at a time; the widened rows are not kept for the gradient."""

    @staticmethod
    def forward(context: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product `(..., rows)`."""
        context.save_for_backward(weight)
        parts = _parts(weight)
        if len(parts) == 1:
            return F.linear(values, weight.float(), bias)
        out = values.new_empty(*values.shape[:-1], len(weight))
        for part in parts:
            out[..., part] = F.linear(values, weight[part].float(), None if bias is None else bias[part])
        return out

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the values `(..., columns)`."""
        (gradient,), (weight,) = gradients, context.saved_tensors
        sums = gradient.new_zeros(*gradient.shape[:-1], weight.shape[1])
        for part in _parts(weight):
            sums += gradient[..., part] @ weight[part].float()
        return sums, None, None


def _parts(weight: Tensor) -> list[slice]:
    """The rows of `weight` in parts of at most `WIDENED` weights."""
    rows, step = len(weight), max(1, WIDENED // weight.shape[1])
    if (
        weight.device.type != "cpu"
    ):  # it has room for one layer, and many small products would keep it waiting
        step = rows
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _embedding(module: nn.Embedding, ids: Tensor) -> Tensor:
    """The module's own `forward` over the rows that `ids` name; a subclass may scale them."""
    used, places = torch.unique(ids, return_inverse=True)
    view = _view(module, {"weight": module.weight[used].float()})
    view.padding_idx = None  # matters to gradients only
    found: Tensor = view(places)
    return found


def _edited(module: nn.Module, edits: Mapping[str, Edit], *args: Any, **options: Any) -> Any:
    """The module's own `forward` with its weights in float32, changed by `edits`."""
    values = {name: value.float() for name, value in module.named_parameters(recurse=False)}
    values |= {name: edit(values[name].cpu()).to(values[name].device) for name, edit in edits.items()}
    return _view(module, values)(*args, **options)


def _view(module: nn.Module, parameters: dict[str, Tensor]) -> Any:
    """A shallow copy of `module` with other parameters, which runs no hooks: those of `module` run around it."""
    view: Any = copy.copy(module)
    vars(view).pop("forward", None)
    view._parameters = {**module._parameters, **parameters}
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        setattr(view, hooks, type(getattr(module, hooks))())
    return view
