"""A Qwen3-like model of seeded bfloat16 weights with Qwen3's real tokenizer, written tensor by tensor, for measurements.

    python benchmarks/synthetic.py FOLDER --size 0.5|1.5|3

Hidden and intermediate sizes, heads and vocabulary are Qwen3's (0.6B, 1.7B and 4B); only the number of layers is smaller.
The answers are noise, so drift gates may fail: what such a model is good for is memory, disk and time.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from edgekit.data.demo import generate
from edgekit.export.weights.safetensors_io import write_weights

ROOT = Path(__file__).parents[1]
VOCABULARY, HEAD = 151936, 128
TRAIN_ROWS = 32


@dataclass(frozen=True)
class Size:
    """Widths of one of Qwen3's models, and the number of layers that gives the wanted number of weights."""

    hidden: int
    intermediate: int
    heads: int
    layers: int


SIZES = {"0.5": Size(1024, 3072, 16, 22), "1.5": Size(2048, 6144, 16, 24), "3": Size(2560, 9728, 32, 26)}
KEY_VALUE_HEADS = 8


def write(folder: Path, size: Size) -> Path:
    """Write the model to the new folder `folder`, in shards of 512 MiB."""
    folder.mkdir(parents=True)
    _copy_tokenizer(folder)
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": size.hidden,
        "intermediate_size": size.intermediate, "num_hidden_layers": size.layers, "num_attention_heads": size.heads,
        "num_key_value_heads": KEY_VALUE_HEADS, "head_dim": HEAD, "vocab_size": VOCABULARY, "dtype": "bfloat16",
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "hidden_act": "silu",
        "tie_word_embeddings": True, "attention_bias": False, "use_sliding_window": False,
        "bos_token_id": 151643, "eos_token_id": 151645,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    generation = {"eos_token_id": [151645, 151643], "pad_token_id": 151643}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    shapes = _shapes(size)

    def values(name: str) -> torch.Tensor:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        drawn = torch.empty(shapes[name]).normal_(generator=torch.Generator().manual_seed(seed))
        return (drawn.mul_(0.02) if drawn.ndim == 2 else drawn.mul_(0.1).add_(1)).bfloat16()

    layout = {name: (torch.bfloat16, shape) for name, shape in shapes.items()}
    write_weights(folder, layout, values, max_shard_mib=512)
    return folder


def write_rows(folder: Path, held_out: int = 16) -> Path:
    """A small data set, to tune on for a few steps and to calibrate with, and `held_out` rows to validate and to test."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in generate(train=TRAIN_ROWS, validation=held_out, test=held_out).items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def parameters(size: Size) -> int:
    """The number of weights."""
    return sum(prod(shape) for shape in _shapes(size).values())


def _shapes(size: Size) -> dict[str, tuple[int, ...]]:
    hidden, queries, keys = size.hidden, size.heads * HEAD, KEY_VALUE_HEADS * HEAD
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for layer in range(size.layers):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.self_attn.q_proj.weight": (queries, hidden),
            f"{at}.self_attn.k_proj.weight": (keys, hidden),
            f"{at}.self_attn.v_proj.weight": (keys, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, queries),
            f"{at}.self_attn.q_norm.weight": (HEAD,),
            f"{at}.self_attn.k_norm.weight": (HEAD,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
            f"{at}.mlp.gate_proj.weight": (size.intermediate, hidden),
            f"{at}.mlp.up_proj.weight": (size.intermediate, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, size.intermediate),
        }
    return shapes | {"model.norm.weight": (hidden,)}


def _copy_tokenizer(folder: Path) -> None:
    tool = ROOT / "tools" / "fetch_tokenizers.py"
    spec = importlib.util.spec_from_file_location("fetch_tokenizers", tool)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    files = module.folder("qwen3")
    if files is None:
        sys.exit(f"Qwen3's tokenizer is not here; fetch it first: python {tool}")
    for file in files.iterdir():
        shutil.copy(file, folder / file.name)


def main() -> None:
    """Write one model, and say how many weights it has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="0.5", help="billions of weights")
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    write(arguments.folder, size)
    print(f"{arguments.folder}: {parameters(size):,} weights, {2 * parameters(size) / 2**20:,.0f} MiB")


if __name__ == "__main__":
    main()
