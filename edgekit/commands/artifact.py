"""The model that a verb measures: a file in any format that edgekit opens, or the URL of an endpoint where answers suffice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from edgekit.base.errors import ConfigError

URL = re.compile(r"(https?):/([^/].*)", re.IGNORECASE)
LIKE_URL = re.compile(r"[a-z]{2,}:/|https?[:/]|([\w.-]+|\[[\da-f:]+\]):\d{1,5}(/|$)", re.IGNORECASE)
"""What is typed for a URL by mistake: with another scheme, with a part of `://`, or without both."""


def url_of(artifact: Path) -> str:
    """The URL that was given in place of a path, which turns `//` into `/`; empty for a path."""
    found = URL.fullmatch(str(artifact))
    return f"{found[1].lower()}://{found[2]}" if found else ""


def model_file(artifact: Path) -> Path:
    """`artifact`, if it is a model file or folder. Raises as `subject_of`, and `ConfigError` for a URL."""
    from edgekit.proof.verify import subject_of

    if url := url_of(artifact):
        raise ConfigError(
            f"{url} gives answers only, and this needs the model file itself. Nothing was started.",
            "At a URL these can be measured: eval task, robust, counterfactual, overrefusal and instructions, without "
            "--choice, --shots and --adversarial.",
        )
    if LIKE_URL.match(str(artifact)) and not artifact.exists():
        meant = re.sub(r":/+", "://", str(artifact))
        raise ConfigError(
            f"There is no file {meant}, which looks like a URL. Nothing was started.",
            "A URL begins with http:// or https:// and usually ends in /v1, as in http://127.0.0.1:8000/v1.",
        )
    subject_of(artifact)
    return artifact


def model_or_url(artifact: Path) -> Path:
    """The same for a verb that also measures an endpoint, which is asked later."""
    return artifact if url_of(artifact) else model_file(artifact)


FILES = "A .gguf file, an onnxruntime-genai folder"
Artifact = Annotated[Path, typer.Argument(callback=model_file, help=f"{FILES} or a Hugging Face folder.")]
Measured = Annotated[
    Path,
    typer.Argument(
        callback=model_or_url,
        help=f"{FILES}, a Hugging Face folder, or the URL of an OpenAI-compatible endpoint, such as "
        "http://127.0.0.1:8000/v1.",
    ),
]
