"""The rope scaling in a GGUF file is that of transformers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from edgekit.export.gguf import families

LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_CASES: dict[str, dict[str, Any]] = {
    "Llama 3.2": {"rope_theta": 500_000.0, "original_max_position_embeddings": 8192},
    "a short original context": {"rope_theta": 10_000.0, "original_max_position_embeddings": 64, "factor": 8.0},
    "no original context": {"rope_theta": 10_000.0, "factor": 2.5},
    "other bounds": {"rope_theta": 1e6, "original_max_position_embeddings": 512, "low_freq_factor": 2.0, "high_freq_factor": 32.0},
}  # fmt: skip


@pytest.mark.parametrize("case", LLAMA3_CASES)
@pytest.mark.parametrize("head", [16, 80, 128])
def test_the_factors_of_llama_3(case: str, head: int) -> None:
    config = transformers.LlamaConfig(
        hidden_size=4 * head, num_attention_heads=4, head_dim=head, max_position_embeddings=4096,
        rope_parameters={**LLAMA3, **LLAMA3_CASES[case]},
    )  # fmt: skip
    (factors,) = families.rope_factors(config).values()
    scaled, attention = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    exponents = np.arange(0, head, 2) / head
    plain = LLAMA3_CASES[case]["rope_theta"] ** -exponents
    assert factors.dtype == np.float32
    assert np.allclose(plain / factors, scaled.numpy(), rtol=2e-6, atol=0)
    assert attention == 1
    assert factors[0] == 1  # the fastest frequency is never divided


def test_the_cases_of_llama_3_divide_keep_and_blend() -> None:
    config = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=4, rope_parameters={**LLAMA3, **LLAMA3_CASES["Llama 3.2"]}
    )
    (factors,) = families.rope_factors(config).values()
    assert (factors[0], factors[-1]) == (1, 32)
    assert any(1 < factor < 32 for factor in factors)


LONGROPE_CASES: dict[str, dict[str, Any]] = {
    "Phi 4 mini": {"original_max_position_embeddings": 4096, "max_position_embeddings": 131_072},
    "a factor": {"original_max_position_embeddings": 4096, "rope": {"factor": 12.0}},
    "an attention factor": {"original_max_position_embeddings": 4096, "rope": {"attention_factor": 1.19}},
    "no longer context": {"original_max_position_embeddings": 4096, "max_position_embeddings": 4096},
    "a shorter context": {"original_max_position_embeddings": 4096, "max_position_embeddings": 2048},
}


@pytest.mark.parametrize("case", LONGROPE_CASES)
def test_the_scale_of_longrope(case: str) -> None:
    values = dict(LONGROPE_CASES[case])
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "long_factor": [1.0] * 8, "short_factor": [1.0] * 8}
    config = transformers.Phi3Config(
        hidden_size=64, num_attention_heads=4, pad_token_id=0, rope_parameters=rope | values.pop("rope", {}), **values
    )  # fmt: skip
    found = families._longrope_scale(config)
    _, wanted = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"), seq_len=1)
    assert math.isclose(found, wanted, rel_tol=1e-12)
