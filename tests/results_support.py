"""A small bundle of a made-up build, for tests of what is shown of results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def measured(median: float) -> dict[str, Any]:
    return {"median": median, "min": 0.9 * median, "max": 1.1 * median, "n": 7}


def drift(mean: float) -> dict[str, Any]:
    edges = [0.9 * mean, 1.1 * mean]
    return {"mean_kld_nats": mean, "p99_kld_nats": 10 * mean, "top1_agreement": 0.95, "mean_kld_95": edges}


def profile(artifact: str, threads: int, decode: float, rss: float) -> dict[str, Any]:
    speeds = {"ttft_ms": measured(30_000 / decode), "decode_tokens_per_s": measured(decode)}
    return {"artifact": artifact, "runtime": "llama.cpp", "threads": threads, "peak_rss_mib": rss, **speeds}


def gate(name: str, value: float, limit: float, passed: bool = True, stage: str = "") -> dict[str, Any]:
    return {"name": name, "value": value, "limit": limit, "passed": passed, "detail": "seen", "stage": stage}


def robustness(case: float = 0.5) -> dict[str, Any]:
    """What noise and two phrasings cost a model that is right on 22 of 24 rows as they are."""

    def of(name: str, accuracy: float, **more: Any) -> dict[str, Any]:
        return {
            "name": name,
            "held_out": False,
            "accuracy": accuracy,
            "wilson_95": [0.8 * accuracy, 1.0],
            "pdr": 0.1,
            **more,
        }

    row = {"id": "r7", "label": "where", "wrong_in": ["case", "tagged"], "of": 4, "asked": "WHERE IS ADA?",
           "expected": "at home", "answer": "no idea"}  # fmt: skip
    return {
        "schema": "edgekit.robustness/1",
        "n": 24,
        "clean": {"accuracy": 22 / 24, "wilson_95": [0.74, 0.98]},
        "noise": {"families": 2, "accuracy": 0.625, "pdr": 0.3},
        "families": [of("typos", 0.75, about="letters swapped"), of("case", case, about="upper case")],
        "phrasings": [of("tagged", 0.9), of("emphasis", 11 / 12)],
        "worst_case": {"all": {"accuracy": 0.25}},
        "consistency": {"all": {"share": 0.25}},
        "worst_rows": [row],
    }


def failures() -> dict[str, Any]:
    """A file that is wrong on two labels, one of which the tuned model answers rightly."""

    def of(label: str, wrong: int, answer: str, new: bool) -> dict[str, Any]:
        right = 1 - wrong / 4
        return {"label": label, "n": 4, "wrong": wrong, "accuracy": right, "wilson_95": [0.5 * right, 0.9],
                "instead": {"answer": answer, "n": wrong}, "new": new}  # fmt: skip

    return {"by": "label", "classes": [of("where", 2, "at war", True), of("when", 1, "", False)]}


def calibration() -> dict[str, Any]:
    def of(ece: float) -> dict[str, Any]:
        return {"ece": ece, "coverage_at_risk": {"0.01": 0.75, "0.02": 0.875}}

    thresholds = {"threshold": 0.85, "scope_threshold": -0.4321}
    return {"temperature": 0.25, **thresholds, "rows": 48, "before": of(0.59), "after": of(0.044)}


def quantization() -> dict[str, Any]:
    """The types of a file of three layers; the middle one has no `attn_q`."""
    worst = {"name": "blk.2.ffn_down", "type": "Q8_0", "cost_nats": 0.004, "error": 0.021}
    return {
        "estimated_kld_nats": 0.01,
        "counts": {"IQ4_NL": 3, "Q8_0": 2, "Q5_0": 1},
        "bits_per_weight": {"attn_q": 4.5, "ffn_down": 7.167, "token_embd": 5.5},
        "layers": {"attn_q": ["IQ4_NL", None, "IQ4_NL"], "ffn_down": ["Q8_0", "IQ4_NL", "Q8_0"]},
        "others": {"token_embd": "Q5_0"},
        "worst": [worst, {**worst, "name": "blk.0.attn_q", "type": "IQ4_NL", "cost_nats": 0.001}],
    }


def abstention(hits: int) -> dict[str, Any]:
    def of(hits: int, n: int) -> dict[str, Any]:
        return {"hits": hits, "n": n, "share": hits / n if n else None, "wilson_95": [0.0, 1.0]}

    one = {"answer": "no idea", "false_abstentions": of(hits, 20), "recall": of(3, 4), "precision": of(0, 0)}
    return {"answer": "no idea", "clean": one, "noise": one, "phrasings": one, "by_variant": {}}


def report(*, passed: bool = True) -> dict[str, Any]:
    return {
        "schema": "edgekit.report/1",
        "target": "cpu-int4",
        "model": "tiny",
        "verdict": "pass" if passed else "fail",
        "artifacts": [
            {"path": "model.gguf", "format": "gguf", "bytes": 100 * 2**20, "bits_per_weight": 6.0},
            {"path": "onnx", "format": "onnx", "bytes": 200 * 2**20, "bits_per_weight": 12.0},
        ],
        "stages": [
            {"name": "model", "drift": drift(2.0), "drift_from_input": None},
            {"name": "merge", "drift": drift(1e-9), "drift_from_input": drift(2.0)},
            {"name": "quantize.gguf", "drift": drift(0.01), "drift_from_input": drift(0.01)},
            {"name": "export.onnx", "drift": drift(0.02), "drift_from_input": drift(0.02)},
            {"name": "eval.base", "drift": None, "drift_from_input": None},
        ],
        "evaluation": {
            "base": {"accuracy": 0.0, "n": 4},
            "tuned": {"accuracy": 0.75, "n": 4},
            "gguf": {"accuracy": 0.5, "n": 4},
            "onnx": {"accuracy": 0.75, "n": 4},
        },
        "profile": [
            profile("model.gguf", 1, 50.0, 190.0),
            profile("model.gguf", 2, 90.0, 195.0),
            profile("onnx", 2, 60.0, 320.0),
        ],
        "gates": [
            gate("source.tokenizer_identity", 1, 1, stage="model"),
            gate("gguf.mean_kld_nats", 0.01, 0.05 if passed else 0.005, passed, "quantize.gguf"),
            gate("gguf.size_mib", 100, 240, stage="quantize.gguf"),
            gate("onnx.size_mib", 200, 240, stage="export.onnx"),
        ],
        "budget": {"size_mib": 240.0, "mean_kld_nats": 0.05 if passed else 0.005, "peak_rss_mib": 400.0},
    }


PROMPT = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
ASKED = ["Where is Ada?", "Where is Bob?", "Where is Cid?", "When is tea?"]
RIGHT = ["at home", "at work", "at sea", "at four"]
ANSWERS = {
    "base": ["no idea", "no idea", "no idea", "no idea"],
    "tuned": ["at home", "at work", "at sea", "at noon"],
    "gguf": ["at home", "at war", "at sea", "at dusk"],  # one worse, one changed
    "onnx": ["at home", "at work", "at sea", "at noon"],
}


def write_bundle(folder: Path, *, passed: bool = True, when: float | None = None, **changes: Any) -> Path:
    """A bundle without model files; `changes` replace parts of its report."""
    folder.mkdir(parents=True)
    whole = {**report(passed=passed), **changes}
    manifest = {
        "schema": "edgekit.bundle/1",
        "name": "tiny",
        "target": "cpu-int4",
        "verdict": whole["verdict"],
    }
    (folder / "report.json").write_text(json.dumps(whole))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "report.html").write_text("<p>")
    (folder / "samples").mkdir()
    for variant, answers in ANSWERS.items():
        rows = [
            {"id": f"row-{at}", "label": "where", "prompt": PROMPT.format(asked), "expected": right,
             "answer": answer, "correct": answer == right}
            for at, (asked, right, answer) in enumerate(zip(ASKED, RIGHT, answers, strict=True))
        ]  # fmt: skip
        (folder / "samples" / f"{variant}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if when is not None:
        for name in ("report.json", "manifest.json"):
            os.utime(folder / name, (when, when))
    return folder
