"""The figures of a report as rows and sentences, for the page, the terminal and the README."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NONE = "–"  # shown where nothing was measured

WORDS = {
    "accuracy_drop_points": "accuracy lost, percentage points",
    "accuracy_gain_points": "accuracy gained by tuning, percentage points",
    "robust_drop_points": "accuracy lost with noise or in another phrasing, percentage points",
    "robust_drop_rate": "share of right answers lost under noise, mean",
    "mean_kld_nats": "mean KL divergence, nats",
    "p99_kld_nats": "99th percentile of KL divergence, nats",
    "peak_rss_mib": "peak memory, MiB",
    "size_mib": "size, MiB",
    "ttft_ms": "time to the first token, ms",
    "decode_tokens_per_s": "decode speed, tokens/s",
    "top1_agreement": "same most likely token, share",
    "text_mean_kld_nats": "mean KL divergence on plain text, nats",
    "stop_contract": "answers that end where the model's do, share",
    "answer_top1_agreement": "same most likely token in the answers, share",
    "greedy_agreement": "greedy answer equal up to the first difference, mean share",
    "rounding": "merged tensors rounded once, share",
    "rounding_kld_nats": "mean KL divergence by rounding the merge, nats",
}
ADVICE = {  # on gates of a budget: of the tuned model and of an exported format
    "accuracy_gain_points": "Tuning was not shown to help: add training rows or epochs, or test rows if the gain is small.",
    "accuracy_drop_points": "Use a wider type for this format; report.html shows the answers that changed.",
    "robust_drop_points": "Use a wider type for this format, or tune with --robust.",
    "robust_drop_rate": "Tune with --robust, or add training rows that are typed as your users type.",
    "mean_kld_nats": "Use a wider type in this format's [[export]] table, or more calibration_rows.",
    "p99_kld_nats": "A few tokens changed much: use a wider type, or keep the output head at 8 bits.",
    "peak_rss_mib": "Use a narrower type or a smaller model, or raise budget.peak_rss_mib.",
    "size_mib": "Use a narrower type or drop layers, or raise budget.size_mib.",
    "ttft_ms": "Use more threads or a smaller model, or raise budget.ttft_ms.",
    "decode_tokens_per_s": "Use a narrower type or a smaller model, or lower budget.decode_tokens_per_s.",
    "text_mean_kld_nats": "Use a wider type, or calibrate on more varied rows.",
    "top1_agreement": "Use a wider type in this format's [[export]] table, or more calibration_rows.",
    "answer_top1_agreement": "Use a wider type in this format's [[export]] table, or more calibration_rows.",
    "greedy_agreement": "Use a wider type in this format's [[export]] table, or more calibration_rows.",
    "rounding": "Merge again; the stored weights are not the merge of this base and this adapter.",
    "rounding_kld_nats": "The base's 16 bits are too coarse for this adapter: save the base in float32 and build again, "
    "or tune with a higher learning_rate or more epochs.",
    "change_error": "Use an adapter that was tuned on this base, with its own alpha and rank; if it was, use a wider type for the base.",
}
VALIDATION_ROWS = (
    "Add validation rows: the value is within the limit, and the sample is too small to show that it holds. "
    "In edgekit verify, give --data and omit --quick."
)
ROBUST_ROWS = "Raise evaluate.robust_rows: the value is within the limit, and the sample is too small to show that it holds."
TEST_ROWS = "Add test rows: the value is within the limit, and the sample is too small to show that it holds."
# For a value within its limit that failed by its bounds. The plain texts are fixed, so they have no such advice.
SAMPLE_ADVICE = {
    "accuracy_gain_points": TEST_ROWS,
    "accuracy_drop_points": TEST_ROWS,
    "robust_drop_points": ROBUST_ROWS,
    "robust_drop_rate": ROBUST_ROWS,
    "mean_kld_nats": VALIDATION_ROWS,
    "top1_agreement": VALIDATION_ROWS,
    "answer_top1_agreement": VALIDATION_ROWS,
    "greedy_agreement": VALIDATION_ROWS,
    "stop_contract": VALIDATION_ROWS,
}
ABOVE = ("accuracy_gain_points",)  # a value equal to the limit fails
AT_LEAST = (
    "rounding",
    "top1_agreement",
    "answer_top1_agreement",
    "greedy_agreement",
    "stop_contract",
)
VERIFY_ADVICE = {  # on differences of a file from the model it claims to be
    "structure": "Convert it again from the model, with a converter that knows its architecture.",
    "vocabulary": "Convert it again with the model's own tokenizer files.",
    "weights": "The file's weights differ from the model's: convert or merge it again from the right weights. If the check "
    "names an update that the type rounds away, give those tensors another type (tensor_types).",
    "tokenizer_identity": "Convert it with edgekit export. Another converter may have left out tokenizer files of the model, or "
    "named a wrong rule for splitting text into words (tokenizer.ggml.pre of a GGUF file).",
    "detokenization": "Convert it again with the model's own tokenizer files.",
    "template_identity": "Put the model's own chat template into the file.",
    "template_branches": "Do not use this template: put the model's own into the file.",
    "bare_runtime": "Serve it with edgekit, or rewrite its chat template for the runtime's own template engine.",
    "deviations": "Take these texts out of the rows, or choose another format or model: no other export changes this.",
    "stop_ids": "Set the file's EOS and EOT ids to those of the model's generation config.",
    "stop_contract": "Check the stop ids first; then use a wider type.",
    "golden_tokens": "This runtime version reads the file differently: install the version in manifest.json.",
    "golden_template": "This runtime version reads the file differently: install the version in manifest.json.",
    "golden_answers": "This machine or runtime gives other answers: verify the file here with --reference, or build here.",
    "rows": "Give the rows that the bundle was built from, and the options that its build had (--columns, --data-revision).",
    "verdict": "The build of this bundle did not pass: see its report.html.",
}
OTHER_ADVICE = (
    "Do not ship this file. See the stage's messages in events.jsonl, fix the cause, and build again."
)


@dataclass(frozen=True)
class Variant:
    """One model of the report: the base, the tuned model, or an exported file. Unmeasured values are `None`."""

    name: str
    accuracy: float | None
    n: int | None
    path: str | None
    bytes: int | None
    bits_per_weight: float | None
    drift: Mapping[str, Any]
    speed: Mapping[str, Any]
    """The profile row with the thread count of the fastest decoding."""
    robustness: Mapping[str, Any]
    """What noise and other phrasings cost, as `edgekit.evaluation.robust` measures it; empty where it was not measured."""
    failures: Mapping[str, Any]
    """Its classes with wrong answers, as `edgekit.evaluation.failures` finds them; empty where it was not measured."""
    quantization: Mapping[str, Any]
    """The type of each tensor, as `edgekit.report.allocation` reads it; empty where it is not known."""
    calibration: Mapping[str, Any]
    """What the build found of its confidence, or `refused`, the reason why not; empty for a model that is no file."""

    @property
    def noise(self) -> float | None:
        """The share of right answers with noise, mean over the families."""
        return (self.robustness.get("noise") or {}).get("accuracy")

    @property
    def decode(self) -> float | None:
        """Tokens generated per second, median."""
        return median(self.speed.get("decode_tokens_per_s"))

    @property
    def ttft(self) -> float | None:
        """Milliseconds to the first token, median."""
        return median(self.speed.get("ttft_ms"))


def variants(report: Mapping[str, Any]) -> list[Variant]:
    """The base, the tuned model and every exported file, in the order of the build."""
    evaluation = report.get("evaluation") or {}
    artifacts = {artifact["format"]: artifact for artifact in report.get("artifacts") or []}
    return [
        _variant(name, evaluation.get(name) or {}, artifacts.get(name) or {}, report)
        for name in dict.fromkeys(["base", "base_few_shot", "tuned", *artifacts, *evaluation])
        if name in artifacts or evaluation.get(name)
    ]


def _variant(
    name: str, scores: dict[str, Any], artifact: dict[str, Any], report: Mapping[str, Any]
) -> Variant:
    rows = [row for row in report.get("profile") or [] if row["artifact"] == artifact.get("path")]
    drifts = [stage.get("drift") for stage in report.get("stages") or [] if name in stage["name"].split(".")]
    return Variant(
        name=name,
        accuracy=scores.get("accuracy"),
        n=scores.get("n"),
        path=artifact.get("path"),
        bytes=artifact.get("bytes"),
        bits_per_weight=artifact.get("bits_per_weight"),
        quantization=artifact.get("quantization") or {},
        drift=next((drift for drift in reversed(drifts) if drift), {}),
        speed=max(rows, key=lambda row: median(row.get("decode_tokens_per_s")) or 0.0, default={}),
        **{key: (report.get(key) or {}).get(name) or {} for key in ("robustness", "failures", "calibration")},
    )


def exported(report: Mapping[str, Any]) -> list[Variant]:
    """The variants that are files of the bundle."""
    return [variant for variant in variants(report) if variant.path]


def failed_gates(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Failed gates, each with its `stage`, if known, and `advice`."""
    return [
        {**gate, "stage": gate.get("stage", ""), "advice": advice(gate)}
        for gate in report.get("gates") or []
        if not gate["passed"]
    ]


