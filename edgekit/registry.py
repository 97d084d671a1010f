"""The registry of implementations, which are loaded only when needed, and the protocols that they follow.

The core names the families (`edgekit.export`, `edgekit.runtimes`, `edgekit.profiles`) here and nowhere else,
as strings. Other packages add theirs through the entry points `edgekit.exporters` and `edgekit.runtimes`.

No stage's key holds this module: a stage declares what the names that it asks for resolve to. So nothing here may
compute what a result depends on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from edgekit.base.errors import ConfigError
from edgekit.base.parts import missing_part
from edgekit.models.sampling import Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.base.events import Emit
    from edgekit.models.chat import ChatTemplate
    from edgekit.targets.target import Quantize

BUILT_IN = {
    "exporters": {
        "gguf": "edgekit.export.gguf.write:exporter",
        "onnx": "edgekit.export.onnx.export:exporter",
    },
    "runtimes": {
        "llama.cpp": "edgekit.runtimes.llamacpp:open_model",
        "onnxruntime": "edgekit.runtimes.onnxruntime:open_model",
        "torch": "edgekit.runtimes.torch:open_model",
    },
    "stages": {
        "merge": "edgekit.export.weights.merge:merge",
        "merge-proof": "edgekit.export.weights.merge_check:merge_proof",
        "prune": "edgekit.export.weights.prune:prune",
        "quantize": "edgekit.export.gguf.quantize:quantize",
        "fit": "edgekit.export.gguf.fit:fit",
        "onnx": "edgekit.export.onnx.export:export",
        "trial": "edgekit.export.gguf.trial:search",
        "stream": "edgekit.export.gguf.stream_process:stream",
        "stream-memory": "edgekit.export.gguf.stream_process:peak_memory",
        "adapter-gguf": "edgekit.export.adapters.write:to_gguf",
        "adapter-onnx": "edgekit.export.adapters.write:to_onnx",
        "adapter-onnx-base": "edgekit.export.onnx.slots:open_slots",
        "adapter-pair": "edgekit.export.adapters.proof:Pair",
        "adapter-proof": "edgekit.export.adapters.proof:adapter_proof",
    },
    "setups": {
        "converter": "edgekit.export.gguf.converter:set_up",
    },
    "proofs": {
        "gguf": "edgekit.export.gguf.proof:prove",
        "onnx": "edgekit.export.onnx.proof:prove",
    },
    "profiles": {
        "targets": "edgekit.profiles.targets",
        "profile": "edgekit.profiles.profiler:profile",
    },
    "field": {
        "telemetry": "edgekit.field.telemetry.collector:Telemetry",
    },
    "apps": {
        "tui": "edgekit.tui:EdgekitApp",
    },
}

LogitsProcessor = Callable[[Sequence[int], "NDArray[np.float32]"], None]


@runtime_checkable
class Runtime(Protocol):
    """A model file opened in the runtime that serves it; `T` tokens, `V` vocabulary entries."""

    name: str

    @property
    def vocab_size(self) -> int:
        """V, the number of logits for one position."""

    @property
    def chat_template(self) -> ChatTemplate:
        """The chat template that the file itself carries."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids at which this file stops an answer."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens in it are recognised, none are added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens."""

    def logits(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """Next-token logits after each of `ids` from position `first` on, `(T - first, V)`, from an empty context."""

    def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling = Sampling(), *,
        ignore_stop: bool = False, process: LogitsProcessor | None = None,
    ) -> Iterator[int]:  # fmt: skip
        """Token ids after the prompt `ids`, one by one, without the stop id that ends them.

        With `ignore_stop`, a stop id is treated like any other token, to measure speed over a fixed number of tokens.
        `process` is called with the ids so far and the logits `(V,)` before each token is chosen, the stop id included.
        It may change the logits in place (minus infinity forbids a token); they are valid until it returns.
        """

    def generate_batch(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Greedy answers to many prompts, as from `generate`, computed together where that is faster."""

    def close(self) -> None:
        """Free the model."""


@runtime_checkable
class HasControlTokens(Protocol):
    """A runtime that can list the texts that its `encode` turns into control tokens."""

    @property
    def control_tokens(self) -> frozenset[str]:
        """The texts of the control tokens, such as `<|im_start|>`."""


