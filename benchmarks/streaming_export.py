"""Streaming export against converting and quantizing one after the other: memory, extra disk, time.

    python benchmarks/streaming_export.py [--model FOLDER] [--synthetic] [--llama-cpp CHECKOUT] [--genai] [--repeats N]
        [--threads N] [--only PART]

The sample model, or FOLDER, or with --synthetic a Llama of 1.5 billion seeded weights (3 GB, and 3 GB more for each way
with a float file between), to Q4_K_M. With --llama-cpp the peer is its `convert_hf_to_gguf.py` and then
`llama_model_quantize`, the function behind `llama-quantize`; the file between has the smallest type that loses nothing.
With --genai the model builder of onnxruntime-genai writes its int4 folder, and edgekit its own, both rounded to the nearest
without calibration, for memory and time only. Each step is a process of its own; memory is the most that the process tree holds: all resident pages, and those that are not pages of
a mapped file. Extra disk is what lies in the working folder beside the result.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
from common import MIB, watched

from edgekit.base import hardware
from edgekit.export.weights.folder import copy_companions
from edgekit.export.weights.safetensors_io import Weights, write_weights
from edgekit.models.source import bring_in, resolve

TYPE = "Q4_K_M"
STREAM = """
import sys; from pathlib import Path
from edgekit.targets.target import GgufExport
from edgekit.export.gguf.stream_process import stream
stream(Path(sys.argv[1]), Path(sys.argv[2]), GgufExport(format="gguf", type=sys.argv[3]), threads=int(sys.argv[4]))
"""
ONNX = """
import sys; from pathlib import Path
from edgekit.export.onnx.export import export
from edgekit.registry import ExportContext
from edgekit.targets.target import OnnxExport
model = Path(sys.argv[1])
export(model, Path("onnx"), OnnxExport(format="onnx"), ExportContext(model, [], int(sys.argv[2])), lambda event: None)
"""
STREAMED, BUILT, BUILDER = "edgekit, streamed", "edgekit, ONNX", "onnxruntime-genai's builder, ONNX"
PEERS = {STREAMED: ("llama.cpp", "edgekit, float"), BUILT: ("onnxruntime-genai",)}
FLOATS = """
import sys; from pathlib import Path
from edgekit.export.gguf.write import write
write(Path(sys.argv[1]), Path(sys.argv[2]), lambda event: None)
"""
QUANTIZE = """
import sys, ctypes, gguf, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = gguf.LlamaFileType["MOSTLY_" + sys.argv[3]], int(sys.argv[4])
llama_cpp.llama_backend_init()
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(params)))
"""
LLAMA_1B5 = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 21, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 8192,
    "vocab_size": 49152, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True, "dtype": "bfloat16",
    "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@dataclass
class Way:
    """What one way of making the file took."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    resident_mib: float = 0.0
    anonymous_mib: float = 0.0
    disk_mib: float = 0.0


