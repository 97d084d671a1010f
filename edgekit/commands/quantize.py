"""The verb `edgekit quantize`: a model folder as a quantized GGUF file or ONNX folder, or a float GGUF file as a quantized one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.base.artifacts import written_whole
from edgekit.base.errors import ConfigError
from edgekit.base.events import Alert
from edgekit.commands import quantize_onnx, shell

if TYPE_CHECKING:
    from edgekit.targets.target import GgufExport, Quantize


class Method(StrEnum):
    """How weights are rounded."""

    feedback = "feedback"
    nearest = "nearest"


class Format(StrEnum):
    """What is written."""

    gguf = "gguf"
    onnx = "onnx"


@dataclass(frozen=True)
class Text:
    """The options that name calibration text."""

    file: Path | None
    data: str
    columns: str


def register(app: typer.Typer) -> None:
    """Add the verb to `app`."""
    app.command("quantize")(quantize)


def quantize(
    source: Annotated[
        Path, typer.Argument(help="A Hugging Face model folder, or a .gguf file of type F32, F16 or BF16.")
    ],
    out: shell.NewPath = Path("model.gguf"),
    format: Annotated[
        Format, typer.Option("--format", help="A GGUF file, or a folder for onnxruntime-genai.")
    ] = Format.gguf,
    type: Annotated[str, typer.Option("--type", help="llama.cpp's file type, such as Q4_K_M.")] = "",
    size_mib: Annotated[
        float | None,
        typer.Option(
            "--size-mib",
            metavar="MIB",
            help="Size of the file or folder: each tensor gets the type that suits it best.",
        ),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(
            "--bits", metavar="N", help="The same in bits for each weight of the model, such as 4.6."
        ),
    ] = None,
    min_speed: Annotated[
        str,
        typer.Option(
            "--min-speed",
            metavar="N|Nx",
            help="Decoding speed, at least: 150 are tokens a second on this machine with --threads, 1.4x is a multiple of a "
            "Q8_0 file's speed by the usual times of the types.",
        ),
    ] = "",
    max_kld: Annotated[
        float | None,
        typer.Option(
            "--max-kld",
            metavar="NATS",
            help="The smallest file whose mean KL divergence from the model is at most so much on held-out rows and plain text, "
            "in three tries. Default: 0.05 on rows and 0.15 on text for a file of the given size or type.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Rows or plain text that say which rounding errors matter. The default is tried too, and the better file is "
            "kept: the rows of --data and plain text that comes with edgekit.",
        ),
    ] = None,
    data: Annotated[str, typer.Option("--data", "-d", help=f"{shell.ROWS}, or demo.")] = "",
    columns: shell.Columns = "",
    method: Annotated[
        Method | None,
        typer.Option(
            "--method",
            help="feedback corrects the error of each weight in those that follow; nearest leaves rounding to llama.cpp. "
            "Default: feedback for a model folder.",
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", help="A PEFT adapter folder to merge first; rounds to the nearest."),
    ] = None,
    max_ram: Annotated[
        int | None,
        typer.Option(
            "--max-ram",
            metavar="MIB",
            min=1,
            help="Do not start if more memory may be needed; rounds to the nearest.",
        ),
    ] = None,
    threads: shell.Threads = 0,
    force: shell.Force = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Quantize a model folder to a GGUF file or an ONNX folder, or a GGUF file to a GGUF file.

    The weights of a folder are rounded layer by layer so that the outputs of each layer change least on calibration text, and
    with --size-mib, --bits, --min-speed or --max-kld each tensor gets the type with which the whole model changes least. The file
    is compared with the model on held-out text, and one that drifts too far is not kept. With --method nearest a folder is
    converted tensor by tensor in little memory. The only disk space needed is about that of the new file, and of one more where
    several are tried. With --format onnx the size gives each layer and the head 4 or 8 bits; without one the head and the most
    sensitive layers have 8.
    """
    from edgekit import registry
    from edgekit.containers.gguf import read_gguf
    from edgekit.targets.target import GGUF_TYPES, GgufExport, Quantize

    if type and type.upper() not in GGUF_TYPES:
        raise ConfigError(f"There is no GGUF type '{type}'.", f"Use one of: {', '.join(GGUF_TYPES)}.")
    if sum((bool(type), size_mib is not None, bits is not None, max_kld is not None)) > 1:
        raise ConfigError("--type, --size-mib, --bits and --max-kld exclude each other.", "Give one of them.")
    if type and min_speed:
        raise ConfigError(
            "--type and --min-speed exclude each other: the speed decides the types.",
            "Give --bits, --size-mib or --max-kld, or --min-speed alone.",
        )
    for name, value in (("--size-mib", size_mib), ("--bits", bits), ("--max-kld", max_kld)):
        if value is not None and not 0 < value < inf:
            raise ConfigError(
                f"{name} {value:g} is no {'divergence' if name == '--max-kld' else 'size'}.",
                "Give a number above 0.",
            )
    speed = _speed(min_speed)
    if max_kld is not None and "min_decode_tokens_per_s" in speed:
        raise ConfigError(
            "--max-kld and a speed in tokens a second exclude each other.",
            "Give a multiple of a Q8_0 file's, such as --min-speed 1.4x.",
        )
    sizes = Quantize.model_validate(
        {"size_mib": size_mib, "bits_per_weight": bits, "max_kld_nats": max_kld, **speed}
    )
    options = GgufExport.model_validate({"format": "gguf", "type": type.upper() or "Q4_K_M"})
    options_of_feedback = {
        "--size-mib": size_mib, "--bits": bits, "--max-kld": max_kld, "--min-speed": min_speed or None,
        "--calibration": calibration, "--data": data or None,
    }  # fmt: skip
    found: dict[str, Any] = {}
    told = _told
    if format is Format.onnx:
        for_gguf = {
            "--type": type, "--method": method, "--adapter": adapter, "--max-ram": max_ram, "--max-kld": max_kld,
            "--min-speed": min_speed,
        }  # fmt: skip
        quantize_onnx.check(source, out, for_gguf)
        text = quantize_onnx.calibration(calibration, data, columns)
        found = quantize_onnx.write(source, out, (size_mib, bits), text, shell.cores(threads), force)
        told = quantize_onnx.told
    elif source.is_dir():
        shell.need_folder(source, "config.json")
        if method is None:
            method = Method.nearest if adapter or max_ram else Method.feedback
        if method is Method.feedback:
            if adapter or max_ram:
                raise ConfigError(
                    "--adapter and --max-ram need --method nearest.",
                    "Merge the adapter first: edgekit merge.",
                )
            found = _fit(
                source, out, options, sizes, Text(calibration, data, columns), shell.cores(threads), force
            )
        else:
            _only_for_feedback(options_of_feedback)
            _stream(source, out, options, adapter, max_ram, shell.cores(threads), force)
    elif not source.is_file():
        raise ConfigError(f"There is no file {source}.", "Check the path.")
    elif adapter or max_ram or method is Method.feedback:
        raise ConfigError(
            f"--adapter, --max-ram and --method feedback need a model folder, and {source} is a file.",
            "Give the model folder instead.",
        )
    else:
        _only_for_feedback(options_of_feedback)
        read_gguf(source)  # a damaged file is refused before llama.cpp opens it
        with shell.working() as emit, written_whole(out, inputs=[source], force=force, file=True) as staging:
            registry.load("stages", "quantize")(
                source, staging, options, threads=shell.cores(threads), emit=emit
            )
    if json:
        shell.print_json({"file": str(out), **found})
    else:
        shell.say(f"Quantized: {out}{told(found)}\nNext: edgekit verify {out} --reference {source}")


