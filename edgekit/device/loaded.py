"""An opened bundle: the same three calls and the same answers for a GGUF file and an ONNX folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from edgekit import registry
from edgekit.base.errors import ConfigError, GateError, UnsupportedError
from edgekit.containers.gguf import is_gguf
from edgekit.data.rows import Message
from edgekit.device.answer import Answer, OwnRecords, Records
from edgekit.device.confidence import HINT, Calibration, Minimum, Refusal, Verdict, read_calibration
from edgekit.device.manifest import check_files, read_manifest
from edgekit.device.prompt import encode_prompt
from edgekit.models.sampling import Sampling
from edgekit.registry import LogitsProcessor, Runtime, TakesAdapters

RUNTIME_OF = {"gguf": "llama.cpp", "onnx": "onnxruntime"}
CONTEXT = 2048


class LoadedModel:
    """An opened model. Not thread-safe: open one for each thread."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        format: str,
        system: str | None = None,
        max_tokens: int = 256,
        telemetry: Records | None = None,
    ) -> None:
        self.runtime = runtime
        self.telemetry: Records | None = telemetry
        self.closes_with: OwnRecords | None = None
        """Telemetry that was opened with this model and is closed with it."""
        self._calibration: Calibration | None = None
        self.adapter: Path | None = None
        """The adapter in use; None without one."""
        self.refusal: Refusal | None = None
        """Which answers a server does not give; None where it gives all and judges none."""
        self.format = format
        self.system = system
        self.max_tokens = max_tokens

    @property
    def calibration(self) -> Calibration | None:
        """The labels and the temperature of a bundle whose answers are labels; None while an adapter is in use, which has none."""
        return self._calibration if self.adapter is None else None

    @calibration.setter
    def calibration(self, found: Calibration | None) -> None:
        self._calibration = found

    def generate(self, text: str, *, max_tokens: int | None = None, sampling: Sampling = Sampling()) -> str:
        """The answer to one question."""
        return "".join(self.stream(text, max_tokens=max_tokens, sampling=sampling))

    def chat(
        self, messages: Sequence[Message], *, max_tokens: int | None = None, sampling: Sampling = Sampling()
    ) -> str:
        """The answer to a conversation of messages with `role` and `content`."""
        return "".join(self.stream(messages, max_tokens=max_tokens, sampling=sampling))

    def stream(
        self, text: str | Sequence[Message], *, max_tokens: int | None = None, sampling: Sampling = Sampling()
    ) -> Iterator[str]:
        """The answer to a question or a conversation, piece by piece while it is generated.

        A conversation without a system message gets the one that the model was tuned with.
        """
        return iter(self.answer(self.prompt(_conversation(text)), max_tokens=max_tokens, sampling=sampling))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to the start of its answer; control tokens in messages are encoded as text.

        Raises `ConfigError` for an empty conversation; see `edgekit.device.prompt`.
        """
        if not messages:
            raise ConfigError("There is no message to answer.", "Give a text or a list of messages.")
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        return encode_prompt(self.runtime, messages)

    def answer(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling = Sampling(),
        process: LogitsProcessor | None = None,
        operation: str = "chat",
        queue_s: float = 0.0,
    ) -> Answer:
        """The answer to a prompt of token ids. All other methods use it, and it records telemetry."""
        answer = Answer(
            self.runtime,
            prompt,
            max_tokens or self.max_tokens,
            sampling,
            process=process,
            records=self.telemetry,
            operation=operation,
        )
        answer.queue_s = queue_s
        return answer

    def sure_answer(
        self,
        text: str | Sequence[Message],
        minimum: Minimum = 0.0,
        *,
        refuse_out_of_scope: bool = False,
        max_tokens: int | None = None,
    ) -> tuple[str, Verdict]:
        """The answer to a question or a conversation, and whether the confidence in it is at least `minimum`.

        `auto` is the threshold of the bundle itself. With `refuse_out_of_scope`, its scope threshold says whether the request is
        in scope. Raises `ConfigError` for a model without a calibration, or without such a threshold, before it is asked.
        """
        asked = Refusal(minimum, refuse_out_of_scope)
        self.calibrated.limits(asked)
        prompt = self.prompt(_conversation(text))
        answer = self.answer(prompt, max_tokens=max_tokens)
        text = "".join(answer)
        return text, self.judge(prompt, text if answer.finish == "stop" else None, asked)

    def judge(self, prompt: Sequence[int], text: str | None, asked: Refusal) -> Verdict:
        """What `Calibration.judge` says of `text` as the answer to a prompt of token ids; None is an answer that was cut.

        Raises `ConfigError` for a model without a calibration, or without a threshold that is asked for.
        """
        return self.calibrated.judge(self.runtime, prompt, text, asked)

    @property
    def calibrated(self) -> Calibration:
        """The calibration. Raises `ConfigError` for a model without one, and while an adapter is in use."""
        if self.calibration is not None:
            return self.calibration
        if self._calibration is not None:
            raise ConfigError(
                f"The calibration of this {self.format} model was fitted without the adapter {self.adapter}, so neither "
                "the confidence of its answers nor its scope is known.",
                "Ask without refusals, or return to the model itself with use(None).",
            )
        raise ConfigError(
            f"This {self.format} model has no calibration, so neither the confidence of its answers nor its scope is known.",
            HINT,
        )

    def use(self, adapter: str | os.PathLike[str] | None) -> Self:
        """Use a LoRA adapter from now on, or none for None; returns this model.

        `adapter` is the file that was exported for this model's format. Adapters stay loaded, so using one again takes no
        time. Raises `CorruptError`, with both digests, for a damaged adapter or one of another base, and
        `UnsupportedError` for a model without adapter support; the current adapter then stays in use.

        The calibration of a bundle is that of its own model. With an adapter there is none, so `sure_answer` is refused until
        `use(None)`.
        """
        if not isinstance(self.runtime, TakesAdapters):
            raise UnsupportedError(
                f"{self.runtime.name} does not support adapters.", "Open a GGUF file or an ONNX folder."
            )
        chosen = None if adapter is None else Path(adapter)
        self.runtime.use(chosen)
        self.adapter = chosen
        return self

    def close(self) -> None:
        """Free the model's memory, and write pending telemetry."""
        self.runtime.close()
        if self.closes_with is not None:
            self.closes_with.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _conversation(text: str | Sequence[Message]) -> Sequence[Message]:
    return [{"role": "user", "content": text}] if isinstance(text, str) else text


