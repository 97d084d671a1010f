"""The confidence of a bundle in an answer: by hand, and only from a file that the manifest lists."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runtime import FakeRuntime
from scipy.special import log_softmax, softmax

import edgekit
from edgekit.base.artifacts import sha256_file, write_json
from edgekit.base.errors import ConfigError, CorruptError
from edgekit.device.confidence import FILE, SCHEMA, Calibration, Verdict
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
        found = calibration.confidence(runtime, prompt, f" {label}\n")
        assert found == pytest.approx(expected[place], abs=1e-5)
    assert calibration.confidence(runtime, prompt, "ye") is None


@pytest.mark.parametrize(
    ("confidence", "minimum", "abstained"),
    [(0.8, 0.8, False), (0.79, 0.8, True), (None, 0.8, True), (0.0, 0.0, False), (None, 0.0, False)],
)
def test_an_answer_below_the_minimum_or_without_a_confidence_is_not_given(
    confidence: float | None, minimum: float, abstained: bool
) -> None:
    assert Verdict.of(confidence, minimum) == Verdict(confidence, abstained)


def test_auto_is_the_threshold_of_the_bundle_and_refused_without_one() -> None:
    model = LoadedModel(FakeRuntime(), format="gguf")
    model.calibration = Calibration(("no", "yes"), 0.25, 0.6)
    assert model.calibrated.minimum("auto") == 0.6 and model.calibrated.minimum(0.1) == 0.1
    model.calibration = Calibration(("no", "yes"), 0.25)
    with pytest.raises(ConfigError, match="no threshold of its own") as refused:
        model.sure_answer("is it?", "auto")
    assert "--min-confidence 0.8" in refused.value.hint


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
    for ask in (lambda: model.judge([10], "yes", 0.5), lambda: model.sure_answer("is it?", 0.5)):
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
        found = [model.judge(prompt, label, 0.5) for label in LABELS]
        sure = [verdict.confidence or 0.0 for verdict in found]
        assert sum(sure) == pytest.approx(1) and [one.abstained for one in found] == [
            one < 0.5 for one in sure
        ]
        assert model.judge(prompt, "something else", 0.5) == Verdict(None, True)
    with edgekit.load(bundle, "onnx", threads=1) as other:
        assert other.calibration is None
        with pytest.raises(ConfigError, match="no calibration") as refused:
            other.judge(prompt, "close_job", 0.5)
        assert "build the bundle again" in refused.value.hint


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