def _told(found: Mapping[str, Any]) -> str:
    """What was chosen, in words; nothing where llama.cpp chose."""
    if not found:
        return ""
    from edgekit.proof.drift import divergences

    counts = Counter(found["types"].values()).most_common()
    words = ", ".join(f"{count} {type}" for type, count in counts)
    cost = "" if found["cost"] is None else f"; estimated KL divergence {found['cost']:.3f} nats"
    speed = found["decode_tokens_per_s"]
    fast = "" if speed is None else f"; decodes {speed:.0f} tokens/s on this machine"
    measured = f"; measured on held-out text: {divergences(found['mean_kld_nats'])}"
    return f" ({found['bytes']:,} bytes; {words}{cost}{measured}{fast})"


def _speed(text: str) -> dict[str, float]:
    """The key of `[quantize]` that `--min-speed` sets, and its value."""
    number, times, rest = text.partition("x")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not text:
        return {}
    if rest or not 0 < value < inf:
        raise ConfigError(
            f"--min-speed {text} is no speed.",
            "Give tokens a second, such as 150, or a multiple, such as 1.4x.",
        )
    return {"min_speedup" if times else "min_decode_tokens_per_s": value}


def _only_for_feedback(given: Mapping[str, object]) -> None:
    if named := [name for name, value in given.items() if value is not None]:
        raise ConfigError(
            f"{', '.join(named)} can only be used with a model folder and --method feedback.",
            "Give a Hugging Face folder without --adapter and --max-ram, or --type instead.",
        )


