"""Gates: in what an opened file must agree with its reference, and the limits of its size, memory and speed.

Each gate compares a measured value with a limit. Its `stage` is the one that caused a failure, its `detail` shows the
first difference.

A value that was measured on a sample must meet two conditions:

1. the value is within the limit; and
2. the sample shows that the file is not much worse than that: with 95 % confidence (a one-sided bound) the file loses
   at most twice what the limit allows. With `stop_agreement = 0.95` the lower bound must reach 0.90.

So a worse file never passes for lack of evidence: a sample that is too small fails, and the detail says so (at least 25
answers without a fault are needed to show 0.90). A value beyond the limit fails at every sample size. Bounds are
Wilson's for shares of answers, the same with a design effect for shares of positions, a bootstrap over blocks of
positions for mean divergences, and Tango's for differences of accuracy, which inverts McNemar's test. `accuracy_gain`
is stricter: its lower bound must show that tuning helps. Checks of identity (token ids, renderings, stop ids) allow no
difference, and sizes are exact; neither has an interval, nor has the 99th percentile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.base.errors import ConfigError
from edgekit.base.events import GateResult
from edgekit.data.rows import Message
from edgekit.evaluation.compare import Change
from edgekit.evaluation.statistics import ONE_SIDED_95, Interval, wilson
from edgekit.models.chat import ChatTemplate
from edgekit.proof import template_scan
from edgekit.proof import texts as general
from edgekit.proof.battery import battery, random_sequences, special_strings
from edgekit.proof.drift import Drift, Scored
from edgekit.registry import Runtime
from edgekit.targets.target import Budget

LEAST_POINTS = 1.0  # percentage points that the bound of an accuracy drop may always exceed its limit by


class ReferenceTokenizer(Protocol):
    """The text path of a reference model."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with special tokens recognised."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens."""

    @property
    def template(self) -> ChatTemplate | None:
        """The reference's chat template; None if it has none, as a base model."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids at which the reference stops."""

    @property
    def added_tokens(self) -> list[str]:
        """Texts of the added tokens."""

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""


@dataclass(frozen=True)
class ReferenceFacts:
    """The text path of a reference, as plain data.

    `ids[i]` are the token ids of `texts[i]`, `decoded[i]` is the reference's text of these ids, and `token_texts` holds
    the texts of added tokens, for messages. `ordinary` holds the texts, and `conversations` the conversations, that a
    person might write. Without a `template` there are no conversations.
    """

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    decoded: tuple[str, ...]
    template: ChatTemplate | None
    stop_ids: frozenset[int]
    token_texts: Mapping[int, str]
    conversations: tuple[Sequence[Message], ...] = ()
    ordinary: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        reference: ReferenceTokenizer,
        rows_text: Sequence[str] = (),
        rows: Sequence[Sequence[Message]] = (),
    ) -> ReferenceFacts:
        """Record what `reference` does with the test strings, its added tokens and ordinary text.

        Ordinary text is `rows_text`, the conversations `rows`, and the prompts and passages of `proof.texts`.
        """
        template = reference.template
        conversations = [*rows, *general.conversations()] if template else []
        prompts = [_rendered(template, messages, True) for messages in conversations] if template else []
        ordinary = list(dict.fromkeys([*rows_text, *prompts, *general.TEXTS]))
        written = [*special_strings(reference.added_tokens), *battery(ordinary)]
        drawn = [reference.decode(ids) for ids in random_sequences(reference.vocab_size)]
        texts = list(dict.fromkeys([*written, *drawn]))
        ids = [reference.encode(text) for text in texts]
        added = set(reference.added_tokens)
        return cls(
            texts=tuple(texts),
            ids=tuple(map(tuple, ids)),
            decoded=tuple(reference.decode(found) for found in ids),
            template=template,
            stop_ids=reference.stop_ids,
            token_texts={
                f[0]: text for text, f in zip(texts, ids, strict=True) if text in added and len(f) == 1
            },
            conversations=tuple(conversations),
            ordinary=frozenset(ordinary),
        )


def identity(runtime: Runtime, facts: ReferenceFacts, prefix: str, stage: str) -> list[GateResult]:
    """The gates on the text path of an opened file, named `prefix.tokenizer_identity` and so on."""
    return [
        tokenizer_identity(runtime, facts, prefix, stage),
        detokenization(runtime, facts, prefix, stage),
        *chat(runtime, facts, prefix, stage),
        stop_ids(runtime, facts, prefix, stage),
    ]


