"""The house: links that resolve, imports that stay light, and a registry whose every name is real."""

import ast
import importlib.metadata
import importlib.util
import io
import keyword
import os
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit import registry
from edgekit.base.errors import ConfigError
from edgekit.targets.target import GgufExport, OnnxExport

ROOT = Path(__file__).parents[1]
PARAMETERS = 7
REPEATED = 10
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


WITHOUT_TORCH = (
    "edgekit.build.pipeline", "edgekit.build.plan", "edgekit.build.runs", "edgekit.proof.verify", "edgekit.tuning.memory",
    "edgekit.models.source", "edgekit.models.tokenizer", "edgekit.device.isolated", "edgekit.field.status",
    "edgekit.field.serving.server", "edgekit.field.serving.deployment", "edgekit.field.fleet.fleet",
    "edgekit.export.onnx.export", "edgekit.export.gguf.write", "edgekit.export.gguf.quantize", "edgekit.export.gguf.convert",
    "edgekit.export.gguf.convert_process", "edgekit.export.gguf.stream", "edgekit.export.gguf.stream_process",
    "edgekit.export.gguf.families", "edgekit.export.weights.rows", "edgekit.runtimes.llamacpp",
    "edgekit.runtimes.onnxruntime", "edgekit.tui", "edgekit.profiles.profiler",
)  # fmt: skip


def test_a_process_that_plans_watches_serves_or_starts_others_needs_no_torch() -> None:
    """Torch and transformers take 230 MiB and seconds; what needs them imports them when it needs them."""
    code = f"""
import importlib, sys
for name in {WITHOUT_TORCH!r}:
    importlib.import_module(name)
    loaded = {{"torch", "transformers"}} & set(sys.modules)
    assert not loaded, (name, loaded)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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


ERRORS = {"ConfigError", "CorruptError", "GateError", "MissingPartError", "StageError", "UnsupportedError"}
# The endpoint sends the message alone; who reads a status document adds the hint.
WITHOUT_HINT = ("edgekit/field/serving/", "edgekit/field/status.py")


def errors_without_hint(folder: Path) -> list[str]:
    """Where an error is made of its message alone, without what to do next."""
    found = []
    for path, tree in sources(folder):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ERRORS:
                given = [*node.args, *node.keywords]
                if len(given) < 2 and not any(isinstance(each, ast.Starred) for each in given):
                    found.append(f"{path}:{node.lineno}")
    return [place for place in found if not place.startswith(WITHOUT_HINT)]


def test_every_error_says_what_to_do_next() -> None:
    assert errors_without_hint(ROOT / "edgekit") == []


def test_a_planted_error_without_a_hint_is_found(tmp_path: Path) -> None:
    text = "raise ConfigError('It failed.')\nraise errors.StageError('It failed.', 'Try again.')\nraise CorruptError(*parts)"
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "door.py").write_text(text)
    assert errors_without_hint(tmp_path / "house") == ["house/door.py:1"]


def shapes(path: Path) -> list[tuple[int, str]]:
    """The lines of code of a module with their numbers, each name as N and each text as S.

    Imports, heads and fields of classes, and tables of values are left out.
    """
    text = path.read_text()
    tree = ast.parse(text)
    left_out: set[int] = set()
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_table = isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(
            node.value, ast.Dict | ast.List | ast.Set | ast.Tuple
        )
        if isinstance(node, ast.ClassDef):
            fields = [each for each in node.body if isinstance(each, ast.Assign | ast.AnnAssign)]
            first = min(each.lineno for each in (node, *node.decorator_list))
            left_out |= set(range(first, node.body[0].lineno))
            left_out |= {line for each in fields for line in range(each.lineno, (each.end_lineno or 0) + 1)}
        if is_text or is_table or isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines: dict[int, list[str]] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_name = token.type == tokenize.NAME and not keyword.iskeyword(token.string)
        shape = "N" if is_name else "S" if token.type == tokenize.STRING else token.string
        if token.type != tokenize.COMMENT and shape.strip() and token.start[0] not in left_out:
            lines.setdefault(token.start[0], []).append(shape)
    return [(number, " ".join(line)) for number, line in sorted(lines.items())]


def repeated_lines(folder: Path) -> list[list[str]]:
    """The places of ten lines of code in a row that stand more than once, whatever their names; brackets alone do not count."""
    places: dict[tuple[str, ...], list[str]] = {}
    for place, _, files in os.walk(folder, followlinks=True):
        for path in (Path(place, file) for file in sorted(files) if file.endswith(".py")):
            lines = [(number, line) for number, line in shapes(path) if len(line.split()) > 2]
            for start in range(len(lines) - REPEATED + 1):
                window = tuple(line for _, line in lines[start : start + REPEATED])
                places.setdefault(window, []).append(f"{path.relative_to(folder)}:{lines[start][0]}")
    return [found for found in places.values() if len(found) > 1]


def test_no_ten_lines_stand_twice() -> None:
    assert repeated_lines(ROOT / "edgekit") == []


def test_planted_repeated_lines_are_found(tmp_path: Path) -> None:
    lines = [f"    a{n} = first(b, {n}) + 'text'" for n in range(REPEATED)]
    (tmp_path / "one.py").write_text("\n".join(["def one(b):", *lines]))
    other = [line.replace("b,", "other,").replace("text", "words") for line in lines]
    (tmp_path / "two.py").write_text("\n".join(["def two(other, more):", "    # the same", *other]))
    assert repeated_lines(tmp_path) == [["one.py:2", "two.py:3"]]
    (tmp_path / "two.py").write_text("\n".join(["def two(other):", *other[1:]]))
    assert repeated_lines(tmp_path) == []


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
