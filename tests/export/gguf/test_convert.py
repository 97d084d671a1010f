"""Architectures that edgekit does not write itself: llama.cpp's converter writes them, and the proof compares by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
import torch
import transformers
import vocabularies
from fake_runtime import CHATML
from faults import plant
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from edgekit.base.errors import StageError
from edgekit.base.events import Alert, Event, ignore
from edgekit.containers.gguf import GgufLayout, read_gguf
from edgekit.export.gguf import convert as conversion
from edgekit.export.gguf import converter, name_proof
from edgekit.export.gguf import write as export
from edgekit.export.gguf.families import interleave
from edgekit.export.gguf.proof import prove
from edgekit.export.gguf.stored import GRIDS
from edgekit.export.gguf.stream import stream
from edgekit.export.weights.weight_proof import Facts
from edgekit.registry import ExportContext
from edgekit.runtimes.llamacpp import open_model
from edgekit.targets.target import GgufExport

IDS = [1, *range(300, 340), 9, 9, 17]
KEPT = converter.kept()
needs_converter = pytest.mark.skipif(
    KEPT is None, reason="llama.cpp's converter is not here; keep it: edgekit setup converter"
)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("Gemma2Config", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False}),
    "qwen3moe": ("Qwen3MoeConfig", {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2,
                                    "moe_intermediate_size": 96, "norm_topk_prob": True}),
    "olmo2": ("Olmo2Config", {}),
    "nemotron": ("NemotronConfig", {}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": None}),
    "gpt2": ("GPT2Config", {"n_inner": None, "n_ctx": 512}),
    "glm4": ("Glm4Config", {"head_dim": 32}),
    "exaone4": ("Exaone4Config", {"sliding_window": None, "layer_types": ["full_attention"] * 3}),
}  # fmt: skip
QUICK = ("gemma2", "qwen3moe", "gpt2")
# Square experts, which the model keeps transposed; the converter parts those that the model holds together.
GPT_OSS: tuple[str, dict[str, Any]] = (
    "GptOssConfig",
    {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64, "sliding_window": 8,
     "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
)  # fmt: skip


def make(folder: Path, family: str) -> Path:
    """A seeded tiny model of an architecture that edgekit does not write itself."""
    tokens = vocabularies.for_transformers()
    tokens.chat_template = CHATML
    name, extra = (FAMILIES | {"gpt-oss": GPT_OSS})[family]
    config = getattr(transformers, name)(vocab_size=len(tokens), **{**tiny.SHAPE, **extra})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    tiny.widen(model)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def steps(source: Path, out: Path, type: str = "F32", **more: Any) -> Path:
    """Run the export's steps; the last file."""
    out.mkdir(exist_ok=True)
    file = source
    for step in export.exporter.steps(GgufExport(format="gguf", type=type, **more)):
        step.run(file, out / step.output, ExportContext(source, [IDS], threads=1), ignore)
        file = out / step.output
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("converted")


@pytest.fixture(scope="module")
def moe(folder: Path) -> tuple[Path, Path]:
    """A model with experts, and its file of floats."""
    model = make(folder / "moe", "qwen3moe")
    return model, steps(model, folder / "floats")


def proven(file: Path, model: Path) -> tuple[dict[str, str], list[str]]:
    """The details of the failed gates, and the warnings."""
    events: list[Event] = []
    gates = prove(file, model, events.append, stage="verify").gates
    assert [gate.name for gate in gates] == ["gguf.structure", "gguf.vocabulary", "gguf.weights"]
    alerts = [event.message for event in events if isinstance(event, Alert)]
    return {gate.name: gate.detail for gate in gates if not gate.passed}, alerts


@needs_converter
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_the_file_answers_as_the_model_and_is_proven(family: str, tmp_path: Path) -> None:
    model = make(tmp_path / "model", family)
    config = json.loads((model / "config.json").read_text())
    assert export.exporter.refusal(config, GgufExport(format="gguf")) == ""
    file = steps(model, tmp_path / "out", "Q8_0")
    assert proven(file, model) == ({}, [])
    floats = tmp_path / "out" / "model.f32.gguf"
    assert proven(floats, model) == ({}, [])
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = network(torch.tensor([IDS])).logits[0].numpy()
    runtime = open_model(floats, threads=1)
    try:
        found = runtime.logits(IDS)
        assert np.abs(found - wanted[:, : found.shape[1]]).max() < 0.02  # the logits' deviation is about 0.5
        tokens = transformers.AutoTokenizer.from_pretrained(model)
        assert runtime.encode("the pump  in hall 12") == tokens("the pump  in hall 12").input_ids
        assert runtime.chat_template.source == CHATML
    finally:
        runtime.close()


