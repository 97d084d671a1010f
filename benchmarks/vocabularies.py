"""Clean files over the makers' own tokenizers: which of them the proof refuses, and which deviations it tells.

    python benchmarks/vocabularies.py [MODEL ...]

Each model has seeded weights and the maker's tokenizer, byte for byte. It is tuned until it is sure of its answers, so
that every gate can be required. edgekit writes seven files of it, and llama.cpp's own converter and quantizer three. The
fetched tokenizers (`python tools/fetch_tokenizers.py`) and the converter (`edgekit setup converter`) are needed. The
converter reads Gemma's tokenizer from `tokenizer.model`, which is made here with the makers' pieces, types and scores;
that takes the package sentencepiece.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import makers

from edgekit.base import hardware
from edgekit.base.errors import EdgekitError
from edgekit.base.events import Alert, Event, ignore
from edgekit.commands.verify import GENERAL
from edgekit.data.calibration_text import passages, windows
from edgekit.export.gguf import converter
from edgekit.export.gguf import write as gguf
from edgekit.export.gguf.quantize import quantize
from edgekit.export.onnx import export as onnx
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.proof.deviations import KINDS
from edgekit.proof.facts import ReferenceFacts
from edgekit.proof.held_out import HeldOut, capture_own
from edgekit.proof.prove import Expected, prove
from edgekit.proof.texts import PROMPTS, TEXTS
from edgekit.proof.verify import QUICK_MAX_TOKENS, QUICK_PROMPTS, check_contents, subject_of
from edgekit.registry import ExportContext, load
from edgekit.targets.target import GgufExport, OnnxExport, Quantize

SIZES = {"hidden_size": 256, "intermediate_size": 512}  # the K types need rows of 256
OWN = {
    **{type: GgufExport(format="gguf", type=type) for type in ("F16", "Q8_0", "Q4_K_M")},
    **{f"ONNX {precision}": OnnxExport(format="onnx", precision=precision) for precision in ("int4", "int8")},
}
PASSAGES = 8  # of plain text, to calibrate on
FITTED = {"Q4_K_M with feedback": Quantize(), "5 bits": Quantize(bits_per_weight=5.0)}
FTYPES = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}


def main() -> None:
    """Print the table as Markdown, one row for each file."""
    print(f"{hardware.fingerprint()['cpu']}; ", end="")
    packages = ("llama-cpp-python", "onnxruntime-genai", "transformers")
    print(", ".join(f"{package} {version(package)}" for package in packages), end="\n\n")
    print("| tokenizer | file | MiB | gates passed | refused by | deviations told | s |")
    print("|---|---|--:|--:|---|---|--:|")
    for name in sys.argv[1:] or makers.MODELS:
        with tempfile.TemporaryDirectory() as work:
            row_by_row(name, Path(work))


def row_by_row(name: str, work: Path) -> None:
    """The rows of one tokenizer."""
    model = makers.teach(makers.make(work / "model", name, **SIZES))
    expected, own = captured(model), captured(model, own=True)
    for written_by, files, wanted in (
        ("edgekit", edgekits(model, work), own),
        ("llama.cpp", converted(name, model, work), expected),
    ):
        for kind, file in files:
            start, told = time.perf_counter(), []
            try:
                gates = prove(checked(file), model, wanted, told.append, threads=2)
                passed = f"{sum(gate.passed for gate in gates)} of {len(gates)}"
                refused = "; ".join(f"{gate.name} ({gate.detail})" for gate in gates if not gate.passed)
            except EdgekitError as error:
                passed, refused = "none", error.message
            cells = [
                name,
                f"{written_by} {kind}",
                f"{mib(file):.0f}",
                passed,
                refused or "–",
                deviations(told),
            ]
            cells.append(f"{time.perf_counter() - start:.0f}")
            print(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |", flush=True)
            remove(file)


def captured(model: Path, *, own: bool = False) -> Expected:
    """What the files are compared with: as `verify --quick` does it, and as a build does for its `own` files."""
    tokenizer = ModelTokenizer(model)
    prompts: list[Any] = [[{"role": "user", "content": prompt}] for prompt in PROMPTS[:QUICK_PROMPTS]]
    runtime = load("runtimes", "torch")(model, threads=2)
    try:
        held_out: HeldOut = capture_own(runtime, tokenizer, prompts, TEXTS[:1], QUICK_MAX_TOKENS, ignore)
    finally:
        runtime.close()
    budget = load("profiles", "targets").load("cpu-int4", GENERAL).budget
    return Expected(ReferenceFacts.of(tokenizer), held_out, budget, own)


def edgekits(model: Path, work: Path) -> Iterator[tuple[str, Path]]:
    """The kind and the path of each file that edgekit writes of the model."""
    floats = work / "float.gguf"
    gguf.write(model, floats, ignore)
    for kind, options in OWN.items():
        out = work / kind.replace(" ", "-")
        if isinstance(options, GgufExport):
            quantize(floats, out.with_suffix(".gguf"), options)
            yield kind, out.with_suffix(".gguf")
        else:
            onnx.export(model, out, options, ExportContext(model), ignore)
            yield kind, out
    floats.unlink()
    tokenizer = ModelTokenizer(model)
    asked = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    rows = [
        tokenizer.encode(tokenizer.chat_template.render(one, add_generation_prompt=True)) for one in asked
    ]
    texts = windows(tokenizer, passages(), count=PASSAGES)
    for kind, sizes in FITTED.items():
        out = work / f"{kind.replace(' ', '-')}.gguf"
        context = ExportContext(model, rows, 2, texts, sizes)
        load("stages", "fit")(out, GgufExport(format="gguf", type="Q4_K_M"), context)
        yield kind, out


def converted(name: str, model: Path, work: Path) -> Iterator[tuple[str, Path]]:
    """The same of the files of llama.cpp's own converter and quantizer; nothing where the converter is not kept."""
    if (folder := converter.kept()) is None:
        print(f"| {name} | llama.cpp | | | the converter is not kept: {converter.SETUP} | | |")
        return
    if name == "gemma3":
        if importlib.util.find_spec("sentencepiece") is None:
            print(f"| {name} | llama.cpp | | | the package sentencepiece is not installed | | |")
            return
        write_pieces(model)
    floats = work / "F16.gguf"
    command = [sys.executable, folder / converter.SCRIPT, model, "--outtype", "f16", "--outfile", floats]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    for kind, number in FTYPES.items():
        out = work / f"{kind}.gguf"
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = number
        if llama_cpp.llama_model_quantize(str(floats).encode(), str(out).encode(), params):
            sys.exit(f"llama.cpp could not write {out}.")
        yield kind, out
    yield "F16", floats


