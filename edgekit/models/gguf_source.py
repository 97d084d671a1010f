"""A GGUF file as a source model: read by transformers, corrected where its reader has known faults, and proven."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgekit.base.errors import CorruptError, UnsupportedError
from edgekit.base.parts import missing_part
from edgekit.containers.gguf import GgufLayout, read_gguf
from edgekit.containers.gguf_content import check_gguf
from edgekit.containers.gguf_split import read_whole

USER_DEFINED = 4  # llama.cpp's type of a token that is matched before all others
HINT = "Give the model's Hugging Face folder instead."

# Names in the metadata to names in `config.json`, and the defaults of transformers; a test compares both with it.
INTEGERS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
KNOWN: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "mlp_bias": False},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False, "sliding_window": None},
}


class CompleteConfig(dict[str, Any]):
    """A config whose values were all set and checked when it was read, so transformers adds nothing."""


def read_config(path: Path) -> dict[str, Any]:
    """The model's configuration as transformers reads it from the file's metadata; no weights are loaded.

    The usual architectures are read here, in a tenth of a second; transformers takes eight seconds, because it reads the
    whole vocabulary. Raises `CorruptError` for a file that is not valid GGUF and `UnsupportedError` for an architecture
    that transformers cannot read.
    """
    layout = read_whole(path)  # no other parser may read a file that this one refuses
    return _own_reading(layout) or _transformers_reading(path)


def _own_reading(layout: GgufLayout) -> CompleteConfig | None:
    """The configuration of a known architecture with complete metadata of the usual types, else None."""
    metadata = layout.metadata
    kind = str(metadata.get("general.architecture"))
    if (
        kind not in KNOWN or metadata.get("general.name") == "mistral"
    ):  # transformers reads it as another architecture
        return None
    config = CompleteConfig(model_type=kind, hidden_act="silu", **KNOWN[kind])
    tokens = metadata.get("tokenizer.ggml.tokens")
    sizes = {name: metadata.get(f"{kind}.{key}") for key, name in INTEGERS.items()}
    sizes["vocab_size"] = metadata.get(
        f"{kind}.vocab_size", len(tokens) if isinstance(tokens, list) else None
    )
    if kind == "llama":
        sizes["head_dim"] = metadata.get("llama.rope.dimension_count")
    epsilon = metadata.get(f"{kind}.attention.layer_norm_rms_epsilon")
    theta = metadata.get(f"{kind}.rope.freq_base")
    if not all(type(size) is int and size > 0 for size in sizes.values()):
        return None
    if not (isinstance(epsilon, float) and isinstance(theta, float)):
        return None
    config.update(sizes, rms_norm_eps=epsilon, tie_word_embeddings="output.weight" not in layout.tensors)
    config["rope_parameters"] = {"rope_theta": theta, "rope_type": "default"}
    return config


def _transformers_reading(path: Path) -> dict[str, Any]:
    try:
        from transformers import AutoConfig
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ModuleNotFoundError as error:
        raise missing_part(error) from error
    try:
        config: dict[str, Any] = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
    except ValueError as error:  # "GGUF model with architecture x is not supported yet."
        raise UnsupportedError(f"{path.name} cannot be read: {error}", HINT) from error
    kind = config.pop("model_type")
    names = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, kind)]
    return {**AutoConfig.for_model(kind, **config).to_dict(), "architectures": names}


def convert(path: Path, out: Path) -> None:
    """Write the file's weights, as float32, and its tokenizer to the Hugging Face folder `out`.

    Raises `CorruptError` for a file that cannot be read.
    """
    check_gguf(path)
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ModuleNotFoundError as error:
        raise missing_part(error) from error
    try:
        with _reading_once():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            mend_tokenizer(tokenizer, path)
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            )
    except Exception as error:
        raise CorruptError(
            f"{path} cannot be read: {str(error).splitlines()[0]}", "Fetch the file again."
        ) from error
    del model.config.quantization_config  # the weights are plain floats from here on
    model.hf_quantizer = None
    model.config._name_or_path = ""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


@contextmanager
def _reading_once() -> Iterator[None]:
    """Cache what transformers reads repeatedly: a file's header three times, its names for every module.

    For SmolLM2-135M that is 12 of 20 seconds (transformers 5.23).
    """
    import gguf

    kept = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in kept.items():
        setattr(gguf, name, lru_cache(function))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(gguf, name, function)


def mend_tokenizer(tokenizer: Any, path: Path) -> None:
    """Restore two rules of the file's tokenizer that transformers' reader loses (as of transformers 5.23).

    `smollm` splits digits one by one before byte-level BPE; without it, spaces before a digit get other ids. And runs of
    spaces that are user-defined tokens, as in Gemma, are found in a text before all others, the longest first.
    """
    from tokenizers import Tokenizer, pre_tokenizers

    metadata = read_gguf(path).metadata
    if metadata.get("tokenizer.ggml.pre") == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    if runs := _runs_of_spaces(metadata):
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        _add_runs(rules, runs)
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(rules, ensure_ascii=False))


def _runs_of_spaces(metadata: Mapping[str, Any]) -> dict[int, str]:
    """The ids of the user-defined tokens that are several spaces, each with its text."""
    types, tokens = (metadata.get(f"tokenizer.ggml.{name}") for name in ("token_type", "tokens"))
    if types is None or not isinstance(tokens, list):
        return {}
    ids = (types == USER_DEFINED).nonzero()[0].tolist()
    return {id_: tokens[id_] for id_ in ids if len(tokens[id_]) > 1 and not tokens[id_].strip(" ")}


def _add_runs(rules: dict[str, Any], runs: Mapping[int, str]) -> None:
    """Make added tokens of the runs in a `tokenizer.json`, in place of entries that merges of `▁` make."""
    model, added = rules["model"], {token["id"] for token in rules["added_tokens"]}
    spelled = {text: id_ for text, id_ in model["vocab"].items() if id_ in runs and id_ not in added}
    for text, id_ in spelled.items():
        del model["vocab"][text]
        model["vocab"][runs[id_]] = id_
        settings = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        rules["added_tokens"].append({"id": id_, "content": runs[id_], **settings})
    rules["added_tokens"].sort(key=lambda token: token["id"])
    if "merges" in model:
        parts = [(merge, {*merge, "".join(merge)}) for merge in model["merges"]]
        model["merges"] = [merge for merge, texts in parts if texts.isdisjoint(spelled)]
