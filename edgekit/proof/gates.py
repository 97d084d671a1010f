"""Gates: what an opened file must share with its reference, and what it may cost.

Each gate is a measured value against a limit. Its `stage` is the one to blame when it fails, its `detail` shows
the first difference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.base.errors import ConfigError
from edgekit.base.events import GateResult
from edgekit.data.rows import Message
from edgekit.models.chat import ChatTemplate
from edgekit.proof import template_scan
from edgekit.proof.battery import battery, random_sequences, special_strings
from edgekit.proof.drift import Drift, Scored
from edgekit.registry import Runtime
from edgekit.targets.target import Budget


class ReferenceTokenizer(Protocol):
    """The text path of a reference model."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens in it recognised."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""

    @property
    def chat_template(self) -> ChatTemplate:
        """The reference's chat template."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids at which the reference stops."""

    @property
    def added_tokens(self) -> list[str]:
        """Texts of the added tokens."""

    @property
    def vocab_size(self) -> int:
        """How many token ids there are."""


@dataclass(frozen=True)
class ReferenceFacts:
    """What is known of a reference's text path, as plain data.

    `ids[i]` are the token ids of `texts[i]`, `decoded[i]` is what the reference makes of them again, and
    `token_texts` names ids of added tokens for messages to people.
    """

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    decoded: tuple[str, ...]
    template: ChatTemplate
    stop_ids: frozenset[int]
    token_texts: Mapping[int, str]

    @classmethod
    def of(cls, reference: ReferenceTokenizer, rows_text: Sequence[str] = ()) -> ReferenceFacts:
        """Record what `reference` does with the battery, its added tokens and the caller's own texts."""
        written = [*special_strings(reference.added_tokens), *battery(rows_text)]
        drawn = [reference.decode(ids) for ids in random_sequences(reference.vocab_size)]
        texts = list(dict.fromkeys([*written, *drawn]))
        ids = [reference.encode(text) for text in texts]
        added = set(reference.added_tokens)
        return cls(
            texts=tuple(texts),
            ids=tuple(map(tuple, ids)),
            decoded=tuple(reference.decode(found) for found in ids),
            template=reference.chat_template,
            stop_ids=reference.stop_ids,
            token_texts={
                f[0]: text for text, f in zip(texts, ids, strict=True) if text in added and len(f) == 1
            },
        )


def identity(runtime: Runtime, facts: ReferenceFacts, prefix: str, stage: str) -> list[GateResult]:
    """The gates on the text path of an opened file, named `prefix.tokenizer_identity` and so on."""
    return [
        tokenizer_identity(runtime, facts, prefix, stage),
        detokenization(runtime, facts, prefix, stage),
        template_identity(runtime, facts, prefix, stage),
        template_branches(runtime, facts, prefix, stage),
        stop_ids(runtime, facts, prefix, stage),
    ]


def tokenizer_identity(runtime: Runtime, facts: ReferenceFacts, prefix: str, stage: str) -> GateResult:
    """Share of the texts that get the reference's token ids."""
    differences = []
    for text, expected in zip(facts.texts, facts.ids, strict=True):
        got = runtime.encode(text)
        if got != list(expected):
            differences.append(f"{_short(text)}: reference {_ids(expected, got)}, file {_ids(got, expected)}")
    return _identical(f"{prefix}.tokenizer_identity", len(facts.texts), differences, "texts", stage)


def detokenization(runtime: Runtime, facts: ReferenceFacts, prefix: str, stage: str) -> GateResult:
    """Share of the reference's token ids that become the reference's text again."""
    differences = []
    for ids, expected in zip(facts.ids, facts.decoded, strict=True):
        if max(ids, default=0) >= runtime.vocab_size:
            differences.append(f"id {max(ids)} is outside the file's vocabulary of {runtime.vocab_size}")
        elif (got := runtime.decode(ids)) != expected:
            differences.append(f"ids {_ids(ids)}: reference {_short(expected)}, file {_short(got)}")
    return _identical(f"{prefix}.detokenization", len(facts.texts), differences, "texts", stage)


