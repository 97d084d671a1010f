"""The verb `edgekit quantize`: a model folder as a quantized GGUF file or ONNX folder, or a float GGUF file as a quantized one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.base.artifacts import written_whole
from edgekit.base.errors import ConfigError
from edgekit.commands import quantize_onnx, shell

if TYPE_CHECKING:
    from edgekit.data.calibration_text import Calibration
    from edgekit.registry import ExportContext
    from edgekit.targets.target import GgufExport, Quantize


class Method(StrEnum):
    """How weights are rounded."""

    feedback = "feedback"
    nearest = "nearest"


class Format(StrEnum):
    """What is written."""

    gguf = "gguf"
    onnx = "onnx"


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
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Rows or plain text that say which rounding errors matter. Default: the rows of --data and plain text "
            "that comes with edgekit.",
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
    with --size-mib or --bits each tensor gets the type with which the whole model changes least. With --method nearest a folder
    is converted tensor by tensor in little memory. In both, the only disk space needed is about that of the new file. With
    --format onnx the size gives each layer and the head 4 or 8 bits; without one the head and the most sensitive layers have 8.
    """
    from edgekit import registry
    from edgekit.containers.gguf import read_gguf
    from edgekit.targets.target import GGUF_TYPES, GgufExport, OnnxExport, Quantize

    if type and type.upper() not in GGUF_TYPES:
        raise ConfigError(f"There is no GGUF type '{type}'.", f"Use one of: {', '.join(GGUF_TYPES)}.")
    if sum((bool(type), size_mib is not None, bits is not None)) > 1:
        raise ConfigError("--type, --size-mib and --bits exclude each other.", "Give one of them.")
    if type and min_speed:
        raise ConfigError(
            "--type and --min-speed exclude each other: the speed decides the types.",
            "Give --bits or --size-mib, or --min-speed alone.",
        )
    for name, value in (("--size-mib", size_mib), ("--bits", bits)):
        if value is not None and not 0 < value < inf:
            raise ConfigError(f"{name} {value:g} is no size.", "Give a number above 0.")
    sizes = Quantize.model_validate({"size_mib": size_mib, "bits_per_weight": bits, **_speed(min_speed)})
    found: dict[str, Any] = {}
    if format is Format.onnx:
        for_gguf = {
            "--type": type, "--method": method, "--adapter": adapter, "--max-ram": max_ram, "--min-speed": min_speed,
        }  # fmt: skip
        quantize_onnx.check(source, out, for_gguf)
        folder = OnnxExport(format="onnx", size_mib=size_mib, bits_per_weight=bits)
        text = _calibration(calibration, data, columns)
        found = quantize_onnx.write(
            out, folder, _context(source, text, Quantize(), shell.cores(threads)), force
        )
        _print(source, out, found, json)
        return
    options = GgufExport.model_validate({"format": "gguf", "type": type.upper() or "Q4_K_M"})
    if source.is_dir():
        shell.need_folder(source, "config.json")
        if method is None:
            method = Method.nearest if adapter or max_ram else Method.feedback
        if method is Method.feedback:
            if adapter or max_ram:
                raise ConfigError(
                    "--adapter and --max-ram need --method nearest.",
                    "Merge the adapter first: edgekit merge.",
                )
            text = _calibration(calibration, data, columns)
            found = _fit(out, options, _context(source, text, sizes, shell.cores(threads)), force)
        else:
            _only_for_feedback(size_mib, bits, min_speed, calibration, data)
            _stream(source, out, options, adapter, max_ram, shell.cores(threads), force)
    elif not source.is_file():
        raise ConfigError(f"There is no file {source}.", "Check the path.")
    elif adapter or max_ram or method is Method.feedback:
        raise ConfigError(
            f"--adapter, --max-ram and --method feedback need a model folder, and {source} is a file.",
            "Give the model folder instead.",
        )
    else:
        _only_for_feedback(size_mib, bits, min_speed, calibration, data)
        read_gguf(source)  # a damaged file is refused before llama.cpp opens it
        with shell.working() as emit, written_whole(out, inputs=[source], force=force, file=True) as staging:
            registry.load("stages", "quantize")(
                source, staging, options, threads=shell.cores(threads), emit=emit
            )
    _print(source, out, found, json)


def _print(source: Path, out: Path, found: Mapping[str, Any], json: bool) -> None:
    if json:
        shell.print_json({"file": str(out), **found})
    else:
        shell.say(f"Quantized: {out}{_told(found)}\nNext: edgekit verify {out} --reference {source}")


def _told(found: Mapping[str, Any]) -> str:
    """What was chosen, in words."""
    if not found:
        return ""
    counts = Counter(found["types"].values()).most_common()
    words = ", ".join(f"{count} {type}" for type, count in counts)
    cost = "" if found["cost"] is None else f"; estimated KL divergence {found['cost']:.3f} nats"
    speed = found.get("decode_tokens_per_s")
    fast = "" if speed is None else f"; decodes {speed:.0f} tokens/s on this machine"
    return f" ({words}{cost}{fast})"


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


def _only_for_feedback(
    size_mib: float | None, bits: float | None, min_speed: str, calibration: Path | None, data: str
) -> None:
    given = {
        "--size-mib": size_mib, "--bits": bits, "--min-speed": min_speed or None, "--calibration": calibration,
        "--data": data or None,
    }  # fmt: skip
    if named := [name for name, value in given.items() if value is not None]:
        raise ConfigError(
            f"{', '.join(named)} can only be used with a model folder and --method feedback.",
            "Give a Hugging Face folder without --adapter and --max-ram, or --type instead.",
        )


def _calibration(file: Path | None, data: str, columns: str) -> Calibration:
    """The rows and the plain text to calibrate on."""
    from edgekit.data.calibration_text import Calibration, calibration_of, passages
    from edgekit.data.dataset import DataOptions
    from edgekit.data.rows import evenly_spaced
    from edgekit.targets.target import Quantize

    if file:
        return calibration_of(file, columns)
    rows = shell.dataset(data, DataOptions(columns)).train if data else []
    return Calibration(list(evenly_spaced(rows, Quantize().calibration_rows)), passages())


def _context(source: Path, text: Calibration, quantize: Quantize, threads: int) -> ExportContext:
    """The model, and the token ids of the text to calibrate on."""
    from edgekit.data.calibration_text import windows
    from edgekit.models.tokenizer import ModelTokenizer
    from edgekit.registry import ExportContext

    tokenizer = ModelTokenizer(source)
    return ExportContext(
        source,
        tokenizer.render_ids(text.rows) if text.rows else [],
        threads,
        windows(tokenizer, text.passages, count=quantize.calibration_texts) if text.passages else [],
        quantize,
    )


def _fit(out: Path, options: GgufExport, context: ExportContext, force: bool) -> dict[str, Any]:
    from edgekit import registry

    with (
        shell.working() as emit,
        written_whole(out, inputs=[context.model], force=force, file=True) as staging,
    ):
        return asdict(registry.load("stages", "fit")(staging, options, context, emit))


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
