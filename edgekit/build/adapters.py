"""Exports an adapter as a separate file in each format, and proves it together with its base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import registry
from edgekit.base.artifacts import remove, sha256_tree
from edgekit.base.cache import Cache
from edgekit.base.events import Alert
from edgekit.build import checks
from edgekit.build.request import Request
from edgekit.report.outcome import Artifact

if TYPE_CHECKING:
    from edgekit.base.cache import StageOutput

PROOF_ROWS = 8
FOLDER = "adapters"


def export(
    cache: Cache,
    request: Request,
    base: StageOutput,
    adapter: Path,
    artifacts: Sequence[Artifact],
    out: Path,
) -> dict[str, str]:
    """Write `adapter` for each of the base's `artifacts` that already lie in the folder `out`; gates go to `cache`.

    The base with its adapter is compared with their merge: on the validation rows, like a merged file, and in the change
    that the adapter makes. Returns the adapter's path below `out` for each format. An ONNX base is written again, with
    inputs for an adapter.
    Raises `UnsupportedError` for an adapter that does more than add low-rank products to linear layers.
    """
    from edgekit.models.tokenizer import ModelTokenizer

    def merge(place: Path, work: Path) -> None:
        registry.load("stages", "merge")(base.path, adapter, place, emit=cache.emit)

    inputs = {"base": base.digest, "adapter": sha256_tree(adapter)}
    merged = cache.stage("merge", inputs, merge, [registry.module_of("stages", "merge")])
    reference = checks.capture(cache, request, merged)
    ids = ModelTokenizer(base.path).render_ids(request.data.validation[:PROOF_ROWS])
    (out / FOLDER).mkdir()
    written = {}
    for artifact in artifacts:
        file = out / artifact.output
        if artifact.format == "gguf":
            name = f"{FOLDER}/{adapter.resolve().name}.gguf"
            registry.load("stages", "adapter-gguf")(base.path, adapter, out / name, cache.emit)
        elif artifact.format == "onnx":
            name = f"{FOLDER}/{adapter.resolve().name}.onnx_adapter"
            remove(file)
            registry.load("stages", "adapter-onnx-base")(artifact.path, base.path, file, cache.emit)
            registry.load("stages", "adapter-onnx")(base.path, adapter, out / name, cache.emit)
        else:
            cache.emit(
                Alert(
                    "warning", f"Adapters cannot be exported as {artifact.format}; only the base was written."
                )
            )
            continue
        checks.verify_adapter(cache, request, reference, artifact, file, out / name)
        pair = registry.load("stages", "adapter-pair")(file, out / name, artifact.runtime, base.path, adapter)
        registry.load("stages", "adapter-proof")(
            pair, ids, cache.emit, prefix=artifact.format, threads=request.threads
        )
        written[artifact.format] = name
    return written
