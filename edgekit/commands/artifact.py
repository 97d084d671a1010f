"""The model file that a verb measures, in any format that edgekit opens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgekit.proof.prove import Subject

Artifact = Annotated[
    Path, typer.Argument(help="A .gguf file, an onnxruntime-genai folder or a Hugging Face folder.")
]


def subject_at(artifact: Path) -> Subject:
    """The format of `artifact`, recognised by its files; a single file is a GGUF file, whatever its name."""
    from edgekit.proof.prove import Subject
    from edgekit.proof.verify import subject_of

    return Subject(artifact, "gguf", "llama.cpp") if artifact.is_file() else subject_of(artifact)
