"""The tune stage: a LoRA adapter (Hu et al. 2021, arXiv 2106.09685) on the rows of a data set.

peft puts the adapter on the linear layers; transformers' Trainer and accelerate run the steps, in bfloat16 on
a CUDA GPU and on processors that support it natively, else in float32. The adapter's weights stay float32.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgekit.base.artifacts import digest_of, sha256_file, written_whole
from edgekit.base.errors import ConfigError, MissingPartError, StageError
from edgekit.base.events import Alert, Emit, ignore
from edgekit.base.hardware import available_memory_mib, cpu_has_bf16
from edgekit.base.parts import missing_part
from edgekit.data import out_of_scope
from edgekit.data.splits import Dataset
from edgekit.models.source import parameter_count, read_config
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.targets.target import Tune
from edgekit.tuning import robust
from edgekit.tuning.encode import EncodedRow, Example, check_mask, encode_rows, encode_variant
from edgekit.tuning.memory import SIZES, Batch, base_dtype, estimate
from edgekit.tuning.modules import Modules, chosen, not_added

# On a CPU, up to about this many tokens, the backward pass of fused attention takes two to four times as long as plain
# matrix products. Beyond it, the (T, T) scores of plain attention take too much memory.
PLAIN_ATTENTION_TOKENS = 128
LEFT_OUT_SHOWN = 5
# oneDNN, and torch around it, keep a prepared product of each kind for every shape of a batch, 1,024 by default: with 800 rows
# of many lengths 0.5 GiB, and as much memory again between them. A step needs fewer, all of one shape. Read at first use.
PREPARED_PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "100", "LRU_CACHE_CAPACITY": "64"}


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
        from edgekit.tuning.trainer import AnswerTrainer, Examples
        from edgekit.tuning.watch import Watch
    except ModuleNotFoundError as error:
        raise missing_part(error) from error

    for name, count in PREPARED_PRODUCTS.items():
        os.environ.setdefault(name, count)
    main = os.environ.get("RANK", "0") == "0"  # under torchrun only the first process writes and reports
    emit = emit if main else ignore
    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = _dtype(options, device)
    modules = chosen(read_config(model), options)
    epochs, held_out, left_out = _encode(model, data, options, emit)
    rows = [row for examples in epochs for example in examples for row in example]
    inputs = {
        "config": sha256_file(model / "config.json"),
        "options": options.of_result(),
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
        batch = _largest_batch([*rows, *held_out], options, device)
        if modules.left_out:
            emit(Alert("info", modules.left_out))
        recomputes = _recomputes(model, options, batch, device, dtype, emit)
        run.gradient_checkpointing = recomputes
        adapted = _adapted(model, options, modules, device, dtype, batch)
        arguments = _arguments(options, device, dtype, work, recomputes)
        consistency = options.robustness.consistency if options.robust else 0.0
        trainer = AnswerTrainer(Examples(epochs), consistency, model=adapted, args=arguments)
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
        "gradient_checkpointing": run.gradient_checkpointing,
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
    return base_dtype(options, device == "cuda" or cpu_has_bf16())


def _largest_batch(rows: Sequence[EncodedRow], options: Tune, device: str) -> Batch:
    longest = max(len(row.input_ids) for row in rows)
    answer = max(len(row.input_ids) - row.prompt_length for row in rows)
    plain = device == "cpu" and longest <= PLAIN_ATTENTION_TOKENS
    return Batch(options.batch_size * (1 + options.twins), longest, answer, plain)


def _recomputes(model: Path, options: Tune, batch: Batch, device: str, dtype: str, emit: Emit) -> bool:
    """Whether activations are computed again in the backward pass; says so when memory is the reason."""
    import torch

    stored = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    config = read_config(model)
    base = stored if dtype == "float32" else parameter_count(config) * SIZES[dtype]
    need = estimate(config, options, batch, dtype, base)
    available = torch.cuda.mem_get_info()[0] / 2**20 if device == "cuda" else available_memory_mib()
    chosen = need.checkpoints(options, available)
    if chosen and options.gradient_checkpointing == "auto":
        emit(
            Alert(
                "info",
                f"Activations would take about {need.kept:,.0f} MiB beside {need.weights:,.0f} MiB of weights, and "
                f"{available:,.0f} MiB are available: they are computed again in the backward pass, which takes longer.",
            )
        )
    return chosen


def _encode(
    model: Path, data: Dataset, options: Tune, emit: Emit
) -> tuple[list[list[Example]], list[EncodedRow], int]:
    """The examples of each epoch and the validation rows as ids with checked masks, and the number of rows left out."""
    tokenizer = ModelTokenizer(model)
    template, longest = tokenizer.chat_template, options.max_length
    encoded, left_out = encode_rows(data.train, template, tokenizer, longest)
    held_out: list[EncodedRow] = []
    if data.validation:
        rows = robust.validation_of(data.validation, options) if options.robust else data.validation
        held_out, more = encode_rows(rows, template, tokenizer, longest)
        left_out += more
    epochs: list[list[Example]] = [[(row,) for row in encoded]]
    if options.robust:
        plain = {row.id: row for row in encoded}
        usable = [row for row in data.train if row.id in plain]
        answer = out_of_scope.answer_of(data.train, options.robustness.abstain)
        epochs = [
            [
                tuple(
                    encode_variant(row, template, tokenizer, longest, plain.get(row.id, encoded[0]))
                    for row in example
                )
                for example in examples
            ]
            for examples in robust.epochs_of(usable, options, answer)
        ]
        _tell_robust(options, answer, emit)
    both = [*(row for examples in epochs for example in examples for row in example), *held_out]
    check_mask(both, [row.labels for row in both])
    if left_out:
        shown = "; ".join(left_out[:LEFT_OUT_SHOWN]) + (" ..." if len(left_out) > LEFT_OUT_SHOWN else "")
        hint = "Increase max_length or fix these rows."
        emit(Alert("warning", f"{len(left_out)} rows are not used for tuning: {shown}", hint))
    if merges := sum(row.boundary_merge for row in (*encoded, *held_out)):
        emit(
            Alert(
                "info",
                f"In {merges} rows the tokenizer would join the end of the prompt with the start of the answer; "
                "these rows are tuned with the ids that the model sees when it answers.",
            )
        )
    return epochs, held_out, len(left_out)


def _tell_robust(options: Tune, answer: str, emit: Emit) -> None:
    """Say what robust tuning adds to the rows; `answer` is that to requests out of scope."""
    chosen = options.robustness
    parts = [f"noise ({', '.join(chosen.noise)})"] if chosen.noise else []
    parts += ["other phrasings"] if chosen.phrased_share else []
    parts += ["agreement between rows and their noisy twins"] if chosen.consistency and chosen.noise else []
    parts += (
        [f"requests out of scope, answered with {answer!r}"] if answer and chosen.out_of_scope_share else []
    )
    emit(Alert("info", f"Tuning is robust: {'; '.join(parts) or 'every part of it is turned off'}."))
    if not answer and chosen.abstain:
        emit(
            Alert(
                "info",
                "Requests out of scope are not trained: the answers are no closed set of labels.",
                "Set tune.robustness.abstain to the answer that they should get.",
            )
        )


def _adapted(model: Path, options: Tune, modules: Modules, device: str, dtype: str, batch: Batch) -> Any:
    """The frozen base with a new adapter, whose initial weights depend only on the seed.

    A base that computes in float32 stays in its files in the type in which it is stored: `edgekit.models.mapped`.
    """
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from edgekit.models import mapped

    four_bit = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    }
    attention = "eager" if batch.plain_attention else "sdpa"
    if dtype == "float32" and not options.qlora:
        base = mapped.load(model, attn_implementation=attention)
    else:
        base = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
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
        target_modules=modules.names,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(options.seed)
    try:
        return get_peft_model(base, config)
    except ValueError as error:  # peft: a name in target_modules that the model does not have
        raise not_added(options, error) from error


def _arguments(options: Tune, device: str, dtype: str, work: Path, recomputes: bool) -> Any:
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
        activation_checkpointing=recomputes,
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
