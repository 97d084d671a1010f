"""LoRA adapters as files: on the base, in its runtime, they answer as their merges do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import vocabularies
from numpy.typing import NDArray

from edgekit import registry
from edgekit.base.artifacts import sha256_file
from edgekit.base.errors import ConfigError, CorruptError, UnsupportedError
from edgekit.base.events import GateResult, ignore
from edgekit.device import loaded
from edgekit.export.adapters import write as adapter
from edgekit.export.adapters.proof import Pair, adapter_proof
from edgekit.export.adapters.write import read_adapter, to_gguf, to_onnx
from edgekit.export.gguf import families as gguf_families
from edgekit.export.gguf import write as gguf
from edgekit.export.gguf.quantize import quantize
from edgekit.export.onnx import build as onnx_build
from edgekit.export.onnx.slots import open_slots
from edgekit.export.weights.merge import merge
from edgekit.runtimes import llamacpp, onnxruntime

IDS = [1, *range(100, 140), 9, 9, 17]
CLOSE = 1e-4  # of the logits' deviation: rounding shows 4e-6
CLOSE_GELU = 1e-2  # llama.cpp reads GELU from a table of halves
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
DIGESTS = {name: f"{number:x}" * 64 for number, name in enumerate(tiny.FAMILIES, 1)}
OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "target_modules": ATTENTION},
    "rslora": {"r": 8, "use_rslora": True, "target_modules": LINEAR},
    "patterns": {
        "r": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "rank_pattern": {"down_proj": 4},
        "alpha_pattern": {r"layers\.1\..*v_proj": 3},
    },
    "some layers": {"r": 4, "target_modules": ["k_proj", "up_proj"], "layers_to_transform": [0, 2]},
}  # fmt: skip

Make = Callable[[str], Path]


def signed(folder: Path, digest: str) -> Path:
    (folder / "edgekit.json").write_text(json.dumps({"base_model": "tiny", "license": "", "sha256": digest}))
    return folder


def logits(opened: Any, file: Path | None = None) -> NDArray[np.float32]:
    opened.use(file)
    rows: NDArray[np.float32] = opened.logits(IDS)
    return rows


def apart(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The largest difference in units of the logits' deviation."""
    return float(np.abs(a - b).max() / b.std())


def open_gguf(path: Path) -> Any:
    return llamacpp.open_model(path, threads=1, context=64)


def open_onnx(path: Path) -> Any:
    return onnxruntime.open_model(path, threads=1, context=64)


@pytest.fixture(autouse=True)
def float_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp with keys and values in floats: its halves would round what is alike to neighbouring values."""
    usual = llamacpp.lib.llama_context_default_params

    def params() -> Any:
        found = usual()
        found.type_k = found.type_v = 0
        found.flash_attn_type = 0
        return found

    monkeypatch.setattr(llamacpp.lib, "llama_context_default_params", params)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Tiny models of each family with a small tokenizer and a digest, each made once."""
    made: dict[str, Path] = {}
    small = vocabularies.for_transformers()

    def folder(family: str) -> Path:
        if family not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tiny, "tokenizer", lambda: small)
                made[family] = tiny.make(tmp_path_factory.mktemp("model") / family, family)
            signed(made[family], DIGESTS[family])
        return made[family]

    return folder


