"""The typed form of a target: the tables and keys of a TOML file in `profiles/targets/`.

Names carry units (`memory_mib`, `max_mean_kld_nats` ...). Unknown keys are errors; the loader in
`edgekit.profiles.targets` reports every fault of a file at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, Tag, model_validator
from pydantic.types import Discriminator

from edgekit.base.errors import ConfigError
from edgekit.targets.host import Host
from edgekit.targets.rules import Rule
from edgekit.targets.table import Table

GgufType = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "IQ4_NL", "IQ4_XS", "Q3_K_M",
]  # fmt: skip
GGUF_TYPES: tuple[GgufType, ...] = get_args(GgufType)


TensorType = Literal["Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0"]
"""Types that edgekit rounds tensors to itself."""
NoiseFamily = Literal[
    "typos", "case", "punctuation", "filler", "distractor", "spacing", "homoglyphs", "ocr", "language_mix", "elongation"
]  # fmt: skip


class Device(Table):
    """The machine that a target describes. On any other machine, measured speed and memory are marked as simulated."""

    arch: list[Literal["x86_64", "aarch64"]] = ["x86_64", "aarch64"]
    """Processor architectures of the device."""
    recognised_by: str = ""
    """Text in the name of the device's board, processor or system, such as `Raspberry Pi 5`; empty for any name."""
    threads: Annotated[int, Field(ge=1, le=256)] = 2
    """CPU threads that answer. The profile is limited to as many cores."""
    memory_mib: Annotated[int, Field(ge=64)] = 2048
    """Memory of the device, MiB. The profile is limited to it: a model that needs more fails."""

    def differs(self, host: Host) -> str:
        """Why `host` is not such a device, such as `needs aarch64`; empty when it is."""
        if host.arch not in self.arch:
            return f"needs {' or '.join(self.arch)}"
        if self.recognised_by.lower() not in host.names.lower():
            return f"needs {self.recognised_by}"
        if self.threads > host.cores:
            return f"needs {self.threads} cores"
        return f"needs {self.memory_mib} MiB" if self.memory_mib > host.memory_mib else ""


class Robustness(Table):
    """The parts of robust tuning; each can be turned off alone. They count only with `robust = true` in `[tune]`."""

    noise: list[NoiseFamily] = ["typos", "case", "punctuation", "filler", "distractor"]
    """Families of noise in the user's messages; an empty list turns noise off. `edgekit eval robust` measures all ten."""
    noisy_share: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Share of the rows that are noisy in an epoch, others in each."""
    strength: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Largest share of words that a family changes; each row draws its own."""
    phrased_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the rows that are asked in another frame, or with the system message reworded; 0 turns it off."""
    consistency: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the divergence between the answers of a row and its noisy twin (R-Drop, Liang et al. 2021,
    arXiv 2106.14448); 0 turns it off."""
    paired_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the rows that are trained beside their noisy twin. It costs as much more time."""
    abstain: str = "auto"
    """The answer to a request that is out of scope. `auto` takes that of the rows, or `out_of_scope` where the answers are a
    closed set; an empty text turns it off."""
    out_of_scope_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Requests of edgekit's own that are out of scope, as a share of the rows."""


