"""Every family written as GGUF answers in llama.cpp as it does in torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
import tiny
import torch
import transformers
import vocabularies
from numpy.typing import NDArray
from tokenizers import normalizers

from edgekit.base.errors import CorruptError, UnsupportedError
from edgekit.base.events import Event, Progress, ignore
from edgekit.export.gguf import converter
from edgekit.export.gguf import families as gguf_families
from edgekit.export.gguf import write as export
from edgekit.export.gguf.quantize import llama_log
from edgekit.models.source import read_config
from edgekit.registry import ExportContext
from edgekit.runtimes.llamacpp import open_model
from edgekit.targets.target import GgufExport

IDS = [1, *range(300, 340), 9, 9, 17]
CLOSE = 1e-5  # the logits' deviation is about 0.5
CLOSE_GELU = 2e-3  # llama.cpp reads GELU from a table of halves

Make = Callable[..., Path]


def llama_logits(file: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    """Next-token logits `(T, V)` from llama.cpp with a float cache."""
    with llama_log(lambda level, line: None):
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        assert model, f"llama.cpp cannot load {file}"
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 64
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = gguf.GGMLQuantizationType.F32
        params.flash_attn_type = 0
        context = llama_cpp.llama_init_from_model(model, params)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        assert llama_cpp.llama_decode(context, batch) == 0
        width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(ids), width)).copy()
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
    return logits


def torch_logits(folder: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.tensor([list(ids)])).logits[0].numpy()
    return logits


def difference(folder: Path, file: Path) -> float:
    return float(np.abs(torch_logits(folder, IDS) - llama_logits(file, IDS)).max())


def fields(file: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Tiny models of each family with a small tokenizer, each made once; a test that changes one copies it first."""
    return tiny.maker(tmp_path_factory.mktemp("models"))