def advice(gate: Mapping[str, Any]) -> str:
    """What to do when a gate failed, whose check is the last part of its name; a base with an adapter has the same checks."""
    check = gate["name"].rpartition(".")[2].removeprefix("adapter_")
    value, limit = gate["value"], gate["limit"]
    if value is None or limit is None:  # not a number
        return OTHER_ADVICE
    if check in ABOVE:
        within = value > limit
    else:
        within = value >= limit if check in AT_LEAST else value <= limit
    if within and gate.get("low") is not None and check in SAMPLE_ADVICE:
        return SAMPLE_ADVICE[check]
    return {**ADVICE, **VERIFY_ADVICE}.get(check, OTHER_ADVICE)


def bounds(gate: Mapping[str, Any]) -> str:
    """`0.92 to 1, n = 64`: the one-sided 95 % bounds of a gate's value and its sample size; empty without bounds."""
    low, high, n = (gate.get(key) for key in ("low", "high", "n"))
    told = "" if low is None or high is None else f"{figure(low)} to {figure(high)}"
    return ", ".join(filter(None, [told, f"n = {n:,}" if n is not None else ""]))


def gate_words(name: str) -> str:
    """The name of the check `<group>.<check>` for people."""
    check = name.rpartition(".")[2]
    return WORDS.get(check, check.replace("_", " "))


