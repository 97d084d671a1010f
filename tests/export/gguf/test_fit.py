"""A file within a size: its bytes, its types, and answers nearer to the model's than those of llama.cpp's quantizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any, get_args

import gguf
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from edgekit.base.errors import ConfigError, CorruptError, StageError
from edgekit.base.events import Alert, Event, Progress, ignore
from edgekit.containers.safetensors import SINGLE
from edgekit.export.gguf import kernels, stream
from edgekit.export.gguf.fit import Fitted, fit
from edgekit.export.gguf.grids import GRIDS
from edgekit.export.gguf.kernels import TIME
from edgekit.export.gguf.quantize import quantize
from edgekit.export.gguf.write import PLAN, steps, write
from edgekit.models import mapped
from edgekit.registry import ExportContext
from edgekit.runtimes.llamacpp import open_model
from edgekit.targets.target import GgufExport, Quantize, TensorType

Make = Callable[..., Path]
RANDOM = torch.Generator().manual_seed(0)
ROWS, TEXTS, OTHERS = (torch.randint(3, 470, (8, 32), generator=RANDOM).tolist() for _ in range(3))
FEW = Quantize(bits_per_weight=7.8, types=["IQ4_NL", "Q8_0"])
TABLE = "model.embed_tokens.weight"
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},  # tied, and rotated in pairs: the file has its rows in another order
    "qwen3": {},  # untied
    "gemma3": {"layer_types": ["sliding_attention"]},  # norms with a shift, a scaled embedding
    "phi3-untied": {},  # q, k and v are one tensor
    "granite-biases": {},
}


pytestmark = pytest.mark.usefixtures("in_this_process")


def options(type: str = "Q4_0", **changes: Any) -> GgufExport:
    return GgufExport(format="gguf", type=type, **changes)  # type: ignore[arg-type]


def context(model: Path, quantize: Quantize, threads: int = 1) -> ExportContext:
    return ExportContext(model, ROWS, threads, TEXTS, quantize)


def types_of(file: Path) -> dict[str, str]:
    """The type of each tensor that is not float32."""
    return {
        tensor.name: tensor.tensor_type.name
        for tensor in gguf.GGUFReader(file).tensors
        if tensor.tensor_type.name != "F32"
    }


def weights_of(model: Path) -> int:
    """The weights of all matrices."""
    return sum(prod(tensor.shape) for tensor in stream.read_model(model).tensors if len(tensor.shape) == 2)


def divergence(model: Path, *files: Path) -> list[float]:
    """The mean KL divergence of each file from the model on text that no one calibrated on, nats."""
    network = mapped.load(model)
    runtimes = [open_model(file, threads=1, context=64) for file in files]
    sums = [0.0] * len(files)
    for ids in OTHERS:
        with torch.inference_mode():
            wanted = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for number, runtime in enumerate(runtimes):
            found = torch.from_numpy(runtime.logits(ids)).double().log_softmax(-1)
            sums[number] += float((wanted.exp() * (wanted - found)).sum()) / len(ids) / len(OTHERS)
    for runtime in runtimes:
        runtime.close()
    return sums


def distance(model: Path, file: Path) -> float:
    """Of the embedding from the model's."""
    (table,) = (tensor for tensor in gguf.GGUFReader(file).tensors if tensor.name == "token_embd.weight")
    found = torch.from_numpy(gguf.quants.dequantize(table.data, table.tensor_type))
    return float((found - load_file(model / SINGLE)[TABLE]).norm())


def by_llama_cpp(model: Path, out: Path, types: dict[str, str]) -> None:
    """llama.cpp's quantizer with these types."""
    floats = out.with_suffix(".f32")
    write(model, floats, ignore)
    by_name = {f"^{name}$": type for name, type in types.items()}
    quantize(floats, out, tiny.gguf_options("Q8_0", tensor_types=by_name), threads=1)


