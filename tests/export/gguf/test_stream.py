"""The streamed file is byte for byte the one of the separate steps, and memory does not grow with the model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peft
import pytest
import tiny
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from edgekit.base.errors import ConfigError, CorruptError, EdgekitError, StageError, UnsupportedError
from edgekit.base.events import Alert, Event, Progress, ignore
from edgekit.containers.safetensors import SINGLE, StoredTensor, read_safetensors
from edgekit.export.gguf import quantize, stream
from edgekit.export.gguf.stored import ROUNDING
from edgekit.export.gguf.write import is_float_file, read_model, write
from edgekit.export.weights import folder
from edgekit.export.weights.merge import merge
from edgekit.export.weights.rows import Rows
from edgekit.export.weights.safetensors_io import Weights, write_weights
from edgekit.targets.target import GgufExport

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}  # rows that K types can hold
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SMALL_PIECE = 1 << 13  # weights: most tensors are then made of several pieces

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Tiny models with a small tokenizer, each made once."""
    return tiny.maker(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PIECE", SMALL_PIECE)


def options(type: str, **changes: Any) -> GgufExport:
    return GgufExport(format="gguf", type=type, **changes)  # type: ignore[arg-type]


def in_steps(
    model: Path, folder: Path, wanted: GgufExport, imatrix: dict[str, NDArray[np.float32]] | None = None
) -> bytes:
    """The file as the separate steps make it."""
    floats, out = folder / "steps.f32.gguf", folder / "steps.gguf"
    write(model, floats, ignore)
    if is_float_file(wanted):
        return floats.read_bytes()
    quantize.quantize(floats, out, wanted, imatrix=imatrix, threads=2)
    return out.read_bytes()


def streamed(model: Path, folder: Path, wanted: GgufExport, **more: Any) -> bytes:
    stream.stream(model, folder / "streamed.gguf", wanted, **more)
    return (folder / "streamed.gguf").read_bytes()


def weights_for(model: Path) -> dict[str, NDArray[np.float32]]:
    """An importance matrix for each linear layer of the decoder."""
    tensors = stream.read_model(model).tensors
    random = np.random.default_rng(5)
    return {
        tensor.name: random.exponential(size=tensor.shape[1]).astype(np.float32)
        for tensor in tensors
        if len(tensor.shape) == 2 and "blk" in tensor.name
    }


@pytest.mark.parametrize("type", ["Q4_K_M", "Q5_K_M"])  # the second falls back to Q5_1 and from there to Q8_0
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_gives_the_same_file(family: str, type: str, make: Make, tmp_path: Path) -> None:
    model = make(family)
    assert streamed(model, tmp_path, options(type)) == in_steps(model, tmp_path, options(type))


CASES: dict[str, GgufExport] = {
    **{
        type: options(type)
        for type in ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_1", "Q4_0", "Q3_K_M")
    },
    "tensor types": options("Q4_K_M", tensor_types={"ffn_down": "Q6_K", "attn_[kv]": "Q8_0"}),
    "embedding": options("Q8_0", token_embedding_type="Q4_K_M"),
    "embedding of floats": options("F32", token_embedding_type="Q5_1"),
    "embedding with an offset": options("Q4_0", token_embedding_type="Q5_1"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_type_gives_the_same_file_with_and_without_importance(
    case: str, make: Make, tmp_path: Path
) -> None:
    model = make("llama-untied", **WIDE)
    importance = weights_for(model) if quantize.uses_importance(CASES[case].type) else None
    for imatrix in (None, importance) if importance else (None,):
        expected = in_steps(model, tmp_path, CASES[case], imatrix)
        assert streamed(model, tmp_path, CASES[case], imatrix=imatrix, threads=2) == expected


def test_the_same_bytes_with_any_number_of_threads(make: Make, tmp_path: Path) -> None:
    model = make("llama", **WIDE)
    files = {streamed(model, tmp_path, options("Q4_K_M"), threads=threads) for threads in (1, 2, 5)}
    assert files == {in_steps(model, tmp_path, options("Q4_K_M"))}


def test_rounded_rows_are_copied_and_the_file_says_so(make: Make, tmp_path: Path) -> None:
    model, wanted = make("llama", **WIDE), options("Q4_K_M")
    streamed(model, tmp_path, wanted)
    plain = gguf.GGUFReader(tmp_path / "streamed.gguf")
    (tmp_path / "rows").mkdir()
    rows = {
        tensor.name: np.roll(tensor.data, 1, 0)
        for tensor in plain.tensors
        if tensor.name.endswith("attn_q.weight")
    }
    assert len(rows) == 2
    save_arrays(rows, tmp_path / "rows" / "0.safetensors")
    types, fixed = stream.layout(model, wanted, tmp_path)
    stream.assemble(model, tmp_path / "rounded.gguf", wanted, tmp_path / "rows")
    found = gguf.GGUFReader(tmp_path / "rounded.gguf")
    for old, new in zip(plain.tensors, found.tensors, strict=True):
        assert np.array_equal(new.data, rows.get(old.name, old.data))
    assert found.fields.keys() - plain.fields.keys() == {ROUNDING}
    assert found.fields[ROUNDING].contents() == "feedback"
    sizes = (
        stream.packed_size(*tensor.shape[::-1].tolist(), types[tensor.name])
        for tensor in found.tensors
        if types[tensor.name] != "F32"
    )
    assert (tmp_path / "rounded.gguf").stat().st_size == fixed + sum(sizes)


def adapter_for(base: Path, folder: Path, **changes: Any) -> Path:
    """A LoRA adapter with random factors."""
    config = peft.LoraConfig(
        **{"r": 4, "lora_alpha": 12, "target_modules": LINEAR, "task_type": "CAUSAL_LM"} | changes
    )
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora, head and norm saved whole": {"use_dora": True, "modules_to_save": ["lm_head", "norm"]},
    "embedding and some layers": {"target_modules": ["embed_tokens", "q_proj"]},
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_is_merged_on_the_way(case: str, make: Make, tmp_path: Path) -> None:
    base = make("llama-untied", **WIDE, dtype="float32")
    adapter = adapter_for(base, tmp_path / "adapter", **ADAPTERS[case])
    merge(base, adapter, tmp_path / "merged")
    imatrix = weights_for(base)
    expected = in_steps(tmp_path / "merged", tmp_path, options("Q4_K_M"), imatrix)
    for threads in (1, 2):
        arguments = {"adapter": adapter, "imatrix": imatrix, "threads": threads}
        assert streamed(base, tmp_path, options("Q4_K_M"), **arguments) == expected


def test_the_headers_of_the_base_are_read_once(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make("llama-untied", **WIDE, dtype="float32")
    adapter = adapter_for(base, tmp_path / "adapter", **ADAPTERS["plain"])
    read: list[Path] = []

    def count(file: Path) -> dict[str, StoredTensor]:
        read.append(file)
        return read_safetensors(file)

    monkeypatch.setattr(folder, "read_safetensors", count)
    read_model(base, adapter)
    assert sorted(read) == sorted([base / "model.safetensors", adapter / "adapter_model.safetensors"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_type_in_any_number_of_shards(dtype: torch.dtype, make: Make, tmp_path: Path) -> None:
    model = copy_with(make("qwen2", **WIDE), tmp_path / "model", dtype, max_shard_mib=1)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    assert streamed(model, tmp_path, options("Q6_K")) == in_steps(model, tmp_path, options("Q6_K"))


def copy_with(model: Path, to: Path, dtype: torch.dtype, max_shard_mib: int) -> Path:
    """A copy of a model folder with its weights stored as `dtype`, in shards."""
    to.mkdir()
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (to / file.name).symlink_to(file)
    weights = Weights(model)
    layout = {name: (dtype, shape) for name, (_, shape) in weights.layout.items()}
    write_weights(to, layout, lambda name: weights[name].to(dtype), max_shard_mib=max_shard_mib)
    return to


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int32, torch.bool])
def test_rows_are_what_torch_reads(dtype: torch.dtype, tmp_path: Path) -> None:
    values = (torch.randn(13, 7, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    save_file({"first": torch.ones(3, dtype=torch.uint8), "values": values}, tmp_path / SINGLE)
    rows = Rows(tmp_path)
    assert np.array_equal(rows.read("values", 4, 11), values[4:11].float().numpy())
    (tmp_path / SINGLE).write_bytes((tmp_path / SINGLE).read_bytes()[:-8])
    with pytest.raises(CorruptError, match="ends inside 'values'"):
        rows.read("values", 12, 13)


def test_equal_sees_one_different_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.export.weights.rows.COMPARED", 8)
    values = torch.randn(13, 4)
    other = values.clone()
    other[12, 3] += 1
    save_file({"one": values, "same": values.clone(), "other": other, "wide": other.T.contiguous()}, tmp_path / SINGLE)  # fmt: skip
    rows = Rows(tmp_path)
    assert rows.equal("one", "same")
    assert not rows.equal("one", "other")
    assert not rows.equal("other", "wide")


def damaged(model: Path, to: Path, name: str) -> Path:
    """A copy with one weight that is not a number, in the last row of `name`."""
    copy_with(model, to, torch.float32, max_shard_mib=1000)
    tensors = load_file(to / SINGLE)
    tensors[name].view(-1)[-1] = torch.nan
    save_file(tensors, to / SINGLE, metadata={"format": "pt"})
    return to


def stop(event: Event) -> None:
    if isinstance(event, Progress):
        raise KeyboardInterrupt


def fails(run: Callable[[], None], out: Path, error: type[BaseException], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        run()
    assert not out.exists()
    if isinstance(caught.value, EdgekitError):
        assert caught.value.hint


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight"])
def test_a_weight_that_is_no_number_is_found(name: str, make: Make, tmp_path: Path) -> None:
    model, out = damaged(make("llama-untied"), tmp_path / "model", name), tmp_path / "out.gguf"
    fails(lambda: stream.stream(model, out, options("Q8_0")), out, CorruptError, "finite")


def test_a_weight_too_large_for_its_type_is_found(make: Make, tmp_path: Path) -> None:
    model, out = copy_with(make(), tmp_path / "model", torch.float32, 1000), tmp_path / "out.gguf"
    tensors = load_file(model / SINGLE)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e30  # a scale is a 16-bit float
    save_file(tensors, model / SINGLE)
    fails(lambda: stream.stream(model, out, options("Q8_0")), out, StageError, "blk.1.ffn_up.weight.*Q8_0")


def test_what_llama_cpp_refuses_is_refused(make: Make, tmp_path: Path) -> None:
    model, out, q4 = make(), tmp_path / "out.gguf", options("Q4_0")
    narrow = {"blk.0.attn_q.weight": np.ones(5, np.float32)}
    broken = {"blk.0.attn_q.weight": np.full(64, np.nan, np.float32)}
    fails(lambda: stream.stream(model, out, q4, imatrix=narrow), out, StageError, "imatrix size 5")
    fails(lambda: stream.stream(model, out, q4, imatrix=broken), out, StageError, "non-finite")
    fails(lambda: stream.stream(model, out, q4, adapter=tmp_path), out, ConfigError, "adapter_config")


def test_an_interrupted_export_leaves_nothing(make: Make, tmp_path: Path) -> None:
    model, out = make(), tmp_path / "out.gguf"
    fails(lambda: stream.stream(model, out, options("Q8_0"), emit=stop), out, KeyboardInterrupt, "")


def test_a_llama_cpp_that_words_its_log_otherwise_is_found(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = make(), tmp_path / "out.gguf"
    monkeypatch.setattr(quantize, "SIZE", quantize.re.compile("bytes"))
    fails(lambda: stream.stream(model, out, options("Q8_0")), out, StageError, "does not report the type")


def test_progress_counts_the_files_bytes_and_a_fallback_is_said_once(make: Make, tmp_path: Path) -> None:
    events: list[Event] = []
    stream.stream(make(), tmp_path / "out.gguf", options("Q5_K_M"), emit=events.append)
    steps = [event for event in events if isinstance(event, Progress)]
    tensors = gguf.GGUFReader(tmp_path / "out.gguf").tensors
    assert [event.note for event in steps] == [tensor.name for tensor in tensors]
    assert steps[-1].done == steps[-1].total == pytest.approx(sum(t.n_bytes for t in tensors) / 2**20)
    assert [event.level for event in events if isinstance(event, Alert)] == ["warning"]


def test_no_more_disk_than_the_result(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[int, int]] = []

    def choose(source: Path, *arguments: Any) -> quantize.Choice:
        status = source.stat()
        held.append((status.st_size, status.st_blocks * 512))
        return quantize.choose_types(source, *arguments)

    monkeypatch.setattr(stream, "choose_types", choose)
    size = len(streamed(make("llama-untied", **WIDE), tmp_path, options("Q4_K_M")))
    (apparent, on_disk), = held  # fmt: skip
    assert apparent > 4 * size and on_disk < size / 4
    assert [file.name for file in tmp_path.iterdir()] == ["streamed.gguf"]


def test_a_head_that_differs_from_its_tied_embedding_is_refused(make: Make, tmp_path: Path) -> None:
    model = copy_with(make(), tmp_path / "model", torch.float32, 1000)
    tensors = load_file(model / SINGLE)
    head = tensors["model.embed_tokens.weight"].clone()
    save_file({**tensors, "lm_head.weight": head}, model / SINGLE)
    assert streamed(model, tmp_path, options("Q8_0")) == in_steps(make(), tmp_path, options("Q8_0"))
    head[-1, -1] += 1
    save_file({**tensors, "lm_head.weight": head}, model / SINGLE)
    with pytest.raises(CorruptError, match="ties the head"):
        stream.stream(model, tmp_path / "out.gguf", options("Q8_0"))


def test_a_model_beyond_llama_cpp_is_refused(make: Make, tmp_path: Path) -> None:
    model = copy_with(make(), tmp_path / "model", torch.float32, 1000)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").unlink()
    (model / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    out = tmp_path / "out.gguf"
    fails(lambda: stream.stream(model, out, options("Q8_0")), out, UnsupportedError, "relu")


MEASURE = """
import json, sys
from pathlib import Path
from edgekit.targets.target import GgufExport
from edgekit.export.gguf.stream_process import peak_memory, stream
from edgekit.base.memory import PeakRss

options = GgufExport(format="gguf", type="Q4_K_M")
few, many, lora = map(Path, sys.argv[1:])
for folder, adapter in (few, None), (many, None), (few, lora):
    with PeakRss(0.005) as peak:
        stream(folder, folder / "out.gguf", options, adapter=adapter, threads=2)
    config = json.loads((folder / "config.json").read_text())
    print(json.dumps([peak.peak_mib * 2**20, peak_memory(config, options, threads=2, adapter=adapter)]))
"""


def test_memory_does_not_grow_with_the_model_and_stays_below_what_was_said(
    make: Make, tmp_path: Path
) -> None:
    shape = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    }
    few, many = make(**shape, num_hidden_layers=2), make(**shape, num_hidden_layers=12)
    lora = adapter_for(few, tmp_path / "adapter")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, few, many, lora], capture_output=True, text=True, check=True
    )
    (small, said), (large, said_again), (merged, said_merged) = map(json.loads, done.stdout.splitlines())
    grown = (many / SINGLE).stat().st_size - (few / SINGLE).stat().st_size
    assert grown > 140 * 2**20
    assert large - small < 0.1 * grown
    assert small <= said and large <= said_again and merged <= said_merged
    assert said_again < 2 * large
    assert said_again - said < 2**20
    assert streamed(few, tmp_path, options("Q4_K_M"), adapter=lora) == (few / "out.gguf").read_bytes()
