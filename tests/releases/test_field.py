"""Rules of rollback, and a candidate that answers in the shadow of the version in use."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fake_runtime import FakeRuntime, bigram
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgekit.answer import Answer
from edgekit.loaded import LoadedModel
from edgekit.registry import Sampling
from edgekit.releases.policy import Readings, binomial_tail, decide
from edgekit.releases.shadow import Shadow

GOOD = Readings(requests=500, errors=1, empty=2, ttft_p95_s=0.2, tokens_per_s=40.0, rss_mib=300.0)


def but(**changes: Any) -> Readings:
    return Readings(**{**vars_of(GOOD), **changes})


def vars_of(readings: Readings) -> dict[str, Any]:
    return {name: getattr(readings, name) for name in Readings.__dataclass_fields__}


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (but(errors=30), "30 errors in 500"),
        (but(empty=40), "40 empty answers"),
        (but(ttft_p95_s=0.25), "0.250 s to the first token"),
        (but(tokens_per_s=31.0), "31.0 tokens/s"),
        (but(alarms=1), "1 drift alarm"),
        (but(rss_mib=800.0), "over the budget of 700"),
    ],
)
def test_each_rule_finds_what_it_is_for(now: Readings, words: str) -> None:
    found = decide(now, GOOD, "auto", peak_rss_mib=700)
    assert found.action == "roll back" and len(found.reasons) == 1 and words in found.reasons[0]
    assert decide(now, GOOD, "suggest", peak_rss_mib=700).action == "suggest"
    assert decide(now, GOOD, "never", peak_rss_mib=700).action == "keep"


@pytest.mark.parametrize(
    "now",
    [
        GOOD,
        but(errors=6),  # within the rise that is allowed
        but(requests=5, errors=0, empty=0, ttft_p95_s=3.0, tokens_per_s=1.0),  # too few to say
        but(ttft_p95_s=0.23, tokens_per_s=33.0),
        but(ttft_p95_s=None, tokens_per_s=None, rss_mib=None),
        Readings(),
    ],
)
def test_what_is_no_reason_keeps_the_version(now: Readings) -> None:
    assert decide(now, GOOD, "auto", peak_rss_mib=700).action == "keep"


def test_drift_that_the_version_before_had_too_is_not_its_fault_and_none_before_needs_no_ratio() -> None:
    assert decide(but(alarms=3), but(alarms=1), "auto").action == "keep"
    assert decide(but(ttft_p95_s=9.0, alarms=1), None, "auto").action == "keep"
    assert decide(but(errors=400), None, "auto").action == "roll back"


@given(n=st.integers(1, 3000), share=st.floats(0, 1), p=st.floats(0.001, 0.999))
def test_the_tail_is_the_binomial_one(n: int, share: float, p: float) -> None:
    k = round(share * n)
    assert binomial_tail(k, n, p) == pytest.approx(float(stats.binom.sf(k - 1, n, p)), rel=1e-6, abs=1e-12)


# Shadow


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
