"""The Hugging Face hub's client, and its errors in one line."""

from __future__ import annotations

from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.base.parts import missing_part


def client() -> Any:
    """The package huggingface_hub. Raises `MissingPartError` without it."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
    except ModuleNotFoundError as error:
        raise missing_part(error) from error
    return huggingface_hub


def failed(name: str, error: Exception, hint: str) -> ConfigError:
    """The error for a repository that could not be downloaded, with the first line of the hub's reason."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ConfigError(f"'{name}' could not be downloaded from the hub: {reason}", hint)
