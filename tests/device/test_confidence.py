"""The confidence of a bundle in an answer: by hand, and only from a file that the manifest lists."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runtime import FakeRuntime
from scipy.special import log_softmax, softmax

import edgekit
from edgekit.base.artifacts import sha256_file, write_json
from edgekit.base.errors import ConfigError, CorruptError
from edgekit.device.confidence import FILE, SCHEMA, Calibration, Refusal, Verdict
from edgekit.device.loaded import LoadedModel
from edgekit.report.readme import bundle_readme

LABELS = ["close_job", "open_job", "out_of_scope"]
ENTRY = {"labels": LABELS, "temperature": 0.5, "rows": 40}


def by_hand(runtime: FakeRuntime, start: int, answer: str) -> float:
    """The mean log-probability of the bytes of `answer` and of the stop after the token `start`."""
    tokens = [*answer.encode(), 258]
    sure = log_softmax(runtime.table[[start, *tokens[:-1]]].astype(float), axis=1)
    return float(np.mean([sure[place, token] for place, token in enumerate(tokens)]))


def test_the_confidence_is_the_probability_among_the_labels_at_the_temperature() -> None:
    runtime, calibration = FakeRuntime(), Calibration(("no", "yes", "perhaps"), 0.25)
    prompt = runtime.encode("is it?\n")
    expected = softmax(np.array([by_hand(runtime, prompt[-1], label) for label in calibration.labels]) / 0.25)
    for place, label in enumerate(calibration.labels):
        found = calibration.judge(runtime, prompt, f" {label}\n", Refusal())
        assert found == Verdict(pytest.approx(expected[place], abs=1e-5))  # type: ignore[arg-type]
    for answer in ("ye", None):
        assert calibration.judge(runtime, prompt, answer, Refusal()) == Verdict(None)


def test_an_answer_below_the_minimum_or_without_a_confidence_is_not_given() -> None:
    runtime, calibration = FakeRuntime(), Calibration(("no", "yes"), 0.25)

    def judged(answer: str | None, minimum: float) -> Verdict:
        return calibration.judge(runtime, [10], answer, Refusal(minimum))

    sure = judged("yes", 0.0).confidence or 0.0
    assert 0 < sure < 1 and not judged("yes", sure).abstained
    below = judged("yes", sure + 0.001)
    assert below.abstained and f"the confidence of {sure:.1%} is below" in below.why
    for answer in ("perhaps", None):
        assert "not one of the labels" in judged(answer, 0.8).why and not judged(answer, 0.0).abstained


class Counts(FakeRuntime):
    """Scores answers as its base class does, and counts how often it is asked to."""

    asked = 0

    def score_answers(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        self.asked += 1
        return [(len(one) + 1) * by_hand(self, prompt[-1], bytes(one).decode()) for one in answers]


@pytest.mark.parametrize(("above", "in_scope"), [(-1e-4, True), (1e-4, False)])
def test_a_request_is_in_scope_by_the_largest_score_of_the_labels_that_do_not_abstain(
    above: float, in_scope: bool
) -> None:
    """The label that means "out of scope" has the largest score of all, which does not count."""
    runtime, asked = FakeRuntime(), Refusal(out_of_scope=True)
    score = {label: by_hand(runtime, 10, label) for label in ("no", "yes", "sure")}
    largest = max(score["yes"], score["sure"])
    assert score["no"] > largest + 0.1
    calibration = Calibration(tuple(score), 0.25, None, largest + above, ("no",))
    for answer in ("yes", "perhaps", None):  # without a lowest confidence, the request alone decides
        found = calibration.judge(runtime, [10], answer, asked)
        assert (found.in_scope, found.abstained) == (in_scope, not in_scope)
        assert (found.confidence is None) == (answer != "yes")
        assert in_scope or f"the largest score of {largest:.3f} is below" in found.why
    own = calibration.judge(runtime, [10], " no", asked)
    assert (own.in_scope, own.abstained) == (False, True) and own.confidence
    assert "the model itself answers that the request is out of scope" in own.why
    # without the switch, it is a label as the others
    assert calibration.judge(runtime, [10], "no", Refusal()) == Verdict(own.confidence)


def test_a_score_that_is_no_number_is_not_in_scope() -> None:
    runtime = FakeRuntime(np.full((259, 259), np.nan, np.float32))
    calibration = Calibration(("no", "yes"), 0.25, None, -5.0)
    assert calibration.judge(runtime, [10], "yes", Refusal(out_of_scope=True)).in_scope is False


def test_both_refusals_go_together_and_the_labels_are_scored_once() -> None:
    runtime = Counts()
    model = LoadedModel(runtime, format="gguf")
    largest = max(by_hand(runtime, 10, label) for label in ("no", "yes"))
    model.calibration = Calibration(("no", "yes"), 0.25, 1.0, largest - 0.1)
    both = model.judge([10], "yes", Refusal("auto", True))
    assert both.in_scope and both.abstained and "is below 100.0%" in both.why and runtime.asked == 1
    assert model.judge([10], "perhaps", Refusal(0.8, True)).fields == {
        "confidence": None, "abstained": True, "in_scope": True,
    }  # fmt: skip
    assert runtime.asked == 2
    model.judge([10], None, Refusal(0.8))
    assert runtime.asked == 2  # nothing to learn from them


def test_each_switch_takes_its_own_threshold_and_is_refused_without_it() -> None:
    model = LoadedModel(FakeRuntime(), format="gguf")
    model.calibration = Calibration(("no", "yes"), 0.25, 0.6, -0.5)
    assert model.calibrated.limits(Refusal("auto", True)) == (0.6, -0.5)
    assert model.calibrated.limits(Refusal(0.1)) == (0.1, None)
    text, verdict = model.sure_answer("is it?", refuse_out_of_scope=True)
    assert text and verdict.in_scope is False and verdict.abstained
    model.calibration = Calibration(("no", "yes"), 0.25)
    with pytest.raises(ConfigError, match="no threshold of its own") as refused:
        model.sure_answer("is it?", "auto")
    assert "--min-confidence 0.8" in refused.value.hint
    with pytest.raises(ConfigError, match="which --refuse-out-of-scope takes") as refused:
        model.sure_answer("is it?", refuse_out_of_scope=True)
    assert "build the bundle again" in refused.value.hint


class Swaps(FakeRuntime):
    """Takes adapters, apart from damaged ones."""

    def use(self, adapter: Path | None) -> None:
        if adapter and adapter.name == "damaged":
            raise CorruptError("The adapter is damaged.", "")


def test_the_calibration_of_a_model_is_not_used_with_an_adapter_and_comes_back_without() -> None:
    model = LoadedModel(Swaps(), format="gguf")
    model.calibration = own = Calibration(("no", "yes"), 0.25)
    sure = model.sure_answer("is it?", 0.0)[1]
    assert model.use(Path("other.gguf")).calibration is None
    for ask in (
        lambda: model.judge([10], "yes", Refusal(0.5)),
        lambda: model.sure_answer("is it?", 0.5),
        lambda: model.sure_answer("is it?", refuse_out_of_scope=True),
    ):
        with pytest.raises(ConfigError, match=r"without the adapter other\.gguf") as refused:
            ask()
        assert "use(None)" in refused.value.hint
    with pytest.raises(CorruptError):
        model.use(Path("damaged"))
    assert model.calibration is None and model.adapter == Path("other.gguf")
    assert model.use(None).calibration == own and model.sure_answer("is it?", 0.0)[1] == sure
    with pytest.raises(CorruptError):
        model.use(Path("damaged"))
    assert model.calibration == own
    with pytest.raises(ConfigError, match="This gguf model has no calibration"):
        _ = LoadedModel(Swaps(), format="gguf").use(Path("other.gguf")).calibrated


@pytest.fixture
def with_file(tiny_build: Any, tmp_path: Path) -> Callable[[Any], Path]:
    """A copy of a bundle whose manifest lists the given calibration."""

    def made(document: Any) -> Path:
        bundle = Path(shutil.copytree(tiny_build.bundle, tmp_path / "bundle"))
        file = bundle / FILE
        write_json(file, document)
        manifest = json.loads((bundle / "manifest.json").read_text())
        entry = {"path": FILE, "bytes": file.stat().st_size, "sha256": sha256_file(file)}
        write_json(bundle / "manifest.json", {**manifest, "files": [*manifest["files"], entry]})
        return bundle

    return made


def test_a_bundle_with_a_calibration_judges_its_answers(with_file: Callable[[Any], Path]) -> None:
    bundle = with_file({"schema": SCHEMA, "formats": {"gguf": ENTRY}})
    with edgekit.load(bundle, "gguf", threads=1) as model:
        assert model.calibration == Calibration(
            tuple(LABELS), 0.5
        )  # a bundle of before thresholds were stored
        prompt = model.prompt([{"role": "user", "content": "close job 4512, thanks"}])
        found = [model.judge(prompt, label, Refusal(0.5)) for label in LABELS]
        sure = [verdict.confidence or 0.0 for verdict in found]
        assert sum(sure) == pytest.approx(1) and [one.abstained for one in found] == [
            one < 0.5 for one in sure
        ]
        assert model.judge(prompt, "something else", Refusal(0.5)).abstained
    with edgekit.load(bundle, "onnx", threads=1) as other:
        assert other.calibration is None
        with pytest.raises(ConfigError, match="no calibration") as refused:
            other.judge(prompt, "close_job", Refusal(0.5))
        assert "build the bundle again" in refused.value.hint


def test_a_bundle_with_a_scope_threshold_judges_requests(with_file: Callable[[Any], Path]) -> None:
    entry = ENTRY | {"threshold": None, "scope_threshold": -1e9, "abstaining": ["out_of_scope"]}
    with edgekit.load(with_file({"schema": SCHEMA, "formats": {"gguf": entry}}), "gguf", threads=1) as model:
        assert model.calibration == Calibration(tuple(LABELS), 0.5, None, -1e9, ("out_of_scope",))
        text, verdict = model.sure_answer("close job 4512, thanks", refuse_out_of_scope=True)
        assert text and verdict.in_scope and not verdict.abstained


def test_a_bundle_without_the_file_opens_as_before(tiny_build: Any) -> None:
    assert not (tiny_build.bundle / FILE).exists()  # its answers are not labels
    with edgekit.load(tiny_build.bundle, threads=1) as model:
        assert model.calibration is None
    report = json.loads((tiny_build.bundle / "report.json").read_text())
    assert "different answers" in report["calibration"]["gguf"]["refused"]


def test_the_readme_of_a_bundle_tells_of_the_file(tiny_build: Any) -> None:
    manifest, report = (
        json.loads((tiny_build.bundle / name).read_text()) for name in ("manifest.json", "report.json")
    )
    assert FILE not in bundle_readme(manifest, report)
    assert f"| `{FILE}` |" in bundle_readme(manifest, report | {"calibration": {"gguf": ENTRY}})


def test_a_file_that_is_not_the_manifest_s_is_refused(with_file: Callable[[Any], Path]) -> None:
    bundle = with_file({"schema": SCHEMA, "formats": {"gguf": ENTRY}})
    (bundle / FILE).write_text((bundle / FILE).read_text().replace("0.5", "0.6"))
    with pytest.raises(CorruptError, match="digest differs"):
        edgekit.load(bundle, threads=1)


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"schema": SCHEMA},
        {"schema": "edgekit.bundle.calibration/9", "formats": {}},
        {"schema": SCHEMA, "formats": {"gguf": ENTRY | {"temperature": 0}}},
        {"schema": SCHEMA, "formats": {"gguf": ENTRY | {"temperature": "hot"}}},
        {"schema": SCHEMA, "formats": {"gguf": ENTRY | {"threshold": 1.5}}},
        {"schema": SCHEMA, "formats": {"gguf": ENTRY | {"threshold": "high"}}},
        *(
            {"schema": SCHEMA, "formats": {"gguf": ENTRY | {"scope_threshold": value}}}
            for value in (0.1, -math.inf, math.nan, "low", [], 10**400)
        ),
        *(
            {"schema": SCHEMA, "formats": {"gguf": ENTRY | {"scope_threshold": -1.0, "abstaining": value}}}
            for value in (["another"], [7], [[]], "out_of_scope", LABELS, None)
        ),
        {"schema": SCHEMA, "formats": {"gguf": ENTRY | {"labels": ["a"]}}},
        {"schema": SCHEMA, "formats": {"gguf": ENTRY | {"labels": ["a", "a"]}}},
        {"schema": SCHEMA, "formats": {"gguf": ENTRY | {"labels": ["a", 1]}}},
        {"schema": SCHEMA, "formats": {"gguf": ENTRY | {"labels": 7}}},
        {"schema": SCHEMA, "formats": {"gguf": ENTRY | {"labels": [f"label {n}" for n in range(201)]}}},
    ],
)
def test_a_malformed_file_is_refused(with_file: Callable[[Any], Path], document: Any) -> None:
    with pytest.raises(CorruptError, match=r"calibration"):
        edgekit.load(with_file(document), threads=1)
