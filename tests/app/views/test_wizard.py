"""What the build wizard says of a choice, without a screen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgekit.app.views import wizard, wizard_page
from edgekit.app.views.choices import Checks
from edgekit.app.views.launch import LOG, last_words, launch
from edgekit.app.views.paths import look_at_place, suggest
from edgekit.app.views.wizard import Choice, Finding
from edgekit.base.command import Command, Outcome
from edgekit.build import runs
from edgekit.build.defaults import DEFAULT_CACHE
from edgekit.targets.host import Host

HERE = Host("x86_64", 2, 8000)
SHOWN = {
    "summary": {"value": "small CPUs", "origin": "a.toml"},
    "device.arch": {"value": ["x86_64"], "origin": "a.toml"},
    "device.threads": {"value": 2, "origin": "a.toml"},
    "device.memory_mib": {"value": 1024, "origin": "a.toml"},
    "budget.size_mib": {"value": 120, "origin": "a.toml"},
    "budget.peak_rss_mib": {"value": 700, "origin": "a.toml"},
}
PLAN = {
    "model": "small", "architecture": "LlamaForCausalLM", "parameters": 134_515_008, "target": "cpu-int4",
    "rows": {"train": 800, "validation": 150, "test": 300},
    "exports": [
        {"format": "gguf", "type": "Q4_K_M", "estimated_mib": 99.4, "refusal": ""},
        {"format": "onnx", "type": "int4", "estimated_mib": 128.3, "refusal": ""},
    ],
    "disk_needed_mib": 3323, "disk_free_mib": 50000, "memory_needed_mib": 3296, "memory_available_mib": 20000,
    "minutes_expected": 18.2, "missing_parts": [], "problems": [],
}  # fmt: skip


def answer(document: Any, code: int = 0, **words: Any) -> Outcome:
    return Outcome(Command(("x",)), code, document, **words)


def plan(**changes: Any) -> Outcome:
    return answer({**PLAN, **changes}, code=2 if changes.get("problems") else 0, message="No room.")


def test_the_defaults_are_the_demo_and_short() -> None:
    choice = Choice()
    assert choice.build.text == "edgekit build --model smollm2-135m --target cpu-int4 --data demo"
    assert choice.place == Path("bundles/smollm2-135m-cpu-int4")


def test_the_command_says_everything_that_differs() -> None:
    choice = Choice(
        model="~/my model", target="t/phone.toml", limits=(("size_mib", "90"),), cache_dir=Path("c"), out="o"
    )
    home = os.path.expanduser("~")
    assert choice.build.arguments == (
        "build", "--model", f"{home}/my model", "--target", "t/phone.toml", "--data", "demo",
        "--set", "budget.size_mib=90", "--out", "o", "--cache-dir", "c",
    )  # fmt: skip
    assert choice.plan.arguments[1:] == choice.build.arguments[1:]
    assert "'" in choice.build.text  # quoted for a shell
    assert Choice(target="t/phone.toml", bundles=Path("b")).place == Path("b/smollm2-135m-phone")


@pytest.mark.parametrize(
    ("own", "robust", "changes"), [(False, True, ["tune.robust=true"]), (True, False, ["tune.robust=false"])]
)
def test_robust_tuning_is_turned_on_and_off_against_the_target(
    own: bool, robust: bool, changes: list[str]
) -> None:
    shown = answer({**SHOWN, "tune.robust": {"value": own, "origin": "a.toml"}})
    before = Choice()
    assert wizard.is_robust(before, shown) is own and before.changes == []
    after = replace(before, robust=wizard.toggled(before, shown))
    assert wizard.is_robust(after, shown) is robust and after.changes == changes
    assert wizard.toggled(after, shown) is None  # the target's own, which needs no option
    assert "--set" in after.build.arguments and after.plan.arguments[1:] == after.build.arguments[1:]
    assert "times as long" in wizard_page.robust_text(robust).plain


@pytest.mark.parametrize(
    ("model", "on_hub"), [("org/name", True), ("smollm2-135m", False), ("nothing", False), (".", False)]
)
def test_a_hub_id_is_told_from_a_path(
    model: str, on_hub: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Choice(model).model_on_hub is on_hub
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert not Choice("org/name").model_on_hub


def test_a_format_that_cannot_be_made_can_be_left_out() -> None:
    refused = [PLAN["exports"][0], {**PLAN["exports"][1], "refusal": "It is too odd."}]  # type: ignore[index]
    found = wizard.target_finding(Choice(), answer(SHOWN), plan(exports=refused), HERE)
    assert found.state == "FAILED" and found.faults == ("onnx: It is too odd.",)
    assert "Press l to build only gguf" in found.hint
    assert wizard.possible_formats(plan(exports=refused)) == ("gguf",)
    assert wizard.possible_formats(plan()) == wizard.possible_formats(plan(exports=refused[1:])) == ()
    less = Choice(formats=("gguf",))
    assert less.build.text.endswith("--data demo --formats gguf")
    found = wizard.target_finding(less, answer(SHOWN), plan(exports=refused[:1]), HERE)
    assert found.state == "OK" and any("only gguf" in line for line in found.lines)


def test_how_the_data_is_read_is_part_of_the_command() -> None:
    choice = Choice(data="rows.csv", columns=" prompt=a b,completion=c ", drop_leaks=True)
    assert choice.build.arguments[5:] == (
        "--data",
        "rows.csv",
        "--columns",
        "prompt=a b,completion=c",
        "--drop-leaks",
    )
    assert choice.audit.arguments == ("data", "audit", *choice.build.arguments[6:])


def test_a_hub_data_set_is_read_from_the_cache_until_it_is_downloaded(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    choice = Choice(data="org/rows@v1")
    assert choice.data_on_hub and choice.audit.arguments[-1] == choice.plan.arguments[-1] == "--offline"
    assert "--offline" not in (*choice.build.arguments, *choice.download.arguments)
    missing = answer(None, 2, message="org/rows@v1 is not whole in the hub's cache.", hint="Run it once.")
    found = wizard.data_finding(choice, missing)
    assert (
        found.state == "FAILED"
        and "d to download" in found.hint
        and wizard.must_be_downloaded(choice, missing)
    )
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "rows").touch()
    assert (
        not Choice(data="org/rows").data_on_hub
        and not Choice(data="org/rows.csv").data_on_hub
        and not Choice().data_on_hub
    )


def test_the_guess_and_the_first_row_are_shown_and_leaks_have_a_key() -> None:
    audit = {
        "rows": {"train": 9}, "labels": {"train": {}}, "missing_in_card": [],
        "notes": ["data: CSV, prompt=a,completion=b (guessed; --columns changes it)", "rows: 9 train"],
        "example": {"prompt": "two\nlines", "answer": "yes"},
    }  # fmt: skip
    lines = wizard.data_finding(Choice(data="rows.csv"), answer(audit)).lines
    assert (
        lines[:3] == (audit["notes"][0], "first row: two lines", "its answer: yes") and "9 rows" in lines[3]
    )
    unclear = answer(None, 2, message="Not plain.", hint="Name them: --columns prompt=a,completion=b")
    found = wizard.data_finding(Choice(data="rows.csv"), unclear)
    assert found.state == "FAILED" and found.hint == "Name them: press tab and type prompt=a,completion=b"
    leaking = answer(
        None, 2, message="3 prompts in two splits.", hint="Or add --drop-leaks.", faults=("a:1",)
    )
    found = wizard.data_finding(Choice(data="rows.csv"), leaking)
    assert found.state == "FAILED" and found.faults == ("a:1",) and "x to leave these rows out" in found.hint


def test_a_base_model_is_offered_a_chat_template() -> None:
    found = wizard.model_finding(Choice("base"), plan(chat_template=False))
    assert (
        found.state == "FAILED" and "no chat template" in found.message and "press esc" in found.hint.lower()
    )
    given = Choice("base", chat_template="chatml")
    assert given.build.text.endswith("--chat-template chatml")
    assert wizard.model_finding(given, plan(chat_template=True)).state == "OK"


def test_a_model_is_found_or_missing() -> None:
    found = wizard.model_finding(Choice(), plan())
    assert found.state == "OK" and "135 million weights" in found.lines[0]
    assert wizard.model_finding(Choice(" "), None).state == "FAILED"
    assert wizard.model_finding(Choice(), None).state == "CHECKING"
    missing = wizard.model_finding(
        Choice("x"), answer(None, 2, message="There is no model 'x'.", hint="Give one.")
    )
    assert (missing.state, missing.message, missing.hint) == ("FAILED", "There is no model 'x'.", "Give one.")  # fmt: skip


def test_a_target_says_whether_it_runs_here() -> None:
    found = wizard.target_finding(Choice(), answer(SHOWN), plan(), HERE)
    assert found.state == "OK" and found.lines[-1] == "runs here: yes"
    assert "gguf Q4_K_M: about 99 MiB" in found.lines and any(
        "at most 700 MiB" in line for line in found.lines
    )
    for other, why in (
        (replace(HERE, arch="aarch64"), "needs x86_64"),
        (replace(HERE, cores=1), "needs 2 cores"),
        (replace(HERE, memory_mib=512), "needs 1024 MiB"),
    ):
        found = wizard.target_finding(Choice(), answer(SHOWN), plan(), other)
        assert found.state == "WARNING" and f"no: {why}" in found.lines[-1] and "simulated" in found.message


def test_a_refused_export_fails_the_target_not_the_model() -> None:
    refused = plan(exports=[{**PLAN["exports"][1], "refusal": "It cannot build X."}])  # type: ignore[index]
    found = wizard.target_finding(Choice(), answer(SHOWN), refused, HERE)
    assert found.state == "FAILED" and found.faults == ("onnx: It cannot build X.",)
    assert wizard.model_finding(Choice(), refused).state == "OK"


def test_rows_are_counted_and_an_open_card_is_a_warning() -> None:
    audit = {
        "rows": {"train": 800, "test": 9},
        "labels": {"train": {"a": 3, "b": 7}, "test": {}},
        "missing_in_card": [],
    }
    found = wizard.data_finding(Choice(), answer(audit))
    assert found.state == "OK" and "800 rows, 2 labels, 3+ rows each" in found.lines[0]
    assert "no labels" in found.lines[1]
    found = wizard.data_finding(Choice(), answer({**audit, "missing_in_card": ["owner", "pii"]}))
    assert found.state == "WARNING" and "owner, pii" in found.message and "card.json" in found.hint


def test_every_fault_of_the_rows_is_shown() -> None:
    faults = ("d.jsonl:1: not JSON", "d.jsonl:7: no prompt")
    found = wizard.data_finding(Choice(data="d.jsonl"), answer(None, 2, message="2 of 9.", faults=faults))
    text = wizard_page.found_text(found).plain
    assert text.startswith("✗ failed") and all(fault in text for fault in faults)
    assert wizard.data_finding(Choice(), answer("odd")).state == "FAILED"


def test_limits_come_from_the_target_and_can_be_changed() -> None:
    choice = Choice(limits=(("peak_rss_mib", "500"),))
    found = {limit.key: limit for limit in wizard.limits(choice, answer(SHOWN))}
    assert (found["size_mib"].value, found["size_mib"].own) == ("120", False)
    assert (found["peak_rss_mib"].value, found["peak_rss_mib"].own) == ("500", True)
    assert found["ttft_ms"].value == "none" and "first token" in found["ttft_ms"].words


@pytest.mark.parametrize("text", ["x", "", "-1", "0", "nan", "inf", "1e999", "1,5"])
def test_a_limit_that_is_no_number_is_refused(text: str) -> None:
    assert wizard.limit_fault("size_mib", text).startswith("size_mib: ")
    if text:
        choice = Choice(limits=(("size_mib", text),))
        assert wizard.budget_finding(choice, answer(SHOWN), plan()).state == "FAILED"
    assert wizard.limit_fault("top1_agreement", "1.5") and not wizard.limit_fault("size_mib", " 90.5 ")


def test_a_file_expected_beyond_its_limit_is_told_before_the_build() -> None:
    found = wizard.budget_finding(Choice(), answer(SHOWN), plan())
    assert found.state == "WARNING" and "128 MiB" in found.message and "120" in found.message
    close = Choice(limits=(("size_mib", "128"),))  # the estimate is no finer than that
    assert wizard.budget_finding(close, answer(SHOWN), plan()).state == "OK"


def test_the_review_waits_for_all_and_tells_of_too_little_room() -> None:
    new = Finding("OK", ("o is new.",))
    assert wizard.review_finding(Choice(), None, new, ()).state == "CHECKING"
    assert wizard.review_finding(Choice(), plan(), None, ()).state == "CHECKING"
    assert wizard.review_finding(Choice(), plan(), new, ()) == new
    assert wizard.review_finding(Choice("org/name"), None, new, ()).state == "CHECKING"
    assert wizard.review_finding(Choice(), plan(), new, (Finding("FAILED"),)).state == "WAITING"
    short = wizard.review_finding(Choice(), plan(problems=["disk: 9 of 3 MiB"]), new, ())
    assert short.state == "FAILED" and short.faults == ("disk: 9 of 3 MiB",)


def test_the_review_holds_the_whole_command_at_any_width() -> None:
    choice = Choice(out="a-folder/with-a-long-name-that-goes-on-and-on/and-on", limits=(("size_mib", "90"),))
    page = wizard_page.review_text(choice, plan(), Finding("OK"), "Press b to build.")
    console = Console(width=50, color_system=None)
    with console.capture() as captured:
        console.print(page)
    text = captured.get()
    assert choice.build.text.replace(" ", "") in "".join(text.split())
    assert "99 + 128 MiB" in text and "about 18 min" in text and "3.2 of 19.5 GiB" in text
    assert "Press b to build." in text


def settle(checks: Checks, choice: Choice, outcomes: dict[str, Outcome]) -> list[Command]:
    """Answer every question about `choice`; the plans that were asked for."""
    plans = []
    while wanted := checks.wanted(choice):
        for command in wanted:
            plans += [command] if command.arguments[0] == "plan" else []
            assert checks.take(command, outcomes.get(command.arguments[0], answer({})))
    return plans


def test_the_plan_is_asked_for_once_rows_and_target_are_known() -> None:
    checks, choice = Checks(), Choice()
    first = checks.wanted(choice)
    assert {command.arguments[0] for command in first} == {"data", "targets"}
    assert checks.wanted(choice) == []  # both are under way
    assert settle(checks, choice, {}) == []  # and never asked again
    for command in first:
        assert checks.take(command, answer({}))
    assert checks.wanted(choice) == [choice.plan]


@pytest.mark.parametrize(
    ("choice", "outcomes"),
    [
        (Choice(data="bad"), {"data": answer(None, 2)}),
        (Choice(target="bad"), {"targets": answer(None, 2)}),
        (Choice(limits=(("size_mib", "x"),)), {}),
    ],
)
def test_no_plan_is_asked_for_before_the_other_steps_are_in_order(
    choice: Choice, outcomes: dict[str, Outcome]
) -> None:
    checks = Checks()
    assert settle(checks, choice, outcomes) == [] and not checks.plannable(choice)
    assert settle(checks, Choice(model="m"), {}) == [Choice(model="m").plan]
    assert wizard.model_finding(choice, None, [Finding("FAILED")]).state == "WAITING"


def test_the_plan_of_a_hub_model_downloads_its_settings_and_says_so() -> None:
    hub_model = Choice("org/name")
    assert settle(Checks(), hub_model, {}) == [hub_model.plan]
    assert "--offline" not in hub_model.plan.arguments
    both = Choice("org/name", data="org/rows")  # found in the hub's cache, or there is no plan
    assert "--offline" not in both.plan.arguments and "--offline" in both.audit.arguments
    found = wizard.model_finding(hub_model, None)
    assert found.state == "CHECKING" and "downloads the config and the tokenizer" in found.hint
    found = wizard.model_finding(hub_model, plan(download_mib=270))
    assert found.state == "OK" and "270 MiB of weights are downloaded when the build" in found.lines[1]
    assert "its weights are here" in wizard.model_finding(hub_model, plan(download_mib=0)).lines
    missing = answer(None, 2, message="'org/name' could not be downloaded from the hub: 404")
    assert wizard.model_finding(hub_model, missing).state == "FAILED"


def test_nothing_is_asked_of_the_hub_while_a_name_is_typed() -> None:
    checks, half = Checks(), Choice("org/na")
    for command in checks.wanted(half, typing=True):
        assert command.arguments[0] != "plan" and checks.take(command, answer({}))
    assert checks.wanted(half, typing=True) == []
    assert wizard.model_finding(half, None, typing=True).state == "WAITING"
    assert checks.wanted(Choice("folder"), typing=True) == [Choice("folder").plan]
    assert checks.wanted(half) == [half.plan]


def test_offline_everything_comes_from_the_hubs_cache() -> None:
    choice = Choice("org/name", data="org/rows", offline=True)
    for command in (choice.build, choice.plan, choice.audit):
        assert command.arguments.count("--offline") == 1
    assert not wizard.downloads(choice) and "offline" in wizard.model_finding(choice, plan()).lines[1]
    missing = answer(None, 2, message="org/rows is not whole in the hub's cache.")
    assert "o to allow downloads" in wizard.data_finding(choice, missing).hint


def test_nothing_is_planned_without_a_model() -> None:
    assert settle(Checks(), Choice(" "), {}) == []


def test_an_outdated_question_is_stopped_and_its_answer_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[Command] = []
    monkeypatch.setattr(Command, "stop", lambda self: stopped.append(self))
    checks = Checks()
    old = next(c for c in checks.wanted(Choice(data="o")) if c.arguments[0] == "data")
    (new,) = checks.wanted(Choice(data="other"))
    assert stopped == [old] and not checks.take(old, answer({"rows": "wrong"}))
    assert checks.answer(old) is None and checks.take(new, answer({}))


def test_answers_are_bounded_and_forgotten() -> None:
    checks = Checks()
    for number in range(200):
        settle(checks, Choice(data=f"d{number}"), {"data": answer(None, 2)})
    assert len(checks._answers) <= 64
    assert checks.answer(Choice().shown) is not None
    checks.forget()
    assert checks.answer(Choice().shown) is None


def test_a_new_folder_is_free_and_a_strangers_is_not(tmp_path: Path) -> None:
    choice = Choice(out=str(tmp_path / "new"), cache_dir=tmp_path)
    assert look_at_place(choice).finding.state == "OK"
    (tmp_path / "new").mkdir()
    (tmp_path / "new-2").mkdir()
    place = look_at_place(choice)
    assert place.finding.state == "FAILED" and "not a bundle" in place.finding.message
    assert place.other == str(tmp_path / "new-3")


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = look_at_place(Choice(out=str(tmp_path / "file" / "below")))
    assert place.finding.state == "FAILED" and place.finding.hint


def test_paths_are_suggested_as_they_are_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    for name in ("models/a.gguf", "models/a.bin", "models/.hidden.gguf"):
        (tmp_path / name).touch()
    cases = {
        "smo": "smollm2-135m", "mo": "models/", "models/": "models/a.gguf", "models/t": "models/tiny/",
        "~/mod": "~/models/", "models/.h": "models/.hidden.gguf", "models/a.b": None, "": None, "no/such": None,
    }  # fmt: skip
    for typed, expected in cases.items():
        assert suggest(typed, ("smollm2-135m",), ".gguf") == expected, typed


@dataclass(frozen=True)
class Script(Command):
    """A command that runs a Python program instead."""

    code: str = ""

    def _argv(self, more: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-c", self.code]


def test_a_build_that_ends_at_once_says_why(tmp_path: Path) -> None:
    code = "import sys; sys.exit('noise\\nedgekit: No such thing.\\n  a: fault\\n  → Type another.')"
    assert launch(Script((), code=code), tmp_path) == "No such thing. a: fault Type another."
    assert "without output" in launch(Script((), code="pass"), tmp_path)


def test_a_start_is_waited_for_only_while_somebody_does(tmp_path: Path) -> None:
    looks = iter([False, False, True])
    start = time.monotonic()
    assert launch(Script((), code="import time; time.sleep(20)"), tmp_path, lambda: next(looks)) == ""
    assert time.monotonic() - start < 5


RECORD = """
import json, os, psutil, sys, time
p = psutil.Process()
record = dict(schema="edgekit.run/1", pid=os.getpid(), process_start=round(p.create_time() - psutil.boot_time(), 2),
  started=time.time(), model="m", target="t", data="d", out="o", stages=["model"], seconds={{}}, seconds_expected=None,
  ended=None, outcome={outcome!r}, message="It failed.", hint="Mend it.", cache_dir="c")
