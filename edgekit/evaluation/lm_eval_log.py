"""A log of samples in the form of lm-evaluation-harness (`--log_samples`), for tools that read it.

Source of the form: `EvaluationTracker.save_results_samples` of lm-eval 0.4.13. `edgekit eval compare` reads such logs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def as_lm_eval(samples: Sequence[Mapping[str, Any]], max_tokens: int) -> list[dict[str, Any]]:
    """Generated samples as lm-eval logs those of a task with `output_type: generate_until`."""
    asked = {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": max_tokens}
    found = []
    for number, sample in enumerate(samples):
        doc = {key: sample[key] for key in ("id", "label", "prompt", "expected")}
        found.append(
            {
                "doc_id": number,
                "doc": doc,
                "target": sample["expected"],
                "arguments": {"gen_args_0": {"arg_0": sample["prompt"], "arg_1": asked}},
                "resps": [[sample["answer"]]],
                "filtered_resps": [sample["answer"]],
                "filter": "none",
                "metrics": ["exact_match"],
                "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
                "prompt_hash": _hash(sample["prompt"]),
                "target_hash": _hash(sample["expected"]),
                "exact_match": float(sample["correct"]),
            }
        )
    return found


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
