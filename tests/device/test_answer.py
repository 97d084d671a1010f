"""One answer: its pieces are its text, and what is told of it afterwards is what happened."""

from __future__ import annotations

import numpy as np
import pytest
from bytewise import Bytewise

from edgekit.base.errors import StageError
from edgekit.device.answer import Answer
from edgekit.device.certainty import WATCHED, Certainty

BYTES = ["a", "é", " ", "👩‍🚀", "b", "日本"]


class Kept(list[Answer]):
    def record(self, answer: Answer) -> None:
        self.append(answer)


@pytest.mark.parametrize("text", ["", "plain", "".join(BYTES), "é" * 9 + "👩‍🚀"])
def test_the_pieces_are_the_text_and_no_character_is_cut(text: str) -> None:
    answer = Answer(Bytewise(text), [1], 1000)
    pieces = list(answer)
    assert "".join(pieces) == answer.text == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert answer.finish == "stop" and answer.ids == list(text.encode())


def test_what_is_cut_within_a_character_still_comes_out() -> None:
    answer = Answer(Bytewise("aé"), [1], 2)
    assert list(answer) == ["a", "\ufffd"] and answer.finish == "length"


def test_every_way_of_ending_is_told_once() -> None:
    kept = Kept()
    done = Answer(Bytewise("done"), [1, 2], 10, records=kept, operation="text_completion")
    done.queue_s = 0.5
    list(done)
    gone = iter(Answer(Bytewise("a long answer"), [1], 100, records=kept))
    next(gone)
    gone.close()  # type: ignore[attr-defined]
    with pytest.raises(StageError):
        list(Answer(Bytewise("broken", fails_after=2), [1], 10, records=kept))
    list(Answer(Bytewise("cut off"), [1], 3, records=kept))
    assert [(answer.finish, answer.error, len(answer.ids)) for answer in kept] == [
        ("stop", None, 4), ("cancelled", None, 1), ("error", "StageError", 2), ("length", None, 3),
    ]  # fmt: skip
    first = kept[0]
    assert (first.prompt, first.queue_s, first.operation) == ([1, 2], 0.5, "text_completion")
    assert first.ttft_s is not None and 0 <= first.ttft_s <= first.duration_s
    assert first.certainty and first.certainty.confidence == pytest.approx(1.0)


def test_certainty_is_that_of_the_distributions_before_anything_is_forbidden() -> None:
    certainty = Certainty()
    assert certainty.confidence is None and certainty.entropy is None
    certainty.look([], np.log(np.array([0.5, 0.25, 0.25], np.float32)))
    certainty.look([0], np.array([0, -np.inf, -np.inf], np.float32))
    assert certainty.confidence == pytest.approx((0.5 * 1.0) ** 0.5)
    assert certainty.entropy == pytest.approx(1.5 * np.log(2) / 2, abs=1e-5)
    for _ in range(WATCHED):
        certainty.look([], np.zeros(4, np.float32))
    assert certainty.entropy == pytest.approx(
        (1.5 * np.log(2) + (WATCHED - 2) * np.log(4)) / WATCHED, abs=1e-5
    )
