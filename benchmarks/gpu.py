"""Everything that uses a GPU, on one, beside the processor and beside a plain peft loop: under nine minutes on an H100.

    python benchmarks/gpu.py [--model smollm2-135m] [--data demo] [--out FILE] [--minutes 9] [--small]

Each part runs in a process of its own and adds one line to FILE when it ends, so that a part that fails, or a machine that
is taken away, costs no other line. No part is started after `--minutes`. Without a GPU all parts that need none run on the
processor. `--small` takes a few rows and steps, to try the script. Parts marked CPU compute on the processor
(`CUDA_VISIBLE_DEVICES` is empty there). They share one folder: a model is brought in once and tuned once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

Facts = dict[str, Any]
FEW_STEPS, SEQUENCES, CALIBRATION = 8, 24, 16


class Parts:
    """The parts, each a method; they read and write the folder `work`."""

    def __init__(self, work: Path, model: str, data: str, small: bool) -> None:
        from edgekit.data.dataset import load_dataset

        self.work, self.model, self.small = work, model, small
        self.base, self.adapter, self.merged = work / "base", work / "adapter", work / "merged"
        rows = load_dataset(data)
        few = replace(rows, train=rows.train[: 4 * FEW_STEPS], validation=rows.validation[:8])
        self.data = few if small else rows
        self.rows = self.data.test[: 24 if small else 300]

    def machine(self) -> Facts:
        """The versions, and the GPU."""
        import torch
        import transformers

        from edgekit.models import source

        source.bring_in(source.resolve(self.model), self.base)
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        return {
            "gpu": gpu,
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def tune(self) -> Facts:
        """The whole tuning, in the dtype that edgekit chooses."""
        return self._tune(self.adapter)

    def qlora(self) -> Facts:
        """The same with a base in 4 bits."""
        return self._tune(self.work / "qlora", qlora=True)

    def losses(self) -> Facts:
        """The losses of a few steps in float32, which the GPU and the processor compare."""
        return self._tune(self.work / f"losses-{self._device()}", dtype="float32", steps=FEW_STEPS)

    def peft_loop(self) -> Facts:
        """Tokens per second of a plain loop over peft's model: the same rows, batches and optimiser, nothing else."""
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        from edgekit.tuning.trainer import LengthGroupedSampler, collate

        rows, options = self._encoded(), self._options()
        device = self._device()
        base = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.bfloat16).to(device)
        config = LoraConfig(
            r=options.rank, lora_alpha=options.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = get_peft_model(base, config)
        trained = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, fused=True)
        lengths = [len(row.input_ids) for row in rows]
        sampler = LengthGroupedSampler(lambda epoch: lengths, options.batch_size, options.seed)
        order, tokens, start = list(sampler), 0, time.perf_counter()
        for first in range(0, len(order), options.batch_size):
            batch = collate([rows[place] for place in order[first : first + options.batch_size]])
            ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)
            mask = torch.arange(ids.shape[1], device=device) < batch["lengths"].to(device)[:, None]
            with torch.autocast(device, torch.bfloat16):
                loss = model(input_ids=ids, attention_mask=mask.long(), labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            tokens += int(batch["lengths"].sum())
            if first == 0:  # the first step loads kernels
                loss.item()
                tokens, start = 0, time.perf_counter()
        return {"tokens_per_s": tokens / (time.perf_counter() - start), "last_loss": loss.item()}

    def merge(self) -> Facts:
        """A merge, and its proof against the base with the adapter."""
        from edgekit.export.weights.merge import merge

        if not self.merged.exists():
            merge(self.base, self.adapter, self.merged)
        return self.proof()

    def proof(self) -> Facts:
        """The proof of the merge alone."""
        from edgekit.export.weights.merge_check import merge_proof

        ids = [row.input_ids for row in self._encoded()][:SEQUENCES]
        proof = merge_proof(self.base, self.adapter, self.merged, ids)
        return {name: value for name, value in proof.items() if isinstance(value, float)}

    def accuracy(self) -> Facts:
        """Exact-match accuracy of the merged model on the test rows."""
        from edgekit.base.events import ignore
        from edgekit.evaluation.accuracy import evaluate
        from edgekit.runtimes.torch import open_model

        model, log = (
            open_model(self.merged, threads=os.cpu_count() or 1),
            self.work / f"answers-{self._device()}.jsonl",
        )
        found = evaluate(model, self.rows, max_tokens=128, log=log, emit=ignore, stage="eval")
        return {"accuracy": found["accuracy"], "rows": found["n"]}

    def reference(self) -> Facts:
        """Logits of the merged model, kept for the comparison of both devices."""
        from edgekit.runtimes.torch import open_model

        model = open_model(self.merged, threads=os.cpu_count() or 1)
        kept = [model.logits(row.input_ids) for row in self._encoded()[:SEQUENCES]]
        logits = np.concatenate(kept)
        np.save(self.work / f"logits-{self._device()}.npy", logits)
        return {"positions": len(logits), "mean_largest_logit": float(logits.max(1).mean())}

    def importance(self) -> Facts:
        """The importance matrix of the merged model."""
        from edgekit.export.gguf.imatrix import importance

        matrix = importance(self.merged, [row.input_ids for row in self._encoded()][: 4 * CALIBRATION])
        np.savez(self.work / f"importance-{self._device()}.npz", allow_pickle=False, **matrix)
        return {"layers": len(matrix)}

    def gptq(self) -> Facts:
        """All layers of the merged model rounded to 4 bits by GPTQ."""
        from edgekit.export.onnx.gptq import RoundedLinear, Rounding, round_network
        from edgekit.models import accelerator, mapped

        network = accelerator.place(mapped.load(self.merged))
        ids = [row.input_ids for row in self._encoded()][:CALIBRATION]
        round_network(network, Rounding(4, 32), ids, lambda *_: None)
        codes = [
            module.qweight.numpy().ravel()
            for module in network.modules()
            if isinstance(module, RoundedLinear)
        ]
        np.save(self.work / f"codes-{self._device()}.npy", np.concatenate(codes))
        return {"layers": len(codes)}

    def compared(self) -> Facts:
        """What both devices computed, side by side."""
        return dict(self._differences())

    def _differences(self) -> Iterator[tuple[str, float]]:
        for what in ("logits", "importance", "codes", "answers", "losses"):
            here, there = (self._result(what, device) for device in ("cpu", "cuda"))
            if here is None or there is None:
                continue
            if what == "logits":
                yield "largest_logit_difference", float(np.abs(here - there).max())
                yield "same_most_likely_token", float((here.argmax(1) == there.argmax(1)).mean())
            elif what == "importance":
                yield (
                    "largest_relative_importance_difference",
                    max(
                        float(np.abs(here[name] - there[name]).max() / here[name].max())
                        for name in here.files
                    ),
                )
            elif what == "codes":
                yield "same_gptq_codes", float((here == there).mean())
            else:
                pairs = list(zip(here, there, strict=True))
                yield f"same_{what}", sum(first == second for first, second in pairs) / len(pairs)
                if what == "losses":
                    yield "largest_loss_difference", max(abs(first - second) for first, second in pairs)

    def _result(self, what: str, device: str) -> Any:
        for ending in (".npy", ".npz", ".jsonl", ".json"):
            file = self.work / f"{what}-{device}{ending}"
            if file.is_file():
                if ending in (".npy", ".npz"):
                    return np.load(file)
                if ending == ".json":
                    return json.loads(file.read_text())
                return [json.loads(line)["answer"] for line in file.read_text().splitlines()]
        return None

    def _options(self, **changes: Any) -> Any:
        from edgekit.targets.target import Tune

        return Tune(epochs=2, **changes)

    def _encoded(self) -> list[Any]:
        from edgekit.models.tokenizer import ModelTokenizer
        from edgekit.tuning.encode import encode_rows

        tokenizer = ModelTokenizer(self.base)
        return encode_rows(self.data.train, tokenizer.chat_template, tokenizer, 512)[0]

    def _tune(self, out: Path, steps: int = 0, **changes: Any) -> Facts:
        import torch

        from edgekit.base.events import Event, Measured
        from edgekit.tuning.tune import tune

        options, data, losses = self._options(**changes), self.data, []
        if steps:
            wanted = steps * options.batch_size // 2  # of two epochs
            data = replace(data, train=data.train[:wanted], validation=data.validation[:8])

        def keep(event: Event) -> None:
            if isinstance(event, Measured) and event.metric == "loss":
                losses.append(event.value)

        with tempfile.TemporaryDirectory() as work:
            facts = tune(
                self.base, data, options, out, work=Path(work), threads=os.cpu_count() or 1, emit=keep
            )
        if steps:
            (self.work / f"losses-{self._device()}.json").write_text(json.dumps(losses))
        wanted_facts = ("steps", "train_loss", "validation_loss", "tokens_per_s", "dtype")
        peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
        return {name: facts[name] for name in wanted_facts} | {"gpu_mib": peak}

    def _device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"


PLAN: tuple[tuple[str, bool], ...] = (  # the part, and whether it runs on the processor alone
    ("machine", False), ("tune", False), ("peft_loop", False), ("merge", False), ("accuracy", False), ("reference", False),
    ("importance", False), ("gptq", False), ("losses", False), ("losses", True), ("proof", True), ("reference", True),
    ("importance", True), ("gptq", True), ("qlora", False), ("accuracy", True), ("compared", False),
)  # fmt: skip


def main() -> None:
    """Run all parts, or with --part one of them in this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--out", type=Path, default=Path("gpu.md"))
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--part", choices=sorted({name for name, _ in PLAN}), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        with _stdout_kept() as answer:
            part: Callable[[], Facts] = getattr(
                Parts(arguments.work, arguments.model, arguments.data, arguments.small), arguments.part
            )
            answer(part())
        return
    end = time.monotonic() + 60 * arguments.minutes
    with arguments.out.open("a", encoding="utf-8") as out, tempfile.TemporaryDirectory() as work:
        for name, on_cpu in PLAN:
            line = "not started: the time is over"
            if time.monotonic() < end or name == "compared":
                line = run(name, on_cpu, Path(work), end)
            for file in (out, sys.stdout):
                print(f"- {name}{' (CPU)' if on_cpu else ''}: {line}", file=file, flush=True)


def run(name: str, on_cpu: bool, work: Path, end: float) -> str:
    """One part in a process of its own; its facts, or why there are none."""
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    if on_cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, __file__, *sys.argv[1:], "--part", name, "--work", str(work)]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, env=environment, check=False, capture_output=True, text=True,
            timeout=max(30, end + 20 - time.monotonic()),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "stopped: the time is over"
    seconds = f"{time.perf_counter() - start:.0f} s"
    if done.returncode:
        return f"failed after {seconds}: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
    facts = json.loads(done.stdout)
    shown = (
        f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in facts.items()
    )
    return f"{', '.join(shown)} ({seconds} with imports)"


@contextmanager
def _stdout_kept() -> Iterator[Callable[[Facts], None]]:
    """Stdout carries the answer alone: what libraries print goes to stderr."""
    kept = os.dup(1)
    os.dup2(2, 1)

    def answer(facts: Facts) -> None:
        with os.fdopen(kept, "w") as out:
            json.dump(facts, out)

    yield answer


if __name__ == "__main__":
    main()
