"""The shape of a report that can be shown, wherever it comes from: texts printable, numbers finite, rows whole."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StrictBool

from edgekit.base.numbers import finite
from edgekit.base.texts import one_line


def _count(value: Any) -> int | None:
    number = finite(value)
    return None if number is None or number < 0 else int(number)


Text = Annotated[str, AfterValidator(one_line)]
Name = Annotated[Text, Field(min_length=1)]
Number = Annotated[float | None, BeforeValidator(finite)]
Count = Annotated[int | None, BeforeValidator(_count)]
Interval = tuple[Number, Number]
MOST_ROWS = Field(max_length=2000)


class Artifact(BaseModel):
    """An exported file."""

    format: Name
    path: Name
    bytes: Number = None
    bits_per_weight: Number = None


class Drift(BaseModel):
    """The drift of a model from another, nats."""

    mean_kld_nats: Number = None
    mean_kld_95: Interval | None = None
    p99_kld_nats: Number = None
    top1_agreement: Number = None


def _measured(drift: Drift | None) -> Drift | None:
    mean = None if drift is None else drift.mean_kld_nats
    return drift if mean is not None and mean >= 0 else None


MaybeDrift = Annotated[Drift | None, AfterValidator(_measured)]


class Stage(BaseModel):
    """A stage of the build."""

    name: Name
    drift: MaybeDrift = None
    drift_from_input: MaybeDrift = None


class Score(BaseModel):
    """The right answers of a variant."""

    accuracy: Number = None
    n: Count = None


class Spread(BaseModel):
    """Repeated measurements."""

    median: Number = None
    min: Number = None
    max: Number = None
    n: Number = None


def _repeated(spread: Spread | None) -> Spread | None:
    return spread if spread and spread.median is not None else None


MaybeSpread = Annotated[Spread | None, AfterValidator(_repeated)]


class Speed(BaseModel):
    """A row of the profile."""

    artifact: Name
    runtime: Text = ""
    threads: Count = None
    simulated: StrictBool = False
    peak_rss_mib: Number = None
    ttft_ms: MaybeSpread = None
    decode_tokens_per_s: MaybeSpread = None


class Gate(BaseModel):
    """A measured value with its limit."""

    name: Name
    value: Number = None
    limit: Number = None
    low: Number = None
    passed: StrictBool = False
    detail: Text = ""
    stage: Text = ""


class Report(BaseModel):
    """The parts of report.json that the app shows; a missing part is empty."""

    schema_: Literal["edgekit.report/1"] = Field(alias="schema")
    target: Text = "an unknown target"
    model: Text = ""
    verdict: Text = "unknown"
    artifacts: Annotated[list[Artifact], MOST_ROWS] = []
    stages: Annotated[list[Stage], MOST_ROWS] = []
    evaluation: dict[Text, Score] = {}
    profile: Annotated[list[Speed], MOST_ROWS] = []
    gates: Annotated[list[Gate], MOST_ROWS] = []
    budget: dict[Text, Number] = {}
