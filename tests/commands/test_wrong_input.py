"""What a hurried person types: each ends in a sentence that names the fault, with the exit code that fits."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import vocabularies

from edgekit import registry
from edgekit.build.request import Order
from edgekit.cli import main
from edgekit.containers.safetensors import INDEX

WRONG: list[tuple[str, int, tuple[str, ...]]] = [
    ("plan --set tune.epoch=3", 2, ("--set tune.epoch=3: unknown key; did you mean 'epochs'?",)),
    ("plan --set tune.epochs=-3", 2, ("--set tune.epochs=-3: input should be greater than 0",)),
    ("plan --set export.9.type=Q4_0", 2, ("--set export.9.type=Q4_0: the target's list has 2 entries",)),
    ("plan --formats gguf,tflite", 2, ("cpu-int4 has no format 'tflite'", "one or several of: gguf, onnx")),
    ("plan --model ./nofolder", 2, ("There is no folder or file ./nofolder.",)),
    ("plan --formats ,", 2, ("cpu-int4 has no format ','", "one or several of: gguf, onnx")),
    ("plan --model ''", 2, ("No model is given.", "a hub id such as org/name")),
    ("plan --model smolm2-135m", 2, ("There is no model 'smolm2-135m'. Did you mean smollm2-135m?",)),
    ("plan --model https://huggingface.co/org/name", 2, ("Its hub id is org/name.",)),
    (
        "plan --model org/name --revision 'bad name'",
        2,
        ("--revision 'bad name' is not the name of a branch",),
    ),
    *(
        (typed, 2, ("noweights has no weights: no model.safetensors, and no model.safetensors.index.json",))
        for typed in (
            "plan --model noweights",
            "tune --model noweights",
            "export noweights",
            "prune noweights --drop-layers 1",
            "quantize noweights --out out.gguf",
            "verify noweights --reference notokenizer",
            "eval noweights",
            "drift capture noweights --text words.txt",
        )
    ),
    *(
        (
            typed,
            2,
            (
                "never loads pickled files such as pytorch_model.bin",
                "M.from_pretrained('pickled').save_pretrained",
            ),
        )
        for typed in ("plan --model pickled", "verify pickled -r notokenizer", "eval pickled")
    ),
    *(
        (
            typed,
            5,
            ("is incomplete: it has no model-00001-of-00003.safetensors, model-00003-of-00003.safetensors.",),
        )
        for typed in ("plan --model shards", "verify shards -r notokenizer", "eval shards")
    ),
    (
        "plan --model notokenizer",
        2,
        ("notokenizer has no tokenizer: none of tokenizer.json", "whole model folder"),
    ),
    ("export notokenizer --out new", 2, ("notokenizer has no tokenizer: none of tokenizer.json",)),
    (
        "plan --chat-template empty.jinja",
        2,
        ("empty.jinja is not a chat template: it does not use `messages`",),
    ),
    ("plan --chat-template binary.jinja", 2, ("binary.jinja cannot be read: it is not text in UTF-8",)),
    ("plan --chat-template broken.jinja", 2, ("broken.jinja is not a chat template",)),
    (
        "plan --chat-template missing.jinja",
        2,
        ("missing.jinja cannot be read: No such file", "or the name chatml"),
    ),
    ("data audit ''", 2, ("No data is given.", "a hub data set such as org/name")),
    ("data audit https://huggingface.co/datasets/org/name", 2, ("is a web address", "such as org/name")),
    ("data audit tabel.csv", 2, ("There is no data file tabel.csv", "Did you mean table.csv?")),
    ("data audit org/rows --data-revision 'bad name'", 2, ("--data-revision 'bad name' is not the name",)),
    ("data audit notokenizer", 2, ("is the folder of a model, not of rows", "Give it with --model")),
    ("data audit notokenizer/model.safetensors", 2, ("is the weights of a model, not rows",)),
    ("data audit cells.csv", 2, ("cells.csv:2: it has 1 cell, and the header has 2",)),
    ("data audit table.csv --columns prompt=A,completion=b", 2, ("no column 'A'", "Did you mean 'a'?")),
    ("data audit table.csv --columns a=prompt,b=completion", 2, ("no part 'a'; did you mean prompt=a?",)),
    ("data audit table.csv --columns 'prompt=a;completion=b'", 2, ("separate the parts with commas",)),
    ("plan --model no/where --offline", 2, ("There is no folder no/where", "--offline")),
    ("targets validate words.txt", 2, ("a target file's name ends in .toml",)),
    ("targets validate missing.toml", 2, ("missing.toml cannot be read: No such file",)),
    ("data audit missing.jsonl", 2, ("There is no data file missing.jsonl",)),
    ("data audit broken.jsonl", 2, ("broken.jsonl:1: not JSON: Unterminated string starting at column 12",)),
    (
        "data audit half.jsonl",
        2,
        ("half.jsonl:1: a key has half of a surrogate pair (\\ud800)", "half.jsonl:2: 'prompt'"),
    ),
    ("data audit half.jsonl --json", 2, ("half.jsonl:1: a key",)),
    ("data audit half.csv", 2, ("card half.csv.card.json is not JSON in UTF-8",)),
    ("data audit 'caf\udce9.csv' --json", 2, ("There is no data file caf",)),
    (
        "data audit table.csv",
        2,
        ("is CSV with the columns a, b", "--columns prompt=COLUMN,completion=COLUMN"),
    ),
    (
        "plan --data table.csv --columns prompt=a,completion=c",
        2,
        ("has no column 'c'. Its columns are a, b",),
    ),
    ("data audit column.csv", 2, ("the column prompt only, and a row needs a prompt and its answer",)),
    ("plan --data table.csv --columns promt=a", 2, ("did you mean 'prompt'?",)),
    ("data audit words.txt", 2, ("is plain text, not rows; it begins with 'Only words.'",)),
    ("data audit no/rows --offline", 2, ("taken as a hub data set", "not whole in the hub's cache")),
    *(
        (f"{verb} --data no/rows --offline", 2, ("taken as a hub data set", "not whole in the hub's cache"))
        for verb in ("eval cut.gguf", "prune noweights --drop-layers 1", "export noweights")
    ),
    ("plan --data table.csv --data-revision v1", 2, ("needs a hub data set",)),
    ("plan --columns prompt=a,completion=b", 2, ("The demo data has its own columns",)),
    ("drift score words.txt --reference missing.npz", 2, ("There is no file missing.npz",)),
    ("drift score words.txt --reference words.txt", 5, ("was not written by `edgekit drift capture`",)),
    ("drift capture words.txt --text missing.txt", 2, ("missing.txt cannot be read: No such file",)),
    ("incident list --state missing", 2, ("There is no state folder missing",)),
    ("incident list --state words.txt", 2, ("words.txt is a file, not a state folder",)),
    ("incident show abc", 2, ("Input should be a valid integer",)),
    ("releases list --state missing", 2, ("There is no state folder missing",)),
    ("monitor --once --state missing", 2, ("There is no state folder missing",)),
    ("monitor --json --state missing", 2, ("There is no state folder missing",)),
    ("tui nowhere", 2, ("'nowhere' is not one of 'build', 'run'",)),
    ("run words.txt hello", 2, ("words.txt is not a bundle, a .gguf file",)),
    (
        "run words.gguf q --min-confidence autox",
        2,
        ("--min-confidence autox is neither a number", "nor auto"),
    ),
    ("serve words.gguf --min-confidence 1.5", 2, ("--min-confidence 1.5 is neither a number",)),
    (
        "eval robust small.gguf --families typo",
        2,
        ("no family of noise 'typo'. Did you mean typos?", "Use some of"),
    ),
    (
        "eval robust small.gguf --adversarial --queries 1",
        2,
        ("--queries': Input should be greater than or equal to 4",),
    ),
    (
        "eval explain test-004 small.gguf",
        2,
        ("There is no row with the id 'test-004' in demo.", "Did you mean"),
    ),
    ("eval robust small.gguf --adversarial --abstain no", 2, ("Leave out --abstain or --adversarial.",)),
    ("eval robust small.gguf --adversarial --families ocr", 2, ("Leave out one of them.",)),
    ("eval explain test-0004 missing.gguf", 2, ("There is no file missing.gguf.",)),
    ("eval task small.gguf --lm-eval table.csv", 2, ("Use another --lm-eval, or add --force",)),
    (
        "eval compare empty-logs empty-logs",
        2,
        ("empty-logs is a folder, not a sample log.", "samples/ of a bundle"),
    ),
    ("eval compare logs logs", 2, ("logs is a folder", "such as logs/samples/tuned.jsonl.")),
    (
        "eval compare words.txt words.txt",
        5,
        ("not a complete log", "a line that is not JSON", "Give a log that `edgekit eval task`"),
    ),
    ("eval overrefusal small.gguf missing.csv", 2, ("There is no data file missing.csv",)),
    ("eval overrefusal small.gguf table.csv", 2, ("needs the columns prompt, type", "Give XSTest's prompts")),
    (
        "eval instructions small.gguf half.jsonl",
        2,
        ("needs the columns key, prompt", "Give IFEval's input_data.jsonl"),
    ),
    (
        "eval task http://127.0.0.1:9/v1",
        2,
        ("http://127.0.0.1:9/v1 does not answer", "it usually ends in /v1"),
    ),
    (
        "eval robst small.gguf",
        2,
        ("no verb and no file 'robst'. Did you mean 'robust'?", "eval --help"),
    ),
    ("eval task small.gguf --slices where", 2, ("No row has a value in a column 'where'.", "--slices")),
    (
        "eval ood small.gguf --data rows.csv",
        2,
        ("There are no requests that are out of scope.", "--out-of-scope FILE"),
    ),
    ("eval ood small.gguf --out-of-scope missing.txt", 2, ("requests in missing.txt cannot be read",)),
    ("eval ood small.gguf --out-of-scope missing.csv", 2, ("There is no data file missing.csv",)),
    (
        "eval ood small.gguf --data rows.csv --out-of-scope rows.csv",
        2,
        ("of 80 requests out of scope are rows within it too, such as 'question",),
    ),
    ("eval 'http://[::1/v1' --data rows.csv", 2, ("The address of the endpoint cannot be read",)),
    ("eval overrefusal small.gguf noweights", 2, ("noweights is not a file.",)),
    ("eval ood small.gguf --out-of-scope broken.jsonl", 2, ("broken.jsonl:1: not JSON",)),
    (
        "eval ood http://127.0.0.1:9/v1 --data rows.csv --out-of-scope words.txt",
        2,
        ("gives answers only, and this needs the model file itself",),
    ),
    ("eval ood small.gguf --fit-rows -1", 2, ("--fit-rows': Input should be greater than or equal to 0",)),
    ("eval task small.gguf --choice", 2, ("different answers, and a choice needs 2 to 200",)),
    ("eval small.gguf --threads 512", 2, ("--threads': Input should be less than or equal to 256",)),
    ("eval small.gguf --shots -1", 2, ("--shots': Input should be greater than or equal to 0",)),
    ("eval small.gguf --split dev", 2, ("There is no split 'dev'.",)),
    (
        "eval small.gguf --data rows.csv --out rows.csv --force",
        2,
        ("rows.csv is in use; it was not changed.",),
    ),
    (
        "eval small.gguf --out empty-logs --force",
        2,
        ("empty-logs is a folder", "Give --out the name of a file."),
    ),
    (
        "eval small.gguf --out words.txt/a.jsonl",
        2,
        ("cannot be written: words.txt is no folder.", "another --out"),
    ),
    ("eval small.gguf --out a.jsonl --lm-eval ./a.jsonl", 2, ("--out and --lm-eval name the same file.",)),
    ("eval ood small.gguf --out-of-scope words.txt --out words.txt --force", 2, ("words.txt is in use",)),
    ("eval ablate --data rows.csv --out a.svg", 2, ("its picture ends in .svg.",)),
    ("quantize small.gguf --out small.gguf --force", 2, ("small.gguf is in use",)),
    ("quantize notokenizer --bits -1", 2, ("--bits -1 is no size.", "above 0")),
    ("quantize notokenizer --size-mib nan", 2, ("--size-mib nan is no size.", "above 0")),
    (
        "quantize notokenizer --min-speed fast",
        2,
        ("--min-speed fast is no speed.", "such as 150, or a multiple"),
    ),
    ("quantize notokenizer --min-speed 0x", 2, ("--min-speed 0x is no speed.",)),
    ("quantize notokenizer --type Q8_0 --min-speed 9", 2, ("--type and --min-speed exclude each other",)),
    ("quantize small.gguf --min-speed 9", 2, ("--min-speed can only be used with a model folder",)),
    ("tune --model noweights --data rows.csv --out noweights --force", 2, ("noweights is in use",)),
    ("export noweights --data rows.csv --out . --force", 2, (". holds noweights, which is in use",)),
    (f"eval {'x' * 300}.gguf", 2, ("cannot be used: File name too long.",)),
    ("eval explain small.gguf test-0004", 2, ("There is no file test-0004.", "the id of a row comes before")),
    *(  # a file is looked at before the rows, which may have to be downloaded
        (f"eval {verb} --data no/rows", 2, ("There is no file missing.gguf.",))
        for verb in (
            "missing.gguf",
            "ood missing.gguf",
            "robust missing.gguf --adversarial",
            "calibration missing.gguf",
            "counterfactual missing.gguf",
            "explain row missing.gguf",
        )
    ),
    ("eval overrefusal missing.gguf missing.csv", 2, ("There is no file missing.gguf.",)),
    ("eval instructions missing.gguf missing.jsonl", 2, ("There is no file missing.gguf.",)),
    ("eval ood words.txt", 2, ("words.txt is not a .gguf file, an onnxruntime-genai folder",)),
    ("eval ood empty.gguf", 5, ("empty.gguf is not a GGUF file.",)),
    ("eval ood empty-logs", 2, ("empty-logs is not a .gguf file", "of a bundle, its model.gguf")),
    *(
        (
            f"eval {typed} --data no/rows",
            2,
            (f"There is no file {said}, which looks like a URL", "begins with http://"),
        )
        for typed, said in {
            "task htp://host/v1": "htp://host/v1",
            "ood localhost:8000/v1": "localhost:8000/v1",
            "http//host/v1": "http/host/v1",
            "127.0.0.1:8000": "127.0.0.1:8000",
            "explain row ftp://host/model.gguf": "ftp://host/model.gguf",
        }.items()
    ),
    ("eval 'C:/model.gguf'", 2, ("There is no file C:/model.gguf.", "Check the path")),
    ("profile http://127.0.0.1:9/v1", 2, ("this needs the model file itself",)),
    ("eval http://127.0.0.1:9/v1 --choice --data no/rows", 2, ("this needs the model file itself",)),
    *(
        (f"quantize notokenizer --max-kld 0.05 {other}", 2, ("--bits and --max-kld exclude each other.",))
        for other in ("--bits 5", "--size-mib 90", "--type Q4_K_M")
    ),
    ("quantize notokenizer --max-kld 0", 2, ("--max-kld 0 is no divergence.", "above 0")),
    ("quantize notokenizer --max-kld 1 --min-speed 9", 2, ("tokens a second exclude each other", "1.4x")),
    (
        "quantize notokenizer --max-kld 0.05 --method nearest",
        2,
        ("--max-kld can only be used with a model folder",),
    ),
    (
        "quantize small.gguf --max-kld 0.05 --out out.gguf",
        2,
        ("--max-kld can only be used with a model folder",),
    ),
    (
        "plan --data rows.csv --target cpu-int4 --set quantize.max_kld_nats=0.05 --set quantize.size_mib=90",
        2,
        ("max_kld_nats and size_mib exclude each other",),
    ),
    ("quantize cut.gguf --type Q8_0 --out out.gguf", 5, ("cut.gguf", "truncated or damaged")),
    (
        "quantize noweights --format onnx --type Q4_0 --method nearest --out new",
        2,
        ("--type, --method are for GGUF files, not for --format onnx.", "Give --bits or --size-mib"),
    ),
    (
        "quantize noweights --format onnx",
        2,
        ("writes a folder, and model.gguf names a file.", "--out FOLDER"),
    ),
    ("quantize small.gguf --format onnx --out new", 2, ("small.gguf",)),
    ("quantize noweights --format onnx --bits 5 --size-mib 9 --out new", 2, ("exclude each other",)),
    (
        "quantize notokenizer --max-ram 64 --threads 1",
        2,
        ("may need", "more than --max-ram 64. Nothing was started.", "Use a higher --max-ram."),
    ),
]


@pytest.mark.parametrize(("typed", "code", "words"), WRONG, ids=[typed for typed, _, _ in WRONG])
def test_the_fault_is_named(
    typed: str,
    code: int,
    words: tuple[str, ...],
    tmp_path: Path,
    capsys: Any,
    monkeypatch: Any,
    small_gguf: Path,
    small_model: Path,
) -> None:
    (tmp_path / "words.txt").write_text("Only words.")
    (tmp_path / "table.csv").write_text("a,b\nq,r\n")
    half = '{"prompt": "q", "completion": "a", "\\ud800": 1}\n{"prompt": "q \\ud800", "completion": "a"}\n'
    (tmp_path / "half.jsonl").write_text(half)
    rows = [f"question {number},answer" for number in range(80)]
    (tmp_path / "half.csv").write_text("\n".join(["prompt,completion", *rows]))
    (tmp_path / "half.csv.card.json").write_text('{"owner": "\\ud800"}')
    labels = [f"question {number},{'yes' if number % 2 else 'no'}" for number in range(80)]
    (tmp_path / "rows.csv").write_text("\n".join(["prompt,completion", *labels]))
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a\n')
    (tmp_path / "column.csv").write_text("prompt\nq\n")
    (tmp_path / "cells.csv").write_text("prompt,completion\nq\n")
    for name, without in {"noweights": "*.safetensors", "notokenizer": "token*"}.items():
        shutil.copytree(small_model, tmp_path / name, ignore=shutil.ignore_patterns(without))
    for name, file in {"pickled": "pytorch_model.bin", "shards": "model-00002-of-00003.safetensors"}.items():
        shutil.copytree(tmp_path / "noweights", tmp_path / name)
        (tmp_path / name / file).touch()
    weight_map = {f"{number}": f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)}
    (tmp_path / "shards" / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "empty-logs").mkdir()
    (tmp_path / "logs" / "samples").mkdir(parents=True)
    (tmp_path / "logs" / "samples" / "tuned.jsonl").touch()
    (tmp_path / "empty.jinja").touch()
    (tmp_path / "binary.jinja").write_bytes(b"\xff\xfe\0")
    (tmp_path / "broken.jinja").write_text("{% for m in messages %}{{ m.content }")
    (tmp_path / "cut.gguf").write_bytes(small_gguf.read_bytes()[:-5000])
    (tmp_path / "small.gguf").symlink_to(small_gguf)
    (tmp_path / "empty.gguf").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(typed))
    said = capsys.readouterr().err
    assert ended.value.code == code, said
    for word in words:
        assert word in said
    for noise in ("Traceback", "Errno", "Value error", "unable to parse", "allow_pickle"):
        assert noise not in said


def test_an_empty_device_is_no_fault(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for typed, words in {
        "incident list": "no open incidents",
        "incident audit": "audit log is empty",
    }.items():
        with pytest.raises(SystemExit) as ended:
            main(typed.split())
        assert ended.value.code == 0 and words in capsys.readouterr().out


def test_how_rows_are_read_is_in_the_plan_and_in_the_command(
    tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"question {n},{n % 3},x" for n in range(90)] + ["question 1,7,x"]
    (tmp_path / "rows.csv").write_text("\n".join(["q,a,more", *lines]))
    typed = ["plan", "--data", "rows.csv", "--columns", "prompt=q,completion=a,id=more", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(typed)
    assert ended.value.code == 2 and "the id 'x' is already used in rows.csv:2" in capsys.readouterr().out
    typed[4] = "prompt=q,completion=a"
    with pytest.raises(SystemExit) as ended:
        main([*typed, "--drop-leaks"])
    said = capsys.readouterr()
    plan = json.loads(said.out)
    assert ended.value.code == 0 and plan["data"][0] == "data: CSV, prompt=q,completion=a"
    assert sum(plan["rows"].values()) in (90, 91) and "data: CSV, prompt=q" in said.err
    with pytest.raises(SystemExit):
        main(["data", "audit", *typed[2:], "--drop-leaks"])
    audit = json.loads(capsys.readouterr().out)
    assert audit["rows"] == plan["rows"] and len(audit["left_out"]) == 91 - sum(plan["rows"].values())


def test_a_plan_ends_with_the_build_that_was_planned() -> None:
    order = Order(
        "t.toml",
        "m/n",
        "rows.jsonl",
        Path("out"),
        ["tune.epochs=1"],
        "gguf",
        cache_dir=Path("c"),
        threads=2,
        offline=True,
    )
    assert shlex.join(order.arguments) == (
        "--model m/n --target t.toml --data rows.jsonl --set tune.epochs=1 --formats gguf --out out --cache-dir c --threads 2 --offline"
    )
    assert shlex.join(Order().arguments) == "--model smollm2-135m --target cpu-int4 --data demo"


@pytest.mark.parametrize("verb", ["plan", "build", "export"])
def test_a_format_that_cannot_be_made_is_left_out_by_the_command_that_is_proposed(
    verb: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """The proposed command is typed as it stands: it must be accepted, with the other options kept."""
    model = tiny.make_small(tmp_path / "model")
    real = registry.load("exporters", "onnx")
    monkeypatch.setattr(
        "edgekit.export.onnx.export.exporter", replace(real, refusal=lambda *_: "It is too odd.")
    )
    monkeypatch.chdir(tmp_path)
    typed = [verb, str(model)] if verb == "export" else [verb, "--model", str(model)]
    with pytest.raises(SystemExit) as ended:
        main([*typed, "--set", "tune.epochs=1"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "onnx: It is too odd." in said
    line = next(line for line in said.splitlines() if "--formats" in line)
    proposed = shlex.split(line.partition("can be made: ")[2])
    assert proposed[-2:] == ["--formats", "gguf"] and "tune.epochs=1" in proposed
    assert proposed[1] == ("export" if verb == "export" else "build") and str(model) in proposed
    if verb != "export":
        with pytest.raises(SystemExit) as ended:
            main(["plan", *proposed[2:]])
        assert ended.value.code == 0 and "--formats gguf" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["plan", "build", "tune", "export"])
def test_a_model_without_a_template_is_refused_once_with_what_to_type(
    verb: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    model = tiny.make(tmp_path / "model", tokens=vocabularies.for_transformers())
    monkeypatch.chdir(tmp_path)
    typed = [verb, str(model)] if verb == "export" else [verb, "--model", str(model)]
    with pytest.raises(SystemExit) as ended:
        main([*typed, "--cache-dir", "cache"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("has no chat template") == 1
    assert not (tmp_path / "cache" / "model").exists()
    line = next(line for line in said.splitlines() if "--chat-template" in line)
    proposed = shlex.split(line.partition("Give it one: ")[2].partition(" (or")[0])
    assert proposed[1] == ("build" if verb == "plan" else verb) and str(model) in proposed
    assert proposed[-2:] == ["--chat-template", "chatml"]
    if verb == "plan":
        with pytest.raises(SystemExit) as ended:
            main(["plan", *proposed[2:]])
        assert ended.value.code == 0 and "--chat-template chatml" in capsys.readouterr().out