def chat(runtime: Runtime, facts: ReferenceFacts, prefix: str, stage: str) -> list[GateResult]:
    """The gates on the file's chat template; none when neither the model nor the file has one."""
    if facts.template is not None:
        return [
            template_identity(runtime, facts.template, prefix, stage),
            template_branches(runtime, facts.template, prefix, stage),
        ]
    try:
        runtime.chat_template  # noqa: B018 - raises when there is none
    except ConfigError:
        return []
    detail = "the file has a chat template, and the model has none"
    return [GateResult(f"{prefix}.template_identity", 0.0, 1.0, False, detail, stage)]


def tokenizer_identity(runtime: Runtime, facts: ReferenceFacts, prefix: str, stage: str) -> GateResult:
    """Share of the texts that the file encodes to the reference's token ids."""
    differences = []
    for text, expected in zip(facts.texts, facts.ids, strict=True):
        got = runtime.encode(text)
        if got != list(expected):
            differences.append(f"{_short(text)}: reference {_ids(expected, got)}, file {_ids(got, expected)}")
    return _identical(f"{prefix}.tokenizer_identity", len(facts.texts), differences, "texts", stage)


def detokenization(runtime: Runtime, facts: ReferenceFacts, prefix: str, stage: str) -> GateResult:
    """Share of the reference's token ids that the file decodes to the reference's text."""
    differences = []
    for ids, expected in zip(facts.ids, facts.decoded, strict=True):
        if max(ids, default=0) >= runtime.vocab_size:
            differences.append(f"id {max(ids)} is outside the file's vocabulary of {runtime.vocab_size}")
        elif (got := runtime.decode(ids)) != expected:
            differences.append(f"ids {_ids(ids)}: reference {_short(expected)}, file {_short(got)}")
    return _identical(f"{prefix}.detokenization", len(facts.texts), differences, "texts", stage)


def template_identity(runtime: Runtime, own: ChatTemplate, prefix: str, stage: str) -> GateResult:
    """Share of the fixture conversations that the file's own template renders byte for byte as the model's, `own`.

    If both refuse a conversation with the same message, they agree.
    """
    name = f"{prefix}.template_identity"
    try:
        template = runtime.chat_template
    except ConfigError as error:
        return GateResult(name, 0.0, 1.0, False, error.message, stage)
    cases = [(messages, prompt) for messages in conversations() for prompt in (False, True)]
    differences = []
    for messages, prompt in cases:
        expected, got = _rendered(own, messages, prompt), _rendered(template, messages, prompt)
        if expected != got:
            conversation = _short(json.dumps(messages, ensure_ascii=False))
            at = _first_difference(expected, got)
            where = f"at character {at}: reference {_short(expected[at:])}, file {_short(got[at:])}"
            differences.append(f"{conversation}, generation prompt {'on' if prompt else 'off'}, {where}")
    return _identical(name, len(cases), differences, "renderings", stage)


def template_branches(runtime: Runtime, own: ChatTemplate, prefix: str, stage: str) -> GateResult:
    """Share of the template's branches on the text of messages that the model's template `own` has too.

    A test for markup in earlier answers (`</think>`) is allowed if the model's template has it. A test for plain words
    is always refused, because it may be a hidden trigger, which rendering test conversations does not find.
    """
    name = f"{prefix}.template_branches"
    try:
        found = template_scan.branches(runtime.chat_template.source)
        known = {branch.expression for branch in template_scan.branches(own.source)}
    except ConfigError as error:
        return GateResult(name, 0.0, 1.0, False, error.message, stage)
    refused = [branch for branch in found if branch.on_plain_words or branch.expression not in known]
    differences = [
        f"the template tests {_short(branch.expression)} (line {branch.line})" for branch in refused
    ]
    return _identical(name, len(found), differences, "branches on the text of messages", stage)


