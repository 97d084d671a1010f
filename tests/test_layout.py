"""The house: links that resolve, imports that stay light, and a registry whose every name is real."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import registry
from edgekit.base.errors import ConfigError
from edgekit.targets.target import GgufExport, OnnxExport

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "transformers",
    "onnxruntime",
    "onnxruntime_genai",
    "llama_cpp",
    "textual",
    "numpy",
    "matplotlib",
    "scipy",
)


@pytest.mark.parametrize("name", ["export", "runtimes", "profiles", "tui.py"])
def test_each_link_resolves_to_its_home(name: str) -> None:
    link = ROOT / "edgekit" / name
    assert link.is_symlink() and link.resolve() == ROOT / name


@pytest.mark.parametrize(
    "code",
    [
        "import edgekit",
        "import sys, edgekit.cli; sys.argv = ['edgekit', '--help']\ntry: edgekit.cli.main()\nexcept SystemExit: pass",
        "import edgekit.models.chat, edgekit.targets.target, edgekit.base.events, edgekit.registry",
    ],
)
def test_the_core_loads_nothing_heavy(code: str) -> None:
    check = (
        f"{code}\nimport sys; loaded = [m for m in {HEAVY!r} if m in sys.modules]; assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module", ["edgekit.runtimes.llamacpp", "edgekit.runtimes.onnxruntime", "edgekit.device.loaded"]
)
def test_a_device_needs_no_torch(module: str) -> None:
    code = f"import {module}, sys; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", registry.BUILT_IN)
def test_every_registered_name_is_real(kind: str) -> None:
    for name in registry.names(kind):
        loaded = registry.load(kind, name)
        if kind == "exporters":
            assert isinstance(loaded, registry.Exporter) and loaded.runtime in registry.names("runtimes")
        elif kind in ("runtimes", "stages"):
            assert callable(loaded)


@pytest.mark.parametrize("options", [GgufExport(format="gguf"), OnnxExport(format="onnx")])
def test_each_export_step_says_what_its_result_depends_on(options: GgufExport | OnnxExport) -> None:
    for step in registry.load("exporters", options.format).steps(options):
        assert step.modules and all(importlib.util.find_spec(name) for name in step.modules), step.stage
        assert step.packages and all(importlib.metadata.version(name) for name in step.packages), step.stage


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        registry.load("runtimes", "tflite")
    assert "llama.cpp" in caught.value.hint


def test_modules_stay_small() -> None:
    folders = ("edgekit", "export", "runtimes", "profiles")
    files = {path.resolve() for folder in folders for path in (ROOT / folder).glob("**/*.py")}
    long = {
        str(path.relative_to(ROOT)): n for path in files if (n := len(path.read_text().splitlines())) > 500
    }
    assert not long


def test_no_source_loads_pickles_or_foreign_code() -> None:
    for folder in ("edgekit", "export", "runtimes", "profiles"):
        for path in (ROOT / folder).glob("**/*.py"):
            text = path.read_text()
            for banned in ("trust_remote_code=True", "pickle.load", "allow_pickle=True", "torch.load("):
                assert banned not in text, f"{path}: {banned}"