def template_identity(runtime: Runtime, facts: ReferenceFacts, prefix: str, stage: str) -> GateResult:
    """Share of the fixture conversations that the file's own template renders byte for byte as the reference's.

    Where both refuse a conversation with the same words they agree.
    """
    name = f"{prefix}.template_identity"
    try:
        template = runtime.chat_template
    except ConfigError as error:
        return GateResult(name, 0.0, 1.0, False, error.message, stage)
    cases = [(messages, prompt) for messages in conversations() for prompt in (False, True)]
    differences = []
    for messages, prompt in cases:
        expected, got = _rendered(facts.template, messages, prompt), _rendered(template, messages, prompt)
        if expected != got:
            conversation = _short(json.dumps(messages, ensure_ascii=False))
            at = _first_difference(expected, got)
            where = f"at character {at}: reference {_short(expected[at:])}, file {_short(got[at:])}"
            differences.append(f"{conversation}, generation prompt {'on' if prompt else 'off'}, {where}")
    return _identical(name, len(cases), differences, "renderings", stage)


def template_branches(runtime: Runtime, facts: ReferenceFacts, prefix: str, stage: str) -> GateResult:
    """Share of the places where a message's text decides what is printed that are the model's own.

    Looking for markup in earlier answers (`</think>`) is the model's business; looking for plain words is refused in
    either, because a template that answers to a word is a trigger that no rendering of fixtures finds.
    """
    name = f"{prefix}.template_branches"
    try:
        found = template_scan.branches(runtime.chat_template.source)
        own = {branch.expression for branch in template_scan.branches(facts.template.source)}
    except ConfigError as error:
        return GateResult(name, 0.0, 1.0, False, error.message, stage)
    refused = [branch for branch in found if branch.on_plain_words or branch.expression not in own]
    differences = [f"it asks {_short(branch.expression)} (line {branch.line})" for branch in refused]
    return _identical(name, len(found), differences, "places where a message's text decides", stage)


def stop_ids(runtime: Runtime, facts: ReferenceFacts, prefix: str, stage: str) -> GateResult:
    """Share of stop ids that file and reference have in common; missing and extra ones are named."""
    missing, extra = facts.stop_ids - runtime.stop_ids, runtime.stop_ids - facts.stop_ids
    parts = [
        f"{what} {', '.join(f'{id_} {_token(id_, runtime, facts)}' for id_ in sorted(ids))}"
        for what, ids in (("missing", missing), ("extra", extra))
        if ids
    ]
    every = facts.stop_ids | runtime.stop_ids
    share = len(facts.stop_ids & runtime.stop_ids) / len(every) if every else 0.0
    detail = "; ".join(parts) or f"stops at {', '.join(map(str, sorted(every))) or 'nothing'}"
    return GateResult(f"{prefix}.stop_ids", share, 1.0, share == 1.0, detail, stage)


def stop_contract(
    scored: Scored, answers: NDArray[np.bool_], stops: frozenset[int], budget: Budget, prefix: str, stage: str
) -> GateResult:
    """Share of the ends of answers at which the file chooses the reference's token: it stops there, and only there.

    Counted are the positions in answers, `answers (N,)`, at which either chooses a stop token.
    """
    stopping = np.isin(scored.expected, list(stops)) | np.isin(scored.got, list(stops))
    ends = answers & stopping
    same = scored.expected == scored.got
    share = float(same[ends].mean()) if ends.any() else 1.0
    late, early = (
        int((ends & ~same & np.isin(side, list(stops))).sum()) for side in (scored.expected, scored.got)
    )
    detail = f"{int(ends.sum())} ends of answers" + (
        f"; missed {late}, too early {early}" if late + early else ""
    )
    if not ends.any():
        detail = "no answer ends within the text: neither stops"
    return _at_least(f"{prefix}.stop_contract", share, budget.stop_agreement, detail, stage)


def greedy_agreement(
    scored: Scored, answers: NDArray[np.bool_], stops: frozenset[int], budget: Budget, prefix: str, stage: str
) -> GateResult:
    """Share of an answer, counted in tokens up to its end, that comes out before the first other token; the mean.

    Both are greedy and follow the same words until they part, so this is what a person sees who asks both. `answers
    (N,)` are the positions in answers.
    """
    shares = []
    for sequence in np.unique(scored.sequence[answers]):
        at = answers & (scored.sequence == sequence)
        expected, same = scored.expected[at], scored.expected[at] == scored.got[at]
        ends = np.flatnonzero(np.isin(expected, list(stops)))
        length = ends[0] + 1 if len(ends) else len(expected)
        apart = np.flatnonzero(~same[:length])
        shares.append(apart[0] / length if len(apart) else 1.0)
    whole = sum(share == 1.0 for share in shares)
    detail = f"{whole} of {len(shares)} answers the same to the last token"
    return _at_least(
        f"{prefix}.greedy_agreement", float(np.mean(shares)), budget.greedy_agreement, detail, stage
    )


