"""`edgekit quantize --format onnx`: a model folder as a quantized folder for onnxruntime-genai."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.base.artifacts import written_whole
from edgekit.base.errors import ConfigError, UnsupportedError
from edgekit.commands import shell

if TYPE_CHECKING:
    from edgekit.registry import ExportContext
    from edgekit.targets.target import OnnxExport


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


def write(out: Path, options: OnnxExport, context: ExportContext, force: bool) -> dict[str, Any]:
    """Write the context's model as the new folder `out`. Returns the form of each weight where a size decided.

    Raises `UnsupportedError` for a model that cannot be exported, and as the export does.
    """
    from edgekit import registry
    from edgekit.models.source import read_config

    if why := registry.load("exporters", "onnx").refusal(read_config(context.model), options):
        raise UnsupportedError(f"{why} Nothing was started.", "Quantize it to GGUF: --format gguf.")
    with shell.working() as emit, written_whole(out, inputs=[context.model], force=force) as staging:
        found: dict[str, Any] = registry.load("stages", "onnx")(
            context.model, staging, options, context, emit
        )
    return found
