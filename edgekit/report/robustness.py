"""What noise and other phrasings cost the models of a build, in words and as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgekit.evaluation.robust import CLEAN
from edgekit.report.abstention import VARIANTS
from edgekit.report.summary import percent


def variants(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The families of noise and the phrasings in which one model was asked."""
    return [*(found.get("families") or []), *(found.get("phrasings") or [])]


def weakest(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The variant with the fewest right answers; None when none has fewer than the rows as they are."""
    worst = min(variants(found), key=lambda one: float(one["accuracy"]), default=None)
    return worst if worst and worst["accuracy"] < found["clean"]["accuracy"] else None


def short(report: Mapping[str, Any]) -> list[str]:
    """One line for each model: its right answers without and with noise, and its weakest variant."""
    lines = []
    for name, found in (report.get("robustness") or {}).items():
        noise, worst = found.get("noise"), weakest(found)
        line = f"{name}: {percent(found['clean']['accuracy'])} right on {found['n']} rows"
        line += f", {percent(noise['accuracy'])} with noise" if noise else ""
        line += f"; weakest: {worst['name']} {percent(worst['accuracy'])}" if worst else ""
        refused = ((found.get("abstention") or {}).get("noise") or {}).get("false_abstentions") or {}
        line += (
            f"; abstains on {percent(refused['share'])} in scope with noise" if refused.get("hits") else ""
        )
        lines.append(line)
    return lines


def table(report: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any] | None]]]:
    """Each variant with the figures of each model, the rows as they are first; None where a model was not asked so."""
    models = list((report.get("robustness") or {}).values())
    names = dict.fromkeys(one["name"] for found in models for one in variants(found))
    of = [{CLEAN: found["clean"], **{one["name"]: one for one in variants(found)}} for found in models]
    return [(name, [each.get(name) for each in of]) for name in (CLEAN, *names)]


def abstentions(report: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any] | None]]]:
    """How often each model abstains, on rows in scope and out of it, as they are and changed; none where no model ever does."""
    models = [_asked(found) for found in (report.get("robustness") or {}).values()]
    names = dict.fromkeys(name for each in models for name in each)
    said = any(one["hits"] for each in models for one in each.values())
    return [(name, [each.get(name) for each in models]) for name in names] if said else []


def abstention(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The same of one model, by what the rows are; none where it never abstains."""
    asked = _asked(found)
    return asked if any(one["hits"] for one in asked.values()) else {}


def _asked(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """How often one model abstains, wherever it was asked a row."""
    counted = found.get("abstention")
    if not counted:
        return {}
    shares = {
        f"abstains on rows {scope}, {words}": counted[variant][key]
        for key, scope in (("false_abstentions", "in scope"), ("recall", "out of scope"))
        for variant, words in VARIANTS.items()
    }
    return {name: one for name, one in shares.items() if one["n"]}


def worst_rows(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """For each model a sentence on each row that is right as it is and wrong in the most variants."""
    return [
        (name, list(sentences(found.get("worst_rows") or [])))
        for name, found in (report.get("robustness") or {}).items()
    ]


def sentences(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence on each of the worst rows: where it fails, and with what answer."""
    for row in rows:
        label = f" ({row['label']})" if row.get("label") else ""
        yield (
            f"Row {row['id']}{label} is wrong in {len(row['wrong_in'])} of {row['of']} variants: {', '.join(row['wrong_in'])}. "
            f"Asked “{row['asked']}”, the model answers “{row['answer']}” instead of “{row['expected']}”."
        )
