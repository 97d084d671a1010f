"""Robustness: planted weaknesses must show in exactly their figures, and an interrupted run must go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runtime import FakeRuntime

from edgekit.base.errors import ConfigError
from edgekit.base.events import Alert, Event, Progress, ignore
from edgekit.data.noise import FAMILIES
from edgekit.data.phrasings import PHRASINGS
from edgekit.data.rows import Row
from edgekit.evaluation.compare import compare
from edgekit.evaluation.kept import Kept
from edgekit.evaluation.robust import Asking, Noise, evaluate, variants

QUESTIONS = ["please turn the kitchen light on now", "close the window of the office", "how is the weather today",
             "order two more boxes of screws", "call the customer in the morning", "what did the meeting decide"]  # fmt: skip
ROWS = [
    Row(
        f"{n}",
        ({"role": "user", "content": f"{text}, number {n}"}, {"role": "assistant", "content": f"a{n}"}),
        "x",
    )
    for n, text in enumerate(QUESTIONS * 4)
]
UNSEEN = [phrasing.name for phrasing in PHRASINGS if phrasing.held_out]


@dataclass
class Knows(FakeRuntime):
    """Answers each rendered prompt by a table, but for those that `fails` on; stops after `patience` calls."""

    script: dict[str, str] = field(default_factory=dict)
    fails: Callable[[str], bool] = lambda prompt: False
    patience: int = 999
    asked: list[str] = field(default_factory=list)

    def generate_batch(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        self.patience -= 1
        if self.patience < 0:
            raise KeyboardInterrupt
        texts = [self.decode(prompt) for prompt in prompts]
        self.asked += texts
        return [self.encode("wrong" if self.fails(text) else self.script[text]) for text in texts]


def model(fails: Callable[[str], bool] = lambda prompt: False, patience: int = 999) -> Knows:
    found = Knows(fails=fails, patience=patience)
    for variant in variants(ROWS, Noise()):
        for row in variant.rows:
            prompt = found.chat_template.render(row.messages[:-1], add_generation_prompt=True)
            found.script[found.decode(found.encode(prompt))] = row.answer
    return found


def question(prompt: str) -> str:
    return prompt.split("user\n")[-1].split("\nassistant")[0]


def run(
    runtime: Knows, folder: Path, noise: Noise = Noise(), emit: Callable[[Event], None] = ignore
) -> dict[str, Any]:
    log = folder / "log.jsonl"
    kept = Kept(log, "digest", emit)
    found = evaluate(runtime, ROWS, noise, Asking(64, "a5"), log=log, kept=kept, emit=emit)
    kept.remove()
    json.dumps(found, allow_nan=False)
    return found


def test_a_model_that_fails_on_upper_case_shows_it_in_that_family_alone(tmp_path: Path) -> None:
    case = next(variant for variant in variants(ROWS, Noise()) if variant.name == "case")
    upper = sum(row.messages[0]["content"].isupper() for row in case.rows)
    assert 0 < upper < len(ROWS)
    found = run(model(lambda prompt: question(prompt).isupper()), tmp_path)
    lost = upper / len(ROWS)
    assert found["clean"]["accuracy"] == 1
    for one in found["families"]:
        share = lost if one["name"] == "case" else 0
        assert [one["pdr"], one["changed"]] == pytest.approx([share, share]) and one[
            "accuracy"
        ] == pytest.approx(1 - share)
        assert one["pdr_95"][0] < share < one["pdr_95"][1]
        assert one["held_out"] == FAMILIES[one["name"]].held_out and one["about"]
    assert found["seen"]["pdr"] == pytest.approx(lost / 5) and found["held_out"]["pdr"] == 0
    assert found["worst_case"]["all"]["accuracy"] == pytest.approx(1 - lost)
    assert found["consistency"]["noise"]["share"] == pytest.approx(1 - lost)
    assert found["template_spread"]["spread"] == 0 == found["template_spread"]["bootstrap_95"][0]
    assert found["template_spread"]["bootstrap_95"][1] > 0.05  # 24 rows do not show that there is none
    assert found["worst_case"]["phrasings"]["accuracy"] == 1


def test_the_rows_that_fail_most_are_named_with_what_was_asked(tmp_path: Path) -> None:
    fails = lambda prompt: (
        "number 3" in prompt and question(prompt) != f"{QUESTIONS[3]}, number 3" or "number 5<" in prompt
    )
    first, second = run(model(fails), tmp_path)["worst_rows"]
    assert first["id"] == "3" and first["label"] == "x" and first["of"] == 15 >= len(first["wrong_in"]) > 5
    assert first["answer"] == "wrong" and first["expected"] == "a3" and "number 3" in first["asked"]
    assert second["id"] == "5" and second["wrong_in"] == ["tagged"]


def test_abstentions_under_noise_are_counted_in_and_out_of_scope(tmp_path: Path) -> None:
    """The rows that expect `a5` are out of scope; in upper case the model also abstains on the others."""
    runtime = model()
    runtime.script = {
        prompt: "a5" if question(prompt).isupper() else said for prompt, said in runtime.script.items()
    }
    case = next(variant for variant in variants(ROWS, Noise()) if variant.name == "case")
    upper = sum(row.messages[0]["content"].isupper() and row.answer != "a5" for row in case.rows)
    found = run(runtime, tmp_path)["abstention"]
    within = sum(row.answer != "a5" for row in ROWS)
    assert upper > 0 and found["answer"] == "a5"
    clean, noise = found["clean"], found["noise"]
    assert (clean["false_abstentions"]["hits"], clean["false_abstentions"]["n"]) == (0, within)
    assert clean["recall"]["share"] == clean["precision"]["share"] == 1
    assert (noise["false_abstentions"]["hits"], noise["false_abstentions"]["n"]) == (upper, 10 * within)
    assert noise["recall"]["share"] == 1 > noise["precision"]["share"]
    assert found["by_variant"]["case"] == pytest.approx(upper / within) and found["by_variant"]["ocr"] == 0


def test_a_model_that_fails_in_one_frame_shows_the_spread(tmp_path: Path) -> None:
    half = {row.id for row in ROWS[::2]}
    fails = lambda prompt: (
        "<message>" in prompt and f"{int(question(prompt).split('number ')[1].split('<')[0])}" in half
    )
    found = run(model(fails), tmp_path)
    assert [one["name"] for one in found["phrasings"]] == UNSEEN
    assert found["template_spread"]["spread"] == 0.5 and found["template_spread"]["phrasings"] == len(UNSEEN)
    low, high = found["template_spread"]["bootstrap_95"]
    assert low < 0.5 < high
    assert found["seen"]["pdr"] == found["held_out"]["pdr"] == 0
    assert found["worst_case"]["phrasings"]["accuracy"] == found["consistency"]["all"]["share"] == 0.5


def test_answers_that_change_between_wrong_ones_are_no_drop_and_not_alike(tmp_path: Path) -> None:
    runtime = model()
    runtime.script = {prompt: f"no {place}" for place, prompt in enumerate(runtime.script)}
    found = run(runtime, tmp_path)
    assert found["clean"]["accuracy"] == 0
    assert found["families"][0]["pdr"] is None and found["seen"]["pdr_95"] is None
    assert found["families"][0]["changed"] == 1 and found["consistency"]["all"]["share"] == 0


def test_the_log_holds_every_item_in_every_variant(tmp_path: Path) -> None:
    run(model(), tmp_path, Noise(("ocr", "typos")))
    samples = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    names = ["clean", "ocr", "typos", *UNSEEN]
    assert [(one["variant"], one["id"]) for one in samples] == [
        (name, row.id) for name in names for row in ROWS
    ]
    assert all(one["correct"] and one["answer"] == one["expected"] for one in samples)
    assert {one["kind"] for one in samples} == {"clean", "noise", "phrasing"}
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_two_logs_are_compared_by_item_and_variant(tmp_path: Path) -> None:
    for name, fails in {"a": False, "b": True}.items():
        (tmp_path / name).mkdir()
        run(model(lambda prompt, fails=fails: fails and question(prompt).isupper()), tmp_path / name)  # type: ignore[misc]
    found = compare(tmp_path / "a" / "log.jsonl", tmp_path / "b" / "log.jsonl")
    assert found["n"] == 16 * len(ROWS) and found["lost"] and not found["won"]
    assert all(lost.endswith(" (case)") for lost in found["lost"])


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    fails = lambda prompt: question(prompt).isupper()
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    whole = model(fails)
    expected = run(whole, tmp_path / "whole")
    part = tmp_path / "halves" / "log.jsonl.part"
    with pytest.raises(KeyboardInterrupt):
        run(model(fails, patience=5), tmp_path / "halves")
    kept = part.read_text("utf-8")
    assert len(kept.splitlines()) == 1 + 5 * len(ROWS) and not part.with_name("log.jsonl").exists()
    part.write_text(kept[:-9], "utf-8")  # a power cut within the last line
    rest, events = model(fails), list[Event]()
    assert run(rest, tmp_path / "halves", emit=events.append) == expected
    assert len(rest.asked) == len(whole.asked) - 5 * len(ROWS) + 1
    assert (tmp_path / "halves" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()
    progress = [event for event in events if isinstance(event, Progress)]
    assert 5 * len(ROWS) - 1 <= progress[0].done < 6 * len(ROWS)
    assert progress[-1].done == progress[-1].total == 16 * len(ROWS)
    assert not part.exists()


def test_answers_of_another_file_are_not_used(tmp_path: Path) -> None:
    log, events = tmp_path / "log.jsonl", list[Event]()
    Kept(log, "first", ignore).add([{"prompt": "p", "expected": "e", "answer": "a"}])
    assert Kept(log, "first", ignore).answer("p", "e") == "a"
    assert Kept(log, "first", ignore).answer("p", "another") is None
    assert Kept(log, "second", events.append).answer("p", "e") is None
    assert [event.level for event in events if isinstance(event, Alert)] == ["warning"]


def test_a_prompt_that_two_variants_share_is_asked_once(tmp_path: Path) -> None:
    noise = Noise(("case", "case"))
    runtime = model()
    found = run(runtime, tmp_path, noise)
    assert len(runtime.asked) == len(set(runtime.asked)) == (2 + len(UNSEEN)) * len(ROWS)
    assert [one["accuracy"] for one in found["families"]] == [1, 1]


def test_families_are_chosen_by_name() -> None:
    assert Noise.of("", 0.3, 1).families == tuple(FAMILIES) and len(FAMILIES) == 10
    assert Noise.of("ocr, typos,ocr", 0.3, 1) == Noise(("ocr", "typos"), 0.3, 1)
    with pytest.raises(ConfigError, match="no family of noise 'typo'. Did you mean typos?"):
        Noise.of("typo", 0.2, 7)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no rows"):
        evaluate(
            model(),
            [],
            Noise(),
            Asking(4),
            log=tmp_path / "l",
            kept=Kept(tmp_path / "l", "", ignore),
            emit=ignore,
        )


def test_noise_is_reproducible() -> None:
    first, second = (variants(ROWS, Noise(seed=3)) for _ in range(2))
    assert first == second and first != variants(ROWS, Noise(seed=4))
    assert all(np.shape(variant.rows) == np.shape(ROWS) for variant in first)