def text_drift(text: Drift, budget: Budget, prefix: str, stage: str) -> GateResult:
    """The gate on the next-token distributions over plain text."""
    detail = f"{text.n_tokens} positions of plain text"
    name = f"{prefix}.text_mean_kld_nats"
    return _at_most(name, text.mean_kld_nats, budget.text_mean_kld_nats, detail, stage)


def drift(
    measured: Drift, answers: Drift, text: Drift | None, budget: Budget, prefix: str, stage: str
) -> list[GateResult]:
    """The gates on the next-token distributions: over whole conversations, their answers alone, and plain text."""
    everywhere, spoken = f"{measured.n_tokens} positions", f"{answers.n_tokens} positions of answers"
    read = [text_drift(text, budget, prefix, stage)] if text else []
    return [
        *read,
        _at_most(f"{prefix}.mean_kld_nats", measured.mean_kld_nats, budget.mean_kld_nats, everywhere, stage),
        _at_most(f"{prefix}.p99_kld_nats", measured.p99_kld_nats, budget.p99_kld_nats, everywhere, stage),
        _at_least(
            f"{prefix}.top1_agreement", measured.top1_agreement, budget.top1_agreement, everywhere, stage
        ),
        _at_least(
            f"{prefix}.answer_top1_agreement",
            answers.top1_agreement,
            budget.answer_top1_agreement,
            spoken,
            stage,
        ),
    ]


def size(size_bytes: int, limit_mib: float, prefix: str, stage: str) -> GateResult:
    """The file's or folder's size, MiB."""
    return _at_most(f"{prefix}.size_mib", size_bytes / 2**20, limit_mib, f"{size_bytes} bytes", stage)


def peak_rss(peak_mib: float, limit_mib: float, prefix: str, stage: str) -> GateResult:
    """The resident memory of a fresh process that answers, MiB."""
    return _at_most(f"{prefix}.peak_rss_mib", peak_mib, limit_mib, "", stage)


def ttft(milliseconds: float, limit: float, prefix: str, stage: str) -> GateResult:
    """The time to the first token, ms."""
    return _at_most(f"{prefix}.ttft_ms", milliseconds, limit, "", stage)


def decode_speed(tokens_per_s: float, limit: float, prefix: str, stage: str) -> GateResult:
    """The decode speed, tokens/s."""
    return _at_least(f"{prefix}.decode_tokens_per_s", tokens_per_s, limit, "", stage)


def accuracy_drop(
    reference: Mapping[str, Any], candidate: Mapping[str, Any], budget: Budget, prefix: str, stage: str
) -> GateResult:
    """How far accuracy fell from the reference's, percentage points; both are results of `evaluate`."""
    before, after = reference["accuracy"], candidate["accuracy"]
    drop = round(100 * (before - after), 6)  # 0.95 - 0.93 is a little more than two points in binary
    detail = f"{before:.1%} to {after:.1%} of {candidate['n']} rows"
    return _at_most(f"{prefix}.accuracy_drop_points", drop, budget.accuracy_drop_points, detail, stage)


def conversations() -> list[list[Message]]:
    """The fixture conversations for `template_identity`; some of them most templates refuse."""
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
        f"{len(differences)} of {total} {unit} differ, first {differences[0]}"
        if differences
        else f"{total} {unit}"
    )
    return GateResult(name, share, 1.0, not differences, detail, stage)


def _at_most(name: str, value: float, limit: float, detail: str, stage: str) -> GateResult:
    return GateResult(name, value, limit, value <= limit, detail, stage)


def _at_least(name: str, value: float, limit: float, detail: str, stage: str) -> GateResult:
    return GateResult(name, value, limit, value >= limit, detail, stage)


def _token(id_: int, runtime: Runtime, facts: ReferenceFacts) -> str:
    if id_ in facts.token_texts:
        return repr(facts.token_texts[id_])
    return repr(runtime.decode([id_])) if id_ < runtime.vocab_size else "(outside the vocabulary)"


def _first_difference(a: Sequence[object], b: Sequence[object]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _short(text: str, limit: int = 60) -> str:
    return repr(text) if len(text) <= limit else repr(text[:limit]) + "..."


def _ids(ids: Sequence[int], other: Sequence[int] | None = None, width: int = 8) -> str:
    """At most `width` ids, beginning a little before the first that differs from `other`."""
    start = max(_first_difference(ids, other) - 2, 0) if other is not None else 0
    shown = ", ".join(map(str, ids[start : start + width]))
    return f"[{'..., ' if start else ''}{shown}{', ...' if len(ids) > start + width else ''}]"
