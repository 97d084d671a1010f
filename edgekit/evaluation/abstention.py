"""Abstention: how often a model gives the answer that says "out of scope", and how often it is right to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgekit.data.out_of_scope import names_out_of_scope
from edgekit.evaluation.statistics import clustered_share, wilson

Sample = Mapping[str, Any]


def abstention(samples: Sequence[Sample], answer: str) -> dict[str, Any] | None:
    """How often `answer`, which says that a request is out of scope, is given; None for an empty `answer`.

    `false_abstentions` is the share of the rows within the scope that are answered by abstaining, `recall` the share of the
    others, and `precision` the share of abstentions that are right. Each has `hits`, `n`, `share`, which is None where `n` is
    zero, and `wilson_95`. The samples of one id in several variants are not independent, and count as a cluster.
    """
    answer = answer.strip()
    if not answer:
        return None
    beyond = [(sample, is_beyond(sample, answer)) for sample in samples]
    abstained = [(sample, out, sample["answer"] == answer) for sample, out in beyond]
    return {
        "answer": answer,
        "false_abstentions": _share((sample, said) for sample, out, said in abstained if not out),
        "recall": _share((sample, said) for sample, out, said in abstained if out),
        "precision": _share((sample, out) for sample, out, said in abstained if said),
    }


def is_beyond(sample: Sample, answer: str) -> bool:
    """Whether the row of a sample is out of scope: by its label, or because `answer` is expected."""
    return bool(sample["expected"] == answer or names_out_of_scope(sample["label"] or sample["expected"]))


def of_variants(samples: Sequence[Sample], answer: str) -> dict[str, Any] | None:
    """The same of samples of `eval robust` as they are (`clean`), with `noise`, and in other `phrasings`.

    `by_variant` holds the share of false abstentions of each variant. None for an empty `answer`.
    """
    if not answer.strip():
        return None

    def of(key: str, value: str) -> dict[str, Any] | None:
        return abstention([sample for sample in samples if sample[key] == value], answer)

    found = {
        name: of("kind", kind)
        for name, kind in (("clean", "clean"), ("noise", "noise"), ("phrasings", "phrasing"))
    }
    each = {name: of("variant", name) for name in dict.fromkeys(sample["variant"] for sample in samples)}
    shares = {name: one["false_abstentions"]["share"] for name, one in each.items() if one}
    return {"answer": answer.strip(), **found, "by_variant": shares}


def _share(asked: Iterable[tuple[Sample, bool]]) -> dict[str, Any]:
    rows: dict[str, list[bool]] = {}
    for sample, hit in asked:
        rows.setdefault(sample["id"], []).append(hit)
    hits, sizes = [sum(each) for each in rows.values()], [len(each) for each in rows.values()]
    n = sum(sizes)
    interval = wilson(sum(hits), n) if n == len(rows) else clustered_share(hits, sizes)
    return {"hits": sum(hits), "n": n, "share": sum(hits) / n if n else None, "wilson_95": list(interval)}
