"""The importance matrix: how large the inputs of each column of each linear layer are on real text.

Computed as by `llama-imatrix` (llama.cpp, tools/imatrix): the mean over tokens of the squared activations. The quantizer
weights each column's rounding error by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.base.events import Emit, Progress, ignore
from edgekit.export.gguf.families import FAMILIES, architecture, name_map
from edgekit.models.source import read_config

if TYPE_CHECKING:
    import gguf
    import torch

STAGE = "quantize.gguf"


def importance(
    model: Path,
    sequences: Sequence[Sequence[int]],
    emit: Emit = ignore,
    *,
    names: gguf.TensorNameMap | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Mean squared input `(columns,)` of each linear layer of the decoder, by GGUF tensor name.

    `sequences` are token ids, `names` maps the names of layers to those in the file, by default as edgekit writes the
    architecture; a layer without a name is left out. The head is left out, as `llama-imatrix` does unless told otherwise.
    """
    import torch

    from edgekit.models import accelerator, mapped

    network = accelerator.place(mapped.load(model))
    names = names or name_map(network.config, FAMILIES[architecture(read_config(model))])
    sums: dict[str, torch.Tensor] = {}
    decoder = network.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    for path, module in network.named_modules():
        name = names.get_name(f"{path}.weight", try_suffixes=(".weight",))
        if name and isinstance(module, torch.nn.Linear) and id(module) in inside:
            module.register_forward_pre_hook(_collector(sums, name))
    with torch.inference_mode():
        for done, ids in enumerate(sequences, start=1):
            decoder(accelerator.ids_for(network, [ids]), use_cache=False)
            emit(Progress(STAGE, done, len(sequences), "rows", "importance"))
    tokens = sum(len(ids) for ids in sequences)
    return {name: (total / tokens).float().cpu().numpy() for name, total in sorted(sums.items())}


def _collector(sums: dict[str, torch.Tensor], name: str) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
    def collect(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        squares = inputs[0].square().flatten(0, -2).sum(0).double()  # (columns,)
        sums[name] = sums[name] + squares if name in sums else squares

    return collect
