"""Telemetry as a whole: it is told of answers, counts them, watches them, and is never in the way."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from bytewise import Bytewise
from field.telemetry.field import RECORDED

from edgekit.base.artifacts import write_json
from edgekit.base.errors import StageError
from edgekit.device.answer import Answer
from edgekit.field.telemetry import reference
from edgekit.field.telemetry.collector import Telemetry, release_of
from edgekit.field.telemetry.drift import DriftAlarm
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.store import FILE, Store

ANSWER = '{"intent":"close_job","job":"Zanzibar"}'


def bytewise(text: str = ANSWER, sure: float = 12.0, **options: Any) -> Bytewise:
    return Bytewise(text, sure=sure, **options)


def ask(telemetry: Telemetry, prompt: str = "Quetzalcoatl", **options: Any) -> Answer:
    answer = Answer(bytewise(**options), list(prompt.encode()), 64, records=telemetry)
    for _ in answer:
        pass
    return answer


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_json(folder / "manifest.json", {"schema": "edgekit.bundle/1"})
    write_json(folder / reference.FILE, RECORDED["signals"])
    return folder


def now(store: Store) -> Any:
    return store.window(time.time() - 120, time.time() + 1)


def test_every_answer_is_counted_under_its_release(tmp_path: Path, bundle: Path) -> None:
    with Telemetry.open(tmp_path / "state", bundle, "gguf", beat_s=0.05) as telemetry:
        seen: list[Observation] = []
        telemetry.listeners.append(seen.append)
        assert telemetry.release == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()[:12]
        ask(telemetry)
        with pytest.raises(StageError):
            ask(telemetry, fails_after=0)
        assert telemetry.trouble == ""
    window = Store(tmp_path / "state" / FILE).window(time.time() - 120, time.time() + 1, telemetry.release)
    assert (window.requests, window.errors, window.error_kinds) == (2, 1, {"StageError": 1})
    assert window.classes == {"close_job": 1} and window.confidence and window.confidence > 0.99
    assert window.rss_mib and window.last_seen and window.unknown_rate is not None
    assert [(one.finish, one.label) for one in seen] == [("stop", "close_job"), ("error", None)]


def test_no_word_of_a_prompt_or_an_answer_is_on_the_disk(tmp_path: Path, bundle: Path) -> None:
    with Telemetry.open(tmp_path / "state", bundle, "gguf") as telemetry:
        for _ in range(20):
            ask(telemetry, prompt="Quetzalcoatl lives in Xochimilco")
        ask(telemetry, prompt="Quetzalcoatl", text='{"intent":"Popocatepetl"}')
        ask(telemetry, prompt="Quetzalcoatl", text="Popocatepetl")
        telemetry.store.flush()
        on_disk = b"".join(file.read_bytes() for file in (tmp_path / "state").iterdir())
    on_disk += b"".join(file.read_bytes() for file in (tmp_path / "state").iterdir())
    assert b"close_job" in on_disk, "classes of the reference are names, and are kept"
    for word in (b"Quetzal", b"Xochi", b"Zanzibar", b"Popoca"):
        assert word not in on_disk


def test_the_reservoir_is_off_unless_switched_on_and_then_redacts(tmp_path: Path, bundle: Path) -> None:
    decode = bytewise().decode
    with Telemetry.open(tmp_path / "state", bundle, "gguf", keep_texts=5, decode=decode) as telemetry:
        ask(telemetry, prompt="close job 6830 and call Anna Hall")
    (line,) = (tmp_path / "state" / "reservoir.jsonl").read_text().splitlines()
    assert json.loads(line)["prompt"] == "close job [number] and call [name]"
    with Telemetry.open(tmp_path / "other", bundle, "gguf", decode=decode) as telemetry:
        ask(telemetry)
    assert not (tmp_path / "other" / "reservoir.jsonl").exists()


def test_drift_goes_to_the_store_and_to_whoever_listens(tmp_path: Path, bundle: Path) -> None:
    told: list[DriftAlarm] = []
    with Telemetry.open(tmp_path / "state", bundle, "gguf") as telemetry:
        telemetry.alarm_listeners.append(told.append)
        for _ in range(160):
            ask(telemetry, text="no idea", sure=1.0)
    assert {"confidence", "label"} <= {alarm.signal for alarm in told}
    kept = now(Store(tmp_path / "state" / FILE)).alarms
    assert [(alarm["signal"], alarm["words"]) for alarm in kept] == [(a.signal, a.words) for a in told]
    assert {alarm["release"] for alarm in kept} == {telemetry.release}


def test_nothing_that_listens_or_breaks_reaches_the_answer(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("of its own")

    with Telemetry.open(tmp_path / "state", bundle, "gguf") as telemetry:
        telemetry.listeners.append(broken)
        assert ask(telemetry).text == ANSWER and "of its own" in telemetry.trouble
        monkeypatch.setattr(telemetry.store, "add", broken)
        assert ask(telemetry).text == ANSWER and "not counted" in telemetry.trouble


@pytest.mark.parametrize("spoiled", ["absent", "damaged", "no bundle", "plain file"])
def test_without_a_reference_all_but_drift_works(tmp_path: Path, bundle: Path, spoiled: str) -> None:
    where: Path | None = bundle
    if spoiled == "absent":
        (bundle / reference.FILE).unlink()
    elif spoiled == "damaged":
        (bundle / reference.FILE).write_text("{")
    else:
        where = None if spoiled == "no bundle" else bundle / "manifest.json"
    with Telemetry.open(tmp_path / "state", where, "gguf") as telemetry:
        assert "not detected" in telemetry.note and telemetry.detector is None
        ask(telemetry)
        assert now(telemetry.store).requests == 1 and telemetry.trouble == ""
    assert (release_of(where) == "") == (spoiled in ("no bundle", "plain file"))


def test_many_threads_and_answers_dropped_by_the_collector_are_all_counted(
    tmp_path: Path, bundle: Path
) -> None:
    with Telemetry.open(tmp_path / "state", bundle, "gguf") as telemetry:

        def work() -> None:
            for _ in range(20):
                ask(telemetry)
                left = Answer(bytewise(), [1, 2], 64, records=telemetry)
                pieces = iter(left)
                next(pieces)
                cycle: list[Any] = [pieces, left]
                cycle.append(cycle)  # ended by the garbage collector, wherever that runs
            gc.collect()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        gc.collect()
        window = now(telemetry.store)
    assert (window.requests, window.cancelled) == (160, 80)


def test_a_disk_that_fails_is_said_and_answers_go_on(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    telemetry = Telemetry.open(tmp_path / "state", bundle, "gguf", beat_s=None)
    assert ask(telemetry).text == ANSWER
    assert not telemetry.store.flush() and "cannot be written" in telemetry.trouble
    telemetry.close()


def test_telemetry_loads_nothing_heavy() -> None:
    program = (
        "import sys, edgekit.field.telemetry.collector;"
        "print(sorted({'torch', 'transformers', 'river', 'starlette', 'llama_cpp', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_real_bundle_is_watched(tiny_build: Any, tmp_path: Path) -> None:
    import edgekit

    bundle = Path(shutil.copytree(tiny_build.bundle, tmp_path / "bundle"))
    with Telemetry.open(tmp_path / "state", bundle, "gguf") as telemetry:
        with edgekit.load(bundle, "gguf", threads=1, telemetry=telemetry) as model:
            assert model.generate("close job 6830", max_tokens=4)
        window = now(telemetry.store)
    assert window.requests == 1 and window.prompt_tokens > 3 and sum(window.classes.values()) == 1
    assert telemetry.detector is not None and telemetry.note == ""
