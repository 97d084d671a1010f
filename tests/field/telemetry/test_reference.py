"""The reference: what is captured of rows, how it is read back, and where a class stands in an answer."""

from __future__ import annotations

import json
import random
from bisect import bisect_left
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgekit
from edgekit.base.artifacts import write_json
from edgekit.base.errors import CorruptError
from edgekit.data.rows import Row
from edgekit.device.answer import Answer
from edgekit.device.certainty import Certainty
from edgekit.field.telemetry import reference
from edgekit.field.telemetry.reference import OTHER, ClassMix, Distribution, Signals, bitmap, label_key


class Kept(list[Answer]):
    def record(self, answer: Answer) -> None:
        self.append(answer)


def row(answer: str, label: str | None) -> Row:
    return Row("1", ({"role": "user", "content": "?"}, {"role": "assistant", "content": answer}), label)


def made(**changes: Any) -> Signals:
    values = {name: [random.Random(name).random() for _ in range(40)] for name in reference.NUMBERS}
    labels, names = ["a"] * 30 + ["b"] * 10, ["a", "b"]
    given = {"format": "gguf", "values": values, "labels": labels, "names": names, "label_key": "intent"}
    return reference.of_values(**(given | {"known": bitmap([1, 2, 900])} | changes))


@pytest.mark.parametrize(
    ("rows", "key"),
    [
        ([row("yes", "yes"), row(" no ", "no")], ""),
        ([row('{"intent":"a","x":"b"}', "a"), row('{"intent":"b","x":"b"}', "b")], "intent"),
        ([row('{"intent":"a"}', "b")], None),
        ([row("[1]", "a")], None),
        ([row("words", "a")], None),
        ([], None),
    ],
)
def test_where_the_class_stands_is_found_by_looking(rows: list[Row], key: str | None) -> None:
    assert label_key(rows) == key


def test_a_class_is_one_of_the_reference_s_and_never_the_answer_s_words() -> None:
    signals = made()
    assert signals.class_of('{"intent": "a", "job": 3}') == "a"
    for strange in ('{"intent": "my secret"}', "not JSON", "[1]", '{"intent": 3}', "", "[" * 100_000):
        assert signals.class_of(strange) == OTHER
    assert made(label_key="").class_of(" b\n") == "b"
    assert made(label_key=None, labels=[]).class_of('{"intent": "a"}') is None


def test_too_many_classes_share_a_place() -> None:
    names = [f"class {index}" for index in range(200)]
    mix = ClassMix.of(names * 2 + names[:10], names)
    assert len(mix.shares) == reference.MOST_CLASSES + 1 and sum(mix.shares.values()) == pytest.approx(1)
    assert set(names[:10]) <= set(mix.shares) and mix.shares[OTHER] > 0.5


@given(st.sets(st.integers(0, 50_000), max_size=50), st.lists(st.integers(-5, 60_000), max_size=50))
def test_the_unknown_rate_is_the_share_of_ids_that_are_not_in_the_bitmap(
    known: set[int], ids: list[int]
) -> None:
    signals = Signals("gguf", {}, None, None, bitmap(known))
    assert signals.unknown_rate(ids) == pytest.approx(sum(id_ not in known for id_ in ids) / max(len(ids), 1))


def test_a_distribution_has_deciles_and_ranks() -> None:
    rng = random.Random(0)
    values = [rng.random() for _ in range(2000)]
    found = Distribution.of(values)
    assert (
        len(found.scores) == 512
        and len(found.edges) == 9
        and found.shares == pytest.approx([0.1] * 10, abs=0.01)
    )
    assert found.rank(-1) == 0 and found.rank(2) == 1 and found.rank(0.5) == pytest.approx(0.5, abs=0.05)
    assert found.bin(found.edges[0]) == 0 == bisect_left(found.edges, 0.0)
    same = Distribution.of([0.0] * 50)
    assert same.edges == (0.0,) and same.rank(0.0) == 0.5 and same.bin(0.1) == 1 and same.shares[1] < 0.02


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    signals = made()
    file = {"schema": reference.SCHEMA, "formats": {"gguf": signals.to_json()}}
    write_json(tmp_path / reference.FILE, file)
    again = reference.load(tmp_path, "gguf")
    assert again and again.known == signals.known and again.label_key == "intent"
    assert again.numbers["entropy"].edges == pytest.approx(signals.numbers["entropy"].edges, rel=1e-5)
    assert again.to_json() == signals.to_json()
    assert reference.load(tmp_path, "onnx") is None and reference.load(tmp_path / "no.json", "gguf") is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.update(schema="other"),
        lambda file: file["formats"]["gguf"].pop("known_ids"),
        lambda file: file["formats"]["gguf"].update(known_ids="AAAA"),
        lambda file: file["formats"]["gguf"]["numbers"]["entropy"].update(shares=[1.0]),
        lambda file: file["formats"]["gguf"]["numbers"]["entropy"].update(scores=[]),
        lambda file: file["formats"]["gguf"].update(classes={"a": -1.0}),
        lambda file: file.update(formats=[]),
    ],
)
def test_a_damaged_reference_is_corrupt(tmp_path: Path, spoil: Any) -> None:
    file = json.loads(json.dumps({"schema": reference.SCHEMA, "formats": {"gguf": made().to_json()}}))
    spoil(file)
    write_json(tmp_path / reference.FILE, file)
    with pytest.raises(CorruptError, match="signals.json"):
        reference.load(tmp_path, "gguf")


def test_build_records_the_validation_rows_of_each_format(tiny_build: Any) -> None:
    manifest = json.loads((tiny_build.bundle / "manifest.json").read_text())
    assert reference.FILE in {file["path"] for file in manifest["files"]}
    rows = (tiny_build.folder / "data" / "validation.jsonl").read_text().splitlines()
    for format in ("gguf", "onnx"):
        signals = reference.load(tiny_build.bundle, format)
        assert signals and signals.label_key == "intent" and set(signals.numbers) == set(reference.NUMBERS)
        assert len(signals.numbers["prompt_tokens"].scores) == len(rows)
        with edgekit.load(tiny_build.bundle, format, threads=1) as model:
            tuned_on = json.loads((tiny_build.folder / "data" / "train.jsonl").read_text().splitlines()[0])
            first = json.loads(rows[0])["messages"][:-1]
            assert signals.unknown_rate(model.prompt(tuned_on["messages"][:-1])) == 0.0
            assert signals.unknown_rate(model.runtime.encode("Ω≈ç√∫ 雪")) > 0
            model.telemetry = kept = Kept()
            model.chat(first)
        certainty = kept[0].certainty
        assert isinstance(certainty, Certainty) and certainty.confidence is not None
        scores = signals.numbers["confidence"].scores
        assert min(abs(score - certainty.confidence) for score in scores) < 1e-4, (
            "the same model, the same rows"
        )