@needs_converter
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gpt2", "blk.1.attn_output.weight"),
        pytest.param("gpt2", "blk.1.attn_qkv.weight", marks=pytest.mark.slow),
        pytest.param("olmo2", "blk.1.attn_output.weight", marks=pytest.mark.slow),
    ],
)
def test_a_matrix_that_is_transposed_otherwise_is_caught(family: str, name: str, tmp_path: Path) -> None:
    """GPT-2 keeps its weights transposed, and the converter turns them; other models' weights stay as they are."""
    model = make(tmp_path / "model", family)
    file = steps(model, tmp_path / "out")

    def turned(place: str, values: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(values.T).reshape(values.shape) if place == name else values

    failed, _ = proven(changed(file, tmp_path / "turned.gguf", turned), model)
    assert name in failed["gguf.weights"]


@needs_converter
@pytest.mark.slow
def test_experts_that_the_model_keeps_transposed_are_proven(tmp_path: Path) -> None:
    model = make(tmp_path / "model", "gpt-oss")
    file = steps(model, tmp_path / "out")
    failed, (told,) = proven(file, model)
    assert failed == {} and "experts.gate_up_proj" in told

    def turned(place: str, values: NDArray[Any]) -> NDArray[Any]:
        return (
            np.ascontiguousarray(values.swapaxes(1, 2)) if place == "blk.1.ffn_down_exps.weight" else values
        )

    failed, _ = proven(changed(file, tmp_path / "turned.gguf", turned), model)
    assert "blk.1.ffn_down_exps.weight" in failed["gguf.weights"]


@needs_converter
def test_the_file_carries_where_it_comes_from_and_every_end_of_an_answer(
    moe: tuple[Path, Path], tmp_path: Path
) -> None:
    model = shutil.copytree(moe[0], tmp_path / "model")
    (model / "edgekit.json").write_text(json.dumps({"base_model": "maker/Phi-3-like", "license": "mit"}))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 10, 11]}))
    metadata = read_gguf(steps(model, tmp_path / "out")).metadata
    assert metadata["edgekit.base_model"] == "maker/Phi-3-like" and metadata["general.license"] == "mit"
    ends = [metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")]
    assert ends == [2, 10, 11]
    assert "phi" not in metadata["general.name"].lower()  # llama.cpp would split text in another way


@needs_converter
def test_importance_weights_the_rounding(moe: tuple[Path, Path], tmp_path: Path) -> None:
    model, _ = moe
    weighted = steps(model, tmp_path / "weighted", "Q4_0")
    (_, quantize) = export.exporter.steps(GgufExport(format="gguf", type="Q4_0"))
    quantize.run(
        tmp_path / "weighted" / "model.f32.gguf", tmp_path / "plain.gguf", ExportContext(model), ignore
    )
    assert weighted.read_bytes() != (tmp_path / "plain.gguf").read_bytes()
    assert proven(weighted, model) == ({}, [])


@needs_converter
def test_another_architecture_with_the_same_tensors_is_caught(moe: tuple[Path, Path], tmp_path: Path) -> None:
    model, file = moe
    other = Path(shutil.copy(file, tmp_path / "other.gguf"))
    plant.plant_other_architecture(other, "qwen2moe")
    detail = prove(other, model, stage="verify").gates[0].detail
    assert (
        "the file is of the architecture qwen2moe, and llama.cpp's of a Qwen3MoeForCausalLM is qwen3moe"
        in detail
    )


def changed(file: Path, out: Path, change: Callable[[str, NDArray[Any]], NDArray[Any]]) -> Path:
    """A copy of a file of floats with each tensor as `change` returns it."""
    shutil.copy(file, out)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(out, "r+").tensors}
    values = {name: np.array(tensor.data) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        tensor.data[...] = change(name, values[name])
    return out


def scaled(name: str, values: NDArray[Any]) -> NDArray[Any]:
    return values * np.float32(1.02) if name == "blk.1.attn_output.weight" else values


def swapped_experts(name: str, values: NDArray[Any]) -> NDArray[Any]:
    return values[::-1] if name == "blk.2.ffn_up_exps.weight" else values


def permuted_once(name: str, values: NDArray[Any]) -> NDArray[Any]:
    if name != "blk.0.attn_k.weight":
        return values
    return values.reshape(2, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def permuted_everywhere(name: str, values: NDArray[Any]) -> NDArray[Any]:
    return interleave(values, 2) if name.endswith("attn_k.weight") else values


def one_added_to_a_kind(name: str, values: NDArray[Any]) -> NDArray[Any]:
    return values + np.float32(1) if name.endswith("attn_norm.weight") else values


def noisy(name: str, values: NDArray[Any]) -> NDArray[Any]:
    return values + np.float32(0.01) if name == "token_embd.weight" else values


@needs_converter
@pytest.mark.parametrize(
    "fault", [scaled, swapped_experts, permuted_once, permuted_everywhere, one_added_to_a_kind, noisy]
)
def test_a_changed_tensor_is_named(fault: Any, moe: tuple[Path, Path], tmp_path: Path) -> None:
    model, file = moe
    named = {
        scaled: "blk.1.attn_output",
        swapped_experts: "blk.2.ffn_up_exps",
        permuted_once: "blk.0.attn_k",
        permuted_everywhere: "permuted for rope",
        one_added_to_a_kind: "attn_norm.weight",
    }
    failed, _ = proven(changed(file, tmp_path / "changed.gguf", fault), model)
    assert failed.keys() == {"gguf.weights"}
    assert named.get(fault, "token_embd") in failed["gguf.weights"]


@needs_converter
def test_another_models_file_is_refused(moe: tuple[Path, Path], tmp_path: Path) -> None:
    model = shutil.copytree(moe[0], tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    torch.manual_seed(1)
    other = {name: torch.randn_like(value) for name, value in weights.items()}
    save_file(other, model / "model.safetensors", {"format": "pt"})
    failed, _ = proven(moe[1], model)
    assert "gguf.weights" in failed


@needs_converter
def test_other_parameters_are_seen(moe: tuple[Path, Path], tmp_path: Path) -> None:
    model = shutil.copytree(moe[0], tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3, "num_experts_per_tok": 1}))
    failed, _ = proven(moe[1], model)
    assert "layer_norm_rms_epsilon" in failed["gguf.structure"] and "expert_used" in failed["gguf.structure"]


@needs_converter
def test_a_tensor_without_a_counterpart_is_told(moe: tuple[Path, Path], tmp_path: Path) -> None:
    model = shutil.copytree(moe[0], tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.self_attn.sinks"] = weights.pop("model.layers.1.self_attn.q_norm.weight")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    failed, (told,) = proven(moe[1], model)
    assert failed.keys() == {"gguf.structure"}
    assert "blk.1.attn_q_norm.weight has no counterpart in the model" in failed["gguf.structure"]
    assert "blk.1.attn_q_norm.weight" in told and "sinks" in told


@needs_converter
def test_a_tensor_of_the_model_that_the_file_lacks_or_cuts_is_a_fault(
    moe: tuple[Path, Path], tmp_path: Path
) -> None:
    model = shutil.copytree(moe[0], tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.bias"] = torch.ones(128)
    weights["model.layers.0.self_attn.k_norm.weight"] = torch.ones(16)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    failed, _ = proven(moe[1], model)
    assert "blk.1.attn_q.bias is missing, which holds model.layers.1.self_attn.q_proj.bias" in str(failed)
    assert "blk.0.attn_k_norm.weight has 32 weights, the model's has 16" in failed["gguf.structure"]


@needs_converter
def test_a_type_that_cannot_be_read_is_a_fault(
    moe: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(GRIDS, "F32")
    failed, _ = proven(moe[1], moe[0])
    assert "is of type F32, which cannot be compared" in failed["gguf.structure"]
    assert failed["gguf.weights"] == "no tensor could be compared"


@pytest.mark.parametrize("name", ["GPT2", "GPTNeoX", "Falcon", "Bloom", "Mamba"])
def test_a_config_without_counts_of_heads_is_read(name: str) -> None:
    config = getattr(transformers, f"{name}Config")()
    forms = dict(name_proof._forms("blk.0.attn_k.weight", "model.0.k_proj.weight", (4608, 4608), config))
    assert ("permuted for rope" in forms) == (name not in ("Mamba", "Falcon"))  # Falcon has 71 heads
    metadata = {"general.architecture": "any", "any.block_count": config.num_hidden_layers}
    facts = Facts()
    name_proof._check_parameters(facts, GgufLayout(3, metadata, {}, 32, 0, 0, {}), config)
    assert facts.held and not facts.failures


PARAMETERS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"attention.head_count_kv": 4}, "head_count_kv is 4, the model's is 2"),
    ({}, {"attention.head_count_kv": np.array([2, 0, 4])}, "head_count_kv is 4, the model's is 2"),
    ({}, {"attention.head_count_kv": np.array([0, 0, 0])}, "head_count_kv is 0, the model's is 2"),
    ({"sliding_window": 8}, {"attention.sliding_window": np.array([0, 8, 16])}, "sliding_window is [8, 16], the model's is 8"),
    ({}, {"attention.key_length": 16}, "key_length is 16, the model's is 32"),
    ({}, {"attention.value_length": 16}, "value_length is 16, the model's is 32"),
    ({}, {"context_length": 4096}, "context_length is 4096, the model's is 512"),
    ({}, {"attention.sliding_window": 8}, "sliding_window is 8, the model's is none"),
    ({"sliding_window": 8}, {}, "sliding_window is not stated, the model's is 8"),
    ({}, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, the model's is none"),
    ({"final_logit_softcapping": 30.0}, {}, "final_logit_softcapping is not stated, the model's is 30.0"),
    ({}, {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, "rope.scaling.factor is 2.0"),
    ({"rope_parameters": tiny.YARN}, {}, "rope.scaling.type is not stated, the model's is yarn"),
    ({"rope_parameters": tiny.YARN}, {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0},
     "rope.scaling.factor is 2.0, the model's is 4.0"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "stated", "words"), PARAMETERS)
def test_a_parameter_that_the_config_does_not_explain_is_a_fault(
    config: dict[str, Any], stated: dict[str, Any], words: str
) -> None:
    def failures(config: dict[str, Any], stated: dict[str, Any]) -> list[str]:
        model = transformers.Qwen3MoeConfig(**{**tiny.SHAPE, "head_dim": 32})
        for key, value in config.items():
            setattr(model, key, value)
        clean = {
            "block_count": 3,
            "attention.head_count_kv": 2,
            "attention.key_length": 32,
            "context_length": 512,
        }
        metadata = {f"any.{key}": value for key, value in {**clean, **stated}.items()}
        layout = GgufLayout(3, {"general.architecture": "any", **metadata}, {}, 32, 0, 0, {})
        facts = Facts()
        name_proof._check_parameters(facts, layout, model)
        return facts.failures

    assert failures({}, {}) == []
    assert words in "; ".join(failures(config, stated))


@needs_converter
def test_what_no_converter_knows_is_refused(moe: tuple[Path, Path]) -> None:
    config = json.loads((moe[0] / "config.json").read_text())
    options = GgufExport(format="gguf")
    why = export.exporter.refusal({**config, "architectures": ["UnheardOfForCausalLM"]}, options)
    assert why == "Neither edgekit nor llama.cpp's converter can write UnheardOfForCausalLM as GGUF."
    why = export.exporter.refusal({**config, "quantization_config": {"quant_method": "gptq"}}, options)
    assert "already quantized" in why


def test_a_file_of_the_converters_is_compared_where_the_converter_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(converter, "kept", lambda: None)
    config, options = {"architectures": ["Gemma2ForCausalLM"]}, GgufExport(format="gguf")
    assert "edgekit setup converter" in export.exporter.refusal(config, options)
    assert export.exporter.incomparable is not None and export.exporter.incomparable(config, options) == ""


SCRIPT = """
import json, os, sys
source, out = sys.argv[1], sys.argv[3]
if os.path.exists(os.path.join(source, "fail")):
    sys.exit("Model PhiForCausalLM is not supported")
if os.path.exists(os.path.join(source, "code.py")):
    from transformers import AutoTokenizer
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    AutoTokenizer.from_pretrained(source, trust_remote_code=True)  # transformers has a class of its own
    get_class_from_dynamic_module("code.Code", source)
if os.path.exists(os.path.join(source, "greedy")):
    hoard = bytearray(8 << 30)
open(out, "w").write(json.dumps(sys.argv[2:]))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A stand-in for a llama.cpp checkout: its converter notes how it was called."""
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / converter.SCRIPT).write_text(SCRIPT)
    return tmp_path / "llama.cpp"


@pytest.fixture
def phi(tiny_llama: Path, tmp_path: Path) -> Iterator[Path]:
    """A small model whose config names an architecture that edgekit does not write."""
    model = tiny.make_small(tmp_path / "phi")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["PhiForCausalLM"]}))
    yield model