def write_pieces(model: Path) -> None:
    """Write `tokenizer.model` as Gemma's makers do: pieces score minus their rank, bytes 0, and all others -1000."""
    from sentencepiece import sentencepiece_model_pb2

    rules = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["id"]: token["special"] for token in rules["added_tokens"]}
    pieces = sentencepiece_model_pb2.ModelProto()
    kinds, rank = pieces.SentencePiece, 0
    for text, id_ in sorted(rules["model"]["vocab"].items(), key=lambda entry: entry[1]):
        piece = pieces.pieces.add(piece=text, score=-1000.0, type=kinds.NORMAL)
        if id_ in added:
            piece.type = kinds.CONTROL if added[id_] else kinds.USER_DEFINED
            piece.type = kinds.UNKNOWN if text == "<unk>" else piece.type
        elif len(text) == 6 and text.startswith("<0x"):
            piece.type, piece.score = kinds.BYTE, 0.0
        else:
            rank += 1
            piece.score = -float(rank)
    pieces.trainer_spec.model_type = pieces.trainer_spec.BPE
    pieces.trainer_spec.byte_fallback = True
    pieces.trainer_spec.vocab_size = len(pieces.pieces)
    for role, id_ in {"pad": 0, "eos": 1, "bos": 2, "unk": 3}.items():
        setattr(pieces.trainer_spec, f"{role}_id", id_)
    rules = pieces.normalizer_spec
    rules.name = "identity"
    rules.add_dummy_prefix = rules.remove_extra_whitespaces = False
    (model / "tokenizer.model").write_bytes(pieces.SerializeToString())


def checked(file: Path) -> Any:
    """The file as a subject of the proof, after the checks of its contents."""
    subject = subject_of(file)
    check_contents(subject, ignore)
    return subject


def deviations(told: list[Event]) -> str:
    """The kind of each deviation, and of how many tokens."""
    found = []
    for event in told:
        for kind, named in KINDS.items():
            pattern = (
                re.escape(named.concerns)
                .replace(r"\{runtime\}", ".+")
                .replace(r"\{tokens\}", r"(\d+) tokens?")
            )
            if isinstance(event, Alert) and (match := re.match(f"Deviation: {pattern}", event.message)):
                found.append(f"{kind} ({match[1]})" if match.groups() else kind)
    return ", ".join(found) or "none"


def mib(path: Path) -> float:
    """The size of a file or folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 2**20


def remove(path: Path) -> None:
    """Remove a file that is not read again, or the folder."""
    if path.is_dir():
        shutil.rmtree(path)
    elif path.name != "F16.gguf":
        path.unlink()


if __name__ == "__main__":
    main()
