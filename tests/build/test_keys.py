"""Every stage runs again when anything changes that its result depends on, and only then; the work itself is replaced.

Each stage writes fixed bytes, so that a changed input reaches the stages that name it and none that come after them.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from edgekit import registry
from edgekit.base import cache, code, hardware
from edgekit.base.cache import Cache, StageOutput
from edgekit.build import calibrate, checks, robustness, stages
from edgekit.build.pipeline import stage_names
from edgekit.build.request import Request
from edgekit.data.dataset import load_dataset
from edgekit.data.rows import Row
from edgekit.data.splits import Dataset
from edgekit.models.source import resolve
from edgekit.proof.drift import Drift
from edgekit.proof.source import bring_in
from edgekit.targets.target import Robustness, Target

DRIFT = asdict(Drift(0.1, 0.2, 0.9, 10))
RESULTS: dict[str, dict[str, Any]] = {
    "merge": DRIFT, "drift": DRIFT, "verify": {"drift": {}, "from_input": {}, "deviations": []}, "profile": {"entries": []},
    "signals": {"signals": {}, "sure": []}, "calibration": {"refused": "free answers"},
}  # fmt: skip
FORMATS = ("gguf", "onnx")
EXPORTS = {"export.gguf", "quantize.gguf", "export.onnx"}
VERIFY, EVAL, GOLDEN, SIGNALS, CALIBRATION, PROFILE = (
    {f"{kind}.{name}" for name in FORMATS}
    for kind in ("verify", "eval", "golden", "signals", "calibration", "profile")
)
FEW_SHOT = {"eval.base_few_shot"}
ROBUST = {"robust.tuned", "robust.gguf", "robust.onnx"}
EVALS = EVAL | FEW_SHOT | {"eval.base", "eval.tuned"}


class Recorded(Cache):
    """A cache whose stages write fixed bytes; `ran` are those that were made, `depends` the modules and packages of each."""

    def __init__(self, root: Path, bytes_of: dict[str, str]) -> None:
        super().__init__(root, lambda event: None)
        self.ran: set[str] = set()
        self.depends: dict[str, tuple[list[str], list[str]]] = {}
        self.bytes_of = bytes_of

    def stage(
        self, name: str, inputs: Any, run: Any, modules: Sequence[str] = (), packages: Sequence[str] = ()
    ) -> StageOutput:
        self.depends[name] = ([*modules], [*packages])

        def fake(out: Path, work: Path) -> dict[str, Any]:
            self.ran.add(name)
            out.mkdir()
            (out / "output").write_text(self.bytes_of.get(name, name))
            (out / "config.json").write_text("{}")
            return RESULTS.get(name.partition(".")[0], {})

        fake.__module__ = run.__module__
        json.dumps(inputs)
        return super().stage(name, inputs, fake, modules, packages)


@dataclass
class World:
    """A request whose every stage was made once, and what may be changed about it."""

    root: Path
    request: Request
    bytes_of: dict[str, str] = field(default_factory=dict)
    system: str | None = None
    max_tokens: int = 20

    def run(self) -> Recorded:
        """Every stage of a build, in its order."""
        cache, request = Recorded(self.root, self.bytes_of), self.request
        base = bring_in(cache, request.source)
        adapter = stages.tune(cache, request, base)
        merged = stages.merge(cache, request, base, adapter)
        pruned = stages.prune(cache, request, merged)
        artifacts = [stages.export(cache, request, pruned, options) for options in request.target.export]
        reference = checks.capture(cache, request, merged)
        for model in (base, pruned):
            checks.drift(cache, request, reference, model)
        for artifact in artifacts:
            checks.verify(cache, request, reference, merged, pruned, artifact)
        variants = [("base", base.digest, "torch", base.path), ("tuned", merged.digest, "torch", merged.path)]
        variants += [(each.format, each.digest, each.runtime, each.path) for each in artifacts]
        answers = {each[0]: checks.evaluate(cache, request, *each, self.max_tokens) for each in variants}
        for subject in (robustness.Subject(*each) for each in variants[1:]):
            robustness.measure(cache, request, subject, answers[subject.name], self.max_tokens)
        checks.evaluate_few_shot(cache, request, base, self.max_tokens)
        for artifact in artifacts:
            checks.golden_answers(cache, request, artifact, self.max_tokens)
            checks.signals(cache, request, artifact, self.system, self.max_tokens)
            calibrate.calibration(cache, request, artifact)
            checks.profile(cache, request, artifact)
        return cache

    def change(self, **parts: Any) -> None:
        """Change parts of the request."""
        self.request = replace(self.request, **parts)

    def ran(self) -> set[str]:
        """The stages that run again now."""
        return self.run().ran


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_small(tmp_path_factory.mktemp("keys") / "model")


@pytest.fixture(scope="module")
def rows() -> Dataset:
    data = load_dataset("demo")
    return replace(data, train=data.train[:8], validation=data.validation[:4], test=data.test[:4])


@pytest.fixture(scope="module", autouse=True)
def no_tokenizer() -> Iterator[None]:
    """The model's folder holds no tokenizer here, as nothing is made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "tokenizer_of", lambda model: None)
        patch.setattr(checks, "longest_answer", lambda request, tokenizer: 20)
        patch.setattr(cache, "give_back", lambda: None)  # no stage has taken memory
        yield