def passed(report: Mapping[str, Any]) -> bool:
    """Whether the bundle passed."""
    return bool(report["verdict"] == "pass")


def verdict_word(report: Mapping[str, Any]) -> str:
    """`✓ Passed` or `✗ Not passed`."""
    return "✓ Passed" if passed(report) else "✗ Not passed"


def verdict_sentence(report: Mapping[str, Any]) -> str:
    """The sentence on what was built, whether it answers like the tuned model, its size and its speed."""
    files, gates, failed = exported(report), report.get("gates") or [], failed_gates(report)
    built = join([f"{file.path} ({mib(file.bytes)} MiB)" for file in files]) or "nothing"
    subject, verb = ("they", "") if len(files) > 1 else ("it", "s")
    text = f"Built {built} for {report['target']}"
    if failed:
        text += f", but {len(failed)} of {len(gates)} gates failed"
    elif passed(report) and files:
        text += f": {subject} answer{verb} like the tuned model"
    tuned = next((v.accuracy for v in variants(report) if v.name == "tuned"), None)
    scored = [file for file in files if file.accuracy is not None]
    if scored and tuned is not None:
        rates = join([percent(file.accuracy) for file in scored])
        text += f"; {rates} of {scored[0].n} held-out answers are right, {percent(tuned)} before the export"
    timed = [file for file in files if file.decode]
    if timed:
        threads = timed[0].speed.get("threads")
        text += (
            f"; {subject} generate{verb} {join([figure(file.decode) for file in timed])} tokens per second"
        )
        text += f" on {threads} threads" if threads and threads > 1 else ""
        text += " (simulated)" if timed[0].speed.get("simulated") else ""
    return text + "."


def conditions(row: Mapping[str, Any]) -> str:
    """How a row of the profile was measured: threads, the limits applied, and whether the device was simulated."""
    threads, limits = row["threads"], row.get("limits") or {}
    cores, memory = limits.get("cores"), limits.get("memory_mib")
    applied = [f"{cores} core{'s' if cores > 1 else ''}"] if cores else []
    applied += [f"{memory:,} MiB of memory"] if memory else []
    text = f"{threads} thread{'s' if threads > 1 else ''}"
    text += f", limited to {join(applied)}" if applied else ""
    if row.get("simulated"):
        why = f", which {row['differs']}" if row.get("differs") else ""
        text = f"simulated: not measured on the device{why}; {text}"
    return text


def simulation(report: Mapping[str, Any]) -> str:
    """One sentence when the profile was not measured on the target's device; empty when it was."""
    row = next((row for row in report.get("profile") or [] if row.get("simulated")), None)
    return f"Speed and memory are {conditions(row)}." if row else ""


def median(measured: Mapping[str, Any] | None) -> float | None:
    """The median of a `{median, min, max, n}` dict, which may be empty or missing."""
    return (measured or {}).get("median")


def join(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def percent(share: float | None) -> str:
    """`96.0 %`, with a non-breaking space."""
    return NONE if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def mib(size: float | None) -> str:
    """Bytes as MiB with one decimal."""
    return NONE if size is None else f"{size / 2**20:,.1f}"


def figure(value: float | None) -> str:
    """A measured number to three significant digits; integers are not rounded."""
    if value is None or not math.isfinite(value):
        return NONE if value is None else str(value)
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text and value == round(value) else text


def exact(value: float) -> str:
    """A configured number, such as a limit, without rounding."""
    return f"{value:g}".replace("e-0", "e-")