def copy(folder: Path, to: Path, **changes: Any) -> Path:
    """A copy of a model folder with changes in its config.json; None takes a key out."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text()) | changes
    (to / "config.json").unlink()
    (to / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return to


def test_text_is_brought_into_the_form_that_the_models_tokenizer_uses(tmp_path: Path) -> None:
    tokenizer = vocabularies.byte_level("qwen2")
    tokenizer.normalizer = normalizers.NFC()
    saved = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "tokenizer", lambda: saved)
        folder = tiny.make(tmp_path / "model", "qwen2")
    export.write(folder, tmp_path / "model.gguf", ignore)
    runtime = open_model(tmp_path / "model.gguf", threads=1, context=64)
    text = "l'e\u0301te\u0301 a\u030a<|im_end|>"
    assert runtime.encode(text) == tokenizer.encode(text).ids
    runtime.close()


LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in tiny.FAMILIES},
    "llama, linear rope": ("llama", {"rope_parameters": LINEAR}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3, yarn with a factor of its own": ("qwen3", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "gemma3, scaled": ("gemma3", {"rope_parameters": GEMMA_ROPE, "final_logit_softcapping": 2.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_match_torch(case: str, make: Make, tmp_path: Path) -> None:
    family, changes = CASES[case]
    folder, file = make(family, **changes), tmp_path / "model.gguf"
    export.write(folder, file, ignore)
    assert difference(folder, file) < (CLOSE_GELU if family == "gemma3" else CLOSE)


def _identity(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    return values


FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "q and k not permuted": ("llama", lambda m: m.setattr(gguf_families, "interleave", _identity)),
    "no rope factors": ("llama3", lambda m: m.setattr(export, "rope_factors", lambda config: {})),
    "another rope base": (
        "llama",
        lambda m: m.setattr(
            gguf.GGUFWriter,
            "add_rope_freq_base",
            lambda self, base: self.add_float32("llama.rope.freq_base", 1.1 * base),
        ),
    ),
    "another epsilon": (
        "qwen3",
        lambda m: m.setattr(
            gguf.GGUFWriter,
            "add_layer_norm_rms_eps",
            lambda self, eps: self.add_float32("qwen3.attention.layer_norm_rms_epsilon", 30 * eps),
        ),
    ),
    "norms without their one": (
        "gemma3",
        lambda m: m.setitem(
            gguf_families.FAMILIES,
            "Gemma3ForCausalLM",
            gguf_families.Family(gguf.MODEL_ARCH.GEMMA3, activation="gelu_pytorch_tanh"),
        ),
    ),
    "no longrope factors": ("phi4-longrope", lambda m: m.setattr(export, "rope_factors", lambda config: {})),
    "no longrope scale": (
        "phi4-longrope",
        lambda m: m.setattr(gguf.GGUFWriter, "add_rope_scaling_attn_factors", lambda self, value: None),
    ),
    "no scale of the branches": (
        "granite-biases",
        lambda m: m.setattr(gguf.GGUFWriter, "add_residual_scale", lambda self, value: None),
    ),
    "windows on other layers": (
        "gemma3",
        lambda m: m.setattr(gguf.GGUFWriter, "add_sliding_window_pattern", lambda self, value: None),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(
    fault: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, plant = FAULTS[fault]
    folder, file = make(family), tmp_path / "model.gguf"
    plant(monkeypatch)
    export.write(folder, file, ignore)
    assert difference(folder, file) > 2 * (CLOSE_GELU if family == "gemma3" else CLOSE)


def test_the_same_folder_gives_the_same_bytes(make: Make, tmp_path: Path) -> None:
    folder = make("llama")
    export.write(folder, tmp_path / "one.gguf", ignore)
    export.write(copy(folder, tmp_path / "another name"), tmp_path / "two.gguf", ignore)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def test_old_rope_keys_mean_the_same(make: Make, tmp_path: Path) -> None:
    rope = dict(tiny.LLAMA3_ROPE)
    base = rope.pop("rope_theta")
    old = {"rope_parameters": None, "rope_theta": base, "rope_scaling": {**rope, "type": rope["rope_type"]}}
    export.write(make("llama3"), tmp_path / "new.gguf", ignore)
    export.write(copy(make("llama3"), tmp_path / "old", **old), tmp_path / "old.gguf", ignore)
    assert (tmp_path / "new.gguf").read_bytes() == (tmp_path / "old.gguf").read_bytes()


def test_halves_in_shards_become_the_same_floats(make: Make, tmp_path: Path) -> None:
    folder, shards = make("qwen2"), tmp_path / "shards"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(shards, max_shard_size="200KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    for file in folder.glob("tokenizer*"):
        (shards / file.name).symlink_to(file)
    export.write(shards, tmp_path / "model.gguf", ignore)
    written = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert len(written) == len(model.state_dict()) - 1  # the tied head is not written twice
    values = model.state_dict()["model.layers.1.mlp.down_proj.weight"].float().numpy()
    assert np.array_equal(written["blk.1.ffn_down.weight"].data, values)


def test_the_file_says_what_it_is_and_where_it_comes_from(make: Make, tmp_path: Path) -> None:
    folder = copy(make("llama"), tmp_path / "model")
    origin = {"base_model": "org/tiny-llama", "license": "Apache-2.0", "sha256": "abc", "tuned": {"rows": 3}}
    (folder / "edgekit.json").write_text(json.dumps(origin))
    export.write(folder, tmp_path / "model.gguf", ignore)
    written = fields(tmp_path / "model.gguf")
    assert written["general.name"] == "tiny-llama"
    assert written["general.license"] == "Apache-2.0"
    assert written["general.base_model.0.name"] == "org/tiny-llama"
    assert written["edgekit.sha256"] == "abc"
    assert json.loads(written["edgekit.tuned"]) == {"rows": 3}


def test_a_name_that_llama_cpp_reads_meaning_into_is_left_out(make: Make, tmp_path: Path) -> None:
    folder = copy(make("llama"), tmp_path / "model", _name_or_path="org/Phi-3-as-llama")
    export.write(folder, tmp_path / "model.gguf", ignore)
    assert "general.name" not in fields(tmp_path / "model.gguf")
    assert difference(folder, tmp_path / "model.gguf") < CLOSE


def test_longrope_bounds_the_context_to_the_original_one(make: Make, tmp_path: Path) -> None:
    """llama.cpp takes the long factors for every text in a longer context, and the model for longer texts only."""
    export.write(make("phi4-longrope"), tmp_path / "model.gguf", ignore)
    assert fields(tmp_path / "model.gguf")["phi3.context_length"] == 256


def test_a_window_bounds_the_context_where_llama_cpp_has_none(make: Make, tmp_path: Path) -> None:
    folder = copy(make("mistral"), tmp_path / "model", sliding_window=48)
    export.write(folder, tmp_path / "model.gguf", ignore)
    assert fields(tmp_path / "model.gguf")["llama.context_length"] == 48


def test_progress_ends_at_the_whole(make: Make, tmp_path: Path) -> None:
    events: list[Event] = []
    export.write(make("llama"), tmp_path / "model.gguf", events.append)
    last = events[-1]
    assert isinstance(last, Progress) and last.done == last.total > 0


def test_damaged_weights_leave_no_file(make: Make, tmp_path: Path) -> None:
    folder, out = copy(make("llama"), tmp_path / "model"), tmp_path / "model.gguf"
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(weights[:-1000])
    with pytest.raises(CorruptError):
        export.write(folder, out, ignore)
    assert not out.exists()


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors")


WRONG_WEIGHTS: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "an adapter left in": (
        "llama",
        lambda t: t.update({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 64)}),
        "lora_A",
    ),
    "a head that is not tied": (
        "llama",
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}),
        "ties the head",
    ),
    "no head": ("llama-untied", lambda t: t.pop("lm_head.weight"), "lack lm_head.weight"),
}


@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
def test_wrong_weights_are_named(wrong: str, make: Make, tmp_path: Path) -> None:
    family, change, message = WRONG_WEIGHTS[wrong]
    folder = copy(make(family), tmp_path / "model")
    rewrite(folder, change)
    with pytest.raises(CorruptError, match=message):
        export.write(folder, tmp_path / "model.gguf", ignore)


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    """What `config.json` of a tiny model holds."""
    name, extra = tiny.FAMILIES[family]
    config = getattr(transformers, name)(vocab_size=100, **{**tiny.SHAPE, **extra}).to_dict()
    causal = {"Gemma3TextConfig": "Gemma3ForCausalLM"}.get(name, name.replace("Config", "ForCausalLM"))
    return {**config, "architectures": [causal], **changes}


def refusal(config: dict[str, Any], **options: Any) -> str:
    return export.exporter.refusal(config, GgufExport(format="gguf", **options))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_families_are_accepted(family: str) -> None:
    assert refusal(config_of(family)) == ""


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": (
        config_of("llama", architectures=["PhiForCausalLM"]),
        "PhiForCausalLM.*edgekit setup converter",
    ),
    "no architecture": (config_of("llama", architectures=None), "not an architecture"),
    "quantized": (config_of("llama", quantization_config={"quant_method": "gptq"}), "already quantized"),
    "not a config": (config_of("llama", hidden_size="wide"), "hidden_size"),
    "dynamic rope": (config_of("llama", rope_parameters={**LINEAR, "rope_type": "dynamic"}), "dynamic"),
    "llama3 rope elsewhere": (config_of("qwen2", rope_parameters=tiny.LLAMA3_ROPE), "llama3"),
    "partial rope": (config_of("llama", rope_parameters={**LINEAR, "partial_rotary_factor": 0.5}), "partial"),
    "yarn's betas": (config_of("qwen2", rope_parameters={**YARN, "beta_fast": 16}), "beta_fast"),
    "yarn not truncated": (config_of("qwen2", rope_parameters={**YARN, "truncate": False}), "truncate"),
    "activation": (config_of("llama", hidden_act="gelu"), "gelu"),
    "biases": (config_of("qwen3", attention_bias=True), "biases"),
    "rope in other layers": (config_of("smollm3-nope", no_rope_layers=[1, 0, 1, 1, 1]), "every fourth layer"),
    "longrope elsewhere": (config_of("qwen3", rope_parameters=tiny.PHI_LONGROPE), "longrope"),
    "heads": (config_of("qwen2", num_attention_heads=5, num_key_value_heads=5), "heads that fill"),
    "gemma's scale": (config_of("gemma3", query_pre_attn_scalar=64), "64"),
    "gemma's caps": (config_of("gemma3", attn_logit_softcapping=50.0), "soft-capping"),
    "gemma in both directions": (config_of("gemma3", use_bidirectional_attention=True), "bidirectional"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_cannot_express_is_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converter, "kept", lambda: None)
    config, message = REFUSED[case]
    sentence = refusal(config)
    assert re.search(message, sentence) and sentence.endswith("."), sentence


def test_rows_too_short_for_the_embedding_type_are_refused() -> None:
    assert "multiple of 256" in refusal(config_of("llama"), token_embedding_type="Q6_K")
    assert refusal(config_of("llama"), token_embedding_type="Q8_0") == ""


def test_a_refused_model_is_not_written(make: Make, tmp_path: Path) -> None:
    folder = copy(make("llama"), tmp_path / "model", hidden_act="relu")
    with pytest.raises(UnsupportedError, match="relu"):
        export.write(folder, tmp_path / "model.gguf", ignore)
    assert not (tmp_path / "model.gguf").exists()


def run_steps(folder: Path, out: Path, context: ExportContext, **options: Any) -> list[str]:
    """Run an export's steps one on the other's output; the stages' names."""
    source, stages = folder, []
    for step in export.exporter.steps(GgufExport(format="gguf", **options)):
        step.run(source, out / step.output, context, ignore)
        source = out / step.output
        stages.append(step.stage)
    return stages