def test_a_checkouts_converter_is_called(checkout: Path, phi: Path, tmp_path: Path) -> None:
    config = json.loads((phi / "config.json").read_text())
    assert export.exporter.refusal(config, GgufExport(format="gguf", llama_cpp=checkout)) == ""
    wrong = export.exporter.refusal(config, GgufExport(format="gguf", llama_cpp=tmp_path))
    assert "not a llama.cpp checkout" in wrong
    given = json.loads(steps(phi, tmp_path / "out", llama_cpp=checkout).read_text())
    assert given[2:] == ["--outtype", "f32", "--model-name", "model"]
    (phi / "fail").touch()
    with pytest.raises(StageError, match="failed: Model PhiForCausalLM is not supported. No GGUF"):
        steps(phi, tmp_path / "out", llama_cpp=checkout)
    assert not (tmp_path / "out" / "model.gguf").exists()


def test_a_tokenizer_that_edgekit_cannot_write_is_left_to_the_converter(
    checkout: Path, tmp_path: Path
) -> None:
    model = tiny.make_small(tmp_path / "model")
    rules = json.loads((model / "tokenizer.json").read_text())
    rules["pre_tokenizer"]["add_prefix_space"] = True
    (model / "tokenizer.json").write_text(json.dumps(rules))
    told: list[Event] = []
    (step,) = export.exporter.steps(GgufExport(format="gguf", type="F32", llama_cpp=checkout))
    step.run(model, tmp_path / "model.gguf", ExportContext(model), told.append)
    assert json.loads((tmp_path / "model.gguf").read_text())[0] == "--outfile"
    (alert,) = (event for event in told if isinstance(event, Alert))
    assert "add_prefix_space" in alert.message and alert.message.endswith("converter writes the file.")