class Tune(Table):
    """LoRA tuning (Hu et al. 2021, arXiv 2106.09685) through peft and transformers' Trainer."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """LoRA rank r."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """LoRA alpha; the product is scaled by alpha / rank, or alpha / sqrt(rank) with `rslora`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input."""
    rslora: bool = False
    """Rank-stabilised scaling (Kalajdzievski 2023, arXiv 2312.03732)."""
    modules: Literal["all-linear"] | list[str] = "all-linear"
    """Which linear layers get an adapter."""
    epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the training rows."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    """Peak learning rate of AdamW, with linear decay."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps in which the learning rate rises to its peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW weight decay."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Rows in one forward pass."""
    gradient_accumulation: Annotated[int, Field(ge=1)] = 1
    """Forward passes summed into one optimiser step."""
    max_length: Annotated[int, Field(ge=16)] = 512
    """Longest row in tokens; longer rows are skipped and reported."""
    evaluations_per_epoch: Annotated[int, Field(ge=1)] = 2
    """How often the validation loss is measured and a checkpoint is saved."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Evaluations without a lower validation loss after which tuning stops early."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Dtype of the frozen base model: auto means bfloat16 where the processor or GPU supports it natively."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time, the
    same numbers. Auto turns it on when the available memory would not suffice."""
    qlora: bool = False
    """4-bit base through bitsandbytes (Dettmers et al. 2023, arXiv 2305.14314); needs a CUDA GPU."""
    seed: int = 7
    """Seed of initialisation, row order and noise."""
    robust: bool = False
    """Tune for noise, other phrasings and requests out of scope: the table `[tune.robustness]`."""
    robustness: Robustness = Robustness()

    @property
    def twins(self) -> bool:
        """Whether a batch may hold a row and its noisy twin for each example."""
        chosen = self.robustness
        return self.robust and chosen.consistency > 0 and chosen.paired_share > 0 and bool(chosen.noise)

    def of_result(self) -> dict[str, Any]:
        """The values that the adapter depends on: a run may be resumed with another value of the rest."""
        unused = set() if self.robust else {"robustness"}
        return self.model_dump(exclude={"gradient_checkpointing", *unused})


class Prune(Table):
    """Depth pruning: whole decoder layers are removed."""

    drop_layers: Annotated[int, Field(ge=0)] = 0
    """Layers to remove, least influential first (block influence, Men et al. 2024, arXiv 2403.03853)."""


class Quantize(Table):
    """How weights are rounded, and the text that says which errors matter."""

    method: Literal["feedback", "nearest"] = "feedback"
    """`feedback` corrects the error of each weight in those that follow (GPTQ), so that the outputs of a layer change least.
    `nearest` leaves GGUF files to llama.cpp's quantizer."""
    size_mib: Annotated[float, Field(gt=0)] | None = None
    """Size of the GGUF file, MiB: each tensor gets the type with which the whole model changes least. It counts for a `type` of
    fewer than 8 bits; types that `tensor_types` and `token_embedding_type` name stay."""
    bits_per_weight: Annotated[float, Field(gt=0)] | None = None
    """The same in bits for each weight of the model, for a model of any size."""
    short_rows_bits_per_weight: Annotated[float, Field(gt=0)] | None = None
    """The same for a model whose rows do not divide into blocks of 256 weights, which K types need."""
    min_speedup: Annotated[float, Field(gt=0)] | None = None
    """Decoding speed of the GGUF file, as a multiple of that of a Q8_0 file of the model. It is estimated from the usual times
    of the types' products in llama.cpp, so that the file is the same on every machine."""
    min_decode_tokens_per_s: Annotated[float, Field(gt=0)] | None = None
    """The same in tokens a second, measured on the machine that makes the file, before any weight is rounded."""
    max_kld_nats: Annotated[float, Field(gt=0)] | None = None
    """Largest mean KL divergence of the GGUF file on held-out rows and on held-out plain text, nats, instead of a size: the
    smallest file that holds it, of at most three."""
    types: Annotated[list[TensorType], Field(min_length=1)] = [
        "IQ4_NL",
        "Q4_K",
        "Q5_0",
        "Q5_K",
        "Q6_K",
        "Q8_0",
    ]
    """Types to choose from. Others may be slow on some processors."""
    calibration_rows: Annotated[int, Field(ge=0)] = 64
    """Training rows whose activations weight the rounding errors (importance matrix); 0 turns it off."""
    calibration_texts: Annotated[int, Field(ge=0)] = 40
    """Passages of plain text, 256 tokens each, that count as much as the rows, so that the file does not get worse outside its
    task; 0 turns them off."""
    calibration_trial: bool = False
    """Make a GGUF file with the rows and the text, one with the rows and one with the text alone, and keep the one that drifts
    least on held-out text of both kinds. It takes three times as long."""

    @model_validator(mode="after")
    def _one_limit(self) -> Quantize:
        sizes = "size_mib", "bits_per_weight", "short_rows_bits_per_weight"
        limited = self.max_kld_nats is not None
        if limited and (given := [name for name in sizes if getattr(self, name) is not None]):
            raise ValueError(f"max_kld_nats and {' and '.join(given)} exclude each other; give one of them")
        if limited and self.min_decode_tokens_per_s is not None:
            raise ValueError("max_kld_nats and min_decode_tokens_per_s exclude each other; give min_speedup")
        if self.compares_files and not self.corrects_errors:
            asking = "max_kld_nats" if limited else "calibration_trial"
            raise ValueError(f'{asking} needs method = "feedback" and calibration_rows above 0')
        return self

    @property
    def compares_files(self) -> bool:
        """Whether GGUF files are compared with the model before one of them is kept."""
        return self.max_kld_nats is not None or self.calibration_trial

    @property
    def corrects_errors(self) -> bool:
        """Whether a build rounds the weights of GGUF files with error feedback, for which it needs calibration rows."""
        return self.method == "feedback" and self.calibration_rows > 0

    def max_bytes(self, weights: int, *, short_rows: bool) -> float | None:
        """Largest size of the GGUF file of a model of so many weights; None when there is no limit.

        `short_rows` tells that a row of most tensors is no multiple of 256.
        """
        if self.size_mib is not None:
            return self.size_mib * 2**20
        bits = self.bits_per_weight
        if short_rows and self.short_rows_bits_per_weight is not None:
            bits = self.short_rows_bits_per_weight
        return None if bits is None else bits * weights / 8


