"""A GPU that is none: tensors that say they are on one, and refuse to meet tensors of the processor as a GPU's would.

The numbers lie in ordinary memory and are computed by the processor. So code that forgets to move a tensor, or to bring one
back before numpy reads it, fails on a machine without a GPU as it would fail with one.

Importing this module changes torch for good: import it in a process of its own, before edgekit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from edgekit.models import accelerator

GPU, FREE = torch.device("privateuseone", 0), 1 << 34
aten = torch.ops.aten
MIXED = (aten.to, aten._to_copy, aten.copy_, aten.index)  # copies, and indices, which may be on the processor


class OnGpu(torch.Tensor):
    """A tensor whose device is `GPU`, and whose numbers are those of `held`, a tensor of the processor."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Self:
        found = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=GPU, requires_grad=False,
        )  # fmt: skip
        found.held = held
        return found

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.held!r})"

    def tolist(self) -> Any:
        """The numbers, copied."""
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        """What torch does for a tensor on a GPU."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Mode(TorchDispatchMode):
    """Factories that name the GPU, and copies to it, make tensors on it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute `func` on the processor, and put what comes out where a GPU would have put it."""
    leaves = list(tree_iter((args, kwargs)))
    given = [value for value in leaves if isinstance(value, torch.Tensor)]
    named = [value for value in leaves if isinstance(value, torch.device)]
    there = any(isinstance(value, OnGpu) for value in given)
    strangers = [value for value in given if not isinstance(value, OnGpu) and value.ndim]
    if there and strangers and func.overloadpacket not in MIXED:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got some on the CPU")
    plain_args, plain_kwargs = tree_map(_plain, (args, kwargs))
    found = func(*plain_args, **plain_kwargs)
    on_gpu = named[0].type != "cpu" if named else there
    given_back = {
        id(value.held): value for value in given if isinstance(value, OnGpu)
    }  # by in-place functions

    def put(value: Any) -> Any:
        if not on_gpu or not isinstance(value, torch.Tensor):
            return value
        return given_back[id(value)] if id(value) in given_back else OnGpu(value)

    return tree_map(put, found)


def _plain(value: Any) -> Any:
    if isinstance(value, OnGpu):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _prepare() -> None:
    """Tell torch, for the rest of this process, that there is such a device."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("pretended")
    torch.inference_mode = torch.no_grad  # type: ignore[assignment,misc]  # which such tensors do not know


_prepare()  # before edgekit's modules, which decorate functions with inference_mode


@contextmanager
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within it torch finds the GPU, with `FREE` bytes of memory. Nothing has gradients: they need a real one."""
    with monkeypatch.context() as patch, torch.no_grad(), Mode():
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "mem_get_info", lambda: (FREE, FREE))
        patch.setattr(accelerator, "GPU", str(GPU))
        torch._C._set_only_lift_cpu_tensors(True)
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            yield
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
            torch._C._set_only_lift_cpu_tensors(False)