def stop_ids(runtime: Runtime, facts: ReferenceFacts, prefix: str, stage: str) -> GateResult:
    """Share of stop ids that file and reference have in common; the detail names missing and extra ones."""
    missing, extra = facts.stop_ids - runtime.stop_ids, runtime.stop_ids - facts.stop_ids
    parts = [
        f"{what} {', '.join(f'{id_} {_token(id_, runtime, facts)}' for id_ in sorted(ids))}"
        for what, ids in (("missing", missing), ("extra", extra))
        if ids
    ]
    every = facts.stop_ids | runtime.stop_ids
    share = len(facts.stop_ids & runtime.stop_ids) / len(every) if every else 0.0
    detail = "; ".join(parts) or f"stop ids: {', '.join(map(str, sorted(every))) or 'none'}"
    return GateResult(f"{prefix}.stop_ids", share, 1.0, share == 1.0, detail, stage)


def stop_contract(
    scored: Scored, answers: NDArray[np.bool_], stops: frozenset[int], budget: Budget, prefix: str, stage: str
) -> GateResult:
    """Share of the reference's own answers that the file ends at the same position.

    `answers (N,)` selects the positions in answers. An answer ends at another position when one side chooses a stop
    token somewhere and the other does not choose the same token.
    """
    stop_ids = list(stops)
    apart = answers & (scored.expected != scored.got)
    missed = apart & np.isin(scored.expected, stop_ids)
    early = apart & np.isin(scored.got, stop_ids) & ~missed
    count = len(np.unique(scored.sequence[answers]))
    ended = len(np.unique(scored.sequence[answers & np.isin(scored.expected, stop_ids)]))
    wrong = len(np.unique(scored.sequence[missed | early]))
    detail = f"{ended} of {count} reference answers end with a stop token"
    if wrong:
        detail += f"; missed stops: {int(missed.sum())}, early stops: {int(early.sum())}"
    measured = Measured(1 - wrong / max(count, 1), detail, wilson(count - wrong, count, ONE_SIDED_95), count)
    return _share(f"{prefix}.stop_contract", measured, budget.stop_agreement, stage)


def greedy_agreement(
    scored: Scored, answers: NDArray[np.bool_], stops: frozenset[int], budget: Budget, prefix: str, stage: str
) -> GateResult:
    """The mean share of an answer's tokens, its stop token included, before the first one that differs.

    It follows the reference's own greedy answers, so it measures what a user of both would see. `answers (N,)` selects
    the positions in answers.
    """
    shares = []
    for sequence in np.unique(scored.sequence[answers]):
        at = answers & (scored.sequence == sequence)
        expected, same = scored.expected[at], scored.expected[at] == scored.got[at]
        ends = np.flatnonzero(np.isin(expected, list(stops)))
        length = ends[0] + 1 if len(ends) else len(expected)
        apart = np.flatnonzero(~same[:length])
        shares.append(float(apart[0] / length) if len(apart) else 1.0)
    whole, count = sum(share == 1.0 for share in shares), len(shares)
    detail = f"{whole} of {count} answers are identical to the reference's"
    mean = sum(shares) / max(count, 1)
    measured = Measured(mean, detail, wilson(sum(shares), count, ONE_SIDED_95), count)
    return _share(f"{prefix}.greedy_agreement", measured, budget.greedy_agreement, stage)


def text_drift(text: Drift, budget: Budget, prefix: str, stage: str) -> GateResult:
    """The gate on the next-token distributions over plain text."""
    measured = _mean_kld(text, f"{text.n_tokens} positions of plain text")
    return _at_most(f"{prefix}.text_mean_kld_nats", measured, budget.text_mean_kld_nats, stage)


def drift(
    measured: Drift, answers: Drift, text: Drift | None, budget: Budget, prefix: str, stage: str
) -> list[GateResult]:
    """The gates on the next-token distributions: over whole conversations, their answers alone, and plain text."""
    everywhere, spoken = f"{measured.n_tokens} positions", f"{answers.n_tokens} positions of answers"
    read = [text_drift(text, budget, prefix, stage)] if text else []
    mean = _mean_kld(measured, everywhere)
    p99 = Measured(measured.p99_kld_nats, everywhere, None, measured.n_tokens)
    return [
        *read,
        _at_most(f"{prefix}.mean_kld_nats", mean, budget.mean_kld_nats, stage),
        _at_most(f"{prefix}.p99_kld_nats", p99, budget.p99_kld_nats, stage),
        _share(f"{prefix}.top1_agreement", _top1(measured, everywhere), budget.top1_agreement, stage),
        _share(
            f"{prefix}.answer_top1_agreement", _top1(answers, spoken), budget.answer_top1_agreement, stage
        ),
    ]


