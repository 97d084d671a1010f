"""Files on trial: a ruinous calibration set is passed over, and the smallest file within a divergence is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.base.errors import GateError
from edgekit.base.events import Alert, Event, Progress, ignore
from edgekit.export.gguf import fit as fitting
from edgekit.export.gguf import trial
from edgekit.export.gguf.comparison import Comparison
from edgekit.export.gguf.fit import Fitted, Try, fit
from edgekit.export.gguf.trial import CLOSE, TRIES, search
from edgekit.export.gguf.write import PLAN, steps, write
from edgekit.export.weights.allocation import Choice, allocate, smallest
from edgekit.models import mapped
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.registry import ExportContext, Trial
from edgekit.runtimes.llamacpp import open_model
from edgekit.targets.target import GgufExport, Quantize

Make = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("in_this_process")

RANDOM = torch.Generator().manual_seed(0)
ROWS, TEXTS, OTHER_ROWS, OTHER_TEXTS = (
    torch.randint(3, 470, (8, 32), generator=RANDOM).tolist() for _ in range(4)
)
GOOD = {"rows": ROWS, "text": TEXTS}
RUINOUS = {"text": [[7] * 32] * 8}
HELD_OUT = {"rows": OTHER_ROWS, "text": OTHER_TEXTS}
OPTIONS = GgufExport(format="gguf", type="Q4_0")


def context(model: Path, quantize: Quantize, trial: Trial) -> ExportContext:
    return ExportContext(model, ROWS, 1, TEXTS, quantize, trial)


def test_a_ruinous_calibration_set_is_passed_over(make: Make, tmp_path: Path) -> None:
    """Its text is one token repeated, which says nothing of what the model reads otherwise."""
    model, out, events = make("llama"), tmp_path / "out.gguf", list[Event]()
    sets = {"ruinous": RUINOUS, "good": GOOD}
    size = Quantize(bits_per_weight=6.5, types=["IQ4_NL", "Q8_0"])
    fitted = search(out, OPTIONS, context(model, size, Trial(HELD_OUT, sets)), events.append)
    ruinous, good = fitted.tries
    for kind in HELD_OUT:
        assert ruinous.mean_kld_nats[kind] > 1.3 * good.mean_kld_nats[kind] > 0
    assert fitted.calibration == "good" and fitted.mean_kld_nats == good.mean_kld_nats
    fit(tmp_path / "alone.gguf", OPTIONS, context(model, size, Trial({}, {})))
    assert out.read_bytes() == (tmp_path / "alone.gguf").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["alone.gguf", "out.gguf"]
    told = [event.message for event in events if isinstance(event, Alert)]
    assert len(told) == 2 and "Try 1 of at most 2, calibrated on ruinous: " in told[0]
    assert f"{good.bytes:,} bytes" in told[1] and "nats on rows" in told[1] and "nats on text" in told[1]
    notes = [event.note for event in events if isinstance(event, Progress)]
    assert notes[-1].startswith("mean KLD") and {"rounding, try 1", "rounding, try 2"} <= {*notes}


def test_the_divergence_is_that_of_the_whole_distributions(make: Make, tmp_path: Path) -> None:
    model, file = make("llama"), tmp_path / "out.gguf"
    fit(file, OPTIONS, context(model, Quantize(), Trial({}, {})))
    stop = ModelTokenizer(model).stop_ids
    ended = [[*ids, *stop, 5, 6] for ids in OTHER_TEXTS]
    found = Comparison(model, {"rows": ended, "text": OTHER_TEXTS}, 1).with_file(file)
    network, runtime, sums = mapped.load(model), open_model(file, threads=1, context=64), []
    for ids in OTHER_TEXTS:
        with torch.inference_mode():
            wanted = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        got = torch.from_numpy(runtime.logits(ids)).double().log_softmax(-1)
        sums.append(float((wanted.exp() * (wanted - got)).sum(-1).mean()))
    runtime.close()
    # Nothing after the stop token counts.
    assert found == pytest.approx(dict.fromkeys(("rows", "text"), sum(sums) / len(sums)), rel=0.02)


def test_a_file_beyond_a_limit_is_not_kept(make: Make, tmp_path: Path) -> None:
    only = Trial(HELD_OUT, {"the text of bad.txt": RUINOUS}, {"rows": 10.0, "text": 1e-4})
    with pytest.raises(GateError, match="drifts too far.* nats on text; the limit is .*No file") as caught:
        search(tmp_path / "out.gguf", OPTIONS, context(make("llama"), Quantize(), only))
    assert "--max-kld" in caught.value.hint and not [*tmp_path.iterdir()]


def test_one_that_holds_the_limits_comes_before_one_that_drifts_less_on_its_own_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A ruinous set of rows fits the rows that were held out of it well."""
    measured = [{"rows": 1e-2, "text": 1e-2}, {"rows": 1e-9, "text": 3.0}]
    simulate(monkeypatch, lambda cost: measured.pop(0))
    limits = {"rows": 0.05, "text": 0.15}
    sets = {"usual": GOOD, "given": {"rows": RUINOUS["text"]}}
    fitted = search(tmp_path / "out", OPTIONS, context(tmp_path, Quantize(), Trial(HELD_OUT, sets, limits)))
    assert fitted.calibration == "usual" and len(fitted.tries) == 2


