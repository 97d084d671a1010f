"""The gates that the build itself decides, next to their limits: a wrong merge, and a tuning that does not help."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.base.cache import Cache
from edgekit.base.events import GateResult, ignore
from edgekit.build import checks, robustness, stages
from edgekit.evaluation.samples import SAMPLES, write_log
from edgekit.models import tokenizer
from edgekit.targets.target import Budget

ROWS = 40


@pytest.mark.parametrize(("factor", "passes"), [(0.9, True), (1.1, False), (float("nan"), False)])
def test_a_merge_next_to_its_limit(
    factor: float, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof of the merge is replaced by the difference that it found."""
    proof = {"max_abs_logit_difference": factor * stages.MERGE_LOGIT_TOLERANCE, "n_tokens": 9}
    (gate,) = _merge_facts(proof, tmp_path, monkeypatch)
    assert (gate.name, gate.passed) == ("merge.max_abs_logit_difference", passes)


def _merge_facts(proof: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[GateResult]:
    work = {"merge": lambda base, adapter, out, emit: out.mkdir(), "merge-proof": lambda *_, **__: proof}
    monkeypatch.setattr(stages.registry, "load", lambda kind, name: work[name])
    monkeypatch.setattr(tokenizer, "ModelTokenizer", lambda _: SimpleNamespace(render_ids=list))
    request = SimpleNamespace(data=SimpleNamespace(validation=[]))
    part = SimpleNamespace(path=tmp_path, digest="d")
    cache = Cache(tmp_path / "cache", ignore)
    stages.merge(cache, request, part, part)  # type: ignore[arg-type]
    return [fact for fact in cache.facts if isinstance(fact, GateResult)]


@pytest.mark.parametrize(
    ("wrong", "kld", "failed"),
    [
        ([], 0.0009, set()),
        ([], 0.0011, {"merge.rounding_kld_nats"}),
        (["model.norm.weight"], 0.0005, {"merge.rounding"}),
    ],
)
def test_a_merge_that_is_rounded(
    wrong: list[str], kld: float, failed: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounding = {
        "dtype": "bfloat16",
        "tensors": 9,
        "wrong": wrong,
        "relative_error": 0.001,
        "update_error": 0.1,
    }
    proof = {"max_abs_logit_difference": 0.0, "n_tokens": 9, "mean_kld_nats": kld, "rounding": rounding}
    facts = _merge_facts(proof, tmp_path, monkeypatch)
    assert {gate.name for gate in facts if not gate.passed} == failed
    assert len(facts) == 3 and all("bfloat16" in gate.detail for gate in facts)


def answers(folder: Path, name: str, right: int, rows: int = ROWS) -> Any:
    """An evaluation whose first `right` rows are answered correctly."""
    place = folder / name
    place.mkdir()
    write_log(place / SAMPLES, [{"id": str(n), "correct": n < right} for n in range(rows)])
    return SimpleNamespace(path=place, result={"accuracy": right / rows, "shots": 8})


@pytest.mark.parametrize(
    ("base", "few_shot", "tuned", "passes", "words"),
    [
        (2, 10, 38, True, "8 examples"),
        (2, 37, 38, False, "8 examples"),  # it beats only the base that was not told the task
        (37, 2, 38, False, "prompted like the tuned model"),
        (10, 10, 10, False, "prompted like the tuned model"),
        (30, 10, 20, False, "prompted like the tuned model"),
    ],
)
def test_the_tuned_model_must_beat_the_better_base(
    base: int, few_shot: int, tuned: int, passes: bool, words: str, tmp_path: Path
) -> None:
    found = {"base": base, "base_few_shot": few_shot, "tuned": tuned}
    request = SimpleNamespace(target=SimpleNamespace(budget=Budget()))
    gate = checks.gain(request, {name: answers(tmp_path, name, right) for name, right in found.items()})  # type: ignore[arg-type]
    assert gate.passed is passes and words in gate.detail and gate.limit == 0


def robust(folder: Path, name: str, wrong: dict[str, int], rate: float | None = 0.1, rows: int = 200) -> Any:
    """A measurement in which the first rows of each variant are answered wrongly, as many as `wrong` says."""
    place = folder / name
    place.mkdir()
    write_log(
        place / SAMPLES,
        [
            {"id": f"{n}", "variant": one, "correct": n >= count}
            for one, count in wrong.items()
            for n in range(rows)
        ],
    )
    noise = {"families": 2, "pdr": rate, "pdr_bounds": None if rate is None else [rate - 0.05, rate + 0.05]}
    return SimpleNamespace(path=place, result={"n": rows, "noise": noise})


@pytest.mark.parametrize(
    ("case", "rates", "failed", "stage"),
    [
        (0, (0.1, 0.1), set(), ""),
        (9, (0.1, 0.1), {"gguf.robust_drop_points"}, "quantize.gguf"),  # in one family alone
        (0, (0.1, 0.3), {"gguf.robust_drop_rate"}, "quantize.gguf"),
        (0, (0.3, 0.3), {"gguf.robust_drop_rate"}, "tune"),  # the tuned model does not stand it either
        (0, (None, None), {"gguf.robust_drop_rate"}, "tune"),
    ],
)
def test_a_file_that_loses_under_noise_fails_where_the_target_says_so(
    case: int, rates: tuple[float | None, float | None], failed: set[str], stage: str, tmp_path: Path
) -> None:
    tuned = robust(tmp_path, "tuned", {"clean": 2, "case": 20, "tagged": 2}, rates[0])
    file = robust(tmp_path, "gguf", {"clean": 2, "case": 20 + case, "tagged": 2}, rates[1])
    artifact: Any = SimpleNamespace(format="gguf", steps=[SimpleNamespace(name="quantize.gguf")])

    def limits(**of: float) -> list[GateResult]:
        request: Any = SimpleNamespace(target=SimpleNamespace(budget=Budget(**of)))
        return robustness.limits(request, artifact, tuned, file)

    assert limits() == []
    found = limits(robust_drop_points=2.0, robust_drop_rate=0.2)
    assert len(found) == 2 and {gate.name for gate in found if not gate.passed} == failed
    assert {gate.stage for gate in found if not gate.passed} == ({stage} if failed else set())
    if case:
        assert found[0].detail.startswith("case: ") and found[0].value == pytest.approx(4.5)