@pytest.fixture(scope="module")
def finished(model: Path, rows: Dataset, tmp_path_factory: pytest.TempPathFactory) -> World:
    changes = ["prune.drop_layers=1", "quantize.calibration_rows=4", "evaluate.robust_rows=1"]
    target: Target = registry.load("profiles", "targets").load("cpu-int4", changes)
    root = tmp_path_factory.mktemp("cache")
    world = World(root, Request(resolve(str(model)), rows, target, root / "out", root, threads=1))
    assert world.ran() == set(stage_names(target, {}))
    return world


@pytest.fixture
def world(finished: World, tmp_path: Path) -> World:
    """The same world with a cache of its own."""
    root = Path(shutil.copytree(finished.root, tmp_path / "cache"))
    copy = replace(finished, root=root, bytes_of={})
    assert copy.ran() == set()
    return copy


def other(value: Any) -> Any:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value}x"
        case None:
            return 1.0
        case list() | tuple():
            return [*value, value[0] if value else "x"]
        case dict():
            return {**value, "x": "y"}
        case Robustness():
            return value.model_copy(update={"strength": 0.5})
    raise TypeError(type(value))


TABLES: dict[str, set[str]] = {
    "tune": {"tune"}, "prune": {"prune"}, "profile": PROFILE, "device": PROFILE, "budget": VERIFY,
    "evaluate": ROBUST, "quantize": EXPORTS,
}  # fmt: skip
MORE = {("quantize", "calibration_rows"): {"prune"}}
# Values that change how a result is computed, whether it is, and the parts of robust tuning, which is off here.
NO_RESULT = {("tune", "gradient_checkpointing"), ("tune", "robustness"), ("evaluate", "robust")}
TARGET: Target = registry.load("profiles", "targets").load("cpu-int4", [])
OPTIONS = [
    (table, name)
    for table in TABLES
    for name in sorted(
        getattr(TARGET, table).model_fields_set | set(type(getattr(TARGET, table)).model_fields)
    )
]


@pytest.mark.parametrize("table, name", OPTIONS)
def test_each_option_of_the_target(world: World, table: str, name: str) -> None:
    target = world.request.target
    values = getattr(target, table)
    changed = values.model_copy(update={name: other(getattr(values, name))})
    world.change(target=target.model_copy(update={table: changed}))
    expected = TABLES[table] | MORE.get((table, name), set())
    assert world.ran() == (set() if (table, name) in NO_RESULT else expected)


