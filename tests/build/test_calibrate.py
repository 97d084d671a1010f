"""The temperature that a build fits: for which rows, with which labels, and for the artifact that it is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgekit import registry
from edgekit.base.artifacts import sha256_file, write_json
from edgekit.base.cache import Cache, StageOutput
from edgekit.base.events import ignore
from edgekit.build import calibrate
from edgekit.build.bundle import temperatures
from edgekit.build.request import Request
from edgekit.data.rows import Row
from edgekit.data.splits import Dataset
from edgekit.device.confidence import FILE, SCHEMA, read_calibration
from edgekit.evaluation import calibration as evaluation
from edgekit.evaluation import ood
from edgekit.evaluation.choices import Scored, score
from edgekit.models.likelihood import probabilities
from edgekit.models.source import resolve
from edgekit.report.outcome import Artifact


def rows(split: str, count: int, labels: int) -> list[Row]:
    return [
        Row(
            f"{split}{n}",
            ({"role": "user", "content": f"{split} question {n}"}, {"role": "assistant", "content": f"label {n % labels}"}),
        )
        for n in range(count)
    ]  # fmt: skip


@pytest.fixture
def request_of(small_model: Path, tmp_path: Path) -> Any:
    def made(labels: int, validation: int = 10, *changes: str) -> Request:
        data = Dataset(
            "rows",
            rows("train", 8 * labels, labels),
            rows("v", validation, labels),
            rows("test", 4, labels),
            {},
        )
        target = registry.load("profiles", "targets").load("cpu-int4", list(changes))
        return Request(resolve(str(small_model)), data, target, tmp_path / "out", tmp_path / "cache", 1)

    return made


@pytest.fixture
def artifact(small_gguf: Path) -> Artifact:
    step = StageOutput("quantize.gguf", small_gguf.parent, "d" * 64, {}, 0.0, 0.0, (), False)
    return Artifact("gguf", "llama.cpp", small_gguf.name, (step,), (small_gguf,))


def test_the_temperature_is_that_of_the_validation_rows(
    request_of: Any, artifact: Artifact, tmp_path: Path
) -> None:
    request, cache = request_of(3), Cache(tmp_path / "cache", lambda event: None)
    found = calibrate.calibration(cache, request, artifact).result
    assert found["labels"] == ["label 0", "label 1", "label 2"] and found["rows"] == 10
    opened = registry.load("runtimes", "llama.cpp")(artifact.path, threads=1)
    scored = score(opened, request.data.validation, found["labels"], lambda event: None, "s")
    opened.close()
    assert found["temperature"] == pytest.approx(
        evaluation.fit_temperature(scored.scores, scored.right), rel=1e-6
    )
    sure = probabilities(scored.scores, found["temperature"]).max(axis=1)
    assert found["threshold"] == pytest.approx(sure.min(), rel=1e-6)  # of ten rows none may be below it
    largest = scored.scores.max(axis=1)
    assert found["scope_threshold"] == pytest.approx(largest.min(), rel=1e-6) and found["abstaining"] == []
    assert found["after"]["nll"] <= found["before"]["nll"] + 0.1
    assert calibrate.calibration(cache, request, artifact).cached


def test_rows_out_of_scope_do_not_lower_the_thresholds(
    request_of: Any, artifact: Artifact, tmp_path: Path, monkeypatch: Any
) -> None:
    """Two of the validation rows are out of scope; the model is less sure of them than of the others."""
    request = request_of(3, 10, "tune.robust=true")
    beyond = [replace(row, messages=(row.messages[0], {**row.messages[1], "content": "out_of_scope"}))
              for row in rows("beyond", 2, 1)]  # fmt: skip
    validation = [*request.data.validation, *beyond]
    request = replace(request, data=replace(request.data, validation=validation))

    def scored_as(runtime: Any, asked: Any, labels: Any, *others: Any) -> Scored:
        right = np.array([labels.index(row.answer) for row in asked])
        scores = np.eye(len(labels))[right] * [
            [0.1 if row.answer == "out_of_scope" else 9.0] for row in asked
        ]
        return Scored(tuple(asked), scores, right)

    monkeypatch.setattr("edgekit.evaluation.choices.score", scored_as)
    found = calibrate.calibration(Cache(tmp_path / "cache", ignore), request, artifact).result
    sure = probabilities(np.array([9.0, 0, 0, 0]), found["temperature"])[0]
    assert found["rows"] == 12 and found["threshold"] == pytest.approx(sure)
    assert found["scope_threshold"] == 9.0 and found["abstaining"] == ["out_of_scope"]


@pytest.mark.parametrize(
    "change", ["tune.robust=true", 'tune.robustness.abstain="refused"', "tune.robust=false"]
)
def test_the_score_is_that_of_the_labels_among_which_eval_ood_chooses(
    request_of: Any, artifact: Artifact, tmp_path: Path, monkeypatch: Any, change: str
) -> None:
    """Two answers mean "out of scope" in these rows, so no single one does; robust tuning may add another."""
    request = request_of(3, 30, "tune.robust=true", change)
    beyond = [
        replace(row, messages=(row.messages[0], {**row.messages[1], "content": answer}), label="oos")
        for row, answer in zip(rows("beyond", 2, 1), ("none", "unknown"), strict=True)
    ]
    data = request.data
    data = replace(data, train=[*data.train, *beyond], validation=[*data.validation, *beyond])
    request = replace(request, data=data)
    asked = ood.Requests.of(data, "test", beyond, request.abstaining)

    def scored_as(runtime: Any, given: Any, labels: Any, *others: Any) -> Scored:
        scores = np.random.default_rng(5).uniform(-2, -1, (len(given), len(labels)))
        scores[:, [labels.index(row.answer) for row in beyond]] = -0.5  # of no account
        return Scored(tuple(given), scores, np.array([labels.index(row.answer) for row in given]))

    monkeypatch.setattr("edgekit.evaluation.choices.score", scored_as)
    found = calibrate.calibration(Cache(tmp_path / "cache", ignore), request, artifact).result
    known = [label for label in found["labels"] if label not in found["abstaining"]]
    assert known == list(asked.labels) == ["label 0", "label 1", "label 2"]
    assert {"none", "unknown"} <= set(found["abstaining"])
    scored = scored_as(None, data.validation, found["labels"])
    largest = scored.scores[:30, [found["labels"].index(label) for label in known]].max(axis=1)
    assert found["scope_threshold"] == sorted(largest)[1] < -0.5  # one row of thirty is below it


@pytest.mark.parametrize(("count", "below"), [(1, 0), (19, 0), (20, 0), (21, 1), (41, 2), (64, 3)])
def test_at_most_a_twentieth_is_below_the_threshold(count: int, below: int) -> None:
    sure = np.random.default_rng(7).random(count)
    assert (sure < evaluation.threshold(sure)).sum() == below


def test_the_answer_of_robust_tuning_to_requests_out_of_scope_is_a_label(request_of: Any) -> None:
    assert "out_of_scope" not in calibrate.labels_of(request_of(3))[0]
    robust = request_of(3, 10, "tune.robust=true")
    assert calibrate.labels_of(robust) == (["label 0", "label 1", "label 2", "out_of_scope"], "")
    without = request_of(3, 10, "tune.robust=true", "tune.robustness.out_of_scope_share=0")
    assert calibrate.labels_of(without) == calibrate.labels_of(request_of(3))


@pytest.mark.parametrize(
    ("labels", "validation", "scored"),
    [(2, 64, 64), (2, 65, 64), (20, 200, 51), (32, 1000, 32), (32, 20, 20)],
)
def test_no_more_is_scored_than_is_worth_its_time(
    request_of: Any, labels: int, validation: int, scored: int
) -> None:
    request = request_of(labels, validation)
    chosen = calibrate._rows(request.data.validation, calibrate.labels_of(request)[0])
    assert len(chosen) == scored and len(chosen) * labels <= 1024
    assert len({row.id for row in chosen}) == scored


@pytest.mark.parametrize("labels", [1, 33, 250])
def test_free_answers_and_many_labels_open_nothing(
    request_of: Any, artifact: Artifact, tmp_path: Path, labels: int
) -> None:
    missing = replace(artifact, outputs=(tmp_path / "missing.gguf",))
    found = calibrate.calibration(Cache(tmp_path / "cache", lambda event: None), request_of(labels), missing)
    assert list(found.result) == ["refused"] and f"{labels} different answers" in found.result["refused"]


def test_validation_rows_of_other_labels_are_no_ground(
    request_of: Any, artifact: Artifact, tmp_path: Path
) -> None:
    request = request_of(3)
    request = replace(request, data=replace(request.data, validation=[_other()]))
    found = calibrate.calibration(Cache(tmp_path / "cache", lambda event: None), request, artifact)
    assert "No answer of the validation rows" in found.result["refused"]


def test_the_bundle_gets_what_a_device_reads(request_of: Any, artifact: Artifact, tmp_path: Path) -> None:
    """Of the formats with a temperature alone."""
    cache = Cache(tmp_path / "cache", lambda event: None)
    onnx = replace(artifact, format="onnx")
    stages = [
        calibrate.calibration(cache, request_of(3), artifact),
        calibrate.calibration(cache, request_of(33), onnx),
    ]
    outcome: Any = SimpleNamespace(artifacts=[artifact, onnx], calibrations=stages)
    file = tmp_path / FILE
    write_json(file, {"schema": SCHEMA, "formats": temperatures(outcome)})
    entry = {"path": FILE, "bytes": file.stat().st_size, "sha256": sha256_file(file)}
    manifest = {"files": [entry], "formats": {}}
    found = read_calibration(tmp_path, manifest, "gguf")
    assert found and found.labels == ("label 0", "label 1", "label 2")
    assert found.temperature == stages[0].result["temperature"]
    assert found.threshold == stages[0].result["threshold"] and 0 < found.threshold < 1
    assert found.scope_threshold == stages[0].result["scope_threshold"] and found.abstaining == ()
    assert read_calibration(tmp_path, manifest, "onnx") is None


def _other() -> Row:
    return Row("v", ({"role": "user", "content": "q"}, {"role": "assistant", "content": "another"}))
