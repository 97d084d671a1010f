"""Plain against robust tuning, beside a linear model, on rows of intents: `benchmarks/robustness.md`.

    python benchmarks/robustness.py --clinc clinc150.json [--intents 20] [--seeds 7,8,9] [--variants plain,robust] [--limit N]
    python benchmarks/robustness.py --banking FOLDER [--clinc clinc150.json] ...
    python benchmarks/robustness.py --data FOLDER ...

Needs scikit-learn (`pip install scikit-learn`) for the linear model: TF-IDF of words and of letters, and logistic regression. Tunes the sample model
once for each variant and seed, merges it, and asks both models the same rows: as they are, with each family of noise, in
each phrasing, and requests out of scope (those of CLINC150). Every finished step stays in --work, so that an interrupted study goes on.
Variants: plain, robust, and robust without one of its parts: no-noise, no-phrasings, no-consistency, no-abstention.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from edgekit.base.events import ignore
from edgekit.data.dataset import load_dataset
from edgekit.data.noise import FAMILIES, asked, perturbed
from edgekit.data.out_of_scope import ANSWER
from edgekit.data.phrasings import PHRASINGS
from edgekit.data.rows import Row
from edgekit.evaluation.accuracy import evaluate
from edgekit.proof.verify import subject_of

SYSTEM = "Answer with the intent of the request."
PER_INTENT = {"train": 45, "val": 8, "test": 12}
VARIANTS = {
    "plain": [],
    "robust": ["--robust"],
    "no-noise": ["--robust", "--set", "tune.robustness.noise=[]"],
    "no-phrasings": ["--robust", "--set", "tune.robustness.phrased_share=0"],
    "no-consistency": ["--robust", "--set", "tune.robustness.consistency=0"],
    "no-abstention": ["--robust", "--set", 'tune.robustness.abstain=""'],
}
Sets = dict[str, list[Row]]
Pairs = dict[str, list[tuple[str, str]]]  # text and label, by split


def main() -> None:
    """Print the table, one column for each variant, after every step that was missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clinc", type=Path, help="data_full.json of clinc/oos-eval")
    parser.add_argument("--banking", type=Path, help="folder with train.csv and test.csv of Banking77")
    parser.add_argument("--intents", type=int, default=20, help="intents of them, chosen by a seed")
    parser.add_argument("--data", type=Path, help="a folder of rows whose answers are labels")
    parser.add_argument("--work", type=Path, default=Path("robustness"))
    parser.add_argument("--seeds", default="7")
    parser.add_argument("--variants", default="plain,robust")
    parser.add_argument("--limit", type=int, default=0, help="test rows; 0 uses all")
    parser.add_argument(
        "--out-of-scope", type=int, default=200, help="requests out of scope of --clinc to ask"
    )
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    work: Path = arguments.work
    data: Path = arguments.data or write_rows(
        work / "rows",
        banking(arguments.banking) if arguments.banking else json.loads(arguments.clinc.read_text()),
        arguments.intents,
    )
    rows = load_dataset(str(data))
    test = rows.test[: arguments.limit or None]
    beyond = out_of_scope(arguments.clinc)[: arguments.out_of_scope] if arguments.clinc else []
    sets = sets_of(test, beyond)
    results = {"linear": [linear(rows.train, sets)]}
    show(results, sets)
    for seed in arguments.seeds.split(","):
        for variant in arguments.variants.split(","):
            name = f"{variant}-{seed}"
            model = tuned(
                work, data, name, [*VARIANTS[variant], "--set", f"tune.seed={seed}"], arguments.threads
            )
            found = answered(work / f"{name}.json", model, sets, arguments.threads)
            results.setdefault(variant, []).append(found)
            show(results, sets)


def write_rows(folder: Path, source: Pairs, intents: int) -> Path:
    """Rows of some intents that have enough of them, the same for the same arguments."""
    random = Random(3)
    counts = {split: Counter(label for _, label in source[split]) for split in PER_INTENT}
    enough = {
        label
        for label in counts["train"]
        if all(counts[split][label] >= n for split, n in PER_INTENT.items())
    }
    chosen = sorted(random.sample(sorted(enough), intents))
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in PER_INTENT.items():
        pairs = [(text, label) for label in chosen
                 for text in random.sample([text for text, of in source[split] if of == label], count)]  # fmt: skip
        random.shuffle(pairs)
        lines = [json.dumps(record(text, label)) + "\n" for text, label in pairs]
        (folder / f"{'validation' if split == 'val' else split}.jsonl").write_text("".join(lines))
    return folder


