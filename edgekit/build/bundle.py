"""The bundle: the folder that an app embeds, with the digest of every file in its manifest.

manifest.json  model.gguf  onnx/  tokenizer/  report.json  report.html  samples/  golden.json  signals.json
calibration.json  events.jsonl  README.md
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgekit
from edgekit.base.artifacts import check_output, digest_of, list_files, sha256_file, write_json
from edgekit.base.code import versions
from edgekit.base.errors import ConfigError, CorruptError
from edgekit.base.output import Output, output
from edgekit.build.request import Request
from edgekit.device.confidence import FILE as CALIBRATION
from edgekit.device.confidence import SCHEMA as CALIBRATION_SCHEMA
from edgekit.device.manifest import MANIFEST, ONE_NAME, SCHEMA, read_manifest
from edgekit.evaluation.answering import cut_after
from edgekit.evaluation.samples import SAMPLES
from edgekit.field.telemetry.reference import FILE as SIGNALS
from edgekit.field.telemetry.reference import SCHEMA as SIGNALS_SCHEMA
from edgekit.models import source as model
from edgekit.proof.golden import FILE as GOLDEN
from edgekit.proof.golden import SCHEMA as GOLDEN_SCHEMA
from edgekit.report.outcome import Artifact, Outcome

if TYPE_CHECKING:
    from edgekit.base.cache import Cache
    from edgekit.models.tokenizer import ModelTokenizer

REPORT = "report.json"
PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "gguf", "llama-cpp-python", "onnxruntime", "onnxruntime-genai",
)  # fmt: skip
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "special_tokens_map.json",
    "generation_config.json", "config.json",
)  # fmt: skip


def recipe_digest(request: Request) -> str:
    """The digest of the inputs of a build: model, rows and target."""
    return digest_of(
        {
            "model": model.digest(request.source) if request.source.path else request.source.given,
            "data": request.data.digest,
            "target": request.target.model_dump(),
            **({"chat_template": given} if (given := request.source.chat_template) else {}),
        }
    )


def check_free(request: Request) -> None:
    """Raise `ConfigError` when the path exists and is not an earlier bundle of the same inputs, and as `check_output`."""
    out = request.out
    check_output(out, inputs=request.inputs, force=True)
    if not out.exists() or request.force:
        return
    try:
        recipe = read_manifest(out)["recipe"]["digest"]
    except (CorruptError, KeyError):
        recipe = None
    if recipe != recipe_digest(request):
        what = "is not a bundle" if recipe is None else "is a bundle of another model, data or target"
        raise ConfigError(
            f"{out} exists and {what}; it was not changed.", "Use another --out, or --force to replace it."
        )


def write(
    request: Request,
    tokenizer: ModelTokenizer,
    outcome: Outcome,
    report: dict[str, Any],
    cache: Cache,
    log: Path,
) -> None:
    """Write the bundle under a temporary name, and rename it when it is complete."""
    from edgekit.report.html import write_html
    from edgekit.report.readme import bundle_readme

    with output(cache, request.out, force=True) as written:
        out = written.folder
        out.mkdir()
        for artifact in outcome.artifacts:
            put(written, artifact)
        (out / "tokenizer").mkdir()
        for name in TOKENIZER_FILES:
            if (tokenizer.folder / name).is_file():
                shutil.copyfile(tokenizer.folder / name, out / "tokenizer" / name)
        (out / "samples").mkdir()
        for name, answers in outcome.answers.items():
            shutil.copyfile(answers.path / SAMPLES, out / "samples" / f"{name}.jsonl")
        for name, measured in outcome.robustness.items():
            (out / "samples" / "robust").mkdir(exist_ok=True)
            shutil.copyfile(measured.path / SAMPLES, out / "samples" / "robust" / f"{name}.jsonl")
        write_json(out / REPORT, report)
        golden = [kept.result for kept in outcome.golden]
        write_json(out / GOLDEN, {"schema": GOLDEN_SCHEMA, "formats": _by_format(outcome, golden)})
        signals = [kept.result["signals"] for kept in outcome.signals]
        write_json(out / SIGNALS, {"schema": SIGNALS_SCHEMA, "formats": _by_format(outcome, signals)})
        if fitted := temperatures(outcome):
            write_json(out / CALIBRATION, {"schema": CALIBRATION_SCHEMA, "formats": fitted})
        write_html(report, out / "report.html", out / "samples")
        shutil.copyfile(log, out / "events.jsonl")
        manifest = _manifest(request, tokenizer, outcome, report)
        (out / "README.md").write_text(bundle_readme(manifest, report), encoding="utf-8")
        manifest["files"] = [
            {
                "path": file.relative_to(out).as_posix(),
                "bytes": file.stat().st_size,
                "sha256": sha256_file(file),
            }
            for file in list_files(out)
        ]
        write_json(out / MANIFEST, manifest)


def _by_format(outcome: Outcome, values: Sequence[Any]) -> dict[str, Any]:
    return {artifact.format: value for artifact, value in zip(outcome.artifacts, values, strict=True)}


def temperatures(outcome: Outcome) -> dict[str, Any]:
    """What `edgekit.device.confidence` reads, for the formats with a temperature."""
    keys = ("labels", "abstaining", "temperature", "rows", "threshold", "scope_threshold")
    found = _by_format(outcome, [stage.result for stage in outcome.calibrations])
    return {
        format: {key: result[key] for key in keys}
        for format, result in found.items()
        if "temperature" in result
    }


def put(written: Output, artifact: Artifact) -> None:
    """Put the file or folder of `artifact` into an output folder."""
    one_name = artifact.runtime in ONE_NAME
    written.put(artifact.steps[-1], artifact.path, artifact.output, one_name=one_name)


def _manifest(
    request: Request, tokenizer: ModelTokenizer, outcome: Outcome, report: Mapping[str, Any]
) -> dict[str, Any]:
    example = request.data.test[0]
    return {
        "schema": SCHEMA,
        "name": request.source.name,
        "target": request.target.name,
        "verdict": report["verdict"],
        "edgekit": edgekit.__version__,
        "base_model": json.loads((tokenizer.folder / model.PROVENANCE).read_text("utf-8")),
        "data": request.data.provenance,
        "recipe": {"digest": recipe_digest(request), "target": request.target.model_dump(by_alias=True)},
        "versions": versions(PACKAGES),
        "formats": {
            artifact.format: {"path": artifact.output, "runtime": artifact.runtime}
            for artifact in outcome.artifacts
        },
        "deviations": _by_format(outcome, [proof.stage.result["deviations"] for proof in outcome.proofs]),
        "bare_runtime": _by_format(outcome, [proof.stage.result["bare_runtime"] for proof in outcome.proofs]),
        "threads": request.target.device.threads,
        "template_sha256": digest_of(tokenizer.chat_template.source),
        "stop_ids": sorted(tokenizer.stop_ids),
        "system": shared_system(request),
        "max_tokens": longest_answer(request, tokenizer),
        "example": {
            "messages": [dict(message) for message in example.messages[:-1]],
            "answer": example.answer,
        },
    }


def shared_system(request: Request) -> str | None:
    """The system message of all training rows; empty when they differ."""
    first = {
        row.messages[0]["content"] if row.messages[0]["role"] == "system" else None
        for row in request.data.train
    }
    return first.pop() if len(first) == 1 else None


def longest_answer(request: Request, tokenizer: ModelTokenizer) -> int:
    """The token limit of answers: 1.25 times the longest answer in the rows."""
    return cut_after(max(len(tokenizer.encode(row.answer)) for row in request.data.all_rows))