EXPORT_OPTIONS = [
    (index, name)
    for index, export in enumerate(TARGET.export)
    for name in sorted(type(export).model_fields)
    if name not in ("format", "llama_cpp")  # a checkout is identified by its own test
]


@pytest.mark.parametrize("index, name", EXPORT_OPTIONS)
def test_each_option_of_an_export(world: World, index: int, name: str) -> None:
    target = world.request.target
    export = target.export[index]
    changed = export.model_copy(update={name: other(getattr(export, name))})
    world.change(
        target=target.model_copy(
            update={"export": [*target.export[:index], changed, *target.export[index + 1 :]]}
        )
    )
    ran = world.ran()
    assert ran and all(stage in EXPORTS and stage.endswith(export.format) for stage in ran)


def test_the_plain_text_that_quantizers_calibrate_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "passages", lambda: ["Another text."])
    assert world.ran() == EXPORTS
    monkeypatch.undo()
    quantize = world.request.target.quantize.model_copy(update={"calibration_texts": 0})
    world.change(target=world.request.target.model_copy(update={"quantize": quantize}))
    assert world.ran() == EXPORTS
    monkeypatch.setattr(stages, "passages", lambda: ["A text that is not read."])
    assert world.ran() == set()


def reworded(row: Row, which: int) -> Row:
    messages = [dict(message) for message in row.messages]
    messages[which]["content"] += " indeed"
    return replace(row, messages=tuple(messages))  # type: ignore[arg-type]


