"""The house: links that resolve, imports that stay light, and a registry whose every name is real."""

import ast
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit import registry
from edgekit.base.errors import ConfigError
from edgekit.targets.target import GgufExport, OnnxExport

ROOT = Path(__file__).parents[1]
PARAMETERS = 7
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


def sources(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    """Each module below `folder` by its path from the folder's parent, links followed, with its syntax."""
    for place, _, files in os.walk(folder, followlinks=True):
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(place, file)
                yield path.relative_to(folder.parent).as_posix(), ast.parse(path.read_text())


def registers_verb(node: ast.expr) -> bool:
    """Whether `node` is `app.command(...)` of typer."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "command"


def long_signatures(folder: Path) -> set[str]:
    """Functions with more than seven parameters, but for verbs, whose parameters are a command's options."""
    found = set()
    for path, tree in sources(folder):
        verbs = set()
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and registers_verb(node.func)
                and isinstance(node.args[0], ast.Name)
            ):
                verbs.add(node.args[0].id)
            elif isinstance(node, ast.FunctionDef) and any(map(registers_verb, node.decorator_list)):
                verbs.add(node.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in verbs:
                names = [
                    each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                ]
                names += [each.arg for each in (node.args.vararg, node.args.kwarg) if each]
                if len(names) - (names[:1] in (["self"], ["cls"])) > PARAMETERS:
                    found.add(f"{path}: {node.name}")
    return found


def imports(folder: Path) -> dict[str, set[str]]:
    """Which module of a package imports which, within functions and for type checkers as well."""
    trees = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): tree
        for path, tree in sources(folder)
    }
    graph: dict[str, set[str]] = {}
    for name, tree in trees.items():
        named: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                named |= {each.name for each in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                parts = {f"{node.module}.{each.name}" for each in node.names}
                named |= parts & trees.keys() or {node.module}
        graph[name] = (named & trees.keys()) - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The strongly connected components of more than one module (Tarjan 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    waiting: list[str] = []
    found = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        waiting.append(module)
        for other in graph[module]:
            if other not in number:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in waiting:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            start = waiting.index(module)
            component = set(waiting[start:])
            del waiting[start:]
            if len(component) > 1:
                found.append(component)

    for module in graph:
        if module not in number:
            visit(module)
    return found


def test_no_function_takes_more_than_seven_parameters() -> None:
    assert long_signatures(ROOT / "edgekit") == set()


def test_no_modules_import_each_other() -> None:
    assert circles(imports(ROOT / "edgekit")) == []


def test_few_modules_lie_loose() -> None:
    assert len(list((ROOT / "edgekit").glob("*.py"))) <= 6


def test_a_planted_circle_and_a_long_signature_are_found(tmp_path: Path) -> None:
    house = tmp_path / "house"
    (house / "room").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "room/__init__.py": "",
        "door.py": "from house.room import table",
        "room/table.py": "if TYPE_CHECKING:\n    from house.room.chair import Chair",
        "room/chair.py": "def sit():\n    import house.door",
        "street.py": "import house.door",
        "verbs.py": "def register(app): app.command('go')(go)\ndef go(a, b, c, d, e, f, g, h): ...\n"
        "@app.command('stay')\ndef stay(a, b, c, d, e, f, g, h): ...\n"
        "def far(a, b, c, d, e, f, g, *, h): ...\nclass Near:\n    def __init__(self, a, b, c, d, e, f, g): ...",
    }
    for name, text in files.items():
        (house / name).write_text(text)
    assert circles(imports(house)) == [{"house.door", "house.room.table", "house.room.chair"}]
    assert long_signatures(house) == {"house/verbs.py: far"}
