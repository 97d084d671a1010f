"""Robust tuning: what becomes of the rows in each epoch, what each part does alone, and the consistency term."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekit.data.noise import FAMILIES, texts
from edgekit.data.out_of_scope import answer_of
from edgekit.data.phrasings import PHRASINGS
from edgekit.data.rows import Row
from edgekit.data.splits import Dataset
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.targets.target import Robustness, Tune
from edgekit.tuning.robust import Example, epochs_of, validation_of
from edgekit.tuning.trainer import Examples, collate_examples, divergence

OFF: dict[str, Any] = {"noise": [], "phrased_share": 0, "consistency": 0, "abstain": ""}
LABELS = ("weather", "alarm", "music", "news")


def row(name: str, text: str, answer: str) -> Row:
    return Row(name, ({"role": "user", "content": text}, {"role": "assistant", "content": answer}), answer)


ROWS = [
    row(f"r{place}", f"please tell me something about number {place}", LABELS[place % 4])
    for place in range(80)
]


def options(**parts: Any) -> Tune:
    return Tune(robust=True, epochs=2, robustness=Robustness(**parts))


def epochs(chosen: Tune) -> list[list[Example]]:
    return epochs_of(ROWS, chosen, answer_of(ROWS, chosen.robustness.abstain))


def test_every_epoch_has_every_row_once_and_in_another_form() -> None:
    first, second = epochs(options())
    for examples in (first, second):
        counted = Counter(
            example[0].id for example in examples if not example[0].id.startswith("out-of-scope")
        )
        assert counted == Counter(each.id for each in ROWS)
        assert all(len({each.answer for each in example}) == 1 for example in examples)
    assert len(first) == len(second) == 88 and first != second
    assert epochs(options()) == [first, second]


def test_with_every_part_off_the_rows_are_as_they_are() -> None:
    assert epochs(options(**OFF)) == [[(each,) for each in ROWS]] * 2
    assert validation_of(ROWS, options(**OFF)) == ROWS


@pytest.mark.parametrize("part", ["noise", "phrased_share", "consistency", "abstain"])
def test_each_part_alone(part: str) -> None:
    alone = OFF | {part: getattr(Robustness(), part)}
    if part == "consistency":  # of a row and its noisy twin, which needs noise
        alone |= {"noise": ["case"], "noisy_share": 0, "paired_share": 0.5}
    (examples, _) = epochs(options(**alone))
    own = {each.id: each for each in ROWS}
    changed = [each for example in examples for each in example if each != own.get(each.id)]
    assert 8 <= len(changed) <= 60
    if part == "abstain":
        assert {each.answer for each in changed} == {"out_of_scope"}
    if part == "phrased_share":
        allowed = [phrasing for phrasing in PHRASINGS if not phrasing.held_out]
        assert all(each in [phrasing.of(own[each.id]) for phrasing in allowed] for each in changed)
    pairs = [example for example in examples if len(example) == 2]
    assert bool(pairs) == (part == "consistency")
    assert all(clean == own[clean.id] and twin != clean for clean, twin in pairs)


def test_what_a_model_is_judged_by_is_not_trained() -> None:
    assert not any(FAMILIES[family].held_out for family in Robustness().noise)
    told = [
        each.messages[-2]["content"]
        for example in epochs(options(noisy_share=1, noise=["distractor", "filler"]))[0]
        for each in example
    ]
    judged = texts()["distractor"]["evaluation"]["sentences"]
    assert not any(sentence in text for text in told for sentence in judged)


def test_the_best_checkpoint_is_the_best_on_noise_too() -> None:
    found = validation_of(ROWS[:10], options())
    assert found[::2] == ROWS[:10:2] and len(found) == 10
    assert all(
        noisy.answer == clean.answer and noisy != clean
        for clean, noisy in zip(ROWS[1:10:2], found[1::2], strict=True)
    )


def encoded(*lengths: int) -> Any:
    from edgekit.tuning.encode import EncodedRow

    return tuple(EncodedRow(str(length), list(range(1, length + 1)), length - 2) for length in lengths)


def test_a_batch_knows_its_pairs_and_an_epoch_its_lengths() -> None:
    examples = Examples([[encoded(5), encoded(6, 9)], [encoded(7), encoded(4)]])
    assert examples.lengths(0) == [5, 9] and examples.lengths(3) == [7, 4]
    batch = collate_examples([examples[0], examples[1]])
    assert batch["input_ids"].shape == (3, 9) and batch["pairs"].tolist() == [[1, 2]]
    examples.set_epoch(1)
    assert examples[0] == encoded(7)
    assert collate_examples([examples[0]])["pairs"].shape == (0, 2)


def test_the_divergence_is_the_mean_of_both_kl_divergences() -> None:
    first, second = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.1, 0.6, 0.3]).log()
    logits, rows = torch.stack([first, second, first + 2.0]), torch.tensor([0, 1, 2])
    forward = sum(math.exp(p) * (p - q) for p, q in zip(first.tolist(), second.tolist(), strict=True))
    backward = sum(math.exp(q) * (q - p) for p, q in zip(first.tolist(), second.tolist(), strict=True))
    found = divergence(logits, rows, torch.tensor([[0, 1]]))
    assert found.item() == pytest.approx((forward + backward) / 2, abs=1e-5)
    assert divergence(logits, rows, torch.tensor([[0, 2]])).item() == pytest.approx(0.0, abs=1e-6)
    unequal = divergence(logits, torch.tensor([0, 0, 2]), torch.tensor([[0, 2]]))
    assert unequal.item() == 0.0


def test_a_robust_run_repeats_and_is_another_than_a_plain_one(small_model: Path, tmp_path: Path) -> None:
    from edgekit.tuning.tune import tune

    data = Dataset("rows", ROWS[:24], ROWS[24:30], [])
    chosen = Tune(robust=True, epochs=2, rank=2, batch_size=4, dtype="float32")
    results = [
        tune(small_model, data, chosen, tmp_path / name, work=tmp_path / f"{name}.work", threads=1)
        for name in ("one", "two")
    ]
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    assert (
        files[0] == files[1] and results[0]["steps"] == results[1]["steps"] == 14
    )  # 24 rows and 2 requests, twice
    plain = Tune(epochs=2, rank=2, batch_size=4, dtype="float32")
    tune(small_model, data, plain, tmp_path / "plain", work=tmp_path / "plain.work", threads=1)
    assert (tmp_path / "plain" / "adapter_model.safetensors").read_bytes() != files[0]


def test_a_row_that_noise_makes_too_long_is_trained_as_it_is(small_model: Path) -> None:
    from edgekit.tuning.encode import encode_rows, encode_variant

    tokenizer = ModelTokenizer(small_model)
    ((plain,), _) = encode_rows(ROWS[:1], tokenizer.chat_template, tokenizer, 512)
    long = row("r0", "word " * 400, "weather")
    assert encode_variant(long, tokenizer.chat_template, tokenizer, 128, plain) is plain