def test_floats_are_one_step_and_quantized_files_two(make: Make, tmp_path: Path) -> None:
    folder = make("llama")
    context = ExportContext(folder, [IDS], threads=1)
    (tmp_path / "plain").mkdir()
    assert run_steps(folder, tmp_path, context, type="F32") == ["export.gguf"]
    assert fields(tmp_path / "model.gguf")["general.file_type"] == gguf.LlamaFileType.ALL_F32
    assert run_steps(folder, tmp_path, context, type="Q4_0") == ["export.gguf", "quantize.gguf"]
    assert fields(tmp_path / "model.gguf")["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0
    run_steps(folder, tmp_path / "plain", ExportContext(folder, threads=1), type="Q4_0")
    assert (tmp_path / "model.gguf").read_bytes() != (tmp_path / "plain/model.gguf").read_bytes()


def test_a_large_model_is_written_without_a_float_file(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the file is the one that is made with a float file between."""
    folder = make("llama")
    context = ExportContext(folder, [IDS], threads=1)
    run_steps(folder, tmp_path, context, type="Q4_0")
    with_floats = (tmp_path / "model.gguf").read_bytes()
    config = read_config(folder)
    floats, quantized = export.exporter.steps(GgufExport(format="gguf", type="Q4_0"))
    assert not floats.left_out(config)
    monkeypatch.setattr(export, "LARGEST_FLOAT_FILE_MIB", 0)
    assert floats.left_out(config) and not quantized.left_out(config)
    assert not floats.left_out({**config, "architectures": ["PhiForCausalLM"]})  # edgekit cannot stream it
    (single,) = export.exporter.steps(GgufExport(format="gguf", type="F32"))
    assert not single.left_out(config)
    stages: list[str] = []
    quantized.run(
        folder, tmp_path / "streamed.gguf", context, lambda e: stages.append(getattr(e, "stage", ""))
    )
    assert (tmp_path / "streamed.gguf").read_bytes() == with_floats
    assert set(stages) - {""} == {"quantize.gguf"}  # a warning belongs to no stage
