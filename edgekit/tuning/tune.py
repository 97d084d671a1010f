"""The tune stage: a LoRA adapter (Hu et al. 2021, arXiv 2106.09685) on the rows of a data set.

peft puts the adapter on the linear layers; transformers' Trainer and accelerate run the steps, in bfloat16 on
a CUDA GPU and on processors that support it natively, else in float32. The adapter's weights stay float32.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgekit.base.artifacts import digest_of, sha256_file, written_whole
from edgekit.base.errors import ConfigError, MissingPartError, StageError
from edgekit.base.events import Alert, Emit, ignore
from edgekit.base.hardware import cpu_has_bf16
from edgekit.base.parts import missing_part
from edgekit.data.splits import Dataset
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.targets.target import Tune
from edgekit.tuning.encode import EncodedRow, check_mask, encode_rows

# On a CPU, up to about this many tokens, the backward pass of fused attention takes two to four times as long as plain
# matrix products. Beyond it, the (T, T) scores of plain attention take too much memory.
PLAIN_ATTENTION_TOKENS = 128
LEFT_OUT_SHOWN = 5


def tune(
    model: Path,
    data: Dataset,
    options: Tune,
    out: Path,
    *,
    work: Path,
    threads: int = 0,
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Tune an adapter for the folder `model` on `data` and write the best evaluation's weights to `out`, a PEFT folder.

    Checkpoints are kept in `work`. An interrupted run on the same inputs resumes from the last complete one; on
    the same machine with the same `threads` it ends with the same bytes as an uninterrupted run.
    Losses are mean cross-entropies of answer tokens, nats; without validation rows the last weights are used.
    Raises `ConfigError` for rows or options that cannot be used, `MissingPartError` for a package that is missing,
    and `StageError` when a mask is wrong, a loss is not finite or memory runs out; `out` is then unchanged.
    """
    try:
        import accelerate  # noqa: F401
        import peft  # noqa: F401
        import torch
        from transformers import PrinterCallback

        from edgekit.tuning import checkpoint
        from edgekit.tuning.trainer import AnswerTrainer
        from edgekit.tuning.watch import Watch
    except ModuleNotFoundError as error:
        raise missing_part(error) from error

    main = os.environ.get("RANK", "0") == "0"  # under torchrun only the first process writes and reports
    emit = emit if main else ignore
    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = _dtype(options, device)
    rows, held_out, left_out = _encode(model, data, options, emit)
    inputs = {
        "config": sha256_file(model / "config.json"),
        "options": options.model_dump(),
        "rows": [asdict(row) for row in (*rows, *held_out)],
        "device": device,
        "dtype": dtype,
    }
    fingerprint = digest_of(inputs)
    found = checkpoint.latest(work, fingerprint)
    run = checkpoint.load_run(found) if found else checkpoint.Run(fingerprint)
    if not run.finished:
        if found:
            emit(
                Alert(
                    "info",
                    f"Tuning resumes after step {run.step}, from the checkpoint of an interrupted run.",
                )
            )
        longest = max(len(row.input_ids) for row in (*rows, *held_out))
        adapted = _adapted(model, options, device, dtype, longest)
        trainer = AnswerTrainer(rows, model=adapted, args=_arguments(options, device, dtype, work))
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Watch(trainer, held_out, options, run=run, resumed=found, work=work, emit=emit))
        try:
            trainer.train(resume_from_checkpoint=str(found) if found else None)
        except torch.OutOfMemoryError as error:
            raise StageError(
                "The GPU does not have enough memory for a batch; the last checkpoint is kept.",
                f"Set batch_size to {max(options.batch_size // 2, 1)} and gradient_accumulation to "
                f"{options.gradient_accumulation * 2}.",
            ) from error
        found = checkpoint.latest(work, fingerprint)
    if main and found:
        with written_whole(out, force=True) as staging:
            checkpoint.publish(found, staging)
    return {
        "steps": run.step,
        "epochs": run.epoch,
        "train_loss": run.train_loss,
        "validation_loss": run.best_loss,
        "tokens": run.tokens,
        "tokens_per_s": run.tokens_per_s,
        "best_step": run.best_step,
        "left_out": left_out,
        "device": device,
        "dtype": dtype,
    }


def _dtype(options: Tune, device: str) -> str:
    """The dtype of the frozen base; raises when `qlora` cannot run here."""
    if options.qlora and device != "cuda":
        raise ConfigError(
            "qlora needs a CUDA GPU, and this machine has none; nothing was started.", "Set qlora = false."
        )
    if options.qlora and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingPartError(
            "qlora needs the package 'bitsandbytes', which is not installed.",
            "pip install 'edgekit[build,qlora]'",
        )
    if options.dtype != "auto":
        return options.dtype
    return "bfloat16" if device == "cuda" or cpu_has_bf16() else "float32"


def _encode(
    model: Path, data: Dataset, options: Tune, emit: Emit
) -> tuple[list[EncodedRow], list[EncodedRow], int]:
    """Training and validation rows as ids with checked masks, and the number of rows left out."""
    tokenizer = ModelTokenizer(model)
    encoded, left_out = encode_rows(data.train, tokenizer.chat_template, tokenizer, options.max_length)
    held_out: list[EncodedRow] = []
    if data.validation:
        held_out, more = encode_rows(data.validation, tokenizer.chat_template, tokenizer, options.max_length)
        left_out += more
    both = [*encoded, *held_out]
    check_mask(both, [row.labels for row in both])
    if left_out:
        shown = "; ".join(left_out[:LEFT_OUT_SHOWN]) + (" ..." if len(left_out) > LEFT_OUT_SHOWN else "")
        hint = "Increase max_length or fix these rows."
        emit(Alert("warning", f"{len(left_out)} rows are not used for tuning: {shown}", hint))
    if merges := sum(row.boundary_merge for row in both):
        emit(
            Alert(
                "info",
                f"In {merges} rows the tokenizer would join the end of the prompt with the start of the answer; "
                "these rows are tuned with the ids that the model sees when it answers.",
            )
        )
    return encoded, held_out, len(left_out)


def _adapted(model: Path, options: Tune, device: str, dtype: str, longest: int) -> Any:
    """The frozen base with a new adapter, whose initial weights depend only on the seed."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four_bit = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    }
    base = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=getattr(torch, dtype),
        attn_implementation="eager" if device == "cpu" and longest <= PLAIN_ATTENTION_TOKENS else "sdpa",
        use_safetensors=True,
        quantization_config=BitsAndBytesConfig(**four_bit) if options.qlora else None,
    )
    if options.qlora:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        target_modules=options.modules,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(options.seed)
    try:
        return get_peft_model(base, config)
    except ValueError as error:  # peft: a name in target_modules that the model does not have
        raise ConfigError(
            f"An adapter cannot be added to the modules {options.modules}: {error}",
            'Set modules = "all-linear".',
        ) from error


def _arguments(options: Tune, device: str, dtype: str, work: Path) -> Any:
    """Trainer's settings: it runs the steps on the devices; `Watch` reports, evaluates and saves."""
    from transformers import TrainingArguments

    args = TrainingArguments(
        output_dir=str(work),
        seed=options.seed,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation,
        learning_rate=options.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=options.warmup_ratio,
        weight_decay=options.weight_decay,
        optim="adamw_torch_fused",
        bf16=dtype == "bfloat16",  # autocast: products with the float32 adapter are in bfloat16 too
        use_cpu=device == "cpu",
        dataloader_pin_memory=device == "cuda",
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    args._n_gpu = min(args.n_gpu, 1)  # one GPU for each process: torchrun uses several, not DataParallel
    return args
