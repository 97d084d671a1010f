"""What files are compared on: text that none was calibrated on, and never a given set alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_runtime import FakeRuntime

from edgekit.base.cache import Cache, StageOutput
from edgekit.base.events import ignore
from edgekit.build import stages, trial
from edgekit.build.trial import given_set, of_build, of_command
from edgekit.data.calibration_text import HELD_OUT_ROWS, HELD_OUT_TEXTS, Calibration, passages
from edgekit.data.rows import Row
from edgekit.data.splits import Dataset
from edgekit.registry import ExportContext, Exporter, ExportStep
from edgekit.targets.target import PluginExport, Quantize


@dataclass
class Tokenizer(FakeRuntime):
    def render_ids(self, rows: Any) -> list[list[int]]:
        return [self.encode(row.answer) for row in rows]


def rows(name: str, count: int) -> list[Row]:
    return [
        Row(f"{name}{n}", ({"role": "user", "content": "?"}, {"role": "assistant", "content": f"{name} {n}"}))
        for n in range(count)
    ]


DATA = Dataset("own", rows("train", 80), rows("validation", 90), rows("test", 5))
TEXT = "".join(map(chr, range(97, 123))) * 400
LIMITS = {"rows": 0.05, "text": 0.15}


def read(sequences: Any) -> list[str]:
    return [bytes(id for id in ids if id < 256).decode("utf-8", "replace") for ids in sequences]


def apart(made: trial.Trial) -> bool:
    """Whether nothing that files are compared on is in a calibration set."""
    used = {tuple(ids) for kinds in made.sets.values() for found in kinds.values() for ids in found}
    held = [tuple(ids) for found in made.held_out.values() for ids in found]
    return bool(held) and not used & {*held}


def test_files_are_compared_on_validation_rows_and_text_that_was_not_used() -> None:
    made = of_command(Tokenizer(), DATA, None, LIMITS)
    ((name, kinds),) = made.sets.items()
    assert "--data" in name and [len(kinds[kind]) for kind in ("rows", "text")] == [64, 40]
    assert all(text.startswith("train ") for text in read(kinds["rows"]))
    assert len(made.held_out["rows"]) == HELD_OUT_ROWS and len(made.held_out["text"]) == HELD_OUT_TEXTS
    assert all(text.startswith("validation ") for text in read(made.held_out["rows"]))
    assert apart(made) and made.limits == LIMITS


def test_without_rows_there_is_text_alone() -> None:
    made = of_command(Tokenizer(), None, None, LIMITS)
    assert made.held_out.keys() == {"text"} and [*made.sets] == ["edgekit's text"]


@pytest.mark.parametrize("data", [DATA, None])
def test_given_text_is_a_second_set_and_half_of_the_text_to_compare_on(data: Dataset | None) -> None:
    made = of_command(Tokenizer(), data, ("the text of own.txt", Calibration([], [TEXT])), LIMITS)
    usual, given = made.sets.values()
    own = of_command(Tokenizer(), data, None, LIMITS)
    assert usual == next(iter(own.sets.values())) and [*made.sets][1] == "the text of own.txt"
    assert len(given["text"]) in (30, 31) and not given["rows"]
    assert made.held_out["text"][:HELD_OUT_TEXTS] == own.held_out["text"]
    more = made.held_out["text"][HELD_OUT_TEXTS:]
    assert 0 < len(more) <= HELD_OUT_TEXTS and all(text in TEXT for text in read(more))


def test_given_text_of_a_few_words_is_no_text_to_compare_on() -> None:
    made = of_command(Tokenizer(), None, ("the text of own.txt", Calibration([], ["a a a"])), LIMITS)
    assert len(made.held_out["text"]) == HELD_OUT_TEXTS and apart(made)


def test_given_rows_are_compared_on_only_where_there_are_no_others() -> None:
    given = ("the rows of own.csv", Calibration([*rows("given", 40), *rows("given", 1) * 40], []))
    alone = of_command(Tokenizer(), None, given, LIMITS)
    assert alone.sets["the rows of own.csv"]["rows"] and apart(alone)
    assert all(text.startswith("given ") for text in read(alone.held_out["rows"]))
    both = of_command(Tokenizer(), DATA, given, LIMITS)
    assert all(text.startswith("validation ") for text in read(both.held_out["rows"]))


def test_a_set_has_the_name_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("Words.\n\nMore words.\n")
    (tmp_path / "own.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    assert given_set(tmp_path / "own.txt", "") == (
        "the text of own.txt",
        Calibration([], ["Words.", "More words."]),
    )
    assert given_set(tmp_path / "own.jsonl", "")[0] == "the rows of own.jsonl"


def request(quantize: Quantize, data: Dataset = DATA) -> Any:
    return SimpleNamespace(target=SimpleNamespace(quantize=quantize), data=data)


def test_a_build_compares_no_files_unless_its_target_asks_for_it() -> None:
    assert of_build(request(Quantize()), Tokenizer(), DATA.train) is None


def test_a_build_compares_on_rows_that_the_proof_does_not_judge_by() -> None:
    made = of_build(request(Quantize(max_kld_nats=0.05)), Tokenizer(), DATA.train)
    assert made and [*made.sets] == ["rows and text"] and apart(made) and not made.limits
    assert read(made.held_out["rows"]) == [f"validation {n}" for n in range(64, 90)]
    few = Dataset("few", DATA.train, DATA.validation[:9], [])
    made = of_build(request(Quantize(max_kld_nats=0.05), few), Tokenizer(), DATA.train)
    assert made and len(made.held_out["rows"]) == 9


def test_a_build_tries_both_kinds_alone_where_its_target_asks_for_it() -> None:
    made = of_build(request(Quantize(calibration_trial=True)), Tokenizer(), DATA.train)
    assert made and {name: {*kinds} for name, kinds in made.sets.items()} == {
        "rows and text": {"rows", "text"}, "rows": {"rows"}, "text": {"text"},
    }  # fmt: skip
    rows_only = request(Quantize(calibration_trial=True, calibration_texts=0))
    made = of_build(rows_only, Tokenizer(), DATA.train)
    assert made and [*made.sets] == ["rows"] and made.held_out["text"]


def test_the_digest_of_a_build_names_what_files_are_compared_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(Quantize(max_kld_nats=0.05))
    before = trial.held_out_digest(asked)
    changed = Dataset("own", DATA.train, rows("other", 90), DATA.test)
    assert trial.held_out_digest(request(Quantize(), changed)) != before == trial.held_out_digest(asked)
    monkeypatch.setattr(trial, "passages", lambda: passages()[1:])
    assert trial.held_out_digest(asked) != before


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_the_step_that_rounds_gets_the_trial(
    format: Any, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ExportContext] = []

    def run(source: Path, out: Path, context: ExportContext, emit: Any) -> None:
        seen.append(context)
        out.touch()

    step = ExportStep("quantize", {}, "model", run)
    exporter = Exporter("llama.cpp", lambda config, options: "", lambda options: [step])
    monkeypatch.setattr(stages.registry, "load", lambda kind, name: exporter)
    model = StageOutput("merge", small_model, "d" * 64, {}, 0.0, 0.0, (), False)
    asked = request(Quantize(max_kld_nats=0.05, calibration_texts=4))
    asked.threads = 1
    declared: list[str] = []
    made = Cache.stage

    def stage(self: Cache, name: str, inputs: Any, run: Any, modules: Any = (), *more: Any) -> StageOutput:
        declared.extend(modules)
        return made(self, name, inputs, run, modules, *more)

    monkeypatch.setattr(Cache, "stage", stage)
    stages.export(Cache(tmp_path, ignore), asked, model, PluginExport(format=format))
    (context,) = seen
    runtimes = {"edgekit.runtimes.torch", "edgekit.runtimes.llamacpp"} & {*declared}
    assert (context.trial is not None) == (format == "gguf") == (len(runtimes) == 2)
    if context.trial:
        assert context.trial.sets["rows and text"] == {"rows": context.calibration, "text": context.texts}
