"""`edgekit verify BUNDLE --data ROWS`: the rows are read as the build read them, and must be those of the build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.base.errors import ConfigError
from edgekit.cli import app
from edgekit.commands import verify
from edgekit.data import hub
from edgekit.data.dataset import DataOptions, load_dataset

COLUMNS = "prompt=said,completion=meant"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    lines = [f"please do {number},done {number},note {number}" for number in range(80)]
    path.write_text("\n".join(["said,meant,remark", *lines]))
    return path


def manifest_of(table: Path, columns: str = COLUMNS) -> dict[str, Any]:
    return {"data": load_dataset(str(table), DataOptions(columns)).provenance}


def test_the_rows_are_read_with_the_columns_that_the_manifest_records(table: Path) -> None:
    with pytest.raises(ConfigError, match="is not plain"):
        load_dataset(str(table))  # no column is guessed
    manifest = json.loads(json.dumps(manifest_of(table)))
    found, (gate,) = verify._rows_of_build(manifest, str(table), DataOptions())
    assert gate.passed and "as the manifest of the bundle records: --columns" in gate.detail
    assert found["data"]["options"] == ["--columns", COLUMNS] and sum(found["data"]["rows"].values()) == 80


def test_columns_as_given_come_first_and_other_rows_fail(table: Path) -> None:
    manifest = manifest_of(table)
    _, (gate,) = verify._rows_of_build(manifest, str(table), DataOptions("prompt=said,completion=remark"))
    assert not gate.passed and "not the rows of the build" in gate.detail and "as given" in gate.detail
    table.write_text(table.read_text().replace("done 7,", "done 8,"))
    _, (gate,) = verify._rows_of_build(manifest, str(table), DataOptions())
    assert not gate.passed and "'rows'" in gate.detail


def test_dropped_leaks_and_the_commit_of_a_hub_data_set_are_recorded(tmp_path: Path) -> None:
    for split, numbers in {"train": range(60), "validation": range(59, 70), "test": range(70, 80)}.items():
        rows = [json.dumps({"prompt": f"do {number}", "completion": f"done {number}"}) for number in numbers]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    built = load_dataset(str(tmp_path), DataOptions(drop_leaks=True)).provenance
    _, (gate,) = verify._rows_of_build({"data": built}, str(tmp_path), DataOptions())
    assert gate.passed and "--drop-leaks" in gate.detail
    pinned = {"name": "rows", "commit": "a" * 40, "options": {"columns": COLUMNS}}
    assert DataOptions().as_built("org/rows", pinned) == DataOptions(COLUMNS, "a" * 40)
    assert DataOptions(revision="v1").as_built("org/rows", pinned).revision == "v1"
    assert DataOptions().as_built("org/rows@v1", pinned).revision == ""
    assert DataOptions().as_built("org/other", pinned).revision == ""
    assert hub.parse("org/rows") is not None


@pytest.mark.parametrize("planted", [None, [], {"options": 3, "sha256": 4}, {"options": {"columns": []}}])
def test_a_manifest_without_options_is_read_as_one_of_an_older_version(table: Path, planted: Any) -> None:
    options = DataOptions(COLUMNS)
    _, (gate,) = verify._rows_of_build({"data": planted}, str(table), options)
    assert not gate.passed


def test_the_command_compares_the_rows_of_a_bundle(tiny_build: Any, shell: Any, table: Path) -> None:
    done = shell("verify", tiny_build.bundle, "--data", tiny_build.folder / "data", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["gates"][0]["name"] == "build.rows" and found["data"]["rows"] == {
        "train": 48, "validation": 16, "test": 12,
    }  # fmt: skip
    done = shell("verify", tiny_build.bundle, "--data", table, "--columns", COLUMNS)
    assert done.returncode == 3 and "build.rows" in done.stderr


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--columns", COLUMNS], "no rows are given"),
        (["--data-revision", "v1"], "no rows are given"),
        (["--revision", "v1"], "--revision needs a reference model"),
        (["--quick", "--target", "cpu-int4"], "--target and --quick need a reference model"),
    ],
)
def test_an_option_that_a_bundle_cannot_use_is_refused(tmp_path: Path, typed: list[str], words: str) -> None:
    from typer.testing import CliRunner

    (tmp_path / "manifest.json").write_text("{}")
    done = CliRunner().invoke(app, ["verify", str(tmp_path), *typed])
    assert isinstance(done.exception, ConfigError) and words in done.exception.message
