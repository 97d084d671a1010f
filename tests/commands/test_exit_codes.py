"""What a hurried person types wrong: the stated exit code, one clear message, no traceback."""

import json
import os
import sys
from pathlib import Path

import pytest

ROW = {"prompt": "q", "completion": "r"}


def fails(done, code: int, *words: str) -> None:
    assert done.returncode == code, (done.returncode, done.stderr)
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "→" in done.stderr, "no hint"


def rows(path: Path, *values: dict) -> Path:
    path.write_text("\n".join(json.dumps(value) for value in values))
    return path


@pytest.fixture
def plan(shell, tiny_llama: Path, tmp_path: Path):
    """`edgekit plan` for the tiny model and the demo, but for what is given."""

    def run(*arguments: object, **options: object):
        given = list(map(str, arguments))
        base = [] if "--model" in given else ["--model", tiny_llama]
        return shell("plan", *base, *given, "--cache-dir", tmp_path / "cache", **options)

    return run


def test_a_plan_that_can_be_done_exits_0(plan) -> None:
    done = plan("--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (
        found["architecture"] == "LlamaForCausalLM"
        and found["problems"] == []
        and found["minutes_expected"] > 0
    )


def test_missing_data_file(plan, tmp_path: Path) -> None:
    fails(plan("--data", tmp_path / "none.jsonl"), 2, "none.jsonl")


def test_a_row_without_an_answer(plan, tmp_path: Path) -> None:
    data = rows(tmp_path / "rows.jsonl", ROW, {"prompt": "q"}, {"prompt": "q", "completion": ""})
    fails(plan("--data", data), 2, "rows.jsonl:2", "rows.jsonl:3", "no answer")


def test_an_empty_dataset(plan, tmp_path: Path) -> None:
    fails(plan("--data", rows(tmp_path / "rows.jsonl")), 2, "no rows")


def test_a_toml_with_three_mistakes_names_all_three(plan, tmp_path: Path) -> None:
    target = tmp_path / "mine.toml"
    target.write_text(
        'schema = 1\nname = "mine"\n[tune]\nepoch = 3\nlearning_rate = 7.0\n[[export]]\nformat = "gguf"\ntype = "Q9"\n'
    )
    done = plan("--target", target)
    fails(done, 2, "mine.toml:4", "epochs", "mine.toml:5", "learning_rate", "mine.toml:8", "Q9")


def test_an_unknown_target_names_the_nearest(plan) -> None:
    fails(plan("--target", "cpu-int5"), 2, "cpu-int4")


def test_a_hub_id_offline(plan) -> None:
    fails(plan("--model", "HuggingFaceTB/SmolLM2-135M-Instruct", "--offline"), 2, "--offline")


def test_no_such_model(plan) -> None:
    fails(plan("--model", "./nowhere"), 2, "nowhere")


def test_an_unsupported_architecture_at_plan_time(plan, tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mamba"
    folder.mkdir()
    config = {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "hidden_size": 8,
        "num_hidden_layers": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes((tiny_llama / name).read_bytes())
    fails(plan("--model", folder), 2, "Mamba2ForCausalLM", "gguf", "nothing was started")


def test_a_model_that_brings_its_own_code(plan, tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "evil.Model"}}))
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / "remote" / name).touch()
    fails(plan("--model", tmp_path / "remote"), 2, "auto_map")


@pytest.mark.parametrize("hidden", ["torch", "onnxruntime_genai"])
def test_a_missing_part(plan, tmp_path: Path, hidden: str) -> None:
    """A stand-in finder hides the package from the child process, as if it were not installed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {hidden!r}: raise ModuleNotFoundError(f'No module named {{name}}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "import importlib.util as u; found = u.find_spec\n"
        f"u.find_spec = lambda name, package=None: None if name.split('.')[0] == {hidden!r} else found(name, package)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    line = "pip install 'edgekit[build]'" if hidden == "torch" else "pip install edgekit"
    fails(plan(env=environment), 4, hidden, line)


def test_a_disk_that_is_too_small(shell, tiny_llama: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom edgekit import cli\nfrom edgekit.base import hardware\nhardware.free_disk_mib = lambda path: 3\n"
        f"sys.argv = ['edgekit', 'build', '--model', {str(tiny_llama)!r}, '--cache-dir', {str(tmp_path / 'c')!r}]\ncli.main()"
    )
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    fails(done, 2, "disk", "3 MiB free", "nothing was started")
    assert not (tmp_path / "c" / "tune").exists()


def test_a_truncated_safetensors_file(shell, tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    folder.mkdir()
    for file in tiny_llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = shell("build", "--model", folder, "--cache-dir", tmp_path / "cache", "--out", tmp_path / "out")
    fails(done, 5, "model.safetensors", "truncated")


def test_no_row_fits_the_context(shell, tiny_llama: Path, tmp_path: Path) -> None:
    long = [{"prompt": f"{n} " + "word " * 400, "completion": "r"} for n in range(40)]
    data = rows(tmp_path / "rows.jsonl", *long)
    arguments = [
        "--model",
        tiny_llama,
        "--data",
        data,
        "--cache-dir",
        tmp_path / "cache",
        "--out",
        tmp_path / "out",
    ]
    fails(shell("build", *arguments, "--set", "tune.max_length=64"), 2, "max_length")


def test_unknown_commands_and_flags_are_usage(shell) -> None:
    fails(shell("bild"), 2, "bild")
    fails(shell("build", "--tarrget", "x"), 2, "--tarrget")


def test_errors_are_json_too(plan, tmp_path: Path) -> None:
    done = plan("--data", tmp_path / "none.jsonl", "--json")
    found = json.loads(done.stdout)
    assert found["code"] == done.returncode == 2 and "none.jsonl" in found["message"] and found["hint"]


def test_run_on_what_is_not_a_bundle(shell, tmp_path: Path) -> None:
    fails(shell("run", tmp_path / "nowhere", "hello"), 2, "nowhere")
    fails(shell("run", tmp_path, "hello"), 5, "not an edgekit bundle")
    (tmp_path / "model.gguf").write_bytes(b"GGUF but no more")
    fails(shell("run", tmp_path / "model.gguf", "hello"), 5, "model.gguf")
