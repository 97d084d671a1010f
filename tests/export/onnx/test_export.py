from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgekit.base.artifacts import sha256_tree
from edgekit.base.errors import ConfigError, CorruptError, MissingPartError, StageError
from edgekit.base.events import Event, Progress, ignore
from edgekit.export.onnx import build as onnx_build
from edgekit.export.onnx import export as exporting
from edgekit.export.onnx.proof import prove
from edgekit.proof.battery import battery
from edgekit.proof.drift import kl_divergence
from edgekit.registry import ExportContext
from edgekit.runtimes.onnxruntime import open_model
from edgekit.targets.target import OnnxExport

CHANCE = random.Random(0)
CALIBRATION = [[CHANCE.randrange(3, 49152) for _ in range(48)] for _ in range(6)]
HELD_OUT = [1] + [CHANCE.randrange(3, 49152) for _ in range(47)]


def reference(model: Path, ids: list[int]) -> NDArray[np.float32]:
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: NDArray[np.float32] = network(torch.tensor([ids])).logits[0].numpy()
    return logits


def options(**changes: Any) -> OnnxExport:
    return OnnxExport(format="onnx", **changes)


def export(
    model: Path, out: Path, emit: Any = ignore, calibration: Any = CALIBRATION, **changes: Any
) -> Path:
    (step,) = exporting.exporter.steps(options(**changes))
    step.run(model, out, ExportContext(model, calibration, threads=1), emit)
    return out


def write(model: Path, folder: Path, bits: int, calibration: Any = CALIBRATION, **changes: Any) -> Path:
    """What the child process does, in this one."""
    task = {"model": str(model), "out": str(folder / "onnx"), "work": str(folder / "work"), "bits": bits}
    task |= {
        "int8_modules": options().at_8_bits,
        "block_size": 32,
        "accuracy_level": 4,
        "texts": {"rows": calibration},
    }
    task |= {"max_bytes": None, "threads": 1}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chosen.json").write_text(json.dumps(onnx_build.write(task | changes)))
    shutil.rmtree(folder / "work", ignore_errors=True)
    return folder / "onnx"


def drift(model: Path, folder: Path, ids: list[int] = HELD_OUT) -> float:
    return float(kl_divergence(reference(model, ids), open_model(folder, threads=1).logits(ids)).mean())


@pytest.fixture(scope="module")
def int4(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    events: list[Event] = []
    return export(tiny_llama, tmp_path_factory.mktemp("int4") / "onnx", events.append), events


@pytest.fixture(scope="module")
def fp32(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_llama, tmp_path_factory.mktemp("fp32") / "onnx", precision="fp32")


def test_fp32_folder_answers_as_torch_does(tiny_llama: Path, fp32: Path) -> None:
    got = open_model(fp32, threads=1).logits(HELD_OUT)
    assert np.abs(got - reference(tiny_llama, HELD_OUT)).max() < 1e-5


def test_int4_is_small_and_close(
    tiny_llama: Path, int4: tuple[Path, list[Event]], fp32: Path, tmp_path: Path
) -> None:
    folder, _ = int4
    int8 = write(tiny_llama, tmp_path / "int8", 8)
    nearest = write(tiny_llama, tmp_path / "nearest", 4, calibration=[])
    everything4 = write(tiny_llama, tmp_path / "all4", 4, int8_modules=[])
    assert drift(tiny_llama, int8) < 2e-4
    # GPTQ fits the rounding to the calibration rows; random weights leave nothing to carry over to other text
    calibrated, by_itself = (
        sum(drift(tiny_llama, path, ids) for ids in CALIBRATION) for path in (folder, nearest)
    )
    assert calibrated < by_itself
    assert drift(tiny_llama, int8) < drift(tiny_llama, folder) < drift(tiny_llama, everything4)
    size = {name: (path / "model.onnx.data").stat().st_size for name, path in
            {"fp32": fp32, "int8": int8, "int4": folder, "all4": everything4}.items()}  # fmt: skip
    assert (
        size["all4"] < size["int4"] < size["int8"] < 0.3 * size["fp32"]
    )  # the tied embedding is rounded too


def test_int8_modules_are_the_named_ones(int4: tuple[Path, list[Event]]) -> None:
    graph = onnx.load(int4[0] / "model.onnx", load_external_data=False).graph
    bits = {
        node.name: next(a.i for a in node.attribute if a.name == "bits")
        for node in graph.node
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized")
    }
    eight = {
        name
        for name in bits
        if any(part in name for part in ("k_proj", "v_proj", "down_proj", "lm_head", "embed"))
    }
    assert {name for name, count in bits.items() if count == 8} == eight
    assert len(bits) == 3 * 7 + 2
    assert not [
        node.name for node in graph.node if node.op_type in ("MatMul", "Gather") and "embed" in node.name
    ]


def test_progress_is_reported_for_every_layer(int4: tuple[Path, list[Event]]) -> None:
    done = [(event.done, event.total) for event in int4[1] if isinstance(event, Progress)]
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]  # the layers, and the head


