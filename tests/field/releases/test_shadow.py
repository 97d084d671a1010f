"""A candidate that answers in the shadow of the version in use."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from fake_runtime import FakeRuntime, bigram

from edgekit.device.answer import Answer
from edgekit.device.loaded import LoadedModel
from edgekit.field.releases.shadow import Shadow
from edgekit.models.sampling import Sampling


def answered(model: LoadedModel, text: str) -> tuple[Answer, list[Any]]:
    messages: list[Any] = [{"role": "user", "content": text}]
    answer = model.answer(model.prompt(messages))
    assert list(answer) is not None
    return answer, messages


class Fake(FakeRuntime):
    """As the runtimes of today, which take a logits processor."""

    def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling = Sampling(), **options: Any
    ) -> Iterator[int]:
        for token in super().generate(ids, max_tokens, sampling):
            if process := options.get("process"):
                process(ids, self.table[token].copy())
            yield token


class Gated(Fake):
    """Answers nothing until it is let; whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.began, self.closed = threading.Event(), threading.Event(), False

    def generate(self, *arguments: Any, **options: Any) -> Iterator[int]:
        self.began.set()
        assert self.go.wait(20)
        yield from super().generate(*arguments, **options)

    def close(self) -> None:
        self.closed = True


class Broken(Fake):
    def generate(self, *arguments: Any, **options: Any) -> Iterator[int]:
        raise RuntimeError("no answer")


def model(runtime: FakeRuntime) -> LoadedModel:
    return LoadedModel(runtime, format="fake", max_tokens=12)  # type: ignore[arg-type]


def test_the_same_model_in_the_shadow_answers_the_same_and_another_does_not() -> None:
    live = model(Fake())
    for runtime, same in ((Fake(), 5), (Fake(table=bigram(seed=3)), 0)):
        shadow = Shadow(model(runtime), class_of=lambda text: text[:1])
        for number in range(5):
            answer, messages = answered(live, f"question {number}")
            if number % 2:
                shadow.offer(answer, messages)
            else:
                shadow.record(answer)
        shadow.wait()
        found = shadow.summary()
        shadow.close()
        assert (found.requests, found.answered, found.same_answer) == (5, 5, same)
        assert found.same_class is not None and found.same_class >= same
        assert found.candidate.confidence and found.candidate.duration_s and found.current.duration_s
        assert "question" not in repr(found)


def test_a_shadow_that_is_behind_lets_requests_pass_and_never_holds_the_server_up() -> None:
    runtime = Gated()
    shadow = Shadow(model(runtime), queue_size=2)
    answer, _ = answered(model(Fake()), "hello")
    shadow.record(answer)
    assert runtime.began.wait(20)
    for _ in range(6):
        shadow.record(answer)
    assert shadow.summary().dropped == 4
    runtime.go.set()
    shadow.wait()
    found = shadow.summary()
    assert (found.requests, found.answered, found.same_answer) == (7, 3, 3) and found.same_class is None
    shadow.close()
    assert runtime.closed
    shadow.record(answer)
    assert shadow.summary().requests == 7


def test_a_candidate_that_fails_is_counted_and_a_cancelled_answer_is_not_compared() -> None:
    shadow = Shadow(model(Broken()))
    live = model(Fake())
    answer, messages = answered(live, "hello")
    shadow.offer(answer, messages)
    cut = live.answer(live.prompt(messages))
    pieces: Any = iter(cut)
    next(pieces)
    pieces.close()
    shadow.offer(cut, messages)
    shadow.wait()
    found = shadow.summary()
    shadow.close()
    assert (found.requests, found.failed, found.answered) == (1, 1, 0)