def test_the_smallest_file_within_a_divergence_is_found(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, costs = [], fitting.costs

    def counted(*given: Any) -> Any:
        calls.append(1)
        return costs(*given)

    monkeypatch.setattr(fitting, "costs", counted)
    model, largest = make("llama", num_hidden_layers=2), 2e-4
    wanted = context(model, Quantize(max_kld_nats=largest), Trial(HELD_OUT, {"all": GOOD}))
    steps(OPTIONS)[-1].run(model, tmp_path / "out.gguf", wanted, ignore)
    found = json.loads((tmp_path / PLAN).read_text())
    fitted = Fitted(**{**found, "tries": [Try(**tried) for tried in found["tries"]]})
    assert (
        fitted.calibration == "all"
        and max(fitted.mean_kld_nats.values()) <= largest
        and fitted.mean_kld_nats.keys() == HELD_OUT.keys()
    )
    assert 1 < len(fitted.tries) <= TRIES and len(calls) == 1 and len({*fitted.types.values()}) > 1
    holding = [tried for tried in fitted.tries if max(tried.mean_kld_nats.values()) <= largest]
    assert (tmp_path / "out.gguf").stat().st_size == min(tried.bytes for tried in holding)
    assert {file.name for file in tmp_path.iterdir()} == {"out.gguf", PLAN}


def test_where_llama_cpp_rounds_no_files_are_tried(make: Make, tmp_path: Path) -> None:
    model, events = make("llama"), list[Event]()
    write(model, tmp_path / "floats.gguf", ignore)
    nearest = context(model, Quantize(method="nearest"), Trial(HELD_OUT, {"all": GOOD}))
    steps(OPTIONS)[-1].run(tmp_path / "floats.gguf", tmp_path / "out.gguf", nearest, events.append)
    told = [event for event in events if isinstance(event, Alert)]
    assert "No files are tried" in told[0].message and "max_kld_nats" in told[0].hint


def test_a_divergence_that_no_file_holds_is_refused(make: Make, tmp_path: Path) -> None:
    wanted = context(make("llama"), Quantize(max_kld_nats=1e-9), Trial(HELD_OUT, {"all": GOOD}))
    with pytest.raises(
        GateError, match="No file that was tried.*limit is 1e-09 on rows.*No file was"
    ) as caught:
        search(tmp_path / "out.gguf", OPTIONS, wanted)
    assert "--max-kld" in caught.value.hint and not [*tmp_path.iterdir()]


def ladder(tensors: int = 20) -> dict[str, dict[str, Choice]]:
    """Tensors whose cost falls fourfold with each bit."""
    return {
        f"blk.{n}": {
            f"{b} bits": Choice((n % 5 + 1) * 1000 * b, (n * 7 % 11 + 1) * 4.0**-b) for b in range(3, 14)
        }
        for n in range(tensors)
    }


def simulate(patch: pytest.MonkeyPatch, measure: Callable[[float], dict[str, float]]) -> None:
    """Files whose divergences follow from their estimate."""

    class Drafted:
        def __init__(self, options: GgufExport, context: ExportContext, emit: Any) -> None:
            self.quantize, self.is_limited = context.quantize, False

        def estimates(self, texts: Any) -> Any:
            return ladder()

        def within(self, estimates: Any, max_cost: float) -> Any:
            return smallest(estimates, max_cost)

        def of_size(self, estimates: Any, bytes: int) -> Any:
            return allocate(estimates, bytes)

        def write(self, out: Path, texts: Any, estimates: Any, plan: Any) -> Fitted:
            out.write_bytes(b"x" * (plan.size // 1000 if plan else 1))
            return Fitted(plan.types if plan else {}, plan.cost if plan else None, {}, {})

    patch.setattr(trial, "Draft", Drafted)
    estimate = [0.0]
    made = Drafted.write

    def write(self: Any, out: Path, texts: Any, estimates: Any, plan: Any) -> Fitted:
        estimate[0] = plan.cost if plan else 0.0
        return made(self, out, texts, estimates, plan)

    patch.setattr(Drafted, "write", write)
    compared = SimpleNamespace(with_file=lambda file: measure(estimate[0]))
    patch.setattr(trial, "Comparison", lambda *given: compared)


@settings(max_examples=20, deadline=None)
@given(
    factor=st.floats(0.2, 5), power=st.floats(0.5, 1.2), apart=st.floats(0.3, 1), largest=st.floats(0.01, 0.5)
)
def test_the_size_follows_from_what_was_measured(
    factor: float, power: float, apart: float, largest: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The divergence is another multiple of the estimate, and another power of it, than was thought."""

    def measure(estimate: float) -> dict[str, float]:
        worst = factor * (estimate / largest) ** power * largest
        return {"rows": apart * worst, "text": worst}

    out = tmp_path_factory.mktemp("made") / "out"
    with pytest.MonkeyPatch.context() as patch:
        simulate(patch, measure)
        wanted = context(out, Quantize(max_kld_nats=largest), Trial(HELD_OUT, {"all": GOOD}))
        fitted = search(out, OPTIONS, wanted)
    worst = [max(tried.mean_kld_nats.values()) for tried in fitted.tries]
    assert max(fitted.mean_kld_nats.values()) <= largest and len(worst) <= TRIES
    smallest = min(tried.bytes for tried, each in zip(fitted.tries, worst, strict=True) if each <= largest)
    assert out.stat().st_size == smallest
    assert all(not CLOSE * largest <= each <= largest for each in worst[:-1])
    assert 1 - 0.35 <= max(fitted.mean_kld_nats.values()) / largest or len({*fitted.types.values()}) == 1


def test_further_calibration_sets_are_tried_at_the_size_of_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Then the better one goes on alone."""
    seen: list[float] = []

    def measure(estimate: float) -> dict[str, float]:
        seen.append(estimate)
        return {"text": estimate * (3.0 if len(seen) == 1 else 2.0)}

    simulate(monkeypatch, measure)
    sets = {"usual": GOOD, "given": {"text": TEXTS}}
    wanted = context(tmp_path, Quantize(max_kld_nats=0.05), Trial({"text": OTHER_TEXTS}, sets))
    fitted = search(tmp_path / "out", OPTIONS, wanted)
    assert [tried.calibration for tried in fitted.tries][:3] == ["usual", "given", "given"]
    assert {tried.calibration for tried in fitted.tries[1:]} == {"given"} == {fitted.calibration}
    sizes = [tried.bytes for tried in fitted.tries]
    assert sizes[1] <= sizes[0] < sizes[2] and len(sizes) <= TRIES + 1