def test_a_models_own_code_never_runs(checkout: Path, phi: Path, tmp_path: Path) -> None:
    """The converter allows it; the process in which it runs does not."""
    (phi / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Code: pass\n")
    file = phi / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["code.Code", "code.Code"]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    with pytest.raises(StageError, match="code of its own"):
        conversion.convert(checkout, phi, tmp_path / "model.gguf", export._origin_writer(phi))
    assert not (tmp_path / "ran").exists() and not (tmp_path / "model.gguf").exists()


def test_memory_is_bounded(
    checkout: Path, phi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (phi / "greedy").touch()
    with pytest.raises(StageError, match="MemoryError|more than"):
        steps(phi, tmp_path / "out", llama_cpp=checkout)
    (phi / "greedy").unlink()
    monkeypatch.setattr(conversion, "START_S", 0.0)
    with pytest.raises(StageError, match="did not finish within"):
        steps(phi, tmp_path / "out", llama_cpp=checkout)


@pytest.mark.parametrize("place", [0, 1], ids=["float file", "quantized file"])
def test_a_changed_converter_changes_the_step(place: int, checkout: Path) -> None:
    def options_of_the_step() -> dict[str, Any]:
        step = export.exporter.steps(GgufExport(format="gguf", type="Q8_0", llama_cpp=checkout))[place]
        assert "edgekit.export.gguf.convert_process" in step.modules
        return dict(step.options)

    seen = [options_of_the_step()]
    for name in (converter.SCRIPT, "gguf-py/gguf/constants.py", "conversion/phi.py"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        with (checkout / name).open("a") as file:
            file.write("changed = True\n")
        seen.append(options_of_the_step())
        assert seen[-1] not in seen[:-1], name
    (checkout / "README.md").write_text("unrelated")
    assert options_of_the_step() == seen[-1]


def test_it_cannot_be_streamed_and_says_what_to_type(phi: Path, tmp_path: Path) -> None:
    from edgekit.base.errors import UnsupportedError

    with pytest.raises(UnsupportedError, match="PhiForCausalLM") as caught:
        stream(phi, tmp_path / "model.gguf", tiny.gguf_options("Q4_0"))
    assert caught.value.hint and not (tmp_path / "model.gguf").exists()
