"""What was built, as the results screen shows it: variants, gates, differences, and what putting it to use takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgekit.app.views.bundles import REPORT, look_at, read_json
from edgekit.app.views.lines import Line
from edgekit.app.views.quality import quality
from edgekit.app.views.report import Report
from edgekit.app.views.symbols import Symbols
from edgekit.base.errors import CorruptError
from edgekit.base.texts import plain
from edgekit.evaluation.statistics import wilson
from edgekit.report import summary
from edgekit.report.summary import NONE, Variant, exact, figure, mib, percent

STAGES_OF = {
    "base": ("source",),
    "tuned": ("tune", "merge", "prune"),
}  # whose gates hold a model that is no file


@dataclass(frozen=True)
class Row:
    """A variant and its gates."""

    variant: Variant
    gates: tuple[Mapping[str, Any], ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """The gates that failed, without the variant's name."""
        return tuple(gate["name"].partition(".")[2] for gate in self.gates if not gate["passed"])

    @property
    def state(self) -> str:
        """PASS, FAIL, or nothing: that the base was read rightly is no word on its answers."""
        return "FAIL" if self.failed else "PASS" if self.gates and self.variant.path else ""


@dataclass(frozen=True)
class Results:
    """A bundle's report, made safe to show: every text printable, every number finite, every list of rows whole."""

    bundle: Path
    name: str
    verdict: str
    sentence: str
    rows: tuple[Row, ...]
    gates: tuple[Mapping[str, Any], ...]
    stages: tuple[Mapping[str, Any], ...]
    budget: Mapping[str, float]
    notes: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether it may be put to use."""
        return self.verdict == "pass"

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The gates that failed, with `stage` and `advice`."""
        return summary.failed_gates({"gates": self.gates})

    def row(self, name: str) -> Row | None:
        """The row of a variant."""
        return next((row for row in self.rows if row.variant.name == name), None)


def load(bundle: Path) -> Results:
    """The results of a bundle. Raises `CorruptError` for a report that is missing, damaged, foreign or too large."""
    try:
        clean = Report.model_validate(read_json(bundle / REPORT, bundle)).model_dump()
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        said = plain(f"{place}: {fault['msg']}, not {str(fault['input'])[:60]!r}")
        raise CorruptError(
            f"{bundle / REPORT} is not a report that can be shown: {said}.", f"edgekit verify {bundle}"
        ) from error
    notes, verdict = [], clean["verdict"]
    if damage := look_at(bundle).fault:
        notes.append(f"{damage} It cannot be promoted so.")
        verdict = "fail"
    if not clean["artifacts"]:
        notes.append("The report names no files.")
    return Results(
        bundle=bundle,
        name=plain(bundle.resolve().name),
        verdict=verdict,
        sentence=summary.verdict_sentence({**clean, "verdict": verdict}),
        rows=tuple(Row(each, _gates_of(each.name, clean["gates"])) for each in summary.variants(clean)),
        gates=tuple(clean["gates"]),
        stages=tuple(clean["stages"]),
        budget=clean["budget"],
        notes=tuple(notes),
    )


