"""Optional parts of an installation, and what to type when one is missing."""

from __future__ import annotations

from edgekit.base.errors import MissingPartError

ON_DEVICE = (
    "jinja2", "llama_cpp", "llguidance", "numpy", "onnxruntime_genai", "prometheus_client", "psutil", "pydantic", "rich",
    "starlette", "textual", "textual_plotext", "typer", "uvicorn",
)  # fmt: skip


def missing_part(error: ModuleNotFoundError) -> MissingPartError:
    """What to tell a person when an import failed because a package is not installed."""
    package = (error.name or "a package").partition(".")[0]
    install = "pip install edgekit" if package in ON_DEVICE else "pip install 'edgekit[build]'"
    return MissingPartError(f"This needs the package '{package}', which is not installed.", install)
