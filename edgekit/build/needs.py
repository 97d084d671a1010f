"""How much memory each stage of a build takes, and how much disk the build, from the model's config and the target.

Memory is the most that the process and its children hold at once, pages of mapped files included: a model of 16 bits stays
in its files, and the system may drop its pages when others need the memory. Each formula names what is held at a stage's
peak; `benchmarks/memory.md` has them beside measured figures, and a test holds them to 20 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.base.hardware import cpu_has_bf16
from edgekit.base.output import GIVEN
from edgekit.build.file_sizes import file_size
from edgekit.data.splits import Dataset
from edgekit.device.manifest import ONE_NAME
from edgekit.evaluation.answering import CHUNK as ANSWERED
from edgekit.models.shape import ANSWERS_CACHE, MIB, Shape, fits_in_float32
from edgekit.registry import load
from edgekit.targets.target import Export, GgufExport, Quantize, Target, Tune
from edgekit.tuning.memory import SIZES, Batch, Need, base_dtype, estimate
from edgekit.tuning.tune import PLAIN_ATTENTION_TOKENS

CHARACTERS_PER_TOKEN = 3.5  # English through a byte-pair tokenizer
TEMPLATE_CHARACTERS = 60  # that a chat template puts around the messages of a row
PROCESS = 545.0  # MiB: Python with torch, transformers, peft and the runtimes, and what tuning leaves behind
TOKENIZER = 1600  # bytes of one token of the vocabulary, in the two tokenizers that a stage holds
CHILD = 420.0  # MiB: the process that writes an ONNX folder, before it reads the model
READ_OUT = 2.0  # times a GGUF source's weights in float32, while they are read out and saved
TEXT_TOKENS = 256  # of a plain text that is scored at once
CONTEXT, CHUNK = 2048, 512  # tokens of llama.cpp's cache, and those that it computes together
HEAD = 200.0  # MiB: a piece of the head, while it is rounded in 64-bit floats
ONNX_OPENED = 2.0  # times an ONNX folder: read, and packed for the processor
ONNX_SESSION = 350.0  # MiB: what onnxruntime holds beside them
CALIBRATION_TOKENS = 17000  # of rows and plain text
LOGITS_HELD = 20  # copies, on two threads: with their softmax, its derivative and the gradient
SMALL_FILES = 64.0  # MiB of disk: reports, tokenizers, samples, references


@dataclass(frozen=True)
class Source:
    """How the model's weights are given."""

    shape: Shape
    config: Mapping[str, Any]
    bytes_of_weight: int
    """In the folder that the build works on: 2 for a model in 16 bits, else 4."""
    is_gguf: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], parameters: int = 0, *, is_gguf: bool = False) -> Source:
        """The weights of a model with this `config.json`; a GGUF file is read out in float32."""
        kind = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        narrow = not is_gguf and kind.removeprefix("torch.") in ("bfloat16", "float16")
        return cls(Shape.of(config, parameters), config, 2 if narrow else 4, is_gguf)

    @property
    def weights(self) -> float:
        """The size of the folder's weights, MiB."""
        return self.bytes_of_weight * self.shape.parameters / MIB

    @property
    def embedding(self) -> float:
        """The size of the folder's embedding, MiB."""
        return self.bytes_of_weight * self.shape.embedding / MIB

    @property
    def process(self) -> float:
        """A process with the model's tokenizer, MiB."""
        return PROCESS + TOKENIZER * self.shape.vocabulary / MIB

    def logits(self, tokens: int) -> float:
        """Logits of so many tokens in float32, MiB."""
        return 4 * tokens * self.shape.vocabulary / MIB

    def cache(self, tokens: int, width: int) -> float:
        """Keys and values of so many tokens, MiB; one takes `width` bytes."""
        return 2 * width * tokens * self.shape.layers * self.shape.keys / MIB


