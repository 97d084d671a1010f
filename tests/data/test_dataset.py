"""Datasets: which files are which split, folders that `datasets` saved, and prompts that stand in two splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from edgekit.base.errors import ConfigError
from edgekit.base.events import Alert
from edgekit.data.dataset import DataOptions, load_dataset, load_questions
from edgekit.data.files import within

FEATURES = {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"question {n}", "label": "yes" if n % 2 else "no"} for n in range(start, start + count)]


def write_csv(path: Path, records: list[dict[str, Any]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [delimiter.join(records[0]), *(delimiter.join(record.values()) for record in records)]
    path.write_text("\n".join(lines) + "\n")


def write_saved(folder: Path, records: list[dict[str, Any]], shards: int = 2) -> None:
    """A folder as `Dataset.save_to_disk` writes it."""
    folder.mkdir(parents=True)
    numbers = [{**record, "label": FEATURES["label"]["names"].index(record["label"])} for record in records]  # type: ignore[attr-defined]
    schema = pa.Table.from_pylist(numbers).schema.with_metadata(
        {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    )
    names = [f"data-{n:05d}-of-{shards:05d}.arrow" for n in range(shards)]
    for n, name in enumerate(names):
        with ipc.new_stream(folder / name, schema) as writer:
            writer.write_table(pa.Table.from_pylist(numbers[n::shards], schema=schema))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(
        json.dumps({"license": "CC0", "homepage": "", "features": FEATURES})
    )


def questions(part: list[Any]) -> list[str]:
    return [row.messages[0]["content"] for row in part]


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "validation.csv", "test.csv"),
        ("my-train.tsv", "my-dev.tsv", "my-test.tsv"),
        ("train-00000-of-00001.csv", "val.csv", "eval.csv"),
        ("data/train.csv", "data/valid.csv", "data/test.csv"),
        ("train/0000.csv", "validation/0000.csv", "test/0000.csv"),
    ],
)
def test_files_of_a_folder_are_told_apart_by_their_names(names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("About the data.")
    (tmp_path / "extra.csv").write_text("a table that names no split")
    for name, (count, start) in zip(names, ((30, 0), (20, 100), (10, 200)), strict=True):
        write_csv(tmp_path / name, rows(count, start), "\t" if name.endswith(".tsv") else ",")
    found = load_dataset(str(tmp_path))
    assert found.rows == {"train": 30, "validation": 20, "test": 10} and "splits" not in found.form
    assert questions(found.test)[0] == "question 200" and found.train[0].place == f"{names[0]}:2"


def test_a_split_that_a_folder_lacks_is_taken_from_train(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", rows(200))
    first = load_dataset(str(tmp_path))
    assert sum(first.rows.values()) == 200 and min(first.rows.values()) > 5
    assert first.form["splits"] == "validation and test by id from train"
    write_csv(tmp_path / "test.csv", rows(20, 500))
    second = load_dataset(str(tmp_path))
    assert second.rows["test"] == 20 and second.rows["train"] + second.rows["validation"] == 200
    assert second.form["splits"] == "validation by id from train"
    write_csv(tmp_path / "train.csv", rows(220))
    assert set(questions(second.validation)) <= set(questions(load_dataset(str(tmp_path)).validation))
    assert (
        load_dataset(str(tmp_path / "train.csv")).digest == load_dataset(str(tmp_path / "train.csv")).digest
    )


def test_shards_are_read_in_order_and_none_may_be_missing(tmp_path: Path) -> None:
    for n in range(3):
        parquet.write_table(
            pa.Table.from_pylist(rows(40, 40 * n)), tmp_path / f"train-{n:05d}-of-00003.parquet"
        )
    found = load_dataset(str(tmp_path))
    assert sum(found.rows.values()) == 120
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(ConfigError, match="incomplete: it has 2 of the 3 files train-"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("test.csv", "validation.csv"), "no data file for training; it has test.csv, validation.csv"),
        (("loader.py", "model.pkl"), "no data file for training; it has loader.py, model.pkl"),
        ((), "it has no files"),
        (("main/train.csv", "other/train.csv"), r"more than one set of rows: main/\*.csv, other/\*.csv"),
        (("train.csv", "train.jsonl"), r"more than one set of rows: \*.csv, \*.jsonl"),
    ],
)
def test_a_folder_that_is_not_plain_is_refused(names: tuple[str, ...], words: str, tmp_path: Path) -> None:
    for name in names:
        write_csv(tmp_path / name, rows(3))
    with pytest.raises(ConfigError, match=words) as caught:
        load_dataset(str(tmp_path))
    assert caught.value.hint


def test_three_jsonl_files_are_read_whatever_else_is_there(tmp_path: Path) -> None:
    for split, start in (("train", 0), ("validation", 10), ("test", 20)):
        records = [{"prompt": record["text"], "completion": "a"} for record in rows(5, start)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, records)))
    write_csv(tmp_path / "train.csv", rows(3))
    found = load_dataset(str(tmp_path))
    assert found.rows == {"train": 5, "validation": 5, "test": 5}
    assert found.form["files"] == "not used: train.csv"


def test_files_that_are_not_used_or_are_put_together_are_told(tmp_path: Path) -> None:
    for n, name in enumerate(
        ("train-a.csv", "train-b.csv", "dev.csv", "test-00000-of-00002.csv", "extra.csv")
    ):
        write_csv(tmp_path / name, rows(5, 10 * n))
    write_csv(tmp_path / "test-00001-of-00002.csv", rows(5, 90))
    found = load_dataset(str(tmp_path))
    assert found.rows == {"train": 10, "validation": 5, "test": 10}
    assert found.form["files"] == "not used: extra.csv; read together as train: train-a.csv, train-b.csv"


@pytest.mark.parametrize("name", ["/etc/train.csv", "..\\train.csv", "data/../../train.csv"])
def test_a_list_of_files_names_none_outside_its_folder(name: str) -> None:
    assert within("org/rows", ["data/train.csv"]) == ["data/train.csv"]
    with pytest.raises(ConfigError, match="not within it"):
        within("org/rows", ["data/train.csv", name])


def test_a_column_that_only_the_test_rows_have_is_read(tmp_path: Path) -> None:
    for name, more in (("train", {}), ("dev", {}), ("test", {"system": "Be brief."})):
        write_csv(
            tmp_path / f"{name}.csv", [{"question": f"{name} {n}", "answer": "a", **more} for n in range(3)]
        )
    found = load_dataset(str(tmp_path))
    assert [[len(row.messages) for row in part] for part in (found.train, found.test)] == [[2] * 3, [3] * 3]


def test_faults_of_all_files_are_told_together(tmp_path: Path) -> None:
    for split, start in (("train", 0), ("validation", 10), ("test", 20)):
        write_csv(tmp_path / f"{split}.csv", [*rows(5, start), {"text": "q", "label": ""}])
    with pytest.raises(ConfigError) as caught:
        load_dataset(str(tmp_path))
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "train.csv",
        "validation.csv",
        "test.csv",
    ]


def test_saved_data_sets_keep_their_splits_and_the_names_of_their_labels(tmp_path: Path) -> None:
    write_saved(tmp_path / "one", rows(200))
    one = load_dataset(str(tmp_path / "one"))
    assert sum(one.rows.values()) == 200 and {row.answer for row in one.train} == {"yes", "no"}
    assert one.card == {"licence": "CC0"} and "label=label (guessed" in one.form["data"]
    for split, start in (("train", 0), ("dev", 100), ("test", 200), ("oos", 300)):
        write_saved(tmp_path / "dict" / split, rows(50, start))
    (tmp_path / "dict" / "dataset_dict.json").write_text(
        json.dumps({"splits": ["train", "dev", "test", "oos"]})
    )
    found = load_dataset(str(tmp_path / "dict"))
    assert found.rows == {"train": 50, "validation": 50, "test": 50}
    assert "files: not used: oos" in found.notes


def test_a_saved_data_set_names_no_file_outside_itself(tmp_path: Path) -> None:
    """Planted: a state file that points at another folder's rows."""
    write_saved(tmp_path / "mine", rows(50))
    write_saved(tmp_path / "other", rows(50))
    state = {"_data_files": [{"filename": "../mine/data-00000-of-00002.arrow"}]}
    (tmp_path / "other" / "state.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="not within it"):
        load_dataset(str(tmp_path / "other"))
    (tmp_path / "mine" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ConfigError, match="incomplete: it has no data-00001"):
        load_dataset(str(tmp_path / "mine"))
    (tmp_path / "mine" / "state.json").write_text("[]")
    with pytest.raises(ConfigError, match="is not a JSON object"):
        load_dataset(str(tmp_path / "mine"))


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """Two prompts of train are in test, one of them also in validation, and one of validation is in test."""
    write_csv(tmp_path / "train.csv", rows(20))
    write_csv(tmp_path / "validation.csv", [*rows(10, 100), *rows(1, 3)])
    write_csv(tmp_path / "test.csv", [*rows(10, 200), *rows(2, 3), *rows(1, 105)])
    return tmp_path


def test_prompts_in_two_splits_are_refused(leaking: Path) -> None:
    with pytest.raises(ConfigError, match="4 prompts in .* more than one split") as caught:
        load_dataset(str(leaking))
    assert "--drop-leaks" in caught.value.hint
    assert caught.value.faults[0] == "train.csv:5 (train): the same prompt is in test"


def test_prompts_in_two_splits_are_left_out_of_the_earlier_one(leaking: Path) -> None:
    said: list[Any] = []
    found = load_dataset(str(leaking), DataOptions(drop_leaks=True), said.append)
    assert found.rows == {"train": 18, "validation": 9, "test": 13}
    splits = [set(questions(part)) for part in (found.train, found.validation, found.test)]
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]
    assert [(leak.row.place, leak.other) for leak in found.left_out] == [
        ("train.csv:5", "test"), ("train.csv:6", "test"), ("validation.csv:7", "test"), ("validation.csv:12", "test"),
    ]  # fmt: skip
    assert found.left_out[0].as_dict()["prompt"] == [{"role": "user", "content": "question 3"}]
    assert (
        isinstance(said[-1], Alert)
        and "4 rows left out" in said[-1].message
        and "train.csv:5" in said[-1].message
    )
    assert found.provenance["left_out"] == 4