def banking(folder: Path) -> Pairs:
    """Banking77 (Casanueva et al. 2020, arXiv 2003.04807); its training rows are split by a seed for validation."""
    pairs: Pairs = {}
    for split in ("train", "test"):
        with (folder / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            pairs[split] = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    train = pairs["train"]
    Random(3).shuffle(train)
    return pairs | {"val": train[::6], "train": [pair for place, pair in enumerate(train) if place % 6]}


def record(text: str, label: str) -> dict[str, Any]:
    """A row that asks for the intent of `text`."""
    contents = (("system", SYSTEM), ("user", text), ("assistant", label))
    return {"messages": [{"role": role, "content": content} for role, content in contents], "label": label}


def out_of_scope(clinc: Path) -> list[Row]:
    """CLINC150's own requests out of scope, none of which comes with edgekit."""
    texts = [text for text, _ in json.loads(clinc.read_text())["oos_test"]]
    Random(3).shuffle(texts)
    return [
        Row(f"oos-{place}", tuple(record(text, ANSWER)["messages"]), ANSWER)
        for place, text in enumerate(texts)
    ]


def sets_of(rows: Sequence[Row], beyond: Sequence[Row]) -> Sets:
    """The rows as they are, in each kind of noise and each phrasing, and the requests out of scope."""
    sets: Sets = {"as they are": list(rows)}
    sets |= {name: perturbed(rows, name, 7) for name in FAMILIES}
    sets["typos in 40 % of the words"] = perturbed(rows, "typos", 7, 0.4)
    sets["IN UPPER CASE"] = [asked(row, str.upper) for row in rows]
    sets |= {f"phrasing {each.name}": [each.of(row) for row in rows] for each in PHRASINGS}
    return sets | ({"out of scope": list(beyond)} if beyond else {})


def held_out(name: str) -> bool:
    """Whether no variant is tuned with this kind of noise or this phrasing."""
    phrasings = {f"phrasing {each.name}": each.held_out for each in PHRASINGS}
    return phrasings.get(name, name in FAMILIES and FAMILIES[name].held_out)


def question(row: Row) -> str:
    """What a linear model reads: the last message of the user."""
    return next(message["content"] for message in reversed(row.messages) if message["role"] == "user")


def linear(train: Sequence[Row], sets: Sets) -> dict[str, float]:
    """Accuracy of TF-IDF (words, and letters within words) with logistic regression; it never abstains."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    model = make_pipeline(make_union(words, letters), LogisticRegression(C=20, max_iter=2000))
    model.fit([question(row) for row in train], [row.answer for row in train])

    def accuracy(rows: Sequence[Row]) -> float:
        found = model.predict([question(row) for row in rows])
        return sum(one == row.answer for one, row in zip(found, rows, strict=True)) / len(rows)

    return {name: accuracy(rows) for name, rows in sets.items()}


def edgekit(*words: object) -> None:
    """Run a command of edgekit; the study ends when it fails."""
    subprocess.run([sys.executable, "-m", "edgekit.cli", *map(str, words)], check=True)


def tuned(work: Path, data: Path, name: str, options: Sequence[str], threads: int) -> Path:
    """The merged model of a variant, from an earlier run or made now."""
    adapter, merged, cache = work / f"{name}.adapter", work / name, work / "cache"
    if not merged.is_dir():
        shared = ["--cache-dir", cache, "--threads", threads, "--force"]
        edgekit("tune", "--data", data, "--out", adapter, *shared, *options)
        base = max((cache / "model").glob("*/stage.json"), key=lambda file: file.stat().st_mtime).parent
        edgekit("merge", base, adapter, "--out", merged)
    return merged


def answered(log: Path, model: Path, sets: Sets, threads: int) -> dict[str, float]:
    """Accuracy on each set; finished ones are read from `log`."""
    found: dict[str, float] = json.loads(log.read_text()) if log.is_file() else {}
    if missing := [name for name in sets if name not in found]:
        runtime = subject_of(model).open_for(threads or 2, 1024)
        try:
            for name in missing:
                result = evaluate(
                    runtime,
                    sets[name],
                    max_tokens=24,
                    log=log.with_suffix(".samples"),
                    emit=ignore,
                    stage="eval",
                )
                found[name] = result["accuracy"]
                log.write_text(json.dumps(found, indent=1))
                print(f"{model.name}: {name} {found[name]:.1%}", file=sys.stderr, flush=True)
        finally:
            runtime.close()
    return found


def show(results: Mapping[str, Sequence[dict[str, float]]], sets: Sets) -> None:
    """The table: right answers in percent, the mean drop over seen and held-out noise, the spread of phrasings.

    Each cell is the mean over the seeds, with the lowest and the highest in brackets.
    """
    print(f"\n| rows ({len(sets['as they are'])}), right in % | " + " | ".join(results) + " |")
    print("|---|" + "--:|" * len(results))

    def line(title: str, digits: int, figure: Callable[..., float], *arguments: Any) -> None:
        columns = [[figure(found, *arguments) for found in seeds] for seeds in results.values()]
        print(f"| {title} | " + " | ".join(cell(values, digits) for values in columns) + " |")

    for name in sets:
        line(f"{name} *" if held_out(name) else name, 1, percent, name)
    phrasings = [name for name in sets if name.startswith("phrasing ")]
    for title, digits, figure, names in (
        ("performance drop, {} noise", 3, drop, list(FAMILIES)),
        ("spread of {} phrasings, points", 1, spread, phrasings),
    ):
        for kind in ("seen", "held-out"):
            among = [name for name in names if held_out(name) == (kind == "held-out")]
            line(title.format(kind), digits, figure, among)
    sys.stdout.flush()


def percent(found: Mapping[str, float], name: str) -> float:
    """Share of right answers in percent."""
    return 100 * found[name]


def cell(values: Sequence[float], digits: int) -> str:
    """The mean of the seeds, and where there are several, the lowest and the highest."""
    ends = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{ends}"


def drop(found: Mapping[str, float], names: Sequence[str]) -> float:
    """Performance drop rate in the mean of some families of noise."""
    return 1 - fmean(found[name] for name in names) / found["as they are"]


def spread(found: Mapping[str, float], names: Sequence[str]) -> float:
    """Points between the best and the worst phrasing."""
    return 100 * (max(found[name] for name in names) - min(found[name] for name in names))


if __name__ == "__main__":
    main()
