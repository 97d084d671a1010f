"""How often a model abstains, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgekit.report.summary import percent

VARIANTS = {"clean": "as they are", "noise": "with noise", "phrasings": "in other phrasings"}


def abstention_words(found: Mapping[str, Any] | None) -> str:
    """One line: the abstentions within the scope, and out of it; empty where no row is out of scope and none abstains."""
    if not found or not (found["precision"]["n"] or found["recall"]["n"]):
        return ""
    parts = [f"Abstains on {_of(found['false_abstentions'], 'rows in scope')}"]
    if found["recall"]["n"]:
        parts.append(f"on {_of(found['recall'], 'those out of scope')}")
    return ", ".join(parts)


def variants_words(found: Mapping[str, Any] | None) -> Iterator[str]:
    """The same for the rows as they are, with noise, and in other phrasings; the figures of a variant count each of its rows."""
    for key, words in VARIANTS.items():
        if found and (told := abstention_words(found[key])):
            yield f"{told}, {words}"


def _of(one: Mapping[str, Any], rows: str) -> str:
    """`2.5 % of rows in scope (1 of 40)`; a dash in place of the share where there are no rows."""
    return f"{percent(one['share'])} of {rows} ({one['hits']:,} of {one['n']:,})"