def test_a_split_that_only_has_leaks_is_refused(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write_csv(tmp_path / f"{split}.csv", rows(5))
    with pytest.raises(ConfigError, match="none for train and validation"):
        load_dataset(str(tmp_path), DataOptions(drop_leaks=True))


def test_what_was_read_is_said(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", [*rows(100), *rows(2)])
    said: list[Any] = []
    found = load_dataset(str(tmp_path / "rows.csv"), None, said.append)
    assert found.name == "rows" and [event.message for event in said] == found.notes
    assert (
        found.notes[0]
        == "data: CSV, prompt=text,completion=label,label=label (guessed; --columns changes it)"
    )
    sizes = ", ".join(f"{count} {split}" for split, count in found.rows.items())
    assert found.notes[1:] == [
        f"rows: {sizes}; validation and test by id from train",
        "copies: 2 exact copies of other rows are left out",
    ]
    named = load_dataset(str(tmp_path / "rows.csv"), DataOptions("prompt=text,completion=text"))
    assert named.digest != found.digest and {row.answer for row in named.train} == set(questions(named.train))


def test_rows_that_a_stray_quotation_mark_may_join_are_told(tmp_path: Path) -> None:
    """Planted: in a TSV file without quoting, a cell begins with a quotation mark, and a later line ends one."""
    lines = [f"question {n}\t{n % 2}" for n in range(100)]
    lines[40:43] = ['"question 40\t0', "question 41\t1", 'question 42"\t0']
    (tmp_path / "rows.tsv").write_text("\n".join(["text\tlabel", *lines]))
    found = load_dataset(str(tmp_path / "rows.tsv"))
    assert sum(found.rows.values()) == 98
    assert any("1 rows contain tabs and line ends" in note and "rows.tsv:42" in note for note in found.notes)


def test_questions_for_a_comparison_are_those_that_no_tuning_has_seen(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", rows(100))
    assert len(load_questions(str(tmp_path / "train.csv"))) == 100
    write_csv(tmp_path / "test.csv", rows(10, 500))
    assert len(load_questions(str(tmp_path))) == 10


def test_options_as_they_are_typed() -> None:
    options = DataOptions("prompt=a b,completion=c", "v1", True, offline=True)
    assert options.arguments == [
        "--columns",
        "prompt=a b,completion=c",
        "--data-revision",
        "v1",
        "--drop-leaks",
    ]
    assert DataOptions().arguments == []


def test_a_revision_needs_a_hub_data_set(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", rows(50))
    with pytest.raises(ConfigError, match="needs a hub data set"):
        load_dataset(str(tmp_path / "rows.csv"), DataOptions(revision="v1"))
