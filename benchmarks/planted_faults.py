"""Faults planted in a good GGUF file of the sample model: which check names each, and what other tools say of the file.

    python benchmarks/planted_faults.py [FAULT ...]

Each fault is one that users of converters and quantizers have reported. A tool "says nothing" when it loads the file
and goes on; perplexity is of 1,024 tokens of plain text in llama.cpp, beside the good file's.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from faults import plant

from edgekit.base import hardware
from edgekit.base.cache import Cache
from edgekit.base.errors import EdgekitError
from edgekit.base.events import ignore
from edgekit.commands.verify import GENERAL
from edgekit.export.gguf import write as gguf
from edgekit.export.gguf.quantize import quantize
from edgekit.models import source as model
from edgekit.proof.texts import TEXTS
from edgekit.proof.verify import verify_file
from edgekit.registry import load
from edgekit.targets.target import GgufExport

FAULTS = {
    "template that trims": plant.plant_wrong_template,
    "template with a hidden trigger": plant.plant_trigger,
    "added token made a plain word": plant.plant_dropped_added_token,
    "two merge rules exchanged": plant.plant_altered_merge_rule,
    "another EOS id": plant.plant_wrong_eos,
    "rows of q and k un-permuted": plant.plant_unpermuted_q_and_k,
    "a projection transposed": plant.plant_transposed_projection,
    "one matrix doubled": plant.plant_doubled_tensor,
    "a layer twice": plant.plant_repeated_layer,
    "bits of one block flipped": plant.plant_flipped_bits,
    "16 rows of v negated": plant.plant_negated_rows,
    "two tokens' embeddings exchanged": plant.plant_swapped_embeddings,
    "adapter merged twice": plant.plant_doubled_alpha,
    "another rope base": plant.plant_rope_base,
    "another norm epsilon": plant.plant_norm_epsilon,
    "cut short by 4 KiB": lambda file: file.write_bytes(file.read_bytes()[:-4096]),
}  # fmt: skip


def main() -> None:
    """Print the table as Markdown, one row for each fault."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cache, source = Cache(work / "cache", ignore), model.resolve("smollm2-135m")
        model.bring_in(source, work / "model")
        gguf.write(work / "model", work / "float.gguf", ignore)
        quantize(work / "float.gguf", work / "good.gguf", GgufExport(format="gguf", type="Q8_0"))
        budget = load("profiles", "targets").load("cpu-int4", GENERAL).budget
        (work / "float.gguf").unlink()
        print(f"{hardware.fingerprint()['cpu']}\n")
        print("| fault | edgekit verify names it by | llama.cpp | transformers | gguf | perplexity |")
        print("|---|---|---|---|---|--:|")
        for name, fault in {"none": lambda file: None, **FAULTS}.items():
            if sys.argv[1:] and name not in sys.argv[1:]:
                continue
            file = Path(shutil.copyfile(work / "good.gguf", work / "file.gguf"))
            fault(file)
            try:
                gates = verify_file(file, source, [], budget, cache, quick=True)
                named = ", ".join(gate.name.removeprefix("gguf.") for gate in gates if not gate.passed)
            except EdgekitError as error:
                named = f"{type(error).__name__} (exit 5)"
            said = [tool(file) for tool in (llama_cpp, transformers, gguf_reader)]
            print(
                f"| {name} | {named or 'nothing: proven'} | {' | '.join(said)} | {perplexity(file)} |",
                flush=True,
            )


def llama_cpp(file: Path) -> str:
    """Whether llama.cpp loads the file and answers."""
    from llama_cpp import Llama

    try:
        llm = Llama(str(file), n_ctx=128, verbose=False)
        llm.create_completion("Hello", max_tokens=2)
    except (ValueError, RuntimeError):
        return "refuses it"
    return "says nothing"


def transformers(file: Path) -> str:
    """Whether transformers reads weights and tokenizer out of the file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    except Exception:  # noqa: BLE001 - whatever it raises, it did not take the file
        return "refuses it"
    return "says nothing"


def gguf_reader(file: Path) -> str:
    """Whether the gguf package reads the file."""
    import gguf as library

    try:
        library.GGUFReader(file)
    except Exception:  # noqa: BLE001 - whatever it raises, it did not take the file
        return "refuses it"
    return "says nothing"


def perplexity(file: Path) -> str:
    """exp of the mean cross-entropy of plain text, windows of 256 tokens."""
    try:
        runtime = load("runtimes", "llama.cpp")(file)
    except EdgekitError:
        return "–"
    losses = []
    for text in TEXTS:
        ids = runtime.encode(text)[:256]
        logits = runtime.logits(ids).astype(np.float64)[:-1]
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(ids) - 1), ids[1:]]
        losses.append(np.log(np.exp(logits).sum(axis=1)) - chosen)
    runtime.close()
    return f"{np.exp(np.concatenate(losses).mean()):.2f}"


if __name__ == "__main__":
    main()
