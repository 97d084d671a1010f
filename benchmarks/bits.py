"""Bits against drift: edgekit's GGUF files beside llama.cpp's own of equal bytes, by llama.cpp's own scorer.

    python benchmarks/bits.py --tools FOLDER --plain FILE [--model FOLDER | --smol-float] [--file NAME=PATH ...]

`--tools` holds llama-imatrix, llama-perplexity and llama-quantize, and llama-bench for `--speed`. They make each type of
`--peers` from the float file, with no importance matrix and with one of each calibration text: the training conversations of `--chat` in the chat
template, the plain text that edgekit calibrates on, and both. The one with the smallest product of the two divergences
below is the peer of its type.

Each file is scored against the float file on two texts that no calibration saw: the validation and test conversations of
`--chat`, and `--plain`. The figures are those of `llama-perplexity --kl-divergence`: over the second half of each chunk.
A `--file` is compared, on each text, with the best peer of at most its bytes and 0.5 % more. Finished steps are kept in
`--work`; so is the best file of each type.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import newest_merge
from llama_tools import NAMES, SPEED, Score, Tools, write_base
from smol_float import NAME as SMOL_FLOAT
from smol_float import write as write_smol_float

from edgekit.base import hardware
from edgekit.base.artifacts import digest_of, sha256_file, sha256_tree, write_json
from edgekit.base.events import ignore
from edgekit.containers.gguf import read_gguf
from edgekit.data.calibration_text import passages, windows
from edgekit.data.dataset import load_dataset
from edgekit.data.rows import Row
from edgekit.export.gguf import write as gguf
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.registry import load

TYPES = ("Q4_0", "IQ4_XS", "IQ4_NL", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
WITHOUT_IMPORTANCE = ("Q8_0",)
CHAT, PLAIN, BOTH, NO_MATRIX = "chat", "plain", "both", "none"
TEXTS = (CHAT, PLAIN)
SLACK = 1.005  # a peer's file may have this much of the bytes that it is compared with
NATS_A_BIT = 1.185  # of ln KLD: from Q4_K to Q5_K, a bit a weight divides the divergence by 3.27


@dataclass(frozen=True)
class Scored:
    """A file, the importance matrix that it was made with, and its score on each text."""

    name: str
    matrix: str
    bytes: int
    scores: dict[str, Score]
    file: Path

    @property
    def product(self) -> float:
        """The product of its divergences, by which an importance matrix is chosen."""
        return math.prod(score.mean_kld for score in self.scores.values())


@dataclass(frozen=True)
class Bench:
    """The tools, and the folder with the float file and what was made of it."""

    tools: Tools
    work: Path

    @property
    def floats(self) -> Path:
        """The float file that all others are made from and compared with."""
        return self.work / "model.f32.gguf"

    def calibration(self, text: str) -> Path:
        """The text file for an importance matrix."""
        return self.work / f"{text}-calibration.txt"

    def base(self, text: str) -> Path:
        """The float file's log-probabilities on a text."""
        return self.work / f"{text}.base"

    def matrix(self, name: str) -> Path:
        """The importance matrix of a calibration text."""
        return self.work / f"{name}.imatrix.gguf"

    def prepare(self, model: Path, chunks: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Write the float file, its log-probabilities on the chunks of both texts, and the importance matrices."""
        _made(self.floats, lambda out: gguf.write(model, out, ignore))
        for text in TEXTS:
            _made(self.base(text), lambda out, text=text: self._write_base(chunks[text], out))
            _made(self.matrix(text), lambda out, text=text: self._write_matrix(text, out))
        _made(self.matrix(BOTH), lambda out: self.tools.combined(list(map(self.matrix, TEXTS)), out))

    def peer(self, type: str) -> list[Scored]:
        """llama.cpp's files of one type, the best first, which is the only one that is kept."""
        matrices = [NO_MATRIX] if type in WITHOUT_IMPORTANCE else [NO_MATRIX, *TEXTS, BOTH]
        files = {name: self.work / f"{type}-{name}.gguf" for name in matrices}
        found = []
        for name, file in files.items():
            if not self._record(file.stem).exists():
                matrix = None if name == NO_MATRIX else self.matrix(name)
                _made(file, lambda out, matrix=matrix: self.tools.quantize(self.floats, type, out, matrix))
            found.append(self._scored(file, type, name, file.stem))
        found.sort(key=lambda one: one.product)
        for other in found[1:]:
            files[other.matrix].unlink(missing_ok=True)
        return found

    def given(self, file: Path, name: str) -> Scored:
        """A file that is already there."""
        return self._scored(file, name, "", sha256_file(file)[:16])

    def _scored(self, file: Path, name: str, matrix: str, key: str) -> Scored:
        """The file's scores, which are recorded under `key`; the file may be gone once they are."""
        record = self._record(key)
        if not record.exists():
            print(f"scoring {file}", file=sys.stderr, flush=True)
            scores = {text: asdict(self.tools.score(file, self.base(text))) for text in TEXTS}
            write_json(record, {"bytes": file.stat().st_size, "scores": scores})
        found = json.loads(record.read_text(encoding="utf-8"))
        scores = {text: Score(**score) for text, score in found["scores"].items()}
        return Scored(name, matrix, found["bytes"], scores, file)

    def _record(self, key: str) -> Path:
        return self.work / f"{key}.score.json"

    def _write_base(self, chunks: Sequence[Sequence[int]], out: Path) -> None:
        runtime = load("runtimes", "llama.cpp")(self.floats, threads=self.tools.threads)
        write_base(runtime, chunks, out)
        runtime.close()

    def _write_matrix(self, text: str, out: Path) -> None:
        self.tools.importance(self.floats, self.calibration(text), out)


def main() -> None:
    """Print the tables as Markdown."""
    given = _arguments()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.smol_float:
        model = given.work / SMOL_FLOAT
        _made(model, write_smol_float)
    else:
        model = given.model or newest_merge()
    bench = Bench(Tools(given.tools, given.threads, given.context), given.work)
    tokenizer = ModelTokenizer(model)
    chunks = _texts(bench, tokenizer, given)
    _check_inputs(bench, model, chunks, given)
    bench.prepare(model, chunks)
    weights = sum(math.prod(tensor.shape) for tensor in read_gguf(bench.floats).tensors.values())
    ours = [bench.given(path, f"**{name}**") for name, path in given.file]
    tried = [scored for type in given.peers for scored in bench.peer(type)]
    tried += [bench.given(path, name) for name, path in given.peer_file]
    peers = list({scored.name: scored for scored in reversed(tried)}.values())
    sizes = " and ".join(f"{len(chunks[text])} of {text}" for text in TEXTS)
    print(f"{model}, {weights:,} weights; {hardware.fingerprint()['cpu']}")
    print(f"Chunks of {given.context} tokens: {sizes}; their second halves count.\n")
    _print_table(sorted([*ours, *peers], key=lambda one: one.bytes), weights)
    if ours and peers:
        _print_comparison(ours, peers)
    _print_matrices(tried)
    if given.speed:
        files = {row.name: row.file for row in [*ours, *peers] if row.file.is_file()}
        _print_speeds(bench.tools, files, given.speed)


def _print_speeds(tools: Tools, files: Mapping[str, Path], rounds: int) -> None:
    """The speed of each file on one thread and on all: the median of runs that take turns."""
    counts = sorted({1, tools.threads})
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for name, file in files.items():
            for threads in counts:
                found.setdefault((name, threads), []).append(tools.speed(file, threads))
    heads = (f"{threads} threads: prompt, tokens/s | decode, tokens/s" for threads in counts)
    print(f"\n| file | {' | '.join(heads)} |\n|---|{'--:|--:|' * len(counts)}")
    for name in files:
        medians = (map(statistics.median, zip(*found[name, threads], strict=True)) for threads in counts)
        print(
            f"| {name} | "
            + " | ".join(" | ".join(f"{value:.0f}" for value in pair) for pair in medians)
            + " |"
        )


def _print_table(rows: Sequence[Scored], weights: int) -> None:
    print("| file | importance matrix | bytes | bits a weight ", end="")
    print("| " + " | ".join(f"{text}: mean KLD | same top token" for text in TEXTS) + " |")
    print("|---|---|--:|--:|" + "--:|--:|" * len(TEXTS))
    for row in rows:
        cells = (
            f"{score.mean_kld:.4f} ± {score.error:.4f} | {score.same_top:.1%}"
            for score in row.scores.values()
        )
        bits = 8 * row.bytes / weights
        print(f"| {row.name} | {row.matrix} | {row.bytes:,} | {bits:.2f} | {' | '.join(cells)} |")


def _print_comparison(ours: Sequence[Scored], peers: Sequence[Scored]) -> None:
    """The divergence of each of our files by that of the best peer, text by text."""
    heads = (f"{text}: best peer | KLD ratio | bits a weight saved" for text in TEXTS)
    print(f"\n| file | {' | '.join(heads)} |")
    print("|---|" + "---|--:|--:|" * len(TEXTS))
    for row in ours:
        print(f"| {row.name} | " + " | ".join(_compared(row, peers)) + " |")


def _compared(row: Scored, peers: Sequence[Scored]) -> Iterator[str]:
    allowed = [peer for peer in peers if peer.bytes <= SLACK * row.bytes]
    for text in TEXTS:
        if not allowed:
            yield "none as small | |"
            continue
        best = min(allowed, key=lambda peer: peer.scores[text].mean_kld)
        ratio = row.scores[text].mean_kld / best.scores[text].mean_kld
        yield f"{best.name}, {best.bytes:,} | {ratio:.2f} | {-math.log(ratio) / NATS_A_BIT:.2f}"


def _print_matrices(tried: Sequence[Scored]) -> None:
    """What each importance matrix made of each type."""
    print("\n| peer | importance matrix | " + " | ".join(f"{text}: mean KLD" for text in TEXTS) + " |")
    print("|---|---|" + "--:|" * len(TEXTS))
    for row in tried:
        cells = " | ".join(f"{score.mean_kld:.4f}" for score in row.scores.values())
        print(f"| {row.name} | {row.matrix} | {cells} |")


def _texts(bench: Bench, tokenizer: ModelTokenizer, given: argparse.Namespace) -> dict[str, list[list[int]]]:
    """Write the calibration texts, and give the chunks of token ids that score, spread evenly over the other texts."""
    data = load_dataset(given.chat)

    def conversations(rows: Sequence[Row]) -> str:
        return "".join(tokenizer.chat_template.render(row.messages) for row in rows)

    bench.calibration(CHAT).write_text(conversations(data.train), encoding="utf-8", newline="")
    bench.calibration(PLAIN).write_text("\n\n".join(passages()), encoding="utf-8", newline="")
    texts = {
        CHAT: conversations([*data.validation, *data.test]),
        PLAIN: given.plain.read_text(encoding="utf-8"),
    }
    chunks = {}
    for name, text in texts.items():
        pieces = windows(tokenizer, [text], given.context, given.chunks)
        chunks[name] = [ids for ids in pieces if len(ids) == given.context]  # the last of a text may be short
        if not chunks[name]:
            sys.exit(f"The {name} text has fewer than {given.context} tokens.")
    return chunks


def _check_inputs(
    bench: Bench, model: Path, chunks: Mapping[str, Sequence[Sequence[int]]], given: argparse.Namespace
) -> None:
    """Stop when the folder's results come from other inputs."""
    inputs = {
        "model": sha256_tree(model),
        "calibration": {text: sha256_file(bench.calibration(text)) for text in TEXTS},
        "chunks": digest_of(chunks),
        "tools": {name: sha256_file(given.tools / name) for name in NAMES},
    }
    file = bench.work / "inputs.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != inputs:
        sys.exit(f"{bench.work} holds results of another model, text, tool or setting. Name a new --work.")
    write_json(file, inputs)


def _made(out: Path, make: Callable[[Path], object]) -> None:
    """Make a file or folder unless it is there."""
    if not out.exists():
        print(f"making {out}", file=sys.stderr, flush=True)
        make(out)


def _named(value: str) -> tuple[str, Path]:
    name, _, path = value.partition("=")
    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{value} is not NAME=PATH of a file")
    return name, Path(path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tools", type=Path, required=True, help="folder of llama.cpp's binaries")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, help="a Hugging Face folder; default: the last merged model")
    model.add_argument("--smol-float", action="store_true", help="the model of smol_float.py")
    parser.add_argument("--chat", default="demo", help="rows, as for `edgekit build --data`")
    parser.add_argument("--plain", type=Path, required=True, help="plain text that no calibration saw")
    parser.add_argument("--peers", nargs="*", choices=TYPES, default=TYPES)
    file: dict[str, Any] = {"action": "append", "default": [], "type": _named, "metavar": "NAME=PATH"}
    parser.add_argument("--file", **file, help="a file of edgekit's")
    parser.add_argument("--peer-file", **file, help="a file of another tool's")
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--speed", type=int, default=0, help="rounds in which the files' speed is measured too"
    )
    parser.add_argument("--work", type=Path, default=Path("bits"))
    given = parser.parse_args()
    needed = [*NAMES, SPEED] if given.speed else NAMES
    if lacking := [name for name in needed if not (given.tools / name).is_file()]:
        parser.error(
            f"{given.tools} has no {', '.join(lacking)}; benchmarks/bits.md says how to compile them"
        )
    return given


if __name__ == "__main__":
    main()
