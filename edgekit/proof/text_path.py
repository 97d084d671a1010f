"""The gates on an opened file's text path: token ids, decoded texts, chat template and stop ids.

They allow no difference from the reference, except those that are the runtime's own way (`proof.deviations`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from edgekit.base.errors import ConfigError
from edgekit.base.events import GateResult
from edgekit.models.chat import ChatTemplate
from edgekit.proof import deviations, template_scan
from edgekit.proof.battery import conversations
from edgekit.proof.deviations import Deviation, Deviations
from edgekit.proof.facts import PLAIN, ReferenceFacts, rendered
from edgekit.registry import FramesText, GuessesStops, Runtime


def identity(
    runtime: Runtime, facts: ReferenceFacts, prefix: str, stage: str, *, own: bool = False
) -> tuple[list[GateResult], list[Deviation]]:
    """The gates on the text path of an opened file, named `prefix.tokenizer_identity` and so on, and its deviations.

    `own` is for files that this build wrote, which lack nothing that edgekit's exporters write.
    """
    own_way = Deviations(runtime, facts, own=own)
    gates = [
        tokenizer_identity(runtime, facts, own_way, prefix, stage),
        detokenization(runtime, facts, own_way, prefix, stage),
        *chat(runtime, facts, prefix, stage),
        stop_ids(runtime, facts, own_way, prefix, stage),
    ]
    found = own_way.found()
    return [*gates, deviations.gate(found, prefix, stage)], found


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


def tokenizer_identity(
    runtime: Runtime, facts: ReferenceFacts, own_way: Deviations, prefix: str, stage: str
) -> GateResult:
    """Share of the texts that the file encodes to the reference's token ids, or to others by a deviation.

    One text is also read as the runtime's tools read plain text: with BOS and EOS where the tokenizer adds them.
    """
    differences = []
    for text, expected in zip(facts.texts, facts.ids, strict=True):
        got = runtime.encode(text)
        if got != list(expected) and not own_way.explains_encoding(text, expected):
            differences.append(f"{_short(text)}: reference {_ids(expected, got)}, file {_ids(got, expected)}")
    if isinstance(runtime, FramesText):
        framed = runtime.framed(PLAIN)
        if framed != list(facts.framed) and not own_way.explains_frame(framed):
            differences.append(
                f"plain text {PLAIN!r}, with the BOS and EOS that are added to it: reference {_ids(facts.framed)}, "
                f"file {_ids(framed)}"
            )
    return _identical(f"{prefix}.tokenizer_identity", len(facts.texts), differences, "texts", stage)


def detokenization(
    runtime: Runtime, facts: ReferenceFacts, own_way: Deviations, prefix: str, stage: str
) -> GateResult:
    """Share of the reference's token ids that the file decodes to the reference's text, or to another by a deviation."""
    differences = []
    for ids, expected in zip(facts.ids, facts.decoded, strict=True):
        if max(ids, default=0) >= runtime.vocab_size:
            differences.append(f"id {max(ids)} is outside the file's vocabulary of {runtime.vocab_size}")
        elif (got := runtime.decode(ids)) != expected and not own_way.explains_decoding(ids, expected, got):
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
        expected, got = rendered(own, messages, prompt), rendered(template, messages, prompt)
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


def stop_ids(
    runtime: Runtime, facts: ReferenceFacts, own_way: Deviations, prefix: str, stage: str
) -> GateResult:
    """Share of stop ids that file and reference have in common; the detail names missing and extra ones.

    An id at which only the runtime's tools end an answer is extra as well, unless it is a marker: that is a deviation.
    """
    guessed = runtime.guessed_stop_ids if isinstance(runtime, GuessesStops) else frozenset()
    missing = facts.stop_ids - runtime.stop_ids
    extra = (runtime.stop_ids | guessed) - facts.stop_ids - own_way.ends.keys()
    parts = [
        f"{what} {', '.join(f'{id_} {_token(id_, runtime, facts)}' for id_ in sorted(ids))}"
        for what, ids in (("missing", missing), ("extra", extra))
        if ids
    ]
    every = facts.stop_ids | extra
    share = 1 - len(missing | extra) / len(every) if every else 0.0
    detail = "; ".join(parts) or f"stop ids: {', '.join(map(str, sorted(every))) or 'none'}"
    return GateResult(f"{prefix}.stop_ids", share, 1.0, share == 1.0, detail, stage)


def _identical(name: str, total: int, differences: Sequence[str], unit: str, stage: str) -> GateResult:
    share = 1 - len(differences) / max(total, 1)
    detail = (
        f"{len(differences)} of {total} {unit} differ, the first: {differences[0]}"
        if differences
        else f"{total} {unit} compared"
    )
    return GateResult(name, share, 1.0, not differences, detail, stage)


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