def stage_memory(
    source: Source, target: Target, data: Dataset, tuning_mib: float, available_mib: float
) -> dict[str, float]:
    """Peak memory of each stage, MiB, when the base, the adapter and a step of tuning take `tuning_mib`.

    A model of 16 bits answers in float32 where it fits well into `available_mib`.
    """
    process, weights = source.process, source.weights
    wide = fits_in_float32(source.shape.parameters, available_mib)
    opened = process + (4 * source.shape.parameters / MIB if wide else weights)
    torch = opened + source.logits(TEXT_TOKENS)
    longest = max((_tokens(row.messages) for row in (*data.validation, *data.test)), default=0)
    most = ANSWERS_CACHE / MIB
    answering = opened + min(source.cache(ANSWERED * longest, 4), most)
    # The proof holds one model at a time and the embedding of the base that tuning had mapped, with the logits of a row of
    # both, or with a model of 32 bits read out.
    merging = source.embedding + (weights if source.bytes_of_weight > 2 else 2 * source.logits(longest))
    needs = {
        "model": process + READ_OUT * weights * source.is_gguf,
        "tune": process + tuning_mib,
        "merge": process + weights + merging,
        "reference": max(torch, answering),
        "eval.base_few_shot": opened + most,
    }
    for export in target.export:
        needs |= dict(_export_memory(source, export, target.quantize))
    return needs


def disk(source: Source, target: Target, *, one_disk: bool = True) -> float:
    """What a build puts into the cache and into its output folder, MiB.

    They share the exported files on one disk, except small ones of a reader that refuses links (`edgekit.base.output`).
    """
    files = 0.0
    for export in target.export:
        size = file_size(source.shape, export, target.quantize)[1]
        copied = load("exporters", export.format).runtime in ONE_NAME and size <= GIVEN / MIB
        tried = 2 * (export.format == "gguf" and target.quantize.compares_files)  # beside the best one
        files += size * (1 + (copied or not one_disk) + tried)
    floats = sum(
        4 * source.shape.parameters / MIB for export in target.export if _has_float_file(source, export)
    )
    folders = 1 + source.is_gguf + (target.prune.drop_layers > 0)  # merged, read out, pruned
    return folders * source.weights + floats + files + SMALL_FILES


def _has_float_file(source: Source, export: Export) -> bool:
    if export.format != "gguf":
        return False
    steps = load("exporters", export.format).steps(export)
    return len(steps) > 1 and not any(step.left_out(source.config) for step in steps)


def tuning(source: Source, options: Tune, data: Dataset) -> Need:
    """The base, the adapter with its optimiser, and the activations of the largest batch."""
    rows = [*data.train, *data.validation]
    dtype = base_dtype(options, cpu_has_bf16())
    longest = min(max((_tokens(row.messages) for row in rows), default=0), options.max_length)
    answer = max((_tokens(row.messages[-1:]) for row in rows), default=0)
    rows_at_once = options.batch_size * (1 + options.twins)
    batch = Batch(rows_at_once, longest, answer, longest <= PLAIN_ATTENTION_TOKENS)
    # In float32 it stays mapped as it is stored.
    size = source.bytes_of_weight if dtype == "float32" else SIZES[dtype]
    return estimate(source.config, options, batch, dtype, size * source.shape.parameters)


def _tokens(messages: Any) -> int:
    characters = sum(len(message["content"]) for message in messages) + TEMPLATE_CHARACTERS
    return round(characters / CHARACTERS_PER_TOKEN)


def _rounding(source: Source) -> float:
    """Rounding with error feedback, MiB beside the mapped weights: the hidden states of the calibration text, the logits of
    some texts with their gradients, and the embedding while it is rounded and compared."""
    hidden = 2 * 4 * CALIBRATION_TOKENS * source.shape.hidden / MIB
    return hidden + LOGITS_HELD * source.logits(TEXT_TOKENS) + 4 * 4 * source.shape.embedding / MIB


def _export_memory(source: Source, export: Export, quantize: Quantize) -> Iterator[tuple[str, float]]:
    process, weights, file = source.process, source.weights, file_size(source.shape, export, quantize)[1]
    scored = process + source.logits(TEXT_TOKENS)
    if export.format == "gguf":
        floats = 4 * source.shape.parameters / MIB if _has_float_file(source, export) else 0.0
        if isinstance(export, GgufExport) and not export.is_float and quantize.corrects_errors:
            yield "quantize.gguf", process + weights + _rounding(source)
        else:  # the importance matrix, which needs few rows of the embedding, then the quantizer
            yield "quantize.gguf", process + max(weights - source.embedding, floats + file)
        buffers = source.cache(CONTEXT, 2) + source.logits(CHUNK)
        yield "verify.gguf", scored + max(file, floats) + buffers
    elif export.format == "onnx":
        yield "export.onnx", process + CHILD + HEAD + source.embedding + file
        yield "verify.onnx", scored + ONNX_SESSION + ONNX_OPENED * file + source.logits(TEXT_TOKENS)
