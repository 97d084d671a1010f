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
from edgekit.models import folder_check
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


def added(**changes: Any) -> Callable[[Path], None]:
    """One more added token, which has no row: the first free id, special, and named by nothing else."""
    return edit_json("tokenizer.json", lambda t: t["added_tokens"].append({**TOKEN, **changes}))


def both(*hurts: Callable[[Path], None]) -> Callable[[Path], None]:
    def hurt(folder: Path) -> None:
        for one in hurts:
            one(folder)

    return hurt


def with_post_processor(tokenizer: dict[str, Any], text: str = "<|more|>") -> None:
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {text: {"id": text, "ids": [478], "tokens": [text]}},
    }


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "text without a row": (added(special=False), "the id 478 to '<|more|>', but the model has 478 rows.*any text may contain it"),
    "text without a row, by another file": (
        both(added(), edit_json("tokenizer_config.json", lambda c: c.update(added_tokens_decoder={"478": {**TOKEN, "special": False}}))),
        "any text may contain it",
    ),
    "padding without a row": (
        both(added(), edit_json("tokenizer_config.json", lambda c: c.update(pad_token="<|more|>"))),
        "tokenizer_config.json names it as pad_token",
    ),
    "an end without a row": (
        both(added(), lambda f: (f / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|more|>"}}') and None),
        "special_tokens_map.json names it as eos_token",
    ),
    "an unknown token without a row": (
        both(added(), edit_json("tokenizer.json", lambda t: t["model"].update(unk_token="<|more|>"))), "names it as unk_token",
    ),
    "a role that the template prints, without a row": (
        both(added(), lambda f: (f / "chat_template.jinja").write_text("<|mo{{ 're' }}|>{{ messages[0].content }}") and None),
        "the chat template prints it",
    ),
    "a frame without a row": (
        both(added(), edit_json("tokenizer.json", with_post_processor)), "the post-processor adds it to every text",
    ),
    "a frame without a row, under another name": (
        both(added(), edit_json("tokenizer.json", lambda t: with_post_processor(t, "<|other|>"))),
        "the post-processor adds it to every text",
    ),
    "a word whose id is a list": (
        edit_json("tokenizer.json", lambda t: t["model"]["vocab"].update(hello=[478])), "the id \\[478\\] to 'hello'",
    ),
    "a word whose id is a fraction, beside an added token": (
        both(added(), edit_json("tokenizer.json", lambda t: t["model"]["vocab"].update({"<|more|>": 478.0}))),
        "the id 478.0 to",
    ),
    "a merge without a row": (
        both(
            added(content="zz"),
            edit_json("tokenizer.json", lambda t: t["model"]["vocab"].update(zz=478)),
            edit_json("tokenizer.json", lambda t: t["model"]["merges"].append(["z", "z"])),
        ),
        "merges join other tokens to it",
    ),
    "an added token far from all others": (added(id=70_000), "the id 70000 to"),
    "an added token whose id is a text": (added(id="478"), "the id '478' to"),
    "thousands of unused tokens": (
        edit_json("tokenizer.json", lambda t: t["added_tokens"].extend(
            {**TOKEN, "id": 478 + n, "content": f"<|{n}|>"} for n in range(2000))),
        "1000 other tokens have no row either",
    ),
    "a text_config that is no table": (
        edit_json("config.json", lambda c: c.update(text_config=[1], hidden_size=128)), "hidden_size 128",
    ),
    "a key of many digits": (
        edit_json("tokenizer_config.json", lambda c: c.update(added_tokens_decoder={"9" * 5000: TOKEN})), "the id '999",
    ),
    "an end by id without a row": (
        edit_json("generation_config.json", lambda c: c.update(eos_token_id=[2, 478])), "eos_token_id 478",
    ),
    "a negative end": (edit_json("config.json", lambda c: c.update(eos_token_id=-1)), "eos_token_id -1"),
    "padding by id without a row": (edit_json("config.json", lambda c: c.update(pad_token_id=500)), "pad_token_id 500"),
    "a word without a row": (
        edit_json("tokenizer.json", lambda t: t["model"]["vocab"].update(hello=99_999)), "the id 99999 to 'hello'",
    ),
    "fewer rows than tokens": (
        both(
            edit_weights(lambda w: w.update({EMBEDDING: w[EMBEDDING][:400].clone()})),
            edit_json("config.json", lambda c: c.update(vocab_size=400)),
        ),
        "the model has 400 rows",
    ),
    "a template without end": (
        lambda f: (f / "chat_template.jinja").write_text("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}") and None,
        "template was stopped",
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
    HOSTILE["text without a row"][0](folder)
    done = shell("verify", folder, "--reference", folder)
    assert done.returncode == 5 and "the model has 478 rows" in done.stderr and "Traceback" not in done.stderr


def test_the_template_is_rendered_before_any_weight_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    HOSTILE["a template without end"][0](folder)
    monkeypatch.setattr(folder_check, "read_safetensors", lambda file: pytest.fail("a weight was read"))
    with pytest.raises(CorruptError, match="template was stopped"):
        check_folder(folder)
