"""The base class of every table in a target file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Table(BaseModel):
    """A frozen table that refuses unknown keys; the docstring under a field becomes its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
