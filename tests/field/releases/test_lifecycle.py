"""Versions on a device: what is kept, which one answers, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from field.releases import bundles
from typer.testing import CliRunner

from edgekit.base.errors import ConfigError, CorruptError, GateError, StageError
from edgekit.commands.releases import app
from edgekit.device.manifest import release_name
from edgekit.field.incidents.audit import Audit
from edgekit.field.releases import Release, Releases
from edgekit.field.releases.health import Health


@pytest.fixture(autouse=True)
def unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is flushed when is the matter of test_cut.py; here it only takes time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    return Releases(tmp_path / "releases")


def brought(releases: Releases, tmp_path: Path, text: str, **manifest: Any) -> Release:
    bundle = bundles.write(tmp_path / "bundles" / text, text, **manifest)
    return releases.import_(bundle, health=bundles.fit)


def used(releases: Releases, tmp_path: Path, text: str, **manifest: Any) -> Release:
    release = brought(releases, tmp_path, text, **manifest)
    releases.promote(release.name, health=bundles.fit, compare=bundles.same)
    releases.mark_good()
    return releases.get(release.name)


def damage(release: Release, file: str = "model.gguf") -> None:
    path = release.path / file
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)  # the object is the same file, and as damaged


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_release_is_named_by_its_manifest_and_holds_the_whole_bundle(releases, tmp_path: Path) -> None:
    release = brought(releases, tmp_path, "one")
    source = tmp_path / "bundles" / "one"
    assert release.name == release_name((source / "manifest.json").read_bytes()) and release.place == "new"
    assert files_below(release.path) == files_below(source)
    assert all(
        (release.path / file).read_bytes() == (source / file).read_bytes() for file in files_below(source)
    )
    assert releases.current() is None


def test_a_file_of_two_versions_is_kept_once_and_one_that_may_not_be_linked_has_one_name(
    releases, tmp_path: Path
) -> None:
    one, two = brought(releases, tmp_path, "one"), brought(releases, tmp_path, "two")
    shared = [(release.path / "tokenizer/tokenizer.json").stat().st_ino for release in (one, two)]
    assert shared[0] == shared[1]
    assert (one.path / "onnx/genai_config.json").stat().st_nlink == 1
    assert len(list(releases.store.objects.iterdir())) == 3  # two models and the tokenizer


def test_without_hard_links_a_version_is_a_copy(releases, tmp_path: Path, monkeypatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError("this file system has no links")

    monkeypatch.setattr(os, "link", refuse)
    release = used(releases, tmp_path, "one")
    releases.gc()
    assert releases.boot() == release.path and (release.path / "model.gguf").stat().st_nlink == 1


def test_a_version_is_on_trial_until_it_is_marked_good(releases, tmp_path: Path) -> None:
    one = used(releases, tmp_path, "one")
    two = brought(releases, tmp_path, "two")
    promoted = releases.promote(
        two.name[:6], who="ann", why="faster", health=bundles.fit, compare=bundles.same
    )
    assert (promoted.place, promoted.tries) == ("pending", 3) and releases.current() == two.path
    releases.mark_good("another")
    assert releases.pending() == two.name
    releases.mark_good(two.name)
    assert {release.name: release.place for release in releases.list()} == {
        one.name: "previous",
        two.name: "current",
    }
    promoting = next(
        line for line in releases.log() if line["what"] == "promote" and line["release"] == two.name
    )
    assert (promoting["who"], promoting["why"]) == ("ann", "faster") and promoting["time"] > 0


def test_a_version_that_is_never_marked_good_is_out_after_three_starts(releases, tmp_path: Path) -> None:
    one = used(releases, tmp_path, "one")
    two = brought(releases, tmp_path, "two")
    releases.promote(two.name, health=bundles.fit, compare=bundles.same)
    assert [releases.boot() for _ in range(5)] == [two.path] * 3 + [one.path] * 2
    assert releases.get(two.name).place == "bad" and "never marked good" in releases.get(two.name).why


def test_a_verdict_brings_back_the_version_before(releases, tmp_path: Path) -> None:
    one, two = used(releases, tmp_path, "one"), used(releases, tmp_path, "two")
    three = brought(releases, tmp_path, "three")
    releases.promote(three.name, health=bundles.fit, compare=bundles.same)
    assert releases.verdict("it answers nothing", release=two.name) == three.path  # two answers no longer
    assert releases.verdict("it answers nothing", release=three.name) == two.path
    assert releases.get(three.name).why == "it answers nothing"
    assert releases.verdict("too slow") == one.path
    assert releases.verdict("too slow") == one.path  # the only one left stays
    assert "no other" in releases.log()[-1]["why"]
    assert releases.boot() == one.path


def test_rollback_goes_back_one_and_no_further_than_there_is(releases, tmp_path: Path) -> None:
    one, two = used(releases, tmp_path, "one"), used(releases, tmp_path, "two")
    assert releases.rollback(who="ann", why="drift").name == one.name and releases.current() == one.path
    with pytest.raises(ConfigError, match="no earlier version"):
        releases.rollback()
    assert releases.current() == one.path
    releases.promote(two.name, health=bundles.fit, compare=bundles.same)
    assert releases.get(two.name).why == ""
    assert releases.rollback().name == one.name and releases.pending() is None


def test_the_command_leaves_the_named_version_alone_and_no_other(releases, tmp_path: Path) -> None:
    one, two, three = (used(releases, tmp_path, text) for text in ("one", "two", "three"))

    def rollback(release: str) -> BaseException | None:
        return (
            CliRunner()
            .invoke(app, ["rollback", "--release", release, "--why", "slow", "--state", str(tmp_path)])
            .exception
        )

    releases.rollback(why="a rule was first")
    before = releases.log()
    for late, said in (
        (three.name, f"{three.name} is no longer in use; in use is {two.name}"),
        ("none", "no release"),
    ):
        refused = rollback(late)
        assert isinstance(refused, ConfigError) and said in refused.message and refused.hint
    assert releases.current() == two.path and releases.log() == before
    assert rollback(two.name[:8]) is None and releases.current() == one.path


def test_rollback_passes_over_a_damaged_version(releases, tmp_path: Path) -> None:
    one, two, three = (used(releases, tmp_path, text) for text in ("one", "two", "three"))
    damage(two)
    assert releases.rollback().name == one.name
    assert "digest" in releases.get(two.name).why and releases.get(three.name).place == "bad"


@pytest.mark.parametrize("file", ["model.gguf", "onnx/model.onnx", "manifest.json"])
def test_a_damaged_slot_is_found_at_the_start_and_the_one_before_answers(
    releases, tmp_path: Path, file: str
) -> None:
    one, two = used(releases, tmp_path, "one"), used(releases, tmp_path, "two")
    damage(two, file)
    assert releases.boot() == one.path == releases.current()
    damage(one, file)
    with pytest.raises(CorruptError, match="All releases on this device are damaged"):
        releases.boot()
    releases.import_(tmp_path / "bundles" / "one", health=bundles.fit)  # mends it
    assert releases.boot() == one.path


def test_a_damaged_candidate_is_refused_and_a_damaged_trial_ends(releases, tmp_path: Path) -> None:
    one, two = used(releases, tmp_path, "one"), brought(releases, tmp_path, "two")
    damage(two)
    with pytest.raises(CorruptError, match="digest"):
        releases.promote(two.name, health=bundles.fit, compare=bundles.same)
    assert releases.current() == one.path and releases.log()[-1]["what"] == "refuse"
    releases.import_(tmp_path / "bundles" / "two", health=bundles.fit)
    releases.promote(two.name, health=bundles.fit, compare=bundles.same)
    damage(two)
    assert releases.boot() == one.path


@pytest.mark.parametrize("kind", ["digest", "garbage", "slow", "memory", "timeout", "crash"])
def test_a_failed_check_names_its_reason_and_the_version_in_use_stays(
    releases, tmp_path: Path, kind: Any
) -> None:
    one, two = used(releases, tmp_path, "one"), brought(releases, tmp_path, "two")
    error = CorruptError if kind == "digest" else GateError
    with pytest.raises(error, match=f"because of {kind}.*{one.name} stays in use"):
        releases.promote(
            two.name, health=lambda _: Health(False, kind, f"because of {kind}"), compare=bundles.same
        )
    assert releases.boot() == one.path
    assert releases.store.noted(two.name, "health")["kind"] == kind


def test_a_lost_comparison_is_archived_and_refuses(releases, tmp_path: Path) -> None:
    one, two = used(releases, tmp_path, "one"), brought(releases, tmp_path, "two")
    with pytest.raises(GateError, match="5 of 9 answers lost"):
        releases.promote(two.name, health=bundles.fit, compare=bundles.worse)
    assert releases.current() == one.path
    archived = json.loads((releases.root / "records" / two.name / "comparison.json").read_text())
    assert archived["passed"] is False and archived["n"] == 9


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {}),
        ({"version": "1.9.0"}, {"version": "1.10.0"}),
        ({"created": "2026-01"}, {"created": "2026-02"}),
    ],
)
def test_an_older_version_is_refused_unless_it_is_asked_for(releases, tmp_path: Path, old, new) -> None:
    if old:  # the manifests tell, against the order of import
        newer, older = used(releases, tmp_path, "new", **new), brought(releases, tmp_path, "old", **old)
    else:
        older, newer = brought(releases, tmp_path, "old"), used(releases, tmp_path, "new")
    with pytest.raises(ConfigError, match="older"):
        releases.promote(older.name, health=bundles.fit, compare=bundles.same)
    assert releases.current() == newer.path
    releases.promote(older.name, allow=["older"], health=bundles.fit, compare=bundles.same)
    assert releases.current() == older.path


def test_one_version_is_on_trial_at_a_time(releases, tmp_path: Path) -> None:
    two, three = brought(releases, tmp_path, "two"), brought(releases, tmp_path, "three")
    releases.promote(two.name, health=bundles.fit)
    with pytest.raises(ConfigError, match="on trial"):
        releases.promote(three.name, health=bundles.fit)
    assert releases.promote(two.name, health=bundles.fit).place == "pending"  # the same again changes nothing


def test_what_changed_while_a_candidate_was_checked_is_seen(releases, tmp_path: Path) -> None:
    used(releases, tmp_path, "one")
    used(releases, tmp_path, "two")
    three = brought(releases, tmp_path, "three")

    def meanwhile(bundle: Path) -> Health:
        Releases(releases.root).rollback()
        return Health(True, "", "")

    with pytest.raises(ConfigError, match="changed while"):
        releases.promote(three.name, health=meanwhile, compare=bundles.same)
    assert releases.pending() is None


def test_a_version_of_which_too_little_was_asked_needs_rows_or_a_word_that_the_log_keeps(
    releases, tmp_path: Path
) -> None:
    one, two = used(releases, tmp_path, "one"), brought(releases, tmp_path, "two")
    with pytest.raises(GateError, match="3 answers are too few") as refused:
        releases.promote(two.name, health=bundles.fit, compare=bundles.unproven)
    assert "133 rows" in refused.value.hint and "--unproven" in refused.value.hint
    assert releases.current() == one.path and releases.log()[-1]["what"] == "refuse"
    with pytest.raises(GateError, match="worse"):  # the word is for doubt only
        releases.promote(two.name, health=bundles.fit, compare=bundles.worse, allow=["unproven"])
    releases.promote(two.name, why="urgent", health=bundles.fit, compare=bundles.unproven, allow=["unproven"])
    assert releases.pending() == two.name
    assert releases.log()[-1]["why"].startswith("urgent; unproven: ")


def test_each_change_is_in_the_audit_log_with_who_made_it(releases, tmp_path: Path) -> None:
    one, two = used(releases, tmp_path, "one"), brought(releases, tmp_path, "two")
    releases.promote(two.name, who="ann", why="faster", health=bundles.fit, compare=bundles.same)
    releases.rollback(why="slower")
    audit = Audit(releases.root.parent)
    told = [(entry["what"], entry["release"], entry["why"]) for entry in audit.entries()[-2:]]
    assert told == [("promote", two.name, "faster"), ("rollback", two.name, "slower")]
    who = [entry["who"] for entry in audit.entries()[-2:]]
    assert who[0] == "ann" and who[1].endswith(f"@{socket.gethostname()}")
    assert audit.check() == [] and releases.current() == one.path
    audit.path.write_text(audit.path.read_text().replace('"ann"', '"otto"'))
    assert audit.check()


def test_what_cannot_be_audited_is_not_done(releases, tmp_path: Path) -> None:
    one, two = used(releases, tmp_path, "one"), brought(releases, tmp_path, "two")
    audit = Audit(releases.root.parent)
    audit.path.unlink()
    audit.path.mkdir()
    with pytest.raises(StageError, match="unchanged"):
        releases.promote(two.name, health=bundles.fit, compare=bundles.same)
    assert releases.boot() == one.path


# Importing


@pytest.mark.parametrize(
    "fault",
    [
        lambda bundle: (bundle / "model.gguf").write_bytes(b"weights of OTHER"),
        lambda bundle: (bundle / "onnx/model.onnx").unlink(),
        lambda bundle: (bundle / "manifest.json").write_text("{"),
        lambda bundle: change(bundle, lambda m: m.pop("formats")),
        lambda bundle: change(bundle, lambda m: m["files"].append(m["files"][0])),
        lambda bundle: change(bundle, lambda m: m["files"][0].update(path="../outside")),
        lambda bundle: change(bundle, lambda m: m["files"][0].update(path="/etc/passwd")),
        lambda bundle: change(bundle, lambda m: m["files"][0].update(sha256="../../state.json")),
        lambda bundle: change(bundle, lambda m: m.update(files=[])),
    ],
)
def test_a_damaged_bundle_leaves_nothing_behind(releases, tmp_path: Path, fault: Any) -> None:
    one = used(releases, tmp_path, "one")
    bundle = bundles.write(tmp_path / "bundles" / "two", "two")
    fault(bundle)
    before = files_below(releases.root)
    with pytest.raises(CorruptError):
        releases.import_(bundle, health=bundles.fit)
    assert files_below(releases.root) == before | {"import.lock"} and releases.boot() == one.path


def change(bundle: Path, edit: Any) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    edit(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_bundle_that_answers_otherwise_or_failed_its_build_is_not_taken(releases, tmp_path: Path) -> None:
    bundle = bundles.write(tmp_path / "garbage", "garbage")
    with pytest.raises(GateError, match="other answers"):
        releases.import_(bundle, health=lambda _: Health(False, "garbage", "other answers"))
    failed = bundles.write(tmp_path / "failed", "failed", verdict="fail")
    with pytest.raises(GateError, match="own gates"):
        releases.import_(failed, health=bundles.fit)
    assert not releases.list() and not files_below(releases.store.objects)
    told = Health(False, "verdict", "its build: fail")
    assert releases.import_(failed, allow_failed=True, health=lambda _: told).place == "new"


def test_the_same_bundle_again_changes_nothing(releases, tmp_path: Path) -> None:
    one = used(releases, tmp_path, "one")
    assert releases.import_(tmp_path / "bundles" / "one", health=bundles.fit) == one


# Collecting


def test_collection_keeps_what_answers_what_waits_and_the_last_good_ones(releases, tmp_path: Path) -> None:
    one, two, three = (used(releases, tmp_path, text) for text in ("one", "two", "three"))
    four, five = brought(releases, tmp_path, "four"), brought(releases, tmp_path, "five")
    releases.promote(five.name, health=bundles.fit, compare=bundles.same)
    found = releases.gc(keep=2)
    assert found["removed"] == [one.name] and found["freed_mib"] >= 0
    assert {release.name for release in releases.list()} == {two.name, three.name, four.name, five.name}
    assert len(list(releases.store.objects.iterdir())) == 5
    releases.verdict("bad")
    assert set(releases.gc(keep=1)["removed"]) == {two.name, five.name}
    assert releases.boot() == three.path
    with pytest.raises(ConfigError):
        releases.gc(keep=0)


def test_collection_leaves_the_files_of_a_version_with_a_damaged_manifest(releases, tmp_path: Path) -> None:
    one, two = used(releases, tmp_path, "one"), used(releases, tmp_path, "two")
    saved = (two.path / "manifest.json").read_bytes()
    (two.path / "manifest.json").write_text("{}")
    releases.gc()
    (two.path / "manifest.json").write_bytes(saved)
    assert releases.boot() == two.path and one.path.exists()


# Slots


def test_a_damaged_state_comes_back_from_the_log(releases, tmp_path: Path) -> None:
    used(releases, tmp_path, "one")
    two = used(releases, tmp_path, "two")
    releases.journal.state.write_text('{"schema": "edg')
    again = Releases(releases.root)
    assert again.current() == two.path and again.rollback().place == "current"
    assert json.loads(releases.journal.state.read_text())["serial"] == again.log()[-1]["serial"]
    releases.journal.state.write_text("")
    releases.journal.log.write_text("nonsense\n")
    with pytest.raises(CorruptError, match="damaged"):
        Releases(releases.root).boot()


def test_the_log_survives_half_a_line(releases, tmp_path: Path) -> None:
    used(releases, tmp_path, "one")
    whole = releases.journal.log.read_bytes()
    releases.journal.log.write_bytes(whole[:-20])
    used(releases, tmp_path, "two")
    serials = [line["serial"] for line in releases.log()]
    assert serials == list(range(1, len(serials) + 1))


def test_a_reader_is_not_held_up_by_a_writer(releases, tmp_path: Path) -> None:
    one = used(releases, tmp_path, "one")
    import fcntl

    with (releases.root / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert Releases(releases.root).boot() == one.path and Releases(releases.root).current() == one.path


def _turn(root: Path, times: int) -> None:
    releases = Releases(root)
    for _ in range(times):
        releases.verdict("only to write")


def test_writers_take_turns(releases, tmp_path: Path) -> None:
    used(releases, tmp_path, "one")
    before = releases.log()[-1]["serial"]
    writers = [threading.Thread(target=_turn, args=(releases.root, 10)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [line["serial"] for line in releases.log()] == list(range(1, before + 21))


def test_a_disk_that_takes_nothing_lets_the_version_in_use_answer(
    releases, tmp_path: Path, monkeypatch
) -> None:
    one, two = used(releases, tmp_path, "one"), brought(releases, tmp_path, "two")
    releases.promote(two.name, health=bundles.fit, compare=bundles.same)

    def full(step: str, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgekit.field.releases.disk.before", full)
    assert releases.boot() == one.path


def test_nothing_promoted_is_said(releases, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match="No release is in use"):
            releases.boot()
        brought(releases, tmp_path, "one")
    with pytest.raises(ConfigError, match="no release 'ffff"):
        releases.promote("ffff", health=bundles.fit)
    shutil.rmtree(releases.root)
    assert list(releases.list()) == [] and list(releases.log()) == []
