"""A model folder whose parts do not fit each other is refused in a sentence, before torch or transformers meet it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from edgekit.base.errors import CorruptError
from edgekit.models.folder_check import check_folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_small(tmp_path_factory.mktemp("good") / "llama")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def edit_json(name: str, edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def hurt(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        edit(values)
        (folder / name).write_text(json.dumps(values))

    return hurt


def edit_weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def hurt(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        edit(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return hurt


EMBEDDING, DOWN = "model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"
TOKEN = {"id": 478, "content": "<|more|>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}  # fmt: skip
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "an added token without a row": (
        edit_json("tokenizer.json", lambda t: t["added_tokens"].append(TOKEN)),
        "token ids up to 478, and the model's embedding has 478 rows",
    ),
    "a word without a row": (
        edit_json("tokenizer.json", lambda t: t["model"]["vocab"].update(hello=99_999)), "token ids up to 99999",
    ),
    "fewer rows than tokens": (
        edit_weights(lambda w: w.update({EMBEDDING: w[EMBEDDING][:400].clone()})), "embedding has 400 rows",
    ),
    "another vocabulary size": (edit_json("config.json", lambda c: c.update(vocab_size=600)), "vocab_size 600"),
    "another hidden size": (edit_json("config.json", lambda c: c.update(hidden_size=128)), "hidden_size 128"),
    "more layers than weights": (
        edit_json("config.json", lambda c: c.update(num_hidden_layers=5)), "num_hidden_layers 5",
    ),
    "fewer layers than weights": (
        edit_json("config.json", lambda c: c.update(num_hidden_layers=2)), "num_hidden_layers 2",
    ),
    "NaN in a weight": (edit_weights(lambda w: w[DOWN].view(-1)[7:8].fill_(float("nan"))), "NaN or infinity at index 7"),
    "infinity in a half": (
        edit_weights(lambda w: w.update({DOWN: w[DOWN].half().index_fill(0, torch.tensor([0]), float("inf"))})),
        "NaN or infinity at index 0",
    ),
    "NaN in a bfloat16": (
        edit_weights(lambda w: w.update({DOWN: w[DOWN].bfloat16().index_fill(0, torch.tensor([1]), float("nan"))})),
        "NaN or infinity",
    ),
    "a tokenizer that is no object": (lambda f: (f / "tokenizer.json").write_text("[]") and None, "not a JSON object"),
}  # fmt: skip


def test_a_good_folder_passes(good: Path) -> None:
    check_folder(good)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_folder_whose_parts_do_not_fit_is_refused(case: str, folder: Path) -> None:
    hurt, reason = HOSTILE[case]
    hurt(folder)
    with pytest.raises(CorruptError, match=reason) as refused:
        check_folder(folder)
    assert "\n" not in refused.value.message and refused.value.hint


def test_tokens_without_rows_exit_with_5(folder: Path, shell) -> None:
    HOSTILE["an added token without a row"][0](folder)
    done = shell("verify", folder, "--reference", folder)
    assert done.returncode == 5 and "embedding has 478 rows" in done.stderr and "Traceback" not in done.stderr
