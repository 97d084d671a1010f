from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from edgekit.base.errors import ConfigError, CorruptError, UnsupportedError
from edgekit.containers.safetensors import INDEX, SINGLE
from edgekit.export.weights.folder import PLAIN, copy_companions, model_config, read_json
from edgekit.export.weights.rows import NUMPY
from edgekit.export.weights.safetensors_io import DTYPES, Weights, write_weights

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
layouts = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__" and name.isprintable()),
    st.tuples(st.sampled_from(list(DTYPES.values())), shapes),
    max_size=6,
)


def filled(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return (torch.arange(torch.Size(shape).numel()) % 2).reshape(shape).to(dtype)


def folder_of(path: Path, sizes_kib: list[int], max_shard_mib: int) -> tuple[Path, dict[str, torch.Tensor]]:
    tensors = {f"t{i}": torch.arange(kib * 256, dtype=torch.float32) + i for i, kib in enumerate(sizes_kib)}
    path.mkdir()
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_weights(path, layout, tensors.__getitem__, max_shard_mib=max_shard_mib)
    return path, tensors


@settings(deadline=None, max_examples=60)
@given(layout=layouts)
def test_what_is_written_is_what_safetensors_reads(
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("written")
    tensors = {name: filled(*spec) for name, spec in layout.items()}
    write_weights(folder, layout, tensors.__getitem__)
    for reader in (load_file(folder / SINGLE), Weights(folder)):
        assert set(reader) == set(tensors)
        for name, tensor in tensors.items():
            assert reader[name].dtype == tensor.dtype
            assert torch.equal(reader[name], tensor)


def test_shards_hold_the_limit_and_the_index_finds_every_tensor(tmp_path: Path) -> None:
    folder, tensors = folder_of(tmp_path / "m", [600, 600, 2000, 300, 300], max_shard_mib=1)
    shards = sorted(folder.glob("*.safetensors"))
    assert [shard.name for shard in shards] == [f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)]
    for shard in shards:
        assert shard.stat().st_size <= (1 << 20) + 4096 or len(load_file(shard)) == 1
    index = read_json(folder / INDEX)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    for name, place in index["weight_map"].items():
        assert torch.equal(load_file(folder / place)[name], tensors[name])
    assert all(torch.equal(Weights(folder)[name], tensor) for name, tensor in tensors.items())


def test_a_tensor_unlike_its_promise_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="promised"):
        write_weights(tmp_path, {"w": (torch.float32, (2, 3))}, lambda name: torch.zeros(3, 2))


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b[:40],
        lambda b: b[:4],
        lambda b: b"",
        lambda b: b + b"\0",
        lambda b: b"\xff" * 99,
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    folder, _ = folder_of(tmp_path / "m", [4, 4], max_shard_mib=1)
    file = folder / SINGLE
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CorruptError, match=SINGLE):
        Weights(folder)


def test_a_damaged_or_missing_shard_is_named(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path / "m", [900, 900], max_shard_mib=1)
    second = folder / "model-00002-of-00002.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-7])
    with pytest.raises(CorruptError, match=second.name):
        Weights(folder)
    save_file({"other": torch.zeros(1)}, second)
    with pytest.raises(CorruptError, match="lacks 1 tensors"):
        Weights(folder)
    save_file({"t0": torch.zeros(1), "t1": torch.zeros(1)}, second)
    with pytest.raises(CorruptError, match="another shard"):
        Weights(folder)
    second.unlink()
    with pytest.raises(CorruptError, match=second.name):
        Weights(folder)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {"a": "../outside.safetensors"}}'])
def test_a_damaged_index_is_named(tmp_path: Path, index: str) -> None:
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(CorruptError, match=INDEX):
        Weights(tmp_path)


def test_pickles_and_packed_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=SINGLE):
        Weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(UnsupportedError, match="pickled"):
        Weights(tmp_path)
    save_file({"w": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / SINGLE)
    with pytest.raises(UnsupportedError, match="F8_E4M3"):
        Weights(tmp_path)


def test_configs_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        model_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-thing"}')
    with pytest.raises(UnsupportedError, match="no-such-thing"):
        model_config(tmp_path)
    for text in ("{", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CorruptError, match=r"config\.json"):
            model_config(tmp_path)


def test_companions_are_copied_and_weights_are_not(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    (source / "additional_chat_templates").mkdir(parents=True)
    out.mkdir()
    kept = ["tokenizer.json", "chat_template.jinja", "edgekit.json", "additional_chat_templates/tools.jinja"]
    for name in [*kept, "config.json", SINGLE, "training_args.bin"]:
        (source / name).write_text(json.dumps(name))
    copy_companions(source, out)
    assert sorted(str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()) == sorted(kept)


def test_each_type_that_is_read_without_torch_is_read_with_it() -> None:
    assert set(PLAIN) == set(DTYPES) == {*NUMPY, "BF16"}