class GgufExport(Table):
    """A GGUF file for llama.cpp."""

    format: Literal["gguf"]
    type: GgufType = "Q4_K_M"
    """llama.cpp's file type."""
    token_embedding_type: GgufType | None = None
    """Type of the token embedding (and of the output head, when tied); by default llama.cpp chooses."""
    tensor_types: dict[str, GgufType] = {}
    """Types of the tensors whose names match a regular expression, such as `{ ffn_down = "Q6_K" }`."""
    llama_cpp: Annotated[Path | None, Field(exclude=True)] = None
    """A llama.cpp checkout whose converter is used for architectures that edgekit does not convert itself."""

    @property
    def leaves_types_open(self) -> bool:
        """Whether a size in `[quantize]` decides the types: those of a file of fewer than 8 bits."""
        return not self.is_float and self.type != "Q8_0"

    @property
    def is_float(self) -> bool:
        """Whether the type rounds no blocks of weights."""
        return self.type in ("F32", "F16", "BF16")


class OnnxExport(Table):
    """A folder for onnxruntime-genai. A tied embedding is read from the head. Scales are halves."""

    format: Literal["onnx"]
    precision: Literal["int4", "int8", "fp32"] = "int4"
    """Bits of the decoder's linear layers. Those of 4 bits are rounded by GPTQ when there are calibration rows. The head has 8."""
    size_mib: Annotated[float, Field(gt=0)] | None = None
    """Size of the folder, MiB: each linear layer and the head get the bits and the block with which the whole model changes
    least, for an int4 model."""
    bits_per_weight: Annotated[float, Field(gt=0)] | None = None
    """The same in bits for each weight of the model, for a model of any size."""
    int8_modules: list[str] | None = None
    """Linear layers kept at 8 bits in an int4 model, by name pattern (fnmatch). By default the most sensitive to rounding, k, v
    and down; with a size none, because the size decides."""
    block_size: Literal[16, 32, 64, 128] = 32
    """Weights of a row that share one scale and one zero point, where no size decides."""
    accuracy_level: Literal[1, 4] = 4
    """Activations in the products with rounded weights: 1 keeps them fp32, 4 rounds them to int8, which is faster."""

    @property
    def is_sized(self) -> bool:
        """Whether a size decides the bits of each layer."""
        return self.size_mib is not None or self.bits_per_weight is not None

    @property
    def at_8_bits(self) -> list[str]:
        """Patterns of the layers that are kept at 8 bits."""
        if self.int8_modules is not None:
            return self.int8_modules
        return [] if self.is_sized else ["*.k_proj", "*.v_proj", "*.down_proj"]

    def max_bytes(self, weights: int) -> float | None:
        """Largest size of the folder of a model of so many weights; None when there is no limit."""
        if self.size_mib is not None:
            return self.size_mib * 2**20
        return None if self.bits_per_weight is None else self.bits_per_weight * weights / 8

    @model_validator(mode="after")
    def _size_is_of_int4(self) -> OnnxExport:
        if self.is_sized and self.precision != "int4":
            raise ValueError(
                f'size_mib and bits_per_weight choose the bits of precision = "int4", not "{self.precision}"'
            )
        return self


