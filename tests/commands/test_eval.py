"""`edgekit eval`: its verbs, what is taken as `task`, and one document with --json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from http_server import Server

from edgekit.cli import main


@pytest.fixture
def typed(tmp_path: Path, small_gguf: Path, monkeypatch: Any, capsys: Any) -> Any:
    (tmp_path / "model.gguf").symlink_to(small_gguf)
    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0) -> Any:
        with pytest.raises(SystemExit) as ended:
            main(["eval", *words])
        said = capsys.readouterr()
        assert ended.value.code == code, said.err
        return said

    return run


def test_a_path_without_a_verb_is_evaluated_on_the_task(typed: Any) -> None:
    options = ("--limit", "2", "--max-tokens", "2", "--json", "--threads", "1")
    plain = json.loads(typed("model.gguf", *options).out)
    assert plain.keys() >= {"accuracy", "n", "wilson_95", "json_match", "per_label"} and plain["n"] == 2
    assert (
        plain["schema"] == "edgekit.task/1"
        and plain["json"]["n"] == 2
        and plain["samples"] == "samples.jsonl"
    )
    assert json.loads(typed(*options, "model.gguf", "--force").out) == plain
    assert json.loads(typed("task", "model.gguf", *options, "--force").out) == plain
    assert len(Path("samples.jsonl").read_text().splitlines()) == 2
    assert json.loads(typed("compare", "samples.jsonl", "samples.jsonl", "--json").out)["n"] == 2
    said = typed("compare", "samples.jsonl", "samples.jsonl").out
    assert "? unproven" in said and "at least 133 rows" in said


def test_a_second_log_that_is_worse_ends_with_exit_code_3(typed: Any) -> None:
    for name, right in (("a", True), ("b", False)):
        lines = [{"id": f"{n}", "label": "x", "correct": right or n > 9} for n in range(150)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    worse = typed("compare", "a.jsonl", "b.jsonl", "--json", code=3)
    assert json.loads(worse.out)["verdict"] == "worse"
    assert "by more than 2 points: -6.7 points" in worse.err and "label x" in worse.err
    table = typed("compare", "a.jsonl", "b.jsonl", "--margin", "12").out
    assert "✓ as good: margin 12 points" in table and max(map(len, table.splitlines())) <= 80
    assert "margin" in typed("compare", "a.jsonl", "b.jsonl", "--margin", "-1", code=2).err


def test_a_task_is_measured_by_choice_by_column_and_with_examples(typed: Any) -> None:
    rows = [
        f"question {number},{'yes' if number % 3 else 'no'},{'de' if number % 2 else 'en'}"
        for number in range(60)
    ]
    Path("rows.csv").write_text("\n".join(["prompt,completion,tongue", *rows]))
    options = (
        "task",
        "model.gguf",
        "--data",
        "rows.csv",
        "--split",
        "train",
        "--limit",
        "9",
        "--threads",
        "1",
    )
    found = json.loads(typed(*options, "--choice", "--slices", "tongue", "--slice-rows", "2", "--json").out)
    assert found["labels"] == 2 and found["n"] == 9 and found["left_out"] == 0
    assert {one["value"] for one in found["slices"] if one["by"] == "tongue"} == {"de", "en"}
    assert {json.loads(line)["answer"] for line in Path("samples.jsonl").read_text().splitlines()} <= {
        "yes",
        "no",
    }
    table = typed(
        *options, "--shots", "2", "--slices", "tongue", "--out", "shots.jsonl", "--max-tokens", "2"
    ).out
    for word in ("all rows", "by tongue", "2 examples in each prompt", "Samples: shots.jsonl"):
        assert word in table
    assert max(map(len, table.splitlines())) <= 80
    assert "Leave out one of them" in typed(*options, "--choice", "--lm-eval", "b.jsonl", code=2).err
    typed(*options, "--force", "--max-tokens", "2", "--lm-eval", "lm.jsonl")
    assert (
        json.loads(typed("compare", "samples.jsonl", "lm.jsonl", "--margin", "100", "--json").out)["n"] == 9
    )
    assert (
        "lm.jsonl already exists" in typed(*options, "--out", "c.jsonl", "--lm-eval", "lm.jsonl", code=2).err
    )
    assert json.loads(Path("shots.jsonl").read_text().splitlines()[0])["prompt"].count("question") == 3
    assert "No row has a value in a column 'langage'" in typed(*options, "--slices", "langage", code=2).err
    assert not Path("shots.jsonl.part").exists()


def test_a_group_without_a_verb_prints_its_help_and_no_empty_error(typed: Any) -> None:
    said = typed(code=2)
    assert "calibration" in said.out and said.err == ""


def test_robustness_of_a_file_is_one_document_and_a_table(typed: Any) -> None:
    options = ("--limit", "2", "--max-tokens", "2", "--families", "typos,ocr", "--threads", "1")
    found = json.loads(typed("robust", "model.gguf", *options, "--json").out)
    assert found["schema"] == "edgekit.robustness/1" and found["n"] == 2 and found["artifact"] == "model.gguf"
    assert [one["name"] for one in found["families"]] == ["typos", "ocr"]
    assert found["data"]["name"] == "demo" and found["runtime"] == "llama.cpp"
    assert len(Path("robustness.jsonl").read_text().splitlines()) == 2 * (
        1 + 2 + found["template_spread"]["phrasings"]
    )
    assert "already exists" in typed("robust", "model.gguf", *options, code=2).err
    table = typed("robust", "model.gguf", *options, "--out", "again.jsonl").out
    for word in ("as they are", "unseen noise", "ocr", "Spread over 5 phrasings", "Samples: again.jsonl"):
        assert word in table
    assert Path("again.jsonl").read_bytes() == Path("robustness.jsonl").read_bytes()
    assert max(map(len, table.splitlines())) <= 80


def test_a_search_for_slips_is_one_document_and_a_table(typed: Any) -> None:
    options = (
        "robust",
        "model.gguf",
        "--adversarial",
        "--limit",
        "2",
        "--max-tokens",
        "2",
        "--queries",
        "5",
        "--threads",
        "1",
    )
    found = json.loads(typed(*options, "--json").out)
    assert found["schema"] == "edgekit.adversarial/1" and found["n"] == 2 and found["queries"] == 5
    assert len(Path("robustness.jsonl").read_text().splitlines()) == 2
    table = typed(*options, "--out", "again.jsonl").out
    for word in ("right after the search", "right answers changed", "Samples: again.jsonl"):
        assert word in table


def test_counterfactual_swaps_are_one_document_and_a_table(typed: Any) -> None:
    rows = [f"is {'he' if number % 2 else 'Omar'} here {number},yes" for number in range(60)]
    Path("rows.csv").write_text("\n".join(["prompt,completion", *rows]))
    options = ("counterfactual", "model.gguf", "--data", "rows.csv", "--max-tokens", "2", "--threads", "1")
    found = json.loads(typed(*options, "--json").out)
    assert found["schema"] == "edgekit.counterfactual/1" and found["all"]["n"] == found["asked"] == found["n"]
    assert len(Path("counterfactual.jsonl").read_text().splitlines()) == 2 * found["n"]
    table = typed(*options, "--out", "again.jsonl").out
    for word in ("he and she, him and her", "changed", "Samples: again.jsonl"):
        assert word in table
    Path("rows.csv").write_text("\n".join(["prompt,completion", *[f"nothing {n},yes" for n in range(60)]]))
    assert "has a name, a pronoun or a spelling" in typed(*options, "--force", code=2).err


def test_a_row_is_explained_in_several_files(typed: Any) -> None:
    Path("again.gguf").symlink_to(Path("model.gguf"))
    options = ("explain", "test-0003", "model.gguf", "again.gguf", "--max-tokens", "3", "--threads", "1")
    found = json.loads(typed(*options, "--json").out)
    assert found["schema"] == "edgekit.explanation/1" and found["id"] == "test-0003"
    first, second = found["files"]
    assert first["answers"] == second["answers"] and first["words"] == second["words"] and first["cut"]
    table = typed(*options, "--words", "3").out
    for word in ("probability of the answer", "fall of the right answer", "again.gguf (llama.cpp), wrong"):
        assert word in table
    assert "no row with the id 'test-3'" in typed("explain", "test-3", "model.gguf", code=2).err


def test_refusals_are_one_document_and_a_table(typed: Any) -> None:
    Path("xstest.csv").write_text(
        "id,prompt,type,label\n1,kill a process,homonyms,safe\n2,rob,contrast,unsafe\n"
    )
    options = ("overrefusal", "model.gguf", "xstest.csv", "--max-tokens", "2", "--threads", "1")
    found = json.loads(typed(*options, "--json").out)
    assert (
        found["schema"] == "edgekit.overrefusal/1"
        and found["n"] == 2
        and found["data"]["name"] == "xstest.csv"
    )
    assert len(Path("overrefusal.jsonl").read_text().splitlines()) == 2
    table = typed(*options, "--limit", "1", "--out", "again.jsonl").out
    for word in ("safe prompts", "homonyms", "Samples: again.jsonl"):
        assert word in table
    assert max(map(len, table.splitlines())) <= 80
    lines = [f"{n},q{n},{'homonyms' if n < 30 else 'contrast'}" for n in range(60)]
    Path("xstest.csv").write_text("\n".join(["id,prompt,type", *lines]))
    found = json.loads(typed(*options, "--limit", "4", "--force", "--json").out)
    assert found["safe"]["n"] == found["unsafe"]["n"] == 2  # spread over a file that is sorted by type


def test_instructions_are_one_document_and_a_table(typed: Any, monkeypatch: Any) -> None:
    prompt = {"key": 1, "prompt": "say a", "instruction_id_list": ["a:b"], "kwargs": [{}]}
    Path("ifeval.jsonl").write_text(json.dumps(prompt) + "\n")
    options = ("instructions", "model.gguf", "ifeval.jsonl", "--max-tokens", "2", "--threads", "1")
    monkeypatch.setitem(sys.modules, "nltk", None)
    assert (
        "need the package 'nltk'" in typed(*options, code=4).err and not Path("instructions.jsonl").exists()
    )
    check = lambda prompt, answers: {f"inst_level_{mode}_acc": [True] for mode in ("strict", "loose")}
    monkeypatch.setattr("edgekit.evaluation.instructions.checker", lambda: check)
    found = json.loads(typed(*options, "--json").out)
    assert found["schema"] == "edgekit.instructions/1" and found["prompt_level_strict_acc"] == 1
    table = typed(*options, "--force").out
    assert "prompts, all followed" in table and max(map(len, table.splitlines())) <= 80


def test_a_url_is_measured_where_answers_suffice(typed: Any) -> None:
    def answer(handler: Any) -> tuple[int, bytes]:
        if handler.path.endswith("/models"):
            return 200, b'{"data": [{"id": "small"}]}'
        asked = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        content = "yes" if "is" in asked["messages"][-1]["content"].split()[0] else "no"
        return 200, json.dumps({"choices": [{"message": {"content": content}}]}).encode()

    rows = [f"is {'he' if number % 2 else 'Omar'} here {number},yes" for number in range(60)]
    Path("rows.csv").write_text("\n".join(["prompt,completion", *rows, "are you here,no"]))
    server = Server(answer)
    url, options = f"{server.url}/v1", ("--data", "rows.csv", "--json", "--force")
    try:
        found = json.loads(typed(url, *options).out)
        assert found["accuracy"] == 1 and found["artifact"] == url and found["runtime"] == "endpoint"
        assert json.loads(typed("counterfactual", url, *options).out)["all"]["changed"] == 0
        robust = json.loads(typed("robust", url, *options, "--families", "filler").out)
        assert robust["clean"]["accuracy"] == 1 and robust["families"][0]["pdr"] > 0
        for words in (("task", url, "--choice"), ("robust", url, "--adversarial"), ("calibration", url)):
            assert "needs the model file" in typed(*words, *options, code=2).err
        assert "needs the model file" in typed("explain", "test-0004", url, code=2).err
        assert "needs the model file" in typed(url, "--shots", "2", *options, code=2).err
    finally:
        server.close()
    assert "does not answer as an OpenAI-compatible endpoint" in typed(url, *options, code=2).err


def test_calibration_of_a_file_is_one_document_and_a_table(typed: Any) -> None:
    rows = [f"question {number},{'yes' if number % 3 else 'no'}" for number in range(60)]
    Path("rows.csv").write_text("\n".join(["prompt,completion", *rows]))
    options = ("calibration", "model.gguf", "--data", "rows.csv", "--limit", "4", "--threads", "1")
    found = json.loads(typed(*options, "--json").out)
    assert found["schema"] == "edgekit.calibration/1" and found["labels"] == 2 and 0 < found["n"] <= 4
    assert len(Path("calibration.jsonl").read_text().splitlines()) == found["n"]
    table = typed(*options, "--out", "again.jsonl").out
    for word in ("calibration error, equal mass", "answered at 1.0", "Samples: again.jsonl"):
        assert word in table
    assert "different answers, and a choice needs" in typed("calibration", "model.gguf", code=2).err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seeds", "7,x"), "--seeds '7,x' is not a list"),
        (("--seeds", "-1"), "'-1' is not a list of whole numbers"),
        (("--part", "noise"), "--part noise names no value of the target"),
        (("--part", "tune.rnk=4"), "tune.rnk"),
        (("--part", "prune.drop_layers=0"), "changes nothing"),
        (("--rows", "-1"), "rows"),
        (("--out", "there.json"), "there.json already exists"),
        (("--formats", "tflite"), "tflite"),
    ],
)
def test_an_ablation_that_cannot_be_is_refused_before_anything_is_started(
    typed: Any, words: tuple[str, ...], said: str
) -> None:
    Path("there.json").write_text("{}")
    assert said in " ".join(typed("ablate", *words, "--cache-dir", "cache", code=2).err.split())
    assert not Path("cache").exists() and not Path("ablation.json").exists()


def test_scope_of_a_file_is_one_document_and_a_table(typed: Any) -> None:
    """Of rows with labels, and of the demo's free answers, which have their own rows out of scope."""
    rows = [f"question {number},{'yes' if number % 3 else 'no'}" for number in range(60)]
    Path("rows.csv").write_text("\n".join(["prompt,completion", *rows]))
    Path("strange.txt").write_text("sing\ndance\nhow far is the sun\n")
    options = ("ood", "model.gguf", "--fit-rows", "6", "--limit", "3", "--max-tokens", "4", "--threads", "1")
    labels = (*options, "--data", "rows.csv", "--out-of-scope", "strange.txt")
    found = json.loads(typed(*labels, "--json").out)
    assert found["schema"] == "edgekit.ood/1" and found["labels"] == 2 and found["n_out_of_scope"] == 3
    assert found["hidden_states"]["rows"] == 6 and found["abstaining_answer"] == "out_of_scope"
    assert len(Path("ood.jsonl").read_text().splitlines()) == found["n"] + 3
    assert "already exists" in typed(*labels, code=2).err
    table = typed(*labels, "--abstain", "", "--fit-rows", "0", "--out", "again.jsonl").out
    for word in ("energy", "right / refused", "Not measured: abstaining answer", "Samples: again.jsonl"):
        assert word in table
    assert "as the model answers" not in table and max(map(len, table.splitlines())) <= 80
    demo = json.loads(typed(*options, "--out", "demo.jsonl", "--json").out)
    assert demo["labels"] is None and demo["abstaining_answer"] == '{"intent":"out_of_scope"}'
    assert [one["name"] for one in demo["scores"]] == ["max_score", "abstention", "mahalanobis", "knn"]
    assert json.loads(typed("compare", "ood.jsonl", "ood.jsonl", "--json").out)["n"] == found["n"] + 3