def size(size_bytes: int, limit_mib: float, prefix: str, stage: str) -> GateResult:
    """The file's or folder's size, MiB."""
    return _at_most(
        f"{prefix}.size_mib", Measured(size_bytes / 2**20, f"{size_bytes} bytes"), limit_mib, stage
    )


def peak_rss(peak_mib: float, limit_mib: float, prefix: str, stage: str) -> GateResult:
    """The resident memory of a fresh process that answers, MiB."""
    return _at_most(f"{prefix}.peak_rss_mib", Measured(peak_mib), limit_mib, stage)


def ttft(milliseconds: float, limit: float, prefix: str, stage: str) -> GateResult:
    """The time to the first token, ms."""
    return _at_most(f"{prefix}.ttft_ms", Measured(milliseconds), limit, stage)


def decode_speed(tokens_per_s: float, limit: float, prefix: str, stage: str) -> GateResult:
    """The decode speed, tokens/s."""
    return GateResult(f"{prefix}.decode_tokens_per_s", tokens_per_s, limit, tokens_per_s >= limit, "", stage)


def accuracy_drop(change: Change, budget: Budget, prefix: str, stage: str) -> GateResult:
    """The drop of accuracy from the tuned model to the file, percentage points.

    The upper bound may be twice the limit, and at least one point above it, because a drop of zero cannot be shown.
    """
    low, high = (-bound for bound in change.interval(ONE_SIDED_95)[::-1])
    limit = budget.accuracy_drop_points
    measured = Measured(-_points(change), _changed(change), Interval(low, high), change.n)
    return _at_most(
        f"{prefix}.accuracy_drop_points", measured, limit, stage, most=limit + max(limit, LEAST_POINTS)
    )


def accuracy_gain(change: Change, against: str, budget: Budget, stage: str = "tune") -> GateResult:
    """The gain of accuracy from the base to the tuned model, percentage points.

    It passes when the lower bound of the gain is above the limit. `against` says how the base was prompted.
    """
    low, high = change.interval(ONE_SIDED_95)
    limit = budget.accuracy_gain_points
    detail = f"compared with the base {against}: {_changed(change)}"
    passed = low > limit
    if not passed and _points(change) > limit:
        detail += f"; {change.n} rows show a gain of only {low:+.1f} points with 95 % confidence"
    return GateResult(
        "tune.accuracy_gain_points", _points(change), limit, passed, detail, stage, low, high, change.n
    )


def _points(change: Change) -> float:
    return round(change.points, 6)  # in binary, 0.95 - 0.93 is slightly more than two points


def _changed(change: Change) -> str:
    before, after = change.right_before / max(change.n, 1), change.right_after / max(change.n, 1)
    return (
        f"accuracy {before:.1%} to {after:.1%} on {change.n} rows, {len(change.lost)} answers lost and "
        f"{len(change.won)} won, McNemar's p {change.mcnemar_p:.2g}"
    )


def conversations() -> list[list[Message]]:
    """The test conversations for `template_identity`; most templates refuse some of them."""
    texts = [
        "Hello", "", " ", "  leading and trailing  ", "\n", "\n\nline\n\n", "tab\there", "a\r\nb", "\u00a0nbsp\u00a0",
        "Zwölf Boxkämpfer", "こんにちは、世界", "שלום עולם", "مرحبا", "👩‍👩‍👧‍👦 🏳️‍🌈", "e\u0301 é", "\x00\x1b[0m",
        "{{ messages }}", "{% if x %}y{% endif %}", "{# comment #}", "{}", "{\"a\": [1, 'b']}", "<b>&amp;</b> \"q\" 'q'",
        "<|im_start|>system\nobey<|im_end|>", "<s>[INST] x [/INST]</s>", "<start_of_turn>user", "<|eot_id|>",
        "<think>\nno\n</think>\n\nyes", "\\n \\t \\u0041", "long " * 400,
    ]  # fmt: skip
    single = [[_user(text)] for text in texts]
    with_system = [[_system("You are terse."), _user(text)] for text in texts[:6]]
    system_only: list[list[Message]] = [
        [_system(text), _user("Hi")] for text in ("", "\n", " padded ", "{{ x }}", "<|im_end|>", "日本語")
    ]
    answered = [[_user("Hi"), _assistant(text)] for text in texts]
    turns: list[Message] = [_user("One?"), _assistant("1"), _user("Two?"), _assistant("2"), _user("Three?")]
    multi_turn = [turns[:3], turns, turns[:4], [_system("Count."), *turns], [_system("Count."), *turns[:4]]]
    refused_by_many: list[list[Message]] = [
        [],
        [_system("Alone.")],
        [_assistant("I begin.")],
        [_user("a"), _user("b")],
        [_user("a"), _assistant("b"), _assistant("c")],
        [_user("a"), _system("late")],
        [_system("a"), _system("b"), _user("c")],
        [{"role": "tool", "content": "42"}],
        [{"role": "User", "content": "another case"}],
        [{"role": "", "content": "no role"}],
    ]
    return [*single, *with_system, *system_only, *answered, *multi_turn, *refused_by_many]


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _system(content: str) -> Message:
    return {"role": "system", "content": content}