class PluginExport(Table):
    """A format that another package provides through the entry point `edgekit.exporters`."""

    format: str
    options: dict[str, Any] = {}
    """Passed to the exporter as they are."""


def _export_tag(value: Any) -> str:
    name = value.get("format") if isinstance(value, dict) else getattr(value, "format", None)
    return name if name in ("gguf", "onnx") else "plugin"


Export = Annotated[
    Annotated[GgufExport, Tag("gguf")]
    | Annotated[OnnxExport, Tag("onnx")]
    | Annotated[PluginExport, Tag("plugin")],
    Discriminator(_export_tag),
]


class Profile(Table):
    """How speed and memory are measured."""

    threads: list[Annotated[int, Field(ge=1)]] = [1, 2]
    """Thread counts to measure; counts above the machine's cores are skipped and reported."""
    prompt_tokens: Annotated[int, Field(ge=1)] = 128
    """Length of the prompt, tokens."""
    generate_tokens: Annotated[int, Field(ge=2)] = 32
    """Tokens generated after it."""
    warmup: Annotated[int, Field(ge=0)] = 1
    """Runs before measuring starts."""
    repeats: Annotated[int, Field(ge=3)] = 7
    """Measured runs."""


class Evaluate(Table):
    """What a build measures of the tuned model and of each file, beyond accuracy on the test rows."""

    robust: bool = True
    """Ask some test rows with noise and in other phrasings: a short form of `edgekit eval robust`."""
    robust_rows: Annotated[int, Field(ge=1)] = 20
    """Test rows that are asked so, spread over all of them. Each is asked once for each family of noise and each of five
    phrasings."""
    robust_families: Annotated[list[NoiseFamily], Field(min_length=1)] = [
        "typos",
        "case",
        "distractor",
        "homoglyphs",
        "ocr",
    ]
    """Families of noise that are measured. By default three that robust tuning uses and two that it never uses."""


