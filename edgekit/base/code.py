"""The code that a stage's result depends on: a digest of modules, and the versions of the packages that they import.

A stage names the modules that do its work. Their imports from their own top-level package are followed, including lazy
imports and modules that are started as processes; for other packages, the installed version is used. The digest covers
the syntax only, without comments, docstrings and layout. No module is imported for this.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from glob import glob
from itertools import pairwise
from pathlib import Path

from edgekit.base.artifacts import digest_of

# These report, wait and refuse; no result depends on them. All others in `edgekit.base` count when they are imported.
NARRATION = frozenset(
    f"edgekit.base.{name}"
    for name in ("cache", "clock", "code", "console", "errors", "events", "locks", "parts")
)
# Names and shapes. What a name stands for counts, because a stage declares the modules that it asks for by name.
NAMES = frozenset({"edgekit.registry"})
# Packages that another package uses internally, so that no import names them.
BEHIND = {"onnxruntime-genai": ("onnxruntime",), "transformers": ("tokenizers", "safetensors")}


def code_of(modules: Iterable[str]) -> dict[str, str]:
    """The digest of each of `modules` (of a package: all its modules) and of all that they import.

    Raises `ModuleNotFoundError` for an unknown name.
    """
    return {name: _syntax(file)[0] for name, file in _reached(modules).items()}


def own_code(module: str) -> dict[str, str]:
    """The digest of one module without its imports; empty for a module without a file."""
    file = file_of(module)
    return {} if file is None else {module: _syntax(file)[0]}


def versions_of(modules: Iterable[str], packages: Iterable[str] = ()) -> dict[str, str]:
    """Installed versions of the packages that `modules` import, of `packages`, and of Python."""
    imported = {name.partition(".")[0] for file in _reached(modules).values() for name in _syntax(file)[1]}
    owners = _owners()
    named = {*packages, *(package for name in imported for package in owners.get(name, ()))}
    found = {re.sub(r"[-_.]+", "-", package).lower() for package in named}  # one spelling of each (PEP 503)
    found |= {other for package in found for other in BEHIND.get(package, ())}
    return {"python": ".".join(platform.python_version_tuple()[:2]), **versions(sorted(found - {"edgekit"}))}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions of `packages`, without missing ones."""
    found = {package: _installed(package) for package in packages}
    return {package: version for package, version in found.items() if version is not None}


@cache
def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def file_of(module: str) -> Path | None:
    """The source file of `module`, found without importing it; None if there is none."""
    top, _, rest = module.partition(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *rest.split("."))
        for file in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if file.is_file():
                return file
    return None


def _reached(modules: Iterable[str]) -> dict[str, Path]:
    """`modules` and every module of their own top-level packages that they import, with its file; sorted by name."""
    found: dict[str, Path] = {}
    waiting = [each for module in modules for each in _members(module)]
    while waiting:
        name = waiting.pop()
        if name in found or name in NARRATION | NAMES:
            continue
        file = file_of(name)
        if file is None:
            continue
        found[name] = file
        own, package = (
            f"{name.partition('.')[0]}.",
            name if file.name == "__init__.py" else name.rpartition(".")[0],
        )
        for imported in _syntax(file)[1]:
            with suppress(ImportError):  # more dots than packages
                if (full := importlib.util.resolve_name(imported, package)).startswith(own):
                    waiting.append(full)
    return dict(sorted(found.items()))


def _members(module: str) -> Iterator[str]:
    """`module`, and for a package every module in it."""
    file = file_of(module)
    if file is None:
        raise ModuleNotFoundError(f"There is no module '{module}'.", name=module)
    yield module
    if file.name == "__init__.py":
        for each in sorted(glob("**/*.py", root_dir=file.parent, recursive=True)):  # in linked folders too
            parts = Path(each).with_suffix("").parts
            yield ".".join([module, *(part for part in parts if part != "__init__")])


def _syntax(file: Path) -> tuple[str, frozenset[str]]:
    """The digest of a file's syntax, and the names of its imports at run time."""
    at = file.stat()
    return _parsed(file, at.st_mtime_ns, at.st_size)


@cache
def _parsed(file: Path, mtime_ns: int, size: int) -> tuple[str, frozenset[str]]:
    tree = ast.parse(file.read_bytes(), filename=str(file))
    imported = frozenset(_imports(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)]
    return digest_of(ast.dump(tree)), imported


def _is_text(node: ast.stmt) -> bool:
    """Whether a statement is only a string, such as a docstring."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _imports(node: ast.AST) -> Iterator[str]:
    """Names of imported modules and of the names imported from them, which may be modules; not those for type checkers.

    Relative names begin with their dots.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield from _imports(ast.Module([other], []))
        elif isinstance(child, ast.Import):
            yield from (name.name for name in child.names)
        elif isinstance(child, ast.ImportFrom):
            dots, module = "." * child.level, child.module or ""
            yield from (f"{dots}{module}",) if module else ()
            yield from (f"{dots}{module}{module and '.'}{name.name}" for name in child.names)
        else:
            if isinstance(child, ast.List):
                yield from _started(child)
            yield from _imports(child)


def _started(command: ast.List) -> Iterator[str]:
    """The module that a command like `[sys.executable, "-m", "edgekit.profiles.probe"]` starts."""
    texts = [part.value if isinstance(part, ast.Constant) else None for part in command.elts]
    yield from (str(after) for option, after in pairwise(texts) if option == "-m")


@cache
def _owners() -> Mapping[str, list[str]]:
    """The distributions that provide each top-level module."""
    return importlib.metadata.packages_distributions()