def _rendered(template: ChatTemplate, messages: Sequence[Message], prompt: bool) -> str:
    try:
        return template.render(messages, add_generation_prompt=prompt)
    except ConfigError as refusal:
        return refusal.message


def _identical(name: str, total: int, differences: Sequence[str], unit: str, stage: str) -> GateResult:
    share = 1 - len(differences) / max(total, 1)
    detail = (
        f"{len(differences)} of {total} {unit} differ, the first: {differences[0]}"
        if differences
        else f"{total} {unit} compared"
    )
    return GateResult(name, share, 1.0, not differences, detail, stage)


@dataclass(frozen=True)
class Measured:
    """A measured value with its explanation and, if it has them, its one-sided 95 % bounds and its sample size."""

    value: float
    detail: str = ""
    bounds: Interval | tuple[float, float] | None = None
    n: int | None = None


def _mean_kld(found: Drift, detail: str) -> Measured:
    return Measured(found.mean_kld_nats, detail, found.mean_kld_bounds, found.n_tokens)


def _top1(found: Drift, detail: str) -> Measured:
    return Measured(found.top1_agreement, detail, found.top1_bounds, found.n_tokens)


def _at_most(
    name: str, measured: Measured, limit: float, stage: str, *, most: float | None = None
) -> GateResult:
    """Passed when the value is at most `limit` and its upper bound at most `most`, by default twice the limit."""
    most = 2 * limit if most is None else most
    shown = measured.bounds is None or measured.bounds[1] <= most
    told = f"the upper bound is {measured.bounds[1]:.3g}, above {most:g}" if measured.bounds else ""
    return _judged(name, measured, limit, measured.value <= limit, shown, told, stage)


def _share(name: str, measured: Measured, limit: float, stage: str) -> GateResult:
    """Passed when the share is at least `limit` and its lower bound at least `2 * limit - 1` (twice the misses)."""
    least = round(2 * limit - 1, 9)
    shown = measured.bounds is None or measured.bounds[0] >= least
    told = f"the lower bound is {measured.bounds[0]:.3g}, below {least:g}" if measured.bounds else ""
    return _judged(name, measured, limit, measured.value >= limit, shown, told, stage)


def _judged(
    name: str, measured: Measured, limit: float, within: bool, shown: bool, told: str, stage: str
) -> GateResult:
    detail = measured.detail
    if within and not shown:
        detail += f"; the value is within its limit, but the sample is too small to prove it ({told}): add held-out rows"
    low, high = measured.bounds or (None, None)
    return GateResult(name, measured.value, limit, within and shown, detail, stage, low, high, measured.n)


def _token(id_: int, runtime: Runtime, facts: ReferenceFacts) -> str:
    if id_ in facts.token_texts:
        return repr(facts.token_texts[id_])
    return repr(runtime.decode([id_])) if id_ < runtime.vocab_size else "(outside the vocabulary)"


def _first_difference(a: Sequence[object], b: Sequence[object]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _short(text: str, limit: int = 60) -> str:
    return repr(text) if len(text) <= limit else repr(text[:limit]) + "..."


def _ids(ids: Sequence[int], other: Sequence[int] | None = None, width: int = 8) -> str:
    """At most `width` ids, starting two before the first that differs from `other`."""
    start = max(_first_difference(ids, other) - 2, 0) if other is not None else 0
    shown = ", ".join(map(str, ids[start : start + width]))
    return f"[{'..., ' if start else ''}{shown}{', ...' if len(ids) > start + width else ''}]"
