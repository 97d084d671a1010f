"""Comparison of two logs: a planted loss in one label or variant is found there alone, and few rows prove nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.evaluation.compare import compare

VARIANTS = ("clean", "typos", "ocr")


def write(
    path: Path, wrong: Callable[[int, str], bool], rows: int = 200, variants: tuple[str, ...] = ()
) -> Path:
    lines = [
        {"id": f"r{n}", "label": "ab"[n % 2], "variant": variant, "correct": not wrong(n, variant)}
        for variant in variants or ("",)
        for n in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def held(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(wrong: Callable[[int, str], bool], margin: float = 2.0, **options: Any) -> dict[str, Any]:
        first = write(tmp_path / "first", lambda n, variant: False, **options)
        return compare(first, write(tmp_path / "second", wrong, **options), margin)

    return run


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    return {one["value"]: one["verdict"] for one in found["slices"]}


def test_equal_answers_are_as_good_where_there_are_enough_rows(held: Any) -> None:
    found = held(lambda n, variant: False)
    assert found["verdict"] == "as good" and found["rows_needed"] == 0
    assert verdicts(found) == {"a": "unproven", "b": "unproven"}  # 100 rows do not show 2 points
    few = held(lambda n, variant: False, rows=24)
    assert few["verdict"] == "unproven" and few["rows_needed"] == 133
    assert held(lambda n, variant: False, rows=24, margin=11.0)["verdict"] == "as good"


def test_a_loss_beyond_the_margin_is_worse_and_within_it_unproven(held: Any) -> None:
    assert held(lambda n, variant: n < 5)["verdict"] == "worse"
    assert held(lambda n, variant: n < 4)["verdict"] == "unproven"


def test_a_label_that_fell_is_named_even_where_the_whole_is_within_the_margin(held: Any) -> None:
    found = held(lambda n, variant: n % 2 == 1 and n < 20, margin=6.0)
    assert found["difference_points"] == -5 and verdicts(found) == {"a": "as good", "b": "worse"}
    assert found["verdict"] == "worse"
    (fallen,) = (one for one in found["slices"] if one["value"] == "b")
    assert fallen["by"] == "label" and fallen["n"] == 100 and fallen["difference_points"] == -10
    low, high = fallen["bootstrap_95"]
    assert low < -10 < high < 0


def test_a_variant_that_fell_is_named_and_variants_of_a_row_count_once(held: Any) -> None:
    found = held(lambda n, variant: variant == "ocr" and n < 20, variants=VARIANTS)
    assert found["n"] == 600 and found["items"] == 200
    told = verdicts(found)
    assert (told["clean"], told["typos"], told["ocr"]) == ("as good", "as good", "worse")
    assert found["difference_points"] == pytest.approx(-100 / 30)


def test_three_copies_of_every_answer_prove_no_more_than_one(held: Any) -> None:
    found = held(lambda n, variant: False, rows=50, variants=VARIANTS)
    assert found["n"] == 150 and found["verdict"] == "unproven"