def _fit(
    source: Path,
    out: Path,
    options: GgufExport,
    quantize: Quantize,
    text: Text,
    threads: int,
    force: bool,
) -> dict[str, Any]:
    from edgekit import registry
    from edgekit.build.trial import given_set, of_command
    from edgekit.commands.verify import general_budget
    from edgekit.data.dataset import DataOptions
    from edgekit.models.tokenizer import ModelTokenizer
    from edgekit.registry import ExportContext

    given = given_set(text.file, text.columns) if text.file else None
    data = shell.dataset(text.data, DataOptions(text.columns)) if text.data else None
    budget = general_budget()
    limits = {"rows": budget.mean_kld_nats, "text": budget.text_mean_kld_nats}
    trial = of_command(ModelTokenizer(source), data, given, limits)
    context = ExportContext(source, threads=threads, quantize=quantize, trial=trial)
    with shell.working() as emit, written_whole(out, inputs=[source], force=force, file=True) as staging:
        fitted = registry.load("stages", "trial")(staging, options, context, emit)
        if given and fitted.calibration != given[0]:
            emit(_passed_over(given[0], fitted))
    return {"bytes": out.stat().st_size, **asdict(fitted)}


def _passed_over(name: str, fitted: Any) -> Alert:
    """That the set `name`, which was given, is not the one of the file."""
    from edgekit.proof.drift import divergences

    passed = next(tried for tried in fitted.tries if tried.calibration == name)
    kept = next(tried for tried in fitted.tries if tried.calibration == fitted.calibration)
    return Alert(
        "warning",
        f"The file is not calibrated on {name}: with it the mean KL divergence is {divergences(passed.mean_kld_nats)}; "
        f"with {kept.calibration} it is {divergences(kept.mean_kld_nats)}.",
        "Give text that is like what the model will read.",
    )


def _stream(
    source: Path,
    out: Path,
    options: GgufExport,
    adapter: Path | None,
    max_ram: int | None,
    threads: int,
    force: bool,
) -> None:
    from edgekit import registry
    from edgekit.models.source import read_config

    if adapter:
        shell.need_folder(adapter, "adapter_config.json")
    if max_ram:
        config, memory = read_config(source), registry.load("stages", "stream-memory")
        needed = memory(config, options, threads, adapter=adapter) / 2**20
        if needed > max_ram:
            raise ConfigError(
                f"Quantizing {source} with {threads} threads may need {needed:.0f} MiB of memory, more than "
                f"--max-ram {max_ram}. Nothing was started.",
                "Use --threads 1 or a higher --max-ram." if threads > 1 else "Use a higher --max-ram.",
            )
    inputs = [source, *([adapter] if adapter else [])]
    with shell.working() as emit, written_whole(out, inputs=inputs, force=force, file=True) as staging:
        registry.load("stages", "stream")(
            source, staging, options, adapter=adapter, threads=threads, emit=emit
        )
