"""Small bundles with true manifests, and checks that find what a test wants them to find."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from edgekit.field.releases import compare
from edgekit.field.releases.compare import Comparison
from edgekit.field.releases.health import Health


def write(folder: Path, text: str, **manifest: Any) -> Path:
    """A bundle of four small files, one of which every such bundle shares, and two that may not be linked."""
    files = {
        "model.gguf": f"weights of {text}".encode(),
        "onnx/model.onnx": f"graph of {text}".encode(),
        "onnx/genai_config.json": b"{}",
        "tokenizer/tokenizer.json": b"the tokenizer of all",
    }
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    formats = {
        "gguf": {"path": "model.gguf", "runtime": "llama.cpp"},
        "onnx": {"path": "onnx", "runtime": "onnxruntime"},
    }
    values = {
        "schema": "edgekit.bundle/1",
        "name": text,
        "target": "tiny",
        "verdict": "pass",
        "formats": formats,
        "files": [
            {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for path, data in files.items()
        ],
    }
    (folder / "manifest.json").write_text(json.dumps({**values, **manifest}))
    return folder


def fit(bundle: Path) -> Health:
    """A health check that finds nothing."""
    return Health(True, "", "")


def same(candidate: Path, current: Path) -> Comparison:
    """A comparison of equal answers."""
    return Comparison(True, "the same", 1, 1.0, 1.0, 1.0, 0.0, 2.0, (), ())


def unproven(candidate: Path, current: Path) -> Comparison:
    """A comparison of three equal answers."""
    return compare.judge([compare.Question(str(n), ()) for n in range(3)], "abc", "abc")


def worse(candidate: Path, current: Path) -> Comparison:
    """A comparison that was lost."""
    return Comparison(False, "5 of 9 answers lost", 9, 0.4, 1.0, 0.4, -60.0, 2.0, (), ())