@pytest.fixture(scope="module")
def files(make: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama as a GGUF base, and two adapters of it, `a` and `b`: PEFT folder, merge, its GGUF and adapter file."""
    folder, base = tmp_path_factory.mktemp("adapters"), make("llama")
    found = {"base": base, "base.gguf": folder / "base.gguf"}
    gguf.write(base, found["base.gguf"], ignore)
    for seed, (name, options) in enumerate({"a": OPTIONS["attention"], "b": OPTIONS["rslora"]}.items()):
        found[name] = tiny.adapter(base, folder / name, seed, **options)
        found |= {
            f"{name}.merged": folder / f"{name}-merged",
            f"{name}.merged.gguf": folder / f"{name}-merged.gguf",
        }
        merge(base, found[name], found[f"{name}.merged"])
        gguf.write(found[f"{name}.merged"], found[f"{name}.merged.gguf"], ignore)
        found[f"{name}.gguf"] = folder / f"{name}.gguf"
        to_gguf(base, found[name], found[f"{name}.gguf"])
    return found


@pytest.fixture(scope="module")
def onnx_files(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama as ONNX folders that take adapters, and two of them."""
    folder = tmp_path_factory.mktemp("onnx")
    base = signed(shutil.copytree(tiny_llama, folder / "base"), DIGESTS["llama"])
    found = {"base": base}
    for bits in (32, 4):
        task = {"model": str(base), "out": str(folder / f"plain{bits}"), "work": str(folder / f"work{bits}"), "bits": bits,
                "int8_modules": [], "block_size": 32, "accuracy_level": 4, "texts": {}, "max_bytes": None, "threads": 1}  # fmt: skip
        onnx_build.write(task, lambda *done: None)
        open_slots(folder / f"plain{bits}", base, folder / f"slots{bits}")
        found |= {f"plain{bits}": folder / f"plain{bits}", f"slots{bits}": folder / f"slots{bits}"}
    for seed, (name, options) in enumerate({"a": OPTIONS["patterns"], "b": OPTIONS["rslora"]}.items()):
        found[name] = tiny.adapter(base, folder / name, seed, **options)
        found |= {
            f"{name}.merged": folder / f"{name}-merged",
            f"{name}.onnx": folder / f"{name}.onnx_adapter",
        }
        merge(base, found[name], found[f"{name}.merged"])
        to_onnx(base, found[name], found[f"{name}.onnx"])
    return found


def torch_logits(folder: Path) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = registry.load("runtimes", "torch")(folder, threads=1).logits(IDS)
    return rows


@pytest.mark.parametrize(
    ("family", "options"),
    [("llama", "patterns"), ("llama-untied", "some layers"), ("mistral", "rslora"), ("qwen2", "attention"),
     ("qwen3", "patterns"), ("gemma3", "rslora")],
)  # fmt: skip
def test_a_gguf_adapter_answers_as_its_merge(family: str, options: str, make: Make, tmp_path: Path) -> None:
    base = make(family)
    peft_folder = tiny.adapter(base, tmp_path / "adapter", **OPTIONS[options])
    to_gguf(base, peft_folder, tmp_path / "adapter.gguf")
    merge(base, peft_folder, tmp_path / "merged")
    for source, name in ((base, "base"), (tmp_path / "merged", "merge")):
        gguf.write(source, tmp_path / f"{name}.gguf", ignore)
    opened, merged = open_gguf(tmp_path / "base.gguf"), open_gguf(tmp_path / "merge.gguf").logits(IDS)
    limit = CLOSE_GELU if family == "gemma3" else CLOSE
    assert apart(logits(opened, tmp_path / "adapter.gguf"), merged) < limit
    assert apart(logits(opened), merged) > 10 * limit


def test_adapters_on_one_gguf_base_come_and_go(files: dict[str, Path]) -> None:
    opened = open_gguf(files["base.gguf"])
    plain = logits(opened)
    with_a, with_b = logits(opened, files["a.gguf"]), logits(opened, files["b.gguf"])
    for name, found in (("a", with_a), ("b", with_b)):
        assert apart(found, open_gguf(files[f"{name}.merged.gguf"]).logits(IDS)) < CLOSE
    assert apart(with_a, with_b) > 0.1
    assert np.array_equal(logits(opened), plain)
    assert np.array_equal(logits(opened, files["a.gguf"]), with_a)
    assert np.array_equal(logits(opened), plain)


def test_adapters_on_one_onnx_base_come_and_go(onnx_files: dict[str, Path]) -> None:
    opened = open_onnx(onnx_files["slots32"])
    plain = logits(opened)
    assert apart(plain, torch_logits(onnx_files["base"])) < CLOSE
    with_a, with_b = logits(opened, onnx_files["a.onnx"]), logits(opened, onnx_files["b.onnx"])
    for name, found in (("a", with_a), ("b", with_b)):
        assert apart(found, torch_logits(onnx_files[f"{name}.merged"])) < CLOSE
    assert apart(with_a, with_b) > 0.1
    assert np.array_equal(logits(opened), plain)
    assert np.array_equal(logits(opened, onnx_files["a.onnx"]), with_a)


def test_slots_leave_a_rounded_folder_as_it_was(onnx_files: dict[str, Path]) -> None:
    assert np.array_equal(
        logits(open_onnx(onnx_files["slots4"])), open_onnx(onnx_files["plain4"]).logits(IDS)
    )


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_answers_follow_the_adapter_that_they_began_with(
    format: str, files: dict[str, Path], onnx_files: dict[str, Path]
) -> None:
    if format == "gguf":
        opened, a, b = open_gguf(files["base.gguf"]), files["a.gguf"], files["b.gguf"]
    else:
        opened, a, b = open_onnx(onnx_files["slots32"]), onnx_files["a.onnx"], onnx_files["b.onnx"]
    alone = {}
    for state in (None, a, b):
        opened.use(state)
        alone[state] = list(opened.generate(IDS, 6, ignore_stop=True))
        assert opened.generate_batch([IDS, IDS[:9]], 6)[0] == list(opened.generate(IDS, 6))
    assert alone[a] != alone[None] and alone[a] != alone[b]
    under_way = {}
    for state in (a, None, b):
        opened.use(state)
        answer = opened.generate(IDS, 6, ignore_stop=True)
        under_way[state] = [next(answer)], answer
    assert {state: [*begun, *rest] for state, (begun, rest) in under_way.items()} == alone


def test_a_file_written_anew_is_read_anew(files: dict[str, Path], tmp_path: Path) -> None:
    opened, place = open_gguf(files["base.gguf"]), tmp_path / "adapter.gguf"
    shutil.copyfile(files["a.gguf"], place)
    with_a = logits(opened, place)
    shutil.copyfile(files["b.gguf"], place)
    assert np.array_equal(logits(opened, place), logits(opened, files["b.gguf"]))
    assert not np.array_equal(logits(opened, place), with_a)


def test_a_model_opened_by_load_takes_adapters(files: dict[str, Path], onnx_files: dict[str, Path]) -> None:
    for base, file in ((files["base.gguf"], files["a.gguf"]), (onnx_files["slots32"], onnx_files["a.onnx"])):
        model = loaded.load(base, threads=1, context=64)
        plain = model.runtime.logits(IDS)
        assert model.use(str(file)) is model
        assert apart(model.runtime.logits(IDS), plain) > 0.1
        assert np.array_equal(model.use(None).runtime.logits(IDS), plain)
    reference = loaded.LoadedModel(registry.load("runtimes", "torch")(files["base"]), format="torch")
    with pytest.raises(UnsupportedError, match="torch does not support adapters"):
        reference.use(files["a.gguf"])


def with_digest(folder: Path, copy: Path, digest: str) -> Path:
    """The same model under another name."""
    return signed(shutil.copytree(folder, copy), digest)


def test_another_bases_adapter_is_refused_with_both_digests(
    files: dict[str, Path], onnx_files: dict[str, Path], tmp_path: Path
) -> None:
    other = with_digest(files["base"], tmp_path / "other", "f" * 64)
    to_gguf(other, files["a"], tmp_path / "a.gguf")
    to_onnx(
        with_digest(onnx_files["base"], tmp_path / "other-onnx", "f" * 64),
        onnx_files["a"],
        tmp_path / "a.onnx_adapter",
    )
    for opened, good, bad in (
        (open_gguf(files["base.gguf"]), files["b.gguf"], tmp_path / "a.gguf"),
        (open_onnx(onnx_files["slots32"]), onnx_files["b.onnx"], tmp_path / "a.onnx_adapter"),
    ):
        before = logits(opened, good)
        with pytest.raises(CorruptError) as refusal:
            opened.use(bad)
        assert "f" * 64 in refusal.value.message and DIGESTS["llama"] in refusal.value.message
        assert np.array_equal(opened.logits(IDS), before)  # the one in use stays


def test_models_that_cannot_be_told_apart_take_no_adapter(
    files: dict[str, Path], onnx_files: dict[str, Path], tmp_path: Path
) -> None:
    nameless = shutil.copytree(files["base"], tmp_path / "nameless")
    (nameless / "edgekit.json").unlink()
    gguf.write(nameless, tmp_path / "nameless.gguf", ignore)
    with pytest.raises(UnsupportedError, match="does not contain the digest of its base"):
        open_gguf(tmp_path / "nameless.gguf").use(files["a.gguf"])
    for write in (to_gguf, to_onnx):
        with pytest.raises(ConfigError, match="has no sha256"):
            write(nameless, files["a"], tmp_path / "out")
    with pytest.raises(UnsupportedError, match="does not support adapters"):
        open_onnx(onnx_files["plain32"]).use(onnx_files["a.onnx"])
    for opened in (open_gguf(files["base.gguf"]), open_onnx(onnx_files["slots32"])):
        with pytest.raises(ConfigError, match="no adapter file"):
            opened.use(tmp_path / "none")


def test_a_model_with_an_adapter_in_its_weights_takes_no_other(
    files: dict[str, Path], tmp_path: Path
) -> None:
    merged = shutil.copytree(files["a.merged"], tmp_path / "merged")
    origin = json.loads((merged / "edgekit.json").read_text()) | {"merged_adapter_sha256": "c" * 64}
    (merged / "edgekit.json").write_text(json.dumps(origin))
    gguf.write(merged, tmp_path / "merged.gguf", ignore)
    with pytest.raises(UnsupportedError, match="has the adapter c{64} in its weights"):
        open_gguf(tmp_path / "merged.gguf").use(files["a.gguf"])
    with pytest.raises(ConfigError, match="has an adapter merged into its weights"):
        to_gguf(merged, files["a"], tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["norm"]}, "norm.weight whole"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "no such module|none there|bias"),
        ({"target_modules": ["lm_head", "q_proj"]}, "lm_head"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens"),
    ],
)
@pytest.mark.parametrize("write", [to_gguf, to_onnx])
def test_what_an_adapter_file_cannot_hold_is_named(
    options: dict[str, Any], named: str, write: Any, make: Make, tmp_path: Path
) -> None:
    base = make("llama-untied")
    made = tiny.adapter(base, tmp_path / "adapter", **{"target_modules": ["q_proj"], **options})
    with pytest.raises((UnsupportedError, ConfigError), match=named):
        write(base, made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_equal_inputs_give_equal_bytes(
    files: dict[str, Path], onnx_files: dict[str, Path], tmp_path: Path
) -> None:
    to_gguf(files["base"], files["b"], tmp_path / "b.gguf")
    to_onnx(onnx_files["base"], onnx_files["b"], tmp_path / "b.onnx_adapter")
    assert sha256_file(tmp_path / "b.gguf") == sha256_file(files["b.gguf"])
    assert sha256_file(tmp_path / "b.onnx_adapter") == sha256_file(onnx_files["b.onnx"])


def test_scaling_is_the_merges(files: dict[str, Path]) -> None:
    assert {layer.scaling for layer in read_adapter(files["base"], files["a"])} == {16 / 4}
    assert {layer.scaling for layer in read_adapter(files["base"], files["b"])} == {16 / 8**0.5}


def prove(files: dict[str, Path], base: str, file: Path, runtime: str) -> GateResult:
    seen: list[Any] = []
    pair = Pair(files[base], file, runtime, files["base"], files["a"])
    gate = adapter_proof(pair, [IDS], seen.append, threads=1)
    assert [event for event in seen if isinstance(event, GateResult)] == [gate]
    return gate


def test_the_proof_holds_for_float_and_rounded_bases(
    files: dict[str, Path], onnx_files: dict[str, Path], tmp_path: Path
) -> None:
    for type in ("Q8_0", "Q4_0"):
        quantize(files["base.gguf"], tmp_path / f"{type}.gguf", tiny.gguf_options(type), threads=1)
    rounded = {**files, "q8": tmp_path / "Q8_0.gguf", "q4": tmp_path / "Q4_0.gguf"}
    for base in ("base.gguf", "q8", "q4"):
        assert prove(rounded, base, files["a.gguf"], "llama.cpp").passed
    for base in ("slots32", "slots4"):
        assert prove(onnx_files, base, onnx_files["a.onnx"], "onnxruntime").passed


def doubled_alpha(made: Path, copy: Path) -> Path:
    shutil.copytree(made, copy)
    config = json.loads((copy / "adapter_config.json").read_text())
    config["lora_alpha"] *= 2
    (copy / "adapter_config.json").write_text(json.dumps(config))
    return copy


def test_the_proof_catches_alpha_doubled(
    files: dict[str, Path], onnx_files: dict[str, Path], tmp_path: Path
) -> None:
    quantize(files["base.gguf"], tmp_path / "q4.gguf", tiny.gguf_options("Q4_0"), threads=1)
    to_gguf(files["base"], doubled_alpha(files["a"], tmp_path / "a"), tmp_path / "a.gguf")
    to_onnx(onnx_files["base"], doubled_alpha(onnx_files["a"], tmp_path / "o"), tmp_path / "a.onnx_adapter")
    rounded = {**files, "q4": tmp_path / "q4.gguf"}
    for gate in (
        prove(rounded, "q4", tmp_path / "a.gguf", "llama.cpp"),
        prove(onnx_files, "slots4", tmp_path / "a.onnx_adapter", "onnxruntime"),
    ):
        assert not gate.passed, gate


def test_the_proof_catches_another_adapter(files: dict[str, Path], onnx_files: dict[str, Path]) -> None:
    assert not prove(files, "base.gguf", files["b.gguf"], "llama.cpp").passed
    assert not prove(onnx_files, "slots4", onnx_files["b.onnx"], "onnxruntime").passed


def test_the_proof_catches_unpermuted_rows(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_families, "to_gguf", lambda name, values, config, family: values)
    to_gguf(files["base"], files["a"], tmp_path / "a.gguf")
    assert not prove(files, "base.gguf", tmp_path / "a.gguf", "llama.cpp").passed


def test_no_conversation_proves_nothing(files: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="no conversations"):
        adapter_proof(Pair(files["base.gguf"], files["a.gguf"], "llama.cpp", files["base"], files["a"]), [])


def test_registered_names_are_there() -> None:
    assert registry.load("stages", "adapter-gguf") is adapter.to_gguf
    assert registry.load("stages", "adapter-onnx") is adapter.to_onnx
    assert registry.load("stages", "adapter-onnx-base") is open_slots
    assert registry.load("stages", "adapter-proof") is adapter_proof