def load(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    threads: int | None = None,
    context: int = CONTEXT,
    allow_failed: bool = False,
    telemetry: Records | str | os.PathLike[str] | None = None,
) -> LoadedModel:
    """Open a bundle, a `.gguf` file or an onnxruntime-genai folder.

    `format` is `gguf` or `onnx`, by default the first that the bundle has. `telemetry` receives every answer: it is a
    state folder, where counts and drift are saved for `edgekit monitor`, or an object of your own. Raises `CorruptError`
    when a file differs from the manifest, and `GateError` for a bundle that failed its build, unless `allow_failed`.
    """
    folder = Path(path)
    if not folder.exists():
        raise ConfigError(
            f"There is no bundle {folder}.", "Check the path; `edgekit build` writes to bundles/."
        )
    if folder.is_file() and folder.suffix != ".gguf" and not is_gguf(folder):
        raise ConfigError(
            f"{folder} is not a bundle, a .gguf file or an onnxruntime-genai folder.", "Check the path."
        )
    if folder.is_file() or (folder / "genai_config.json").is_file():
        kind = "gguf" if folder.is_file() else "onnx"
        model = LoadedModel(_open(RUNTIME_OF[kind], folder, threads or 2, context), format=kind)
    else:
        model = _load_bundle(folder, format, threads, context, allow_failed)
    if isinstance(telemetry, str | os.PathLike):
        opened: OwnRecords = registry.load("field", "telemetry").open(Path(telemetry), folder, model.format)
        telemetry = model.closes_with = opened
    model.telemetry = telemetry
    return model


def _load_bundle(
    folder: Path, format: str | None, threads: int | None, context: int, allow_failed: bool
) -> LoadedModel:
    manifest = read_manifest(folder)
    formats: dict[str, Any] = manifest["formats"]
    kind = format or next(iter(formats))
    if kind not in formats:
        raise ConfigError(f"{folder} has no format '{kind}'.", f"It has: {', '.join(formats)}.")
    if manifest["verdict"] != "pass" and not allow_failed:
        raise GateError(
            f"{folder} did not pass its own gates, so it was not opened.",
            f"See {folder / 'report.html'}; to open it anyway, pass allow_failed=True (--allow-failed).",
        )
    entry = formats[kind]
    check_files(folder, manifest, entry["path"])
    calibration = read_calibration(folder, manifest, kind)
    runtime = _open(entry["runtime"], folder / entry["path"], threads or manifest["threads"], context)
    model = LoadedModel(runtime, format=kind, system=manifest["system"], max_tokens=manifest["max_tokens"])
    model.calibration = calibration
    return model


def _open(runtime: str, path: Path, threads: int, context: int) -> Runtime:
    opened: Runtime = registry.load("runtimes", runtime)(path, threads=threads, context=context)
    return opened
