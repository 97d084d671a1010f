"""Noise: the same for the same seed, never without an effect on a sentence, and never on what the answer repeats."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.data.noise import FAMILIES, noisy, perturb, perturbed, texts
from edgekit.data.phrasings import PHRASINGS
from edgekit.data.rows import Row

TEXT = "please close job 417 at River Dock, the pump is repaired now"


def row(text: str = TEXT, answer: str = '{"job": "417", "site": "River Dock"}', system: str = "") -> Row:
    start = ({"role": "system", "content": system},) if system else ()
    return Row(
        "a", (*start, {"role": "user", "content": text}, {"role": "assistant", "content": answer}), "close"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_it_changes_a_sentence_in_the_same_way_for_the_same_seed(family: str) -> None:
    changed = [perturb(TEXT, family, str(seed)) for seed in range(20)]
    assert TEXT not in changed and len(set(changed)) > 3
    assert changed == [perturb(TEXT, family, str(seed)) for seed in range(20)]


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"case"}))
def test_words_of_the_answer_stay(family: str) -> None:
    for seed in range(40):
        text = noisy(row(), family, str(seed), 1.0).messages[-2]["content"]
        assert all(word in re.findall(r"\w+", text) for word in ("417", "River", "Dock")) or (
            family == "spacing" and all(word in text for word in ("417", "River", "Dock"))
        )


@given(text=st.text(max_size=40), family=st.sampled_from(sorted(FAMILIES)), seed=st.text(max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_text_can_be_asked_for_and_keeps_its_content(text: str, family: str, seed: str) -> None:
    changed = perturb(text, family, seed, 0.4)
    assert bool(changed.strip()) >= bool(text.strip())


def test_more_strength_touches_more_words() -> None:
    def touched(strength: float) -> int:
        pairs = zip(TEXT.split(), perturb(TEXT, "typos", "1", strength).split(), strict=True)
        return sum(one != other for one, other in pairs)

    assert touched(0.0) == 1 and touched(0.2) == 2 and touched(1.0) >= 7


def test_only_the_last_message_of_the_user_changes() -> None:
    (changed,) = perturbed([row(system="Answer in JSON.")], "case", 7)
    assert (changed.id, changed.label, changed.answer) == ("a", "close", row().answer)
    assert changed.messages[0]["content"] == "Answer in JSON." and changed.messages[1]["content"] != TEXT


def test_tuning_and_evaluation_share_no_text() -> None:
    """The last test of a claim is noise that a model was not tuned with."""
    for family, parts in (("filler", ("before", "after")), ("distractor", ("sentences",))):
        for part in parts:
            tuned, judged = (set(texts()[family][use][part]) for use in ("tuning", "evaluation"))
            assert tuned and judged and not tuned & judged
    found = {perturb(TEXT, "distractor", str(seed), held_out=False) for seed in range(50)}
    assert not found & {perturb(TEXT, "distractor", str(seed)) for seed in range(50)}


def test_half_of_the_families_and_phrasings_are_held_out() -> None:
    for each in (list(FAMILIES.values()), list(PHRASINGS)):
        assert len(each) == 10 and sum(one.held_out for one in each) == 5


@pytest.mark.parametrize("system", ["", "Answer in JSON."])
@pytest.mark.parametrize("phrasing", PHRASINGS, ids=lambda each: each.name)
def test_a_phrasing_keeps_the_message_and_the_answer(phrasing: object, system: str) -> None:
    before = row(system=system)
    after = phrasing.of(before)  # type: ignore[attr-defined]
    assert after.answer == before.answer and after.messages != before.messages
    assert TEXT in after.messages[-2]["content"]
    if system and after.messages[0]["role"] == "system":
        assert system.lower() in after.messages[0]["content"].lower()
