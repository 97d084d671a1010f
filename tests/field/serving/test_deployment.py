"""What answers in the field: telemetry listens, a promoted release takes over, a bad one is judged so and left."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from field.releases.bundles import fit, same

import edgekit
from edgekit.base import hardware
from edgekit.base.errors import ConfigError, CorruptError
from edgekit.device.confidence import FILE, SCHEMA, Refusal
from edgekit.field.incidents.rules import Change
from edgekit.field.releases import Releases
from edgekit.field.serving.deployment import Deployment, OpenOptions
from edgekit.field.serving.engine import Engine
from edgekit.field.telemetry.collector import release_of
from edgekit.field.telemetry.metrics import Metrics
from edgekit.targets.rules import Rule

QUESTION = "close job 4512, thanks"


@pytest.fixture
def releases(tiny_build: Any, tmp_path: Path) -> Releases:
    """A device with the tiny bundle promoted; the checks before it have tests of their own."""
    found = Releases(tmp_path / "state" / "releases")
    promote(found, tiny_build.bundle)
    return found


def another(bundle: Path, out: Path, edit: Callable[[Path], Any]) -> Path:
    """A copy of the bundle with one file edited, and a manifest that says so: a release of its own."""
    shutil.copytree(bundle, out)
    edit(out)
    manifest = json.loads((out / "manifest.json").read_text())
    for entry in manifest["files"]:
        content = (out / entry["path"]).read_bytes()
        entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def reworded(folder: Path) -> None:
    (folder / "README.md").write_text("The next one.")


def misremembering(folder: Path) -> None:
    golden = json.loads((folder / "golden.json").read_text())
    for found in golden["formats"].values():
        for answer in found["answers"]:
            answer["ids"] = [*answer["ids"], 5]
    (folder / "golden.json").write_text(json.dumps(golden))


def forgetting(folder: Path) -> None:
    (folder / "golden.json").write_text("{}")


def promote(releases: Releases, bundle: Path) -> str:
    name = releases.import_(bundle, health=fit).name
    releases.promote(name, health=fit, compare=same)
    return name


def until(condition: Callable[[], Any]) -> None:
    tick = threading.Event()
    for _ in range(6000):
        if condition():
            return
        tick.wait(0.02)
    raise AssertionError("it never came")


@pytest.fixture
def said() -> list[str]:
    """What the deployment told, in words; its `switch_trouble` is gone a second after the old release is in use again."""
    return []


@pytest.fixture
def started(tmp_path: Path, said: list[str]) -> Iterator[Callable[..., tuple[Deployment, Engine]]]:
    running: list[tuple[Deployment, Engine]] = []

    def start(bundle: Path | None = None, refusal: Refusal | None = None) -> tuple[Deployment, Engine]:
        options = OpenOptions(threads=1, refusal=refusal)
        deployment = Deployment(tmp_path / "state", bundle, options=options, say=said.append)
        opened = deployment.opened
        engine = Engine(opened.model, name="tiny", source=opened.bundle, release=opened.release)
        deployment.metrics = Metrics("tiny")
        deployment.start(engine)
        running.append((deployment, engine))
        return deployment, engine

    yield start
    for deployment, engine in running:
        deployment.close()
        engine.close()


def test_a_bundle_answers_and_telemetry_counts(tiny_build: Any, started: Any) -> None:
    deployment, _ = started(tiny_build.bundle)
    model = deployment.opened.model
    answers = [model.generate(QUESTION) for _ in range(3)]
    window = deployment.window(0, 4e9)
    assert window.requests == 3 and window.release in (None, release_of(tiny_build.bundle))
    assert deployment.metrics and b'edgekit_answers_total{finish="' in deployment.metrics.render()
    assert window.confidence is not None and sum(window.classes.values()) == 3
    with edgekit.load(tiny_build.bundle) as plain:
        assert answers == [plain.generate(QUESTION)] * 3


def test_the_metrics_tell_the_release_and_the_incidents_under_way(tiny_build: Any, started: Any) -> None:
    deployment, _ = started(tiny_build.bundle)

    def page() -> str:
        return str(deployment.metrics.render().decode())

    until(lambda: f'release="{release_of(tiny_build.bundle)}"' in page())
    assert 'edgekit_incidents{severity="critical"} 0.0' in page()
    rule = Rule(kind="errors", above=0.05, severity="critical")
    deployment.watcher.incidents.open(Change("opened", rule, "x", "x", 90.0, 60.0, 0.5), who="test")
    until(lambda: 'edgekit_incidents{severity="critical"} 1.0' in page())
    assert 'edgekit_incident_since_seconds{kind="errors",severity="critical"} 60.0' in page()
    deployment.watcher.incidents.path.write_bytes(b"no database")
    until(lambda: "edgekit_incidents" not in page())  # not known is not the same as none
    assert "edgekit_release_info" in page()  # by which a reader knows it


def test_a_state_folder_is_all_that_an_app_gives(tiny_build: Any, tmp_path: Path) -> None:
    with edgekit.load(tiny_build.bundle, "onnx", telemetry=tmp_path / "state") as model:
        model.generate(QUESTION)
    from edgekit.field.telemetry.store import Store

    assert Store(tmp_path / "state" / "telemetry.sqlite").window(0, 4e9).requests == 1


def test_what_starts_well_is_marked_good_and_a_promoted_one_takes_over(
    releases: Releases, started: Any, tiny_build: Any, tmp_path: Path
) -> None:
    first = release_of(tiny_build.bundle)
    deployment, engine = started()
    assert engine.release == first and [r.place for r in releases.list()] == ["current"]
    second = promote(releases, another(tiny_build.bundle, tmp_path / "second", reworded))
    until(lambda: engine.release == second)
    until(lambda: releases.pending() is None)
    assert {r.name: r.place for r in releases.list()} == {second: "current", first: "previous"}
    deployment._roll_back(
        SimpleNamespace(what="It drifts.", release=second)
    )  # what a rule with `action = "auto"` does
    until(lambda: engine.release == first)
    assert "It drifts." in releases.log()[-1]["why"] and not deployment.switch_trouble


def test_a_switch_waits_until_two_models_fit_into_memory(
    releases: Releases,
    started: Any,
    tiny_build: Any,
    tmp_path: Path,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = release_of(tiny_build.bundle)
    deployment, engine = started()
    monkeypatch.setattr(hardware, "available_memory_mib", lambda: 0)
    second = promote(releases, another(tiny_build.bundle, tmp_path / "second", reworded))
    until(lambda: "0 MiB are free" in deployment.switch_trouble)
    assert engine.release == first and deployment.opened.model.generate(QUESTION)
    assert releases.pending() == second and releases.get(second).tries == 3  # no verdict, and no try is lost
    monkeypatch.setattr(hardware, "available_memory_mib", lambda: 1 << 20)
    until(lambda: engine.release == second and not deployment.switch_trouble)


def calibrated(folder: Path, **more: float) -> None:
    """Its manifest lists a calibration; the digest is that of `another`."""
    entry = {"labels": ["close_job", "open_job"], "temperature": 0.5, "rows": 9, **more}
    (folder / FILE).write_text(json.dumps({"schema": SCHEMA, "formats": {"gguf": entry}}))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"].append({"path": FILE, "bytes": 0, "sha256": "0" * 64})
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_server_with_a_lowest_confidence_opens_no_release_without_a_calibration(
    releases: Releases, started: Any, tiny_build: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="has no calibration"):
        started(tiny_build.bundle, Refusal(0.8))
    with pytest.raises(ConfigError, match="has no calibration"):
        started(None, Refusal(0.8))
    releases.mark_good(release_of(tiny_build.bundle))
    first = promote(releases, another(tiny_build.bundle, tmp_path / "first", calibrated))
    deployment, engine = started(None, Refusal(0.8))
    assert engine.release == first and deployment.opened.model.refusal == Refusal(0.8)
    until(lambda: releases.pending() is None)
    second = promote(releases, another(tiny_build.bundle, tmp_path / "second", reworded))
    until(lambda: "has no calibration" in deployment.switch_trouble)
    assert engine.release == first and releases.pending() == second
    assert releases.get(second).tries == 3  # no verdict, and no try is lost


@pytest.mark.parametrize(
    ("refusal", "key", "values", "why"),
    [
        (Refusal("auto"), "threshold", (0.625, 0.75), "no threshold of its own"),
        (Refusal(out_of_scope=True), "scope_threshold", (-9.0, -0.25), "no threshold of the score"),
    ],
)
def test_each_release_answers_from_its_own_threshold_on(
    releases: Releases, started: Any, tiny_build: Any, tmp_path: Path,
    refusal: Refusal, key: str, values: tuple[float, float], why: str,
) -> None:  # fmt: skip
    releases.mark_good(release_of(tiny_build.bundle))

    def promoted(name: str, **more: float) -> str:
        change = partial(calibrated, **more)
        return promote(releases, another(tiny_build.bundle, tmp_path / name, change))

    first = promoted("first", **{key: values[0]})
    deployment, engine = started(None, refusal)

    def limits() -> tuple[float, float | None]:
        model = deployment.opened.model
        return model.calibrated.limits(model.refusal)

    assert engine.release == first and values[0] in limits()
    until(lambda: releases.pending() is None)
    second = promoted("second", **{key: values[1]})
    until(lambda: engine.release == second and releases.pending() is None)
    assert values[1] in limits()
    promoted("third")
    until(lambda: why in deployment.switch_trouble)
    assert engine.release == second


def test_names_of_releases_kept_in_use_are_accepted_after_a_restart(
    releases: Releases, started: Any, tiny_build: Any, tmp_path: Path
) -> None:
    def renamed(folder: Path) -> None:
        reworded(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "name": "renamed"}))

    old = json.loads((tiny_build.bundle / "manifest.json").read_text())["name"]
    releases.mark_good()
    promote(releases, another(tiny_build.bundle, tmp_path / "second", renamed))
    _, engine = started()
    assert engine.answers_to(old) and not engine.answers_to("neither")


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (misremembering, "does not answer a golden question as at build time"),
        (forgetting, "golden.json cannot be read"),
    ],
)
def test_one_that_answers_otherwise_than_at_its_build_is_judged_bad_and_the_old_one_goes_on(
    releases: Releases,
    started: Any,
    tiny_build: Any,
    tmp_path: Path,
    said: list[str],
    fault: Any,
    why: str,
) -> None:
    deployment, engine = started()
    bad = promote(releases, another(tiny_build.bundle, tmp_path / "bad", fault))
    until(lambda: releases.get(bad).place == "bad")
    until(lambda: said)
    assert why in releases.get(bad).why and why in said[0]
    assert engine.release == release_of(tiny_build.bundle) and deployment.opened.model.generate(QUESTION)


def test_a_start_on_a_bad_release_goes_back_by_itself(
    releases: Releases, started: Any, tiny_build: Any, tmp_path: Path
) -> None:
    releases.mark_good()
    bad = promote(releases, another(tiny_build.bundle, tmp_path / "bad", misremembering))
    _, engine = started()
    assert engine.release == release_of(tiny_build.bundle) and releases.get(bad).place == "bad"


def test_a_start_with_nothing_but_a_bad_release_says_so(
    tiny_build: Any, tmp_path: Path, started: Any
) -> None:
    releases = Releases(tmp_path / "state" / "releases")
    promote(releases, another(tiny_build.bundle, tmp_path / "bad", misremembering))
    with pytest.raises(CorruptError, match="does not answer a golden question"):
        started()