def test_equal_input_gives_equal_bytes_and_names_no_place(
    tiny_llama: Path, int4: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    again = export(tiny_llama, tmp_path / "elsewhere" / "onnx")
    assert sha256_tree(again) == sha256_tree(int4[0])
    for path in again.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
        assert str(tiny_llama).encode() not in path.read_bytes(), path.name
    assert [path.name for path in again.parent.iterdir()] == ["onnx"]


@pytest.mark.parametrize("stop", [2, [2, 5], [0]])
def test_stop_ids_are_the_models_own(fp32: Path, tmp_path: Path, stop: int | list[int]) -> None:
    shutil.copytree(fp32, tmp_path / "onnx")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stop}))
    exporting._set_stop_ids(tmp_path / "onnx", tmp_path, {"eos_token_id": 7})
    assert open_model(tmp_path / "onnx").stop_ids == frozenset([stop] if isinstance(stop, int) else stop)


def test_stop_ids_without_a_generation_config_are_the_configs(fp32: Path, tmp_path: Path) -> None:
    shutil.copytree(fp32, tmp_path / "onnx")
    exporting._set_stop_ids(tmp_path / "onnx", tmp_path, {"eos_token_id": 7})
    assert open_model(tmp_path / "onnx").stop_ids == {7}


def test_the_builders_extra_stop_id_is_taken_back(tmp_path: Path) -> None:
    model = tiny.make(tmp_path / "model", eos_token_id=5)  # the tokenizer's own end token is 2
    folder = write(model, tmp_path, 32)
    assert open_model(folder).stop_ids == {2, 5}
    exporting._set_stop_ids(folder, model, {})
    assert open_model(folder).stop_ids == {5}


def test_template_and_tokenizer_are_the_models_own(tiny_llama: Path, fp32: Path) -> None:
    assert (fp32 / "chat_template.jinja").read_bytes() == (tiny_llama / "chat_template.jinja").read_bytes()
    before, after = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (tiny_llama, fp32))
    opened = open_model(fp32)
    assert '"Digits"' in (tiny_llama / "tokenizer.json").read_text()
    assert '"Digits"' not in (fp32 / "tokenizer.json").read_text()
    for text in battery():
        ids = before.encode(text, add_special_tokens=False).ids
        assert after.encode(text, add_special_tokens=False).ids == ids
        assert opened.encode(text) == ids, text


def test_another_tokenizer_is_copied_byte_for_byte(tiny_llama: Path, fp32: Path, tmp_path: Path) -> None:
    shutil.copytree(fp32, tmp_path / "onnx")
    plain = json.loads((tiny_llama / "tokenizer.json").read_text())
    plain["pre_tokenizer"] = plain["pre_tokenizer"]["pretokenizers"][1]
    shutil.copy(tiny_llama / "tokenizer_config.json", tmp_path)
    shutil.copy(tiny_llama / "config.json", tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(plain))
    exporting._set_tokenizer(tmp_path / "onnx", tmp_path)
    assert (tmp_path / "onnx/tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "cannot build MambaForCausalLM"),
        ({"architectures": []}, "cannot build an unnamed architecture"),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, "not a model of text alone"),
        ({"quantization_config": {}}, "float weights"),
        ({"hidden_size": 104, "head_dim": 16}, "hidden_size divisible by 16"),
        ({"architectures": ["GptOssForCausalLM"], "num_local_experts": 32}, "mixture of experts"),
        ({"layer_types": ["mamba", "attention"]}, "layers of the type mamba"),
        ({"architectures": ["OlmoForCausalLM"], "clip_qkv": 8.0}, "clip_qkv"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "changes with the length of the text"),
        ({"partial_rotary_factor": 0.5}, "a multiple of 16 columns of each head, and this model 8"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, Any], words: str) -> None:
    assert words in exporting.refusal(LLAMA | changes, options())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"architectures": ["Gemma3ForCausalLM"], "sliding_window": 512, "head_dim": 256},
        {"architectures": ["MistralForCausalLM"], "sliding_window": 64, "max_position_embeddings": 128},
        {
            "architectures": ["GraniteMoeHybridForCausalLM"],
            "num_local_experts": 0,
            "layer_types": ["attention"],
        },
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    ],
)
def test_what_can_be_built_is_not_refused(changes: dict[str, Any]) -> None:
    assert exporting.refusal(LLAMA | changes, options()) == ""


def test_blocks_matter_to_rounded_weights_alone() -> None:
    assert exporting.refusal(LLAMA | {"hidden_size": 104, "head_dim": 16}, options(precision="fp32")) == ""