class Budget(Table):
    """Limits on an exported file; exit code 3 when one is exceeded. Drift is measured from the tuned, merged fp32 model.

    Figures measured on a sample must also be shown: with 95 % confidence, the file loses at most twice what its limit
    allows (`edgekit.proof.gates`).
    """

    size_mib: Annotated[float, Field(gt=0)] | None = None
    """Largest file or folder, MiB."""
    peak_rss_mib: Annotated[float, Field(gt=0)] | None = None
    """Largest peak resident memory of a fresh process that answers, MiB."""
    bits_per_weight: Annotated[float, Field(gt=0)] | None = None
    """Largest file or folder, bits for each weight of the model: `size_mib` for a model of any size."""
    overhead_mib: Annotated[float, Field(gt=0)] | None = None
    """Largest memory of a process that answers, beyond twice the largest size of the file, MiB: `peak_rss_mib` for a model of
    any size. A runtime may hold weights twice, as they are stored and packed for the processor."""
    ttft_ms: Annotated[float, Field(gt=0)] | None = None
    """Longest time to the first token of the profile's prompt on the device's threads, ms."""
    decode_tokens_per_s: Annotated[float, Field(gt=0)] | None = None
    """Lowest decode speed on the device's threads, tokens/s."""
    mean_kld_nats: Annotated[float, Field(gt=0)] = 0.05
    """Largest mean KL divergence of the next-token distributions on held-out conversations, nats."""
    p99_kld_nats: Annotated[float, Field(gt=0)] = 1.0
    """Largest 99th percentile of the same, nats."""
    top1_agreement: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Lowest share of positions with the same most likely token, in whole conversations. A user's next word is often
    uncertain: 4-bit files of far larger models agree on about 92 %."""
    answer_top1_agreement: Annotated[float, Field(ge=0, le=1)] = 0.98
    """The same on the positions of the answers only."""
    greedy_agreement: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Lowest mean share of a greedy answer before its first different token."""
    stop_agreement: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Lowest share of the ends of answers at which the file stops exactly where the reference does."""
    text_mean_kld_nats: Annotated[float, Field(gt=0)] = 0.15
    """Largest mean KL divergence on plain text, nats: what the file lost outside the tuned task. A 4-bit file of
    SmolLM2-135M has 0.05 to 0.08, that of a larger model less."""
    accuracy_drop_points: Annotated[float, Field(ge=0)] = 2.0
    """Largest loss of exact-match accuracy from the tuned model's, percentage points."""
    robust_drop_points: Annotated[float, Field(ge=0)] | None = None
    """Largest loss of accuracy from the tuned model's in any family of noise or phrasing, percentage points. A
    limit of 1 takes at least 133 rows (`evaluate.robust_rows`); with 20, none below 6 can be shown to be kept."""
    robust_drop_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest performance drop rate of a file under noise, mean over the families: 0.2 means that noise may turn a fifth of
    its right answers wrong."""
    accuracy_gain_points: Annotated[float, Field(ge=-100, lt=100)] = 0.0
    """Gain in exact-match accuracy that tuning must be shown to bring over the base, percentage points; -100 turns the
    gate off."""

    def for_model(self, weights: int) -> Budget:
        """The budget with the limits in MiB that follow from the number of `weights`; limits that are given stay."""
        size, peak = self.size_mib, self.peak_rss_mib
        if size is None and self.bits_per_weight is not None:
            size = round(self.bits_per_weight * weights / 8 / 2**20, 1)
        if peak is None and size is not None and self.overhead_mib is not None:
            peak = 2 * size + self.overhead_mib
        return self.model_copy(update={"size_mib": size, "peak_rss_mib": peak})


class Target(Table):
    """One class of devices: how to tune, prune, quantize, export and profile for it, and the limits on the result."""

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    """Version of this format."""
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    """The file's name without `.toml`."""
    summary: str = ""
    """One line for `edgekit targets list`."""
    bits_per_weight: Annotated[dict[str, float], Field(exclude=True)] = {}
    """File size over the number of weights, measured on the sample model for each format; for `edgekit targets list`."""
    device: Device = Device()
    tune: Tune = Tune()
    prune: Prune = Prune()
    quantize: Quantize = Quantize()
    export: Annotated[list[Export], Field(min_length=1)]
    profile: Profile = Profile()
    evaluate: Evaluate = Evaluate()
    budget: Budget = Budget()
    rule: list[Rule] = []
    """Alert rules for deployed models; by default those of `edgekit.field.incidents.defaults`."""

    def only(self, formats: str) -> Target:
        """The target with the export formats in `formats` alone, separated by commas; unchanged if there are none.

        Raises `ConfigError` for a format that the target does not have.
        """
        wanted = [name.strip() for name in formats.split(",") if name.strip()]
        have = [export.format for export in self.export]
        unknown = [name for name in wanted if name not in have]
        if unknown or (formats.strip() and not wanted):
            raise ConfigError(
                f"The target {self.name} has no format '{(unknown or [formats])[0]}'. Nothing was started.",
                f"Use --formats with one or several of: {', '.join(have)}.",
            )
        kept = [export for export in self.export if export.format in wanted]
        return self.model_copy(update={"export": kept}) if kept else self

    @model_validator(mode="after")
    def _formats_differ(self) -> Target:
        formats = [export.format for export in self.export]
        if len(set(formats)) < len(formats):
            raise ValueError("two [[export]] tables have the same format; make a target for each")
        return self

    @model_validator(mode="after")
    def _limits_are_measured(self) -> Target:
        chosen = self.budget.robust_drop_points, self.budget.robust_drop_rate
        if not self.evaluate.robust and chosen != (None, None):
            raise ValueError("a limit on robustness needs evaluate.robust = true, which measures it")
        return self

    @model_validator(mode="after")
    def _rules_differ(self) -> Target:
        keys = [rule.key for rule in self.rule]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"two [[rule]] tables are the same: {', '.join(sorted(twice))}")
        return self
