"""The results of a build, as input of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.base.cache import StageOutput
from edgekit.base.events import GateResult, Measured
from edgekit.proof.drift import Drift
from edgekit.targets.target import Target


@dataclass(frozen=True)
class Artifact:
    """One exported file or folder with the steps that made it; the output of the last step is shipped."""

    format: str
    runtime: str
    output: str
    steps: tuple[StageOutput, ...]
    outputs: tuple[Path, ...]

    @property
    def path(self) -> Path:
        """The file or folder that is shipped."""
        return self.outputs[-1]

    @property
    def digest(self) -> str:
        """Digest of the last step's output."""
        return self.steps[-1].digest


@dataclass(frozen=True)
class Proof:
    """The drift of each step that made one artifact, from the tuned model and from the step's input."""

    stage: StageOutput
    drift: dict[str, Drift]
    from_input: dict[str, Drift]


@dataclass(frozen=True)
class Outcome:
    """All results of a finished build.

    `parameters` is the number of weights of the exported model. `made` are the model stages in order, the exported folder last; `drift` and `from_input` hold their drift by stage:
    from the tuned model, and from the input of each stage. `answers` and `robustness` hold the measured
    models by name; `proofs`, `golden`, `signals`, `calibrations` and `speeds` follow `artifacts`.
    """

    model: str
    target: Target
    parameters: int
    made: Sequence[StageOutput]
    artifacts: Sequence[Artifact]
    drift: Mapping[str, Drift]
    from_input: Mapping[str, Drift]
    proofs: Sequence[Proof]
    answers: Mapping[str, StageOutput]
    robustness: Mapping[str, StageOutput]
    golden: Sequence[StageOutput]
    signals: Sequence[StageOutput]
    calibrations: Sequence[StageOutput]
    speeds: Sequence[StageOutput]
    facts: Sequence[GateResult | Measured]

    @property
    def gates(self) -> list[GateResult]:
        """Every gate, in order."""
        return [fact for fact in self.facts if isinstance(fact, GateResult)]
