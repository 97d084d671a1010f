"""edgekit: small model files that are proven to answer as the model they came from.

model = edgekit.load("bundles/smollm2-135m-cpu-int4")
model.generate("close job 4512, thanks")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LoadedModel", "__version__", "load"]

if TYPE_CHECKING:
    from edgekit.device.loaded import LoadedModel, load


def __getattr__(name: str) -> Any:
    if name in ("load", "LoadedModel"):
        from edgekit.device import loaded

        return getattr(loaded, name)
    raise AttributeError(f"module 'edgekit' has no attribute '{name}'")