def test_the_architectures_are_those_of_the_installed_builder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "onnxruntime_genai"
    (package / "models").mkdir(parents=True)
    (package / "models/builder.py").write_text(
        'if config.architectures[0] in ("A", "B"):\n    pass\nelif config.architectures[0] == "C" and config.x == "D":\n    pass\n'
    )
    found = type("Spec", (), {"origin": str(package / "__init__.py")})
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: found)
    assert exporting.buildable.__wrapped__() == {"A", "B", "C"}


def test_without_onnxruntime_genai_the_missing_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    exporting.buildable.cache_clear()
    with pytest.raises(MissingPartError, match="onnxruntime_genai"):
        exporting.refusal({"architectures": ["LlamaForCausalLM"]}, options())


def test_a_failing_child_leaves_nothing_and_is_quoted(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(StageError, match="(?i)safetensor"):
        export(tmp_path / "model", tmp_path / "made" / "onnx")
    assert list((tmp_path / "made").iterdir()) == []


def test_a_model_without_tokenizer_is_refused_before_the_child_starts(
    tiny_llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    (tmp_path / "model/tokenizer.json").unlink()
    with pytest.raises(CorruptError, match=r"tokenizer\.json"):
        export(tmp_path / "model", tmp_path / "onnx")


# Bytes of the graph and the weights of the tiny model: 4 bits for the head, 8 where they are worth most.
MOST = 2_060_000


@pytest.fixture(scope="module")
def sized(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder within `MOST` bytes, and what was chosen for it."""
    folder = tmp_path_factory.mktemp("sized")
    changes = {"max_bytes": MOST, "int8_modules": ["*.0.self_attn.v_proj"]}
    return write(tiny_llama, folder, 4, **changes), json.loads((folder / "chosen.json").read_text())


def graph_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("model.onnx*"))


def test_a_folder_within_a_size_takes_it_and_is_as_close_as_was_estimated(
    tiny_llama: Path, sized: tuple[Path, dict[str, Any]]
) -> None:
    folder, chosen = sized
    assert 0.97 * MOST < graph_bytes(folder) <= MOST
    assert len(chosen["types"]) == 3 * 7 + 1
    assert {name[:4] for name in chosen["types"].values()} == {"int4", "int8"}
    assert chosen["types"]["model.layers.0.self_attn.v_proj"] == "int8 g64"
    measured = sum(drift(tiny_llama, folder, ids) for ids in CALIBRATION) / len(CALIBRATION)
    assert measured / 2 < chosen["cost"] < 2 * measured


def test_a_rounded_folder_is_proven_with_its_head_at_4_bits(
    tiny_llama: Path, sized: tuple[Path, dict[str, Any]]
) -> None:
    folder, chosen = sized
    assert chosen["types"]["model.embed_tokens"].startswith("int4")
    shutil.copyfile(tiny_llama / "config.json", folder / "config.json")
    assert [gate.passed for gate in prove(folder, tiny_llama, stage="export.onnx").gates] == [True, True]


def test_scales_are_halves_that_the_graph_widens(sized: tuple[Path, dict[str, Any]]) -> None:
    graph = onnx.load(sized[0] / "model.onnx", load_external_data=False).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    rounded = [node for node in graph.node if node.op_type in ("MatMulNBits", "GatherBlockQuantized")]
    for node in rounded:
        cast = makers[node.input[2]]
        assert cast.op_type == "Cast" and kinds[cast.input[0]] == onnx.TensorProto.FLOAT16
    (lookup,) = (node for node in rounded if node.op_type == "GatherBlockQuantized")
    (head,) = (node for node in rounded if "lm_head" in node.name)
    assert lookup.input[2:] == head.input[2:]  # one tensor for both


def test_a_size_that_is_too_small_leaves_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"smallest types take [\d,]+ bytes"):
        export(tiny_llama, tmp_path / "onnx", size_mib=4)
    assert not list(tmp_path.iterdir())


def test_a_size_needs_text(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs text that says which errors matter"):
        export(tiny_llama, tmp_path / "onnx", calibration=[], size_mib=8)


def test_a_size_decides_what_is_kept_at_8_bits() -> None:
    assert options().at_8_bits == ["*.k_proj", "*.v_proj", "*.down_proj"]
    assert options(size_mib=90).at_8_bits == [] and options(int8_modules=["x"], size_mib=90).at_8_bits == [
        "x"
    ]
    assert options(size_mib=90).max_bytes(1) == 90 * 2**20 and options(bits_per_weight=5).max_bytes(80) == 50
    assert options().max_bytes(1) is None
    with pytest.raises(ValueError, match="int4"):
        options(precision="int8", bits_per_weight=5)
