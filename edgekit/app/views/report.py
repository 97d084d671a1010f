"""The shape of a report that can be shown, wherever it comes from: texts printable, numbers finite, rows whole."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StrictBool

from edgekit.base.numbers import finite
from edgekit.base.texts import one_line

Text = Annotated[str, AfterValidator(one_line)]
Name = Annotated[Text, Field(min_length=1)]
Number = Annotated[float | None, BeforeValidator(finite)]
Count = Annotated[int | None, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Risk = Annotated[str, Field(pattern=r"^0\.\d{1,4}$")]
"""A share of wrong answers, as a key of JSON."""
Numbers = dict[Text, Number]
Rows: Any = Field(default=[], max_length=2000)
Kinds: Any = Field(default={}, max_length=100)


def _repeated(numbers: Numbers) -> Numbers | None:
    return numbers if numbers.get("median") is not None else None


def _measured(drift: _Drift) -> _Drift | None:
    mean = drift.mean_kld_nats
    return drift if mean is not None and mean >= 0 else None


class _Tensor(BaseModel):
    name: Name
    type: Name
    cost_nats: Number = None
    error: Number = None


class _Quantization(BaseModel):
    estimated_kld_nats: Number = None
    counts: dict[Name, int] = Kinds
    bits_per_weight: Numbers = Kinds
    layers: dict[Name, Annotated[list[Name | None], Field(max_length=2000)]] = Kinds
    others: dict[Name, Name] = Kinds
    worst: list[_Tensor] = Rows


class _Artifact(BaseModel):
    format: Name
    path: Name
    bytes: Number = None
    bits_per_weight: Number = None
    quantization: _Quantization | None = None


class _Drift(BaseModel):
    mean_kld_nats: Number = None
    mean_kld_95: tuple[Number, Number] | None = None
    p99_kld_nats: Number = None
    top1_agreement: Number = None


Drift = Annotated[_Drift, AfterValidator(_measured)] | None
Repeated = Annotated[Numbers, AfterValidator(_repeated)] | None


class _Stage(BaseModel):
    name: Name
    drift: Drift = None
    drift_from_input: Drift = None


class _Score(BaseModel):
    accuracy: Number = None
    n: Count = None


class _Right(BaseModel):
    accuracy: Share


class _Variant(_Right):
    name: Name


class _WorstRow(BaseModel):
    id: Text
    label: Text | None = ""
    wrong_in: list[Text] = Rows
    of: int
    asked: Text = ""
    expected: Text = ""
    answer: Text = ""


class _Everywhere(BaseModel):
    all: _Right


class _Alike(BaseModel):
    share: Share


class _AlikeEverywhere(BaseModel):
    all: _Alike


class _Hits(BaseModel):
    hits: int
    n: int
    share: Share | None = None


class _Abstention(BaseModel):
    false_abstentions: _Hits
    recall: _Hits


class _Abstentions(BaseModel):
    clean: _Abstention
    noise: _Abstention
    phrasings: _Abstention


class _Robustness(BaseModel):
    n: int
    clean: _Right
    noise: _Right | None = None
    families: list[_Variant] = Rows
    phrasings: list[_Variant] = Rows
    worst_case: _Everywhere | None = None
    consistency: _AlikeEverywhere | None = None
    abstention: _Abstentions | None = None
    worst_rows: list[_WorstRow] = Rows


class _Instead(BaseModel):
    answer: Text = ""
    n: int


class _Class(_Right):
    label: Text
    n: int
    wrong: int
    instead: _Instead | None = None
    new: StrictBool = False


class _Failures(BaseModel):
    by: Literal["label", "answer", "words"]
    classes: list[_Class] = Rows


class _Confidence(BaseModel):
    ece: Share
    coverage_at_risk: dict[Risk, Share] = {}


class _Calibration(BaseModel):
    refused: Text = ""
    rows: Count = None
    temperature: Number = None
    threshold: Share | None = None
    scope_threshold: Number = None
    before: _Confidence | None = None
    after: _Confidence | None = None


class _Speed(BaseModel):
    artifact: Name
    runtime: Text = ""
    threads: Count = None
    simulated: StrictBool = False
    peak_rss_mib: Number = None
    ttft_ms: Repeated = None
    decode_tokens_per_s: Repeated = None


class _Gate(BaseModel):
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
    verdict: Text = "unknown"
    artifacts: list[_Artifact] = Rows
    stages: list[_Stage] = Rows
    evaluation: dict[Text, _Score] = {}
    failures: dict[Text, _Failures] = {}
    robustness: dict[Text, _Robustness] = {}
    calibration: dict[Text, _Calibration] = {}
    profile: list[_Speed] = Rows
    gates: list[_Gate] = Rows
    budget: Numbers = {}