open("{cache}/run.json", "w").write(json.dumps(record))
if {outcome!r} is None:
    open("{cache}/events.jsonl", "w").write("")
    time.sleep(30)
"""


def test_a_build_is_started_when_its_record_says_so(tmp_path: Path) -> None:
    assert launch(Script((), code=RECORD.format(cache=tmp_path, outcome=None)), tmp_path) == ""
    run = runs.read(tmp_path)
    assert run is not None and run.state == "RUNNING"
    runs.interrupt(run)
    (tmp_path / runs.EVENTS).unlink()
    failed = RECORD.format(cache=tmp_path, outcome="error")
    assert launch(Script((), code=failed), tmp_path) == "It failed. Mend it."


def test_the_end_of_an_endless_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / LOG
    with log.open("wb") as file:
        file.seek(1 << 30)  # sparse
        file.write(b"\nedgekit: The disk is full.\n")
    assert last_words(log) == "The disk is full."
    assert "cannot be read" in last_words(tmp_path / "none")


def test_shipped_targets_are_listed_with_what_keeps_them_from_this_machine() -> None:
    found = {row[0]: row for row in wizard.shipped(HERE)}
    assert found["cpu-int4"][1] == "yes" and found["mobile-int4"][1] == "no: needs aarch64"
    assert found["cpu-int4"][2] == "gguf 5.3, onnx 6.9" and set(map(len, found.values())) == {5}
    assert Host.here().cores >= 1


def test_views_import_no_textual() -> None:
    code = "import sys, edgekit.app.views.launch, edgekit.app.views.paths, edgekit.app.views.wizard_page, edgekit.app.views.choices;"
    code += "sys.exit(any(name in sys.modules for name in ('textual', 'torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_real_commands_answer_as_read_here(tmp_path: Path) -> None:
    """The demo through the real processes, and a model that the target's exports refuse."""
    choice = Choice(cache_dir=tmp_path, bundles=tmp_path)
    assert choice.cache_dir != DEFAULT_CACHE
    assert wizard.target_finding(choice, choice.shown.run(), None, HERE).state == "OK"
    assert wizard.data_finding(choice, choice.audit.run()).state == "OK"
    odd = tmp_path / "odd"
    odd.mkdir()
    config = {
        "architectures": ["OddForCausalLM"],
        "model_type": "odd",
        "hidden_size": 64,
        "num_hidden_layers": 1,
    }
    (odd / "config.json").write_text(json.dumps(config))
    (odd / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (odd / "tokenizer.json").write_text("{}")
    (odd / "model.safetensors").touch()  # a plan reads no weights
    outcome = replace(choice, model=str(odd)).plan.run()
    assert outcome.code == 2 and wizard.model_finding(choice, outcome).state == "OK"
    found = wizard.target_finding(choice, choice.shown.run(), outcome, HERE)
    assert found.state == "FAILED" and any("OddForCausalLM" in fault for fault in found.faults)