@runtime_checkable
class ScoresAnswers(Protocol):
    """A runtime that can tell how likely given answers are, and computes their prompt once for all of them."""

    def score_answers(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """The log-likelihood in nats of each of `answers`, each with a stop id after it, as the answer to `prompt`."""


@runtime_checkable
class AnswersConversations(Protocol):
    """A model that is no file: it answers whole conversations, and shows neither tokens nor likelihoods."""

    name: str

    def answers(self, conversations: Sequence[Sequence[Mapping[str, str]]], max_tokens: int) -> list[str]:
        """The greedy answer to each conversation, without surrounding whitespace."""


@runtime_checkable
class HasHiddenStates(Protocol):
    """A runtime that shows the model's hidden states, where the underlying runtime does."""

    def hidden_state(self, ids: Sequence[int]) -> NDArray[np.float32] | None:
        """The hidden state `(D,)` after the last layer and its norm, at the last of `ids`; None if there is no access to it."""


@runtime_checkable
class FramesText(Protocol):
    """A runtime whose own tools put tokens such as BOS around text that no chat template rendered."""

    def framed(self, text: str) -> list[int]:
        """Token ids of `text` with the tokens that these tools add at its start and its end."""


@runtime_checkable
class GuessesStops(Protocol):
    """A runtime whose own tools end an answer at more tokens than the file names."""

    @property
    def guessed_stop_ids(self) -> frozenset[int]:
        """The ids of these tokens, without those that the file names."""


class BareText(Protocol):
    """The text path of a runtime's own package, as an app without edgekit gets it."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` as the package gives them, with special tokens recognised."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` as the package gives it."""

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that the package's own template engine renders for a conversation.

        Called only after the template was rendered under edgekit's limits; raises `ConfigError` when it is refused.
        """


@runtime_checkable
class HasBare(Protocol):
    """A runtime that also shows its package's own text path, for comparison."""

    def bare(self) -> BareText | None:
        """The bare text path, valid until `close`; None if the underlying runtime has none."""


@runtime_checkable
class TakesAdapters(Protocol):
    """A runtime that can apply LoRA adapters to its opened model."""

    def use(self, adapter: Path | None) -> None:
        """Use the adapter file `adapter` from now on, or no adapter for None; current answers are not affected.

        Raises `CorruptError`, with both digests, for a damaged adapter or one of another base; the current one stays.
        """


@dataclass(frozen=True)
class Trial:
    """How quantized files are compared with the model before one of them is kept.

    `held_out` has token ids of each kind of text, `rows` and `text`, that no file was calibrated on, and `limits` the largest
    mean KL divergence on a kind, nats. `sets` are the calibration sets to try, by name, with token ids of each kind: each makes
    a file.
    """

    held_out: Mapping[str, Sequence[Sequence[int]]]
    sets: Mapping[str, Mapping[str, Sequence[Sequence[int]]]]
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportContext:
    """What a step of an export may need in addition to its input.

    `model` is the merged (and pruned) Hugging Face folder, `calibration` holds token ids of rendered training
    rows and `texts` those of plain text, `threads` is how many CPU threads a step may use, and `quantize` says how weights
    are rounded; without it llama.cpp rounds those of a GGUF file. With a `trial` several GGUF files are made, and one is kept.
    """

    model: Path
    calibration: Sequence[Sequence[int]] = field(default_factory=tuple)
    threads: int = 2
    texts: Sequence[Sequence[int]] = field(default_factory=tuple)
    quantize: Quantize | None = None
    trial: Trial | None = None


@dataclass(frozen=True)
class ExportStep:
    """One step of an export: `run(source, out, context, emit)` writes the new file or folder `out`.

    `source` is the previous step's output, or the merged folder for the first step. `stage` is the name in the
    report (`export.gguf`), `output` the name in the bundle. The result depends on `options`, on the versions of the
    `packages` (distribution names), and on the code of the `modules` that do the work (import names).
    `left_out(config)` says whether the step is left out for a model with this `config.json`; the next step then gets what
    this one would have got.
    """

    stage: str
    options: dict[str, Any]
    output: str
    run: Callable[[Path, Path, ExportContext, Emit], None]
    packages: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    left_out: Callable[[Mapping[str, Any]], bool] = lambda config: False


@dataclass(frozen=True)
class Exporter:
    """The steps that write one format, and the runtime that opens it.

    `refusal(model_folder_or_config, options)` returns why a model cannot be exported, or an empty text; it reads only
    `config.json`. `steps(options)` lists the steps in order. `options` is the pydantic class or the dict of one
    `[[export]]` table of a target. A file of a model that cannot be exported may still be compared with it: `incomparable`
    says why not, like `refusal`, which applies when it is None.
    """

    runtime: str
    refusal: Callable[[dict[str, Any], Any], str]
    steps: Callable[[Any], list[ExportStep]]
    incomparable: Callable[[dict[str, Any], Any], str] | None = None


def names(kind: str) -> list[str]:
    """All names registered under `kind`; nothing is imported."""
    return sorted({*BUILT_IN.get(kind, {}), *(point.name for point in entry_points(group=f"edgekit.{kind}"))})


def load(kind: str, name: str) -> Any:
    """The implementation called `name`.

    Raises `ConfigError` for an unknown name and `MissingPartError` when a package it needs is not installed.
    """
    module, _, attribute = _target(kind, name).partition(":")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing_part(error) from error
    return getattr(loaded, attribute) if attribute else loaded


def module_of(kind: str, name: str) -> str:
    """The name of the module that holds the implementation `name`. Raises `ConfigError` for an unknown name."""
    return _target(kind, name).partition(":")[0]


def _target(kind: str, name: str) -> str:
    target = BUILT_IN.get(kind, {}).get(name)
    if target is None:
        found = [point for point in entry_points(group=f"edgekit.{kind}") if point.name == name]
        if not found:
            raise ConfigError(
                f"There is no {kind.removesuffix('s')} '{name}'.", f"Available: {', '.join(names(kind))}."
            )
        target = found[0].value
    return target