ROW_CHANGES: dict[str, Callable[[Row], Row]] = {
    "question": lambda row: reworded(row, -2),
    "answer": lambda row: reworded(row, -1),
    "id": lambda row: replace(row, id=row.id + "x"),
    "label": lambda row: replace(row, label="other"),
}
SPLITS: dict[str, set[str]] = {
    "train": {"tune", "prune"} | EXPORTS | VERIFY | FEW_SHOT | SIGNALS,  # no text of the data may be spoiled
    "validation": {"tune", "merge", "reference"} | VERIFY | GOLDEN | SIGNALS,
    "test": {"reference"} | VERIFY | EVALS | ROBUST,
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("change", ROW_CHANGES)
def test_each_text_of_a_row(world: World, split: str, change: str) -> None:
    """The same ids with another text are other rows."""
    rows = [*getattr(world.request.data, split)]
    rows[0] = ROW_CHANGES[change](rows[0])
    world.change(data=replace(world.request.data, **{split: rows}))
    assert world.ran() == SPLITS[split]


def test_the_line_of_a_row_and_the_name_of_the_data_do_not_count(world: World) -> None:
    data = world.request.data
    world.change(
        data=replace(data, name="other", train=[replace(row, line=row.line + 1) for row in data.train])
    )
    world.change(out=Path("elsewhere"), force=True)
    assert world.ran() == set()


INPUTS: dict[str, set[str]] = {
    "model": {"tune", "merge", "drift.model", "eval.base"} | FEW_SHOT,
    "tune": {"merge"},
    "merge": {"prune", "reference", "eval.tuned", "robust.tuned"} | VERIFY,
    "prune": {"drift.prune"} | EXPORTS | VERIFY,
    "export.gguf": {"quantize.gguf", "verify.gguf"},
    "quantize.gguf": {f"{kind}.gguf" for kind in ("verify", "eval", "robust", "golden", "signals", "calibration", "profile")},
    "export.onnx": {f"{kind}.onnx" for kind in ("verify", "eval", "robust", "golden", "signals", "calibration", "profile")},
    "reference": {"drift.model", "drift.prune"} | VERIFY,
    "eval.tuned": {"robust.tuned"},
    "eval.gguf": {"robust.gguf"},
}  # fmt: skip


@pytest.mark.parametrize("stage", INPUTS)
def test_each_input_that_another_stage_made(world: World, stage: str) -> None:
    """The stage is made again with other bytes, and all that read them run again."""
    world.bytes_of[stage] = "other bytes"
    shutil.rmtree(world.root / stage)
    assert world.ran() == {stage} | INPUTS[stage]


def test_each_other_input(world: World, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inference = (
        {"reference", "drift.model", "drift.prune"} | VERIFY | EVALS | ROBUST | GOLDEN | SIGNALS | CALIBRATION
    )
    before = world.request
    world.change(threads=2)
    assert world.ran() == {"tune"} | EXPORTS | inference
    world.request, world.system = before, "Be brief."
    assert world.ran() == SIGNALS
    world.system, world.max_tokens = None, 21
    assert world.ran() == EVALS | ROBUST | GOLDEN | SIGNALS
    world.max_tokens = 20
    world.change(source=replace(before.source, licence="MIT"))
    assert world.ran() == {"model"}
    world.change(source=replace(before.source, kind="hub", commit="c" * 40))
    assert world.ran() == {"model"}
    other_model = tiny.make_small(tmp_path / model.name, seed=3)
    world.change(source=resolve(str(other_model)))
    assert world.ran() == {"model"}
    world.request = before
    monkeypatch.setattr(hardware, "gpu", lambda: "Made Up 9000")
    assert world.ran() == {"tune"} | PROFILE
    monkeypatch.undo()
    monkeypatch.setattr(hardware, "cpu_has_bf16", lambda: not hardware.cpu_flags())
    assert world.ran() <= {"tune"}


def test_the_rows_and_the_labels_of_a_calibration(world: World) -> None:
    """The rows of this world have free answers; these have labels."""

    def labelled(rows: Sequence[Row], *labels: str) -> list[Row]:
        answers = [{"role": "assistant", "content": labels[n % len(labels)]} for n in range(len(rows))]
        return [
            replace(row, messages=(*row.messages[:-1], answer))
            for row, answer in zip(rows, answers, strict=True)
        ]

    data = world.request.data
    train, validation = labelled(data.train, "a", "b"), labelled(data.validation, "a", "b")
    world.change(data=replace(data, train=train, validation=validation))
    assert world.ran() >= CALIBRATION and not world.ran()
    world.change(data=replace(world.request.data, validation=[reworded(validation[0], -2), *validation[1:]]))
    assert world.ran() >= CALIBRATION
    world.change(data=replace(world.request.data, train=labelled(data.train, "a", "b", "c")))
    assert world.ran() >= CALIBRATION
    world.change(data=replace(world.request.data, test=labelled(data.test, "a")))
    assert not world.ran() & CALIBRATION


PACKAGES: dict[str, set[str]] = {
    "torch": {"tune", "merge", "prune", "reference", "drift.model", "drift.prune", "eval.base", "eval.tuned"},
    "transformers": {"tune", "merge", "reference", "eval.base", "eval.tuned"} | VERIFY,
    "tokenizers": {"tune", "merge", "reference", "eval.base", "eval.tuned"} | VERIFY,
    "peft": {"tune", "merge"},
    "accelerate": {"tune"},
    "gguf": {"export.gguf", "quantize.gguf"},
    "llama-cpp-python": {
        f"{kind}.gguf"
        for kind in ("quantize", "verify", "eval", "golden", "signals", "calibration", "profile")
    },
    "onnxruntime": {
        f"{kind}.onnx" for kind in ("export", "verify", "eval", "golden", "signals", "calibration", "profile")
    },
    "onnxruntime-genai": {
        f"{kind}.onnx" for kind in ("export", "verify", "eval", "golden", "signals", "calibration", "profile")
    },
    "jinja2": {"tune", "reference"} | EVALS | GOLDEN,
}


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package(world: World, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Another version runs every stage again that names the package or reaches it through an import, and no other."""
    depends = world.run().depends
    real = code._installed
    monkeypatch.setattr(code, "_installed", lambda name: "99" if name == package else real(name))
    ran = world.ran()
    assert ran >= PACKAGES[package]
    assert ran == {
        name for name, (modules, more) in depends.items() if package in code.versions_of(modules, more)
    }


def test_a_package_that_no_stage_uses_does_not_count(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = code._installed
    unused = {"textual", "starlette", "uvicorn", "rich", "typer", "edgekit"}
    monkeypatch.setattr(code, "_installed", lambda name: "99" if name in unused else real(name))
    assert world.ran() == set()


MODULES: dict[str, set[str]] = {
    "edgekit.tuning.encode": {"tune"},
    "edgekit.export.weights.merge_check": {"merge"},
    "edgekit.export.weights.prune": {"prune"},
    "edgekit.runtimes.torch": {
        "reference",
        "drift.model",
        "drift.prune",
        "eval.base",
        "eval.tuned",
        "robust.tuned",
    }
    | FEW_SHOT
    | VERIFY,
    "edgekit.runtimes.onnxruntime": {
        f"{kind}.onnx" for kind in ("verify", "eval", "robust", "golden", "signals", "calibration", "profile")
    },
    "edgekit.evaluation.accuracy": EVALS,
    "edgekit.evaluation.robust": ROBUST,
    "edgekit.proof.battery": VERIFY | GOLDEN,
    "edgekit.field.telemetry.reference": SIGNALS,
    "edgekit.profiles.probe": PROFILE,
}


def changed(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Let `module` have another text."""
    file, real = code.file_of(module), code._syntax
    assert file is not None
    monkeypatch.setattr(
        code, "_syntax", lambda at: (uuid.uuid4().hex, real(at)[1]) if at == file else real(at)
    )


@pytest.mark.parametrize("module", MODULES)
def test_a_module_that_does_the_work(world: World, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    changed(monkeypatch, module)
    assert world.ran() == MODULES[module]


def test_every_declared_module(world: World) -> None:
    """Each module that a stage declares runs it again, for each stage."""
    depends = world.run().depends
    for module in sorted({module for modules, _ in depends.values() for module in modules}):
        with pytest.MonkeyPatch.context() as monkeypatch:
            changed(monkeypatch, module)
            expected = {name for name, (modules, _) in depends.items() if module in code.code_of(modules)}
            assert expected and world.ran() == expected, module


@pytest.mark.parametrize(
    "module", ["edgekit.base.console", "edgekit.base.events", "edgekit.base.cache", "edgekit.cli", "edgekit.report.html",
               "edgekit.commands.build", "edgekit.app.views.run"],
)  # fmt: skip
def test_a_module_that_only_tells_people(world: World, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    changed(monkeypatch, module)
    assert world.ran() == set()


def test_a_new_name_in_the_registry_does_not_count(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, "edgekit.registry")
    assert world.ran() == set()


def test_another_implementation_of_a_name_counts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is the same, and the module that it stands for is declared."""
    monkeypatch.setitem(registry.BUILT_IN["runtimes"], "onnxruntime", "edgekit.runtimes.torch:open_model")
    assert world.ran() == {
        f"{kind}.onnx" for kind in ("verify", "eval", "robust", "golden", "signals", "calibration", "profile")
    }


@pytest.mark.parametrize("runtime", registry.names("runtimes"))
def test_how_tokens_are_chosen_counts_wherever_a_runtime_does(runtime: str) -> None:
    """It stands in a module of its own, because the registry does not count."""
    assert "edgekit.models.sampling" in code.code_of([registry.module_of("runtimes", runtime)])


def test_no_stage_uses_an_implementation_that_it_does_not_declare(tiny_build: Any) -> None:
    """Imports are followed; what a real build asks the registry for by name must be declared."""
    found = json.loads(tiny_build.log.read_text())
    assert len(found) > 15 and "edgekit.runtimes.llamacpp" in found["verify.gguf"]["loaded"]
    for stage, noted in found.items():
        assert not {*noted["loaded"]} - code.code_of(noted["declared"]).keys(), stage