@pytest.fixture(scope="module")
def fitted_file(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of `FEW` for a family, as the step of a build writes it, each made once."""
    folder = tmp_path_factory.mktemp("fitted")

    def of(family: str) -> Path:
        out = folder / family / "model.gguf"
        if not out.exists():
            model = make(family, **FAMILIES[family])
            out.parent.mkdir()
            steps(options())[-1].run(model, out, context(model, FEW), ignore)
        return out

    return of


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_within_its_size_answers_better_than_llama_cpps(
    family: str, make: Make, fitted_file: Callable[[str], Path], tmp_path: Path
) -> None:
    model, out, peer = make(family, **FAMILIES[family]), fitted_file(family), tmp_path / "peer.gguf"
    assert {file.name for file in out.parent.iterdir()} == {"model.gguf", PLAN}
    plan = Fitted(**json.loads((out.parent / PLAN).read_text()))
    limit = FEW.max_bytes(weights_of(model), short_rows=True)
    assert limit is not None and 0.9 * limit < out.stat().st_size <= limit
    assert types_of(out) == plan.types and len({*plan.types.values()}) > 1
    assert plan.errors.keys() == plan.costs.keys() == plan.types.keys()
    by_llama_cpp(model, peer, plan.types)
    assert types_of(peer) == plan.types
    ours, theirs = divergence(model, out, peer)
    assert 0 < ours < 0.8 * theirs
    if "output.weight" in plan.types:  # no product sees this embedding: its own errors count
        assert distance(model, out) < 1.02 * distance(model, peer)
    assert plan.cost is not None and plan.cost == pytest.approx(sum(plan.costs.values()))
    assert plan.cost / 3 < ours < plan.cost * 3


def test_long_rows_get_types_of_long_blocks(make: Make, tmp_path: Path) -> None:
    """IQ4_NL has as many bits as Q4_K, and larger errors; no type of a whole file is named Q3_K."""
    model, out = make("llama", hidden_size=256, intermediate_size=256), tmp_path / "out.gguf"
    limit = Quantize(bits_per_weight=4.15, types=["Q3_K", "IQ4_NL", "Q4_K"])
    fitted = fit(out, options(), context(model, limit))
    assert types_of(out) == fitted.types and {*fitted.types.values()} == {"Q3_K", "Q4_K"}
    field = gguf.GGUFReader(out).get_field("general.file_type")
    assert field is not None and field.contents() == gguf.LlamaFileType.MOSTLY_Q3_K_M


def test_the_bytes_do_not_depend_on_the_number_of_threads(
    make: Make, fitted_file: Callable[[str], Path], tmp_path: Path
) -> None:
    events: list[Event] = []
    fitted = fit(tmp_path / "out.gguf", options(), context(make("llama"), FEW, threads=2), events.append)
    assert (tmp_path / "out.gguf").read_bytes() == fitted_file("llama").read_bytes()
    assert asdict(fitted) == json.loads((fitted_file("llama").parent / PLAN).read_text())
    assert {event.note for event in events if isinstance(event, Progress)} >= {"sensitivity", "rounding"}


@pytest.mark.parametrize("type, quantize", [("Q4_K_M", Quantize()), ("Q8_0", FEW)])
def test_without_a_size_and_for_eight_bits_the_types_are_those_that_llama_cpp_chooses(
    type: str, quantize: Quantize, make: Make, tmp_path: Path
) -> None:
    """Rows of 64 columns take no blocks of 256: llama.cpp falls back to others, which is told."""
    model, out = make("llama"), tmp_path / "out.gguf"
    events: list[Event] = []
    fitted = fit(out, options(type), context(model, quantize), events.append)
    stream.stream(model, tmp_path / "peer.gguf", options(type))
    assert types_of(out) == types_of(tmp_path / "peer.gguf") == fitted.types
    assert (fitted.cost, fitted.costs) == (None, {})
    assert fitted.errors.keys() == fitted.types.keys() and all(0 < e < 0.5 for e in fitted.errors.values())
    assert [each.level for each in events if isinstance(each, Alert)] == ["warning"] * (type == "Q4_K_M")


def test_a_file_as_fast_as_asked_for_holds_fewer_slow_types(
    make: Make, fitted_file: Callable[[str], Path], tmp_path: Path
) -> None:
    model = make("llama")
    few = FEW.model_copy(update={"types": ["IQ4_NL", "Q5_0", "Q8_0"]})
    plain = fit(tmp_path / "plain.gguf", options(), context(model, few))
    fast = fit(tmp_path / "fast.gguf", options(), context(model, few.model_copy(update={"min_speedup": 1.5})))
    shapes = {tensor.name: tensor.shape for tensor in stream.read_model(model).tensors}
    weights = sum(prod(shapes[name]) for name in fast.types)

    def time(types: dict[str, str]) -> float:
        return sum(prod(shapes[name]) * TIME[type] for name, type in types.items()) / weights

    alone = few.model_copy(update={"bits_per_weight": None, "min_speedup": 1.5})
    unlimited = fit(tmp_path / "alone.gguf", options(), context(model, alone))
    assert time(plain.types) > 1 / 1.5 >= max(time(fast.types), time(unlimited.types))
    assert types_of(tmp_path / "fast.gguf") == fast.types and fast.decode_tokens_per_s is None
    assert plain.cost is not None and fast.cost is not None and plain.cost < fast.cost


def test_a_speed_alone_decides_the_types_too(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine on which a token takes a second for each 100 kB of the file."""
    model, out = make("llama"), tmp_path / "out.gguf"
    fixed = 1e5

    def speed(model: Path, wanted: GgufExport, threads: int) -> float:
        stream.hollow(model, tmp_path / "hollow.gguf", wanted)
        return fixed / (tmp_path / "hollow.gguf").stat().st_size

    monkeypatch.setattr(kernels, "decode_speed", speed)
    plain = Quantize(types=["IQ4_NL", "Q8_0"], min_decode_tokens_per_s=1e-9)
    slow = fit(out, options(), context(model, plain))
    assert {*slow.types.values()} == {"Q8_0"} and slow.decode_tokens_per_s is not None
    assert slow.decode_tokens_per_s == pytest.approx(fixed / out.stat().st_size, rel=1e-3)
    out.unlink()
    wanted = 1.1 * slow.decode_tokens_per_s
    fast = fit(out, options(), context(model, plain.model_copy(update={"min_decode_tokens_per_s": wanted})))
    assert fast.decode_tokens_per_s is not None and fast.decode_tokens_per_s >= wanted
    assert {*fast.types.values()} == {"IQ4_NL", "Q8_0"}


def test_types_that_edgekit_does_not_round_to_are_left_to_llama_cpp(make: Make, tmp_path: Path) -> None:
    model, out = make("llama"), tmp_path / "out.gguf"
    wanted = options(tensor_types={"attn_v": "F16", "ffn_down": "Q5_1", "attn_q": "F32"})
    fitted = fit(out, wanted, context(model, Quantize()))
    stream.stream(model, tmp_path / "peer.gguf", wanted)
    left = {"blk.0.attn_v.weight": "F16", "blk.0.ffn_down.weight": "Q5_1"}
    assert types_of(out) == fitted.types | left == types_of(tmp_path / "peer.gguf")
    assert not left.keys() & fitted.types.keys() and {*fitted.types.values()} <= GRIDS.keys()
    ours, theirs = (
        {t.name: t.data for t in gguf.GGUFReader(file).tensors} for file in (out, tmp_path / "peer.gguf")
    )
    same = {name for name in ours if (ours[name] == theirs[name]).all()}
    assert same == ours.keys() - fitted.types.keys()


def test_types_that_are_named_stay_when_the_others_are_allocated(make: Make, tmp_path: Path) -> None:
    model, out = make("llama"), tmp_path / "out.gguf"
    named = {"ffn_down": "Q5_1", "attn_k": "Q4_0", "attn_q": "F32"}
    wanted = options(token_embedding_type="Q8_0", tensor_types=named)
    limit = FEW.model_copy(update={"bits_per_weight": 9.5})
    fitted = fit(out, wanted, context(model, limit))
    found = types_of(out)
    assert found["token_embd.weight"] == "Q8_0" and found["blk.0.ffn_down.weight"] == "Q5_1"
    assert found["blk.0.attn_k.weight"] == "Q4_0" and "blk.0.attn_q.weight" not in found
    assert fitted.costs.keys() == {
        f"blk.0.{name}.weight" for name in ("attn_v", "attn_output", "ffn_gate", "ffn_up")
    }
    size = limit.max_bytes(weights_of(model), short_rows=True)
    assert size is not None and 0.9 * size < out.stat().st_size <= size


def test_targets_name_the_types_that_there_are_grids_for() -> None:
    assert {*get_args(TensorType)} == GRIDS.keys()


def damaged(model: Path, to: Path, name: str, value: float) -> Path:
    """A copy with one weight that is `value`, of a token that no text holds."""
    to.mkdir()
    for file in model.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    tensors = load_file(to / SINGLE)
    tensors[name].view(-1)[1] = value
    save_file(tensors, to / SINGLE, metadata={"format": "pt"})
    return to


FAULTS: dict[str, tuple[str, float, type[Exception], str]] = {
    "no number": ("model.layers.0.mlp.up_proj.weight", float("nan"), CorruptError, "up_proj.weight' holds a weight .*finite"),
    "infinite": (TABLE, float("inf"), CorruptError, "embed_tokens.weight' holds a weight .*finite"),
    "norm": ("model.norm.weight", float("-inf"), CorruptError, "norm.weight' holds a weight .*finite"),
    "beyond halves": ("model.layers.0.mlp.up_proj.weight", 1e6, StageError, "up_proj.weight' holds a weight of 1e"),
    "overflow": ("model.norm.weight", 1e30, CorruptError, "activations .*finite"),
}  # fmt: skip


@pytest.mark.parametrize("limit", [Quantize(), FEW], ids=["types", "size"])
@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_no_block_can_hold_are_refused(
    fault: str, limit: Quantize, make: Make, tmp_path: Path
) -> None:
    name, value, error, message = FAULTS[fault]
    model = damaged(make("llama"), tmp_path / "model", name, value)
    (tmp_path / "out").mkdir()
    with pytest.raises(error, match=f"{message}.*No file was written"):
        fit(tmp_path / "out" / "out.gguf", options(), context(model, limit))
    assert not [*(tmp_path / "out").iterdir()]


def test_a_size_that_is_too_small_is_told_before_anything_is_computed(make: Make, tmp_path: Path) -> None:
    events: list[Event] = []
    small, out = Quantize(bits_per_weight=4.4), tmp_path / "out.gguf"
    with pytest.raises(
        ConfigError, match=r"smallest types that may be chosen it has \d\.\d \(\d+\.\d\d bits"
    ) as caught:
        fit(out, options(), context(make("llama"), small), events.append)
    assert caught.value.hint and not [*tmp_path.iterdir()] and not events


def test_an_interrupted_file_leaves_nothing(make: Make, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.note == "rounding":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "out.gguf", options(), context(make("llama"), Quantize()), stop)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("why", ["nearest", "no text", "not asked"])
def test_otherwise_the_file_is_llama_cpps(why: str, make: Make, tmp_path: Path) -> None:
    model, out = make("llama"), tmp_path / "quantized" / "model.gguf"
    out.parent.mkdir()
    given = {
        "nearest": context(model, Quantize(method="nearest")),
        "no text": replace(context(model, Quantize()), calibration=[], texts=[]),
        "not asked": ExportContext(model, ROWS),
    }[why]
    write(model, tmp_path / "floats.gguf", ignore)
    steps(options("Q8_0"))[-1].run(tmp_path / "floats.gguf", out, given, ignore)
    quantize(tmp_path / "floats.gguf", tmp_path / "expected.gguf", options("Q8_0"), threads=1)
    assert out.read_bytes() == (tmp_path / "expected.gguf").read_bytes()
    assert [file.name for file in out.parent.iterdir()] == ["model.gguf"]
