"""Files compared with the float model on held-out text: the model in torch once, each file in llama.cpp.

The distributions are compared as the proof of a build compares them (`edgekit.proof.drift`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from edgekit import registry
from edgekit.base.events import Emit, ignore
from edgekit.base.memory import give_back
from edgekit.export.gguf.rounding import STAGE
from edgekit.proof.drift import score
from edgekit.proof.held_out import CONVERSATION, TEXT, Passage, capture_passages

KINDS = {"rows": CONVERSATION, "text": TEXT}
LONGEST = 512  # tokens of a sequence that are read


class Comparison:
    """The model's next-token distributions on held-out text, to which those of files are compared."""

    def __init__(
        self,
        model: Path,
        held_out: Mapping[str, Sequence[Sequence[int]]],
        threads: int,
        emit: Emit = ignore,
    ) -> None:
        """`held_out` has token ids of whole conversations under `rows` and of plain text under `text`; at least one of them."""
        self._threads, self._emit = threads, emit
        runtime = registry.load("runtimes", "torch")(model, threads=threads)
        try:
            passages = [
                Passage(found, len(found), KINDS[kind])
                for kind, sequences in held_out.items()
                for ids in sequences
                if (found := _before_stop(ids, runtime.stop_ids) if kind == "rows" else list(ids[:LONGEST]))
            ]
            self._reference = capture_passages(runtime, passages, emit, stage=STAGE)
        finally:
            runtime.close()
            give_back()

    def with_file(self, file: Path) -> dict[str, float]:
        """The mean KL divergence of the GGUF file from the model on each kind of text, nats.

        Raises `StageError` when it computes no numbers.
        """
        runtime = registry.load("runtimes", "llama.cpp")(file, threads=self._threads)
        try:
            scored = score(runtime, self._reference.reference, self._emit, stage=STAGE)
        finally:
            runtime.close()
            give_back()
        kinds = self._reference.kind[scored.sequence]
        return {
            name: float(scored.klds[kinds == kind].mean()) for name, kind in KINDS.items() if kind in kinds
        }


def _before_stop(ids: Sequence[int], stops: Collection[int]) -> list[int]:
    """The beginning of a conversation, without its last stop token and what the template prints after it: no model is used
    past it."""
    last = max((place for place, id in enumerate(ids) if id in stops), default=len(ids))
    return list(ids[: min(last, LONGEST)])