def main() -> None:
    """Print one row for each way and repeat, then the ratios of the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--genai", action="store_true")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="a part of the names of the ways to run")
    parser.add_argument("--work", type=Path, help="where the working folders are made")
    arguments = parser.parse_args()
    print(hardware.fingerprint()["cpu"], "\n")
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        folder = Path(name)
        model = arguments.model or folder / "model"
        if not arguments.model:
            bring_in(resolve("smollm2-135m"), model)
        if arguments.synthetic:
            model = synthetic(folder / "synthetic", model)
        ways = list(commands(model, arguments.llama_cpp, arguments.genai, arguments.threads))
        ways = [(way, steps) for way, steps in ways if arguments.only in way]
        print(
            "| way | peak RSS MiB | of it anonymous MiB | extra disk MiB | seconds | CPU seconds | output bytes | tensors as streamed |"
        )
        print("|---|--:|--:|--:|--:|--:|--:|--:|")
        costs: dict[str, list[Way]] = {way: [] for way, _ in ways}
        expected: dict[str, str] = {}
        for repeat in range(arguments.repeats):
            for way, steps in ways if repeat % 2 == 0 else reversed(ways):
                with tempfile.TemporaryDirectory(dir=folder) as work:
                    cost = measure(steps, Path(work))
                    costs[way].append(cost)
                    out = Path(work) / "model.gguf"
                    found = digests(out) if out.exists() else {}
                    size = f"{out.stat().st_size:,}" if out.exists() else ""
                expected = expected or found
                same = (
                    f"{sum(found[key] == expected.get(key) for key in found)} of {len(expected)}"
                    if found
                    else ""
                )
                print(
                    f"| {way} | {cost.resident_mib:.0f} | {cost.anonymous_mib:.0f} | {cost.disk_mib:.0f} "
                    f"| {cost.seconds:.1f} | {cost.cpu_seconds:.1f} | {size} | {same} |",
                    flush=True,
                )
        print()
        for own, peers in PEERS.items():
            for way, theirs in costs.items():
                if own in costs and way.startswith(peers):
                    print(f"{own} / {way}: " + ", ".join(ratios(costs[own], theirs)))


def ratios(ours: list[Way], theirs: list[Way]) -> Iterator[str]:
    """Median against median, quantity by quantity."""
    for field, word in (("resident_mib", "RSS"), ("anonymous_mib", "anonymous"), ("disk_mib", "extra disk"), ("seconds", "time"), ("cpu_seconds", "CPU time")):  # fmt: skip
        mine, other = (statistics.median(getattr(cost, field) for cost in costs) for costs in (ours, theirs))
        yield f"{word} {mine / other:.2f}" if other else f"{word} -"


def commands(
    model: Path, checkout: Path | None, genai: bool, threads: int
) -> Iterator[tuple[str, list[list[str]]]]:
    """Each way's name and its processes; they run in a working folder, and `model.gguf` is what they make."""
    kind, python = [TYPE, str(threads)], sys.executable
    quantize = [python, "-c", QUANTIZE, "floats.gguf", "model.gguf", *kind]
    yield STREAMED, [[python, "-c", STREAM, str(model), "model.gguf", *kind]]
    yield "edgekit, float file between", [[python, "-c", FLOATS, str(model), "floats.gguf"], quantize]
    if checkout:
        stored = {dtype for dtype, _ in Weights(model).layout.values()}
        between = {frozenset({torch.bfloat16}): "bf16", frozenset({torch.float16}): "f16"}.get(
            frozenset(stored), "f32"
        )
        converter = [
            python,
            str(checkout.resolve() / "convert_hf_to_gguf.py"),
            str(model),
            "--outfile",
            "floats.gguf",
        ]
        yield f"llama.cpp, {between} file between", [[*converter, "--outtype", between], quantize]
    if genai:
        yield BUILT, [[python, "-c", ONNX, str(model), str(threads)]]
        builder = [
            "env",
            f"OMP_NUM_THREADS={threads}",
            python,
            "-m",
            "onnxruntime_genai.models.builder",
            "-i",
            str(model),
            "-o",
            "onnx",
        ]
        yield BUILDER, [[*builder, "-p", "int4", "-e", "cpu", "-c", "cache"]]


def measure(steps: list[list[str]], work: Path) -> Way:
    """Run the processes one after the other in `work`."""
    way = Way()

    def look() -> None:
        way.disk_mib = max(way.disk_mib, on_disk(work) / MIB)

    for step in steps:
        cost = watched(step, work, look)
        way.seconds += cost.seconds
        way.cpu_seconds += cost.cpu_seconds
        way.resident_mib = max(way.resident_mib, cost.resident_mib)
        way.anonymous_mib = max(way.anonymous_mib, cost.anonymous_mib)
    way.disk_mib = max(0.0, way.disk_mib - result_size(work) / MIB)
    return way


def on_disk(*folders: Path) -> int:
    """Bytes that the files below `folders` take; holes in them and links take none."""
    taken: dict[int, int] = {}
    for file in (file for folder in folders for file in folder.rglob("*")):
        try:
            at = file.lstat()
        except FileNotFoundError:  # renamed or removed meanwhile
            continue
        taken[at.st_ino] = at.st_blocks * 512
    return sum(taken.values())


def result_size(work: Path) -> int:
    """Bytes on disk of what was asked for."""
    file = work / "model.gguf"
    return file.stat().st_blocks * 512 if file.exists() else on_disk(work / "onnx")


def digests(file: Path) -> dict[str, str]:
    """SHA-256 of each tensor with its type, by name."""
    return {
        tensor.name: hashlib.sha256(tensor.tensor_type.name.encode() + tensor.data.tobytes()).hexdigest()
        for tensor in gguf.GGUFReader(file).tensors
    }


def synthetic(folder: Path, tokenizer: Path) -> Path:
    """Write a Llama of 1.5 billion seeded bfloat16 weights in shards of 512 MiB, with the tokenizer of another model."""
    folder.mkdir()
    copy_companions(tokenizer, folder)
    (folder / "config.json").write_text(json.dumps(LLAMA_1B5, indent=2))
    hidden, wide = 2048, 8192
    shapes = {"model.embed_tokens.weight": (49152, hidden), "model.norm.weight": (hidden,)}
    for layer in range(21):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"{at}.mlp.{part}_proj.weight": (wide, hidden) for part in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, wide)
        shapes |= {f"{at}.{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}

    def values(name: str) -> torch.Tensor:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        drawn = torch.randn(shapes[name], generator=torch.Generator().manual_seed(seed))
        return (drawn * 0.02 if drawn.ndim == 2 else 1 + drawn * 0.1).bfloat16()

    write_weights(
        folder, {name: (torch.bfloat16, shape) for name, shape in shapes.items()}, values, max_shard_mib=512
    )
    return folder


if __name__ == "__main__":
    main()