def _gates_of(name: str, gates: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    groups = STAGES_OF.get(name, (name,))
    found = [gate for gate in gates if gate["name"].partition(".")[0] in groups]
    return tuple(sorted(found, key=lambda gate: gate["passed"]))


@dataclass(frozen=True)
class Figure:
    """What is measured of a variant: a column of the table, and a line of a comparison."""

    head: str
    name: str
    of: Callable[[Variant], float | None]
    words: Callable[[float | None], str] = figure
    less_is_better: bool = True


def _whole(share: float | None) -> str:
    """A share of few rows, in whole percent."""
    return NONE if share is None else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


FIGURES = (  # what decides stands first: a narrow terminal shows no more
    Figure("MiB", "size, MiB", lambda one: None if one.bytes is None else one.bytes / 2**20),
    Figure("KLD", "mean KLD, nats", lambda one: one.drift.get("mean_kld_nats")),
    Figure("right", "right answers", lambda one: one.accuracy, percent, less_is_better=False),
    Figure("tok/s", "decode, tokens/s", lambda one: one.decode, less_is_better=False),
    Figure("first ms", "first token, ms", lambda one: one.ttft),
    Figure("peak MiB", "peak memory, MiB", lambda one: one.speed.get("peak_rss_mib")),
    Figure("noise", "right answers with noise", lambda one: one.noise, _whole, less_is_better=False),
    Figure("top-1", "same likeliest token", lambda one: one.drift.get("top1_agreement"), percent, False),
    Figure("p99", "p99 KLD, nats", lambda one: one.drift.get("p99_kld_nats")),
    Figure("bits", "bits per weight", lambda one: one.bits_per_weight),
)


def figures(results: Results) -> list[Figure]:
    """The figures of the table: noise only where it was measured."""
    measured = any(row.variant.noise is not None for row in results.rows)
    return [one for one in FIGURES if one.head != "noise" or measured]


def spread(measured: Mapping[str, Any] | None) -> str:
    """`93.4 [87.3..108]`: median, least and greatest."""
    return ranged(measured["median"], (measured.get("min"), measured.get("max"))) if measured else NONE


def interval(drift: Mapping[str, Any]) -> str:
    """`0.0136 [0.0121..0.015]`: the mean and its 95 % interval."""
    return ranged(drift["mean_kld_nats"], drift["mean_kld_95"])


def ranged(value: float, edges: tuple[float | None, float | None] | None) -> str:
    """A value with its edges behind it, where both are known."""
    return figure(value) + (
        f" [{figure(edges[0])}..{figure(edges[1])}]" if edges and None not in edges else ""
    )


def gate_word(row: Row) -> str:
    """`✓ PASS`, or `✗ FAIL 2` with the number of gates that failed."""
    if not row.state:
        return NONE
    return f"{Symbols.of(row.state)} {row.state} {len(row.failed) or ''}".rstrip()


def title(results: Results) -> str:
    """The bundle and its verdict."""
    held = sum(gate["passed"] for gate in results.gates)
    word = f"{Symbols.ok} PASSED" if results.passed else f"{Symbols.failed} NOT PASSED"
    return f"{results.name}  {word}: {held} of {len(results.gates)} gates passed"


def detail(results: Results, row: Row | None) -> list[Line]:
    """Under the table: the verdict in a sentence, the gates that failed, and all that is known of the row."""
    lines: list[Line] = [("fact", results.sentence)]
    lines += [("failed", f"{Symbols.warning} {note}") for note in results.notes]
    for gate in results.failed:
        stage = f", stage {gate['stage']}" if gate["stage"] else ""
        lines.append(("failed", f"{Symbols.failed} FAIL {gate_line(gate, gate['name'])}{stage}"))
        lines += [("more", words) for words in (gate["detail"], gate["advice"]) if words]
    return lines + (about(row) if row else [])


def gate_line(gate: Mapping[str, Any], name: str) -> str:
    """A gate as `gguf.size_mib (size, MiB): 119, limit 100`, with what it checks where its name does not say it."""
    check, words = gate["name"].rpartition(".")[2].replace("_", " "), summary.gate_words(gate["name"])
    limit = NONE if gate["limit"] is None else exact(gate["limit"])
    return f"{name}{'' if words == check else f' ({words})'}: {figure(gate['value'])}, limit {limit}"


def about(row: Row) -> list[Line]:
    """Everything known of one variant, its gates last."""
    one = row.variant
    lines: list[Line] = [("head", f"{one.name}  {one.path}" if one.path else one.name)]
    facts = []
    if one.bytes is not None:
        facts.append(f"{mib(one.bytes)} MiB, {figure(one.bits_per_weight)} bits per weight")
    if one.accuracy is not None:
        low, high = wilson(one.accuracy * one.n, one.n) if one.n else (None, None)
        facts.append(
            f"right answers {percent(one.accuracy)} of {one.n or '?'}, 95 % interval {percent(low)} to {percent(high)}"
        )
    if one.drift:
        facts.append(f"mean KLD {interval(one.drift)} nats, p99 {figure(one.drift.get('p99_kld_nats'))}, "
                     f"same most likely token {percent(one.drift.get('top1_agreement'))}")  # fmt: skip
    if one.speed:
        threads = one.speed.get("threads")
        where = " (simulated)" if one.speed.get("simulated") else ""
        speeds = one.speed.get("decode_tokens_per_s") or {}
        facts.append(f"decode {spread(speeds)} tok/s, first token {spread(one.speed.get('ttft_ms'))} ms, "
                     f"peak {figure(one.speed.get('peak_rss_mib'))} MiB: {one.speed.get('runtime')} on "
                     f"{threads} thread{'' if threads == 1 else 's'}{where}, n={figure(speeds.get('n'))}")  # fmt: skip
    lines += [("fact", fact) for fact in facts]
    lines += quality(one)
    if row.gates:
        held = sum(gate["passed"] for gate in row.gates)
        lines.append(("head", f"gates of {one.name}: {held} of {len(row.gates)} passed"))
    for gate in row.gates:
        sign = Symbols.ok if gate["passed"] else Symbols.failed
        more = f"  {gate['detail']}" if gate["detail"] else ""
        name = gate["name"].partition(".")[2]
        lines.append(("fact" if gate["passed"] else "failed", f"{sign} {gate_line(gate, name)}{more}"))
    return lines


def table(results: Results) -> dict[str, Any]:
    """What `o` exports: the variants with their figures, and the gates."""
    variants = [
        {**asdict(row.variant), "gate": row.state or None, "failed": list(row.failed)} for row in results.rows
    ]
    return {
        "bundle": str(results.bundle),
        "verdict": results.verdict,
        "variants": variants,
        "failed": results.failed,
        "budget": dict(results.budget),
    }
