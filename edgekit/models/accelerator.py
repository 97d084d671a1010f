"""The device on which torch computes: a CUDA GPU that has room for the model, else the processor.

`CUDA_VISIBLE_DEVICES=` (empty) keeps everything on the processor. Products in float32 stay in float32 on a GPU: torch rounds
their inputs to TF32 only where it is told to, and edgekit never tells it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

GPU = "cuda:0"
ROOM = 0.75  # share of a GPU's free memory that weights may take; the rest is for activations and logits


def place(network: Any) -> Any:
    """Move a network to the GPU when its weights, as they are stored, take at most `ROOM` of the memory free there."""
    if torch.cuda.is_available() and _bytes(network) <= ROOM * torch.cuda.mem_get_info()[0]:
        network.to(GPU)
    return network


def ids_for(network: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Token ids `(B, T)` on the device of the network's embedding."""
    return torch.tensor([list(ids) for ids in rows], device=network.get_input_embeddings().weight.device)


def _bytes(network: nn.Module) -> int:
    held = {value.data_ptr(): value.nbytes for value in (*network.parameters(), *network.buffers())}
    return sum(held.values())  # tied weights count once
