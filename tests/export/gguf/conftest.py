"""Tiny models whose weights are rounded with error feedback, and files written in the process of the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from edgekit.containers.safetensors import SINGLE
from edgekit.export.gguf import stream, stream_process
from edgekit.export.weights.layerwise import one_torch_thread

TABLE = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Tiny models whose embeddings lie near some directions, as those of a language model: feedback gains from that."""
    plain, made = tiny.maker(tmp_path_factory.mktemp("models")), set[Path]()

    def of(family: str, **changes: Any) -> Path:
        model = plain(family, **{"num_hidden_layers": 1, **changes})
        if model not in made:
            made.add(model)
            tensors = load_file(model / SINGLE)
            table = tensors[TABLE]
            columns = table.shape[1]
            directions = torch.randn(columns, columns, generator=torch.Generator().manual_seed(1))
            directions *= torch.linspace(0, -4, columns).exp()[:, None]
            tensors[TABLE] = table @ directions * (columns**0.5 / directions.norm())
            save_file(tensors, model / SINGLE, metadata={"format": "pt"})
        return model

    return of


@pytest.fixture(scope="module")
def in_this_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a child process does otherwise; its start takes seconds."""
    work = tmp_path_factory.mktemp("layout")
    with pytest.MonkeyPatch.context() as patch, one_torch_thread():
        patch.setattr(stream_process, "layout", lambda source, options: stream.layout(source, options, work))
        patch.setattr(stream_process, "assemble", stream.assemble)
        yield
