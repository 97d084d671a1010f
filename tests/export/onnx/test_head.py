"""The head in 8 bits is what onnxruntime's own quantizer makes of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor

from edgekit.export.onnx import head
from edgekit.export.onnx.gptq import RoundedLinear


class Network(torch.nn.Module):
    """A model with nothing but a head."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.lm_head = torch.nn.Linear(*reversed(weight.shape), bias=False, dtype=weight.dtype)
        with torch.no_grad():
            self.lm_head.weight.copy_(weight)

    def get_output_embeddings(self) -> Any:
        return self.lm_head


def rounded(weight: torch.Tensor, block_size: int) -> Any:
    network = Network(weight)
    head.round_head(network, block_size)
    assert isinstance(network.lm_head, RoundedLinear)
    return network.lm_head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [64, 80])  # whole blocks, and a last one that is filled up
def test_it_is_what_onnxruntimes_quantizer_makes(
    dtype: torch.dtype, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "PIECE", 3 * columns)
    weight = torch.randn(40, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[7] = 0
    found = rounded(weight, 32)
    blocks = -(-columns // 32)
    padded = np.pad(weight.float().numpy(), ((0, 0), (0, blocks * 32 - columns)))
    codes, scales, _ = quant_tensor(padded, 8, 32, "sym", "uint")
    assert np.array_equal(found.qweight.numpy(), codes.astype(np.uint8).reshape(40, blocks, 32))
    assert np.array_equal(found.scales.numpy(), scales.astype(np.float32).reshape(40, blocks))
    wanted = SimpleNamespace(bits=8, group_size=32, in_features=columns, out_features=40, qzeros=None)
    assert {key: getattr(found, key) for key in vars(wanted)} == vars(wanted)
