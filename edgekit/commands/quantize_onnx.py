"""`edgekit quantize --format onnx`: a model folder as a quantized folder for onnxruntime-genai."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.base.artifacts import written_whole
from edgekit.base.errors import ConfigError, UnsupportedError
from edgekit.commands import shell

if TYPE_CHECKING:
    from edgekit.data.calibration_text import Calibration


def check(source: Path, out: Path, given: Mapping[str, object]) -> None:
    """Check that the options suit the format; `given` are those that are for GGUF files alone.

    Raises `ConfigError`.
    """
    if named := [name for name, value in given.items() if value]:
        raise ConfigError(
            f"{', '.join(named)} {'is' if len(named) == 1 else 'are'} for GGUF files, not for --format onnx.",
            "Give --bits or --size-mib, or no size for 4 bits and 8 where a model is most sensitive.",
        )
    if out.suffix == ".gguf":
        raise ConfigError(f"--format onnx writes a folder, and {out} names a file.", "Give --out FOLDER.")
    shell.need_folder(source, "config.json")


def calibration(file: Path | None, data: str, columns: str) -> Calibration:
    """The rows and the plain text to calibrate on."""
    from edgekit.data.calibration_text import Calibration, calibration_of, passages
    from edgekit.data.dataset import DataOptions
    from edgekit.data.rows import evenly_spaced
    from edgekit.targets.target import Quantize

    if file:
        return calibration_of(file, columns)
    rows = shell.dataset(data, DataOptions(columns)).train if data else []
    return Calibration(list(evenly_spaced(rows, Quantize().calibration_rows)), passages())


def write(
    source: Path,
    out: Path,
    size: tuple[float | None, float | None],
    text: Calibration,
    threads: int,
    force: bool,
) -> dict[str, Any]:
    """Write the model folder `source` as the new folder `out`. `size` is in MiB, or in bits for each weight.

    Returns the form of each weight and the estimated KL divergence where a size decides.

    Raises `UnsupportedError` for a model that cannot be exported, and as the export does.
    """
    from edgekit import registry
    from edgekit.data.calibration_text import windows
    from edgekit.models.source import read_config
    from edgekit.models.tokenizer import ModelTokenizer
    from edgekit.registry import ExportContext
    from edgekit.targets.target import OnnxExport, Quantize

    options = OnnxExport(format="onnx", size_mib=size[0], bits_per_weight=size[1])
    if why := registry.load("exporters", "onnx").refusal(read_config(source), options):
        raise UnsupportedError(f"{why} Nothing was started.", "Quantize it to GGUF: --format gguf.")
    tokenizer = ModelTokenizer(source)
    rows = tokenizer.render_ids(text.rows) if text.rows else []
    texts = windows(tokenizer, text.passages, count=Quantize().calibration_texts) if text.passages else []
    context = ExportContext(source, rows, threads, texts)
    with shell.working() as emit, written_whole(out, inputs=[source], force=force) as staging:
        found: dict[str, Any] = registry.load("stages", "onnx")(source, staging, options, context, emit)
    return found


def told(found: Mapping[str, Any]) -> str:
    """What was chosen, in words; nothing where no size decided."""
    if not found:
        return ""
    words = ", ".join(f"{count} {form}" for form, count in Counter(found["types"].values()).most_common())
    return f" ({words}; estimated KL divergence {found['cost']:.3f} nats)"
