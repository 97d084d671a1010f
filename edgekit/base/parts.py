"""Optional parts of an installation, from its metadata, and the command that installs a missing one."""

from __future__ import annotations

import re
from importlib import metadata

from edgekit.base.errors import MissingPartError

DISTRIBUTION = "edgekit"
EVERYTHING = "all"
RENAMED = {"llama_cpp": "llama-cpp-python"}  # import names that are not the distribution's name

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w-]+)['"]""")


def missing_part(error: ModuleNotFoundError) -> MissingPartError:
    """The error for an import that failed because a package is not installed."""
    package = (error.name or "a package").partition(".")[0]
    return MissingPartError(
        f"This needs the package '{package}', which is not installed.", install_line(package)
    )


def install_line(*modules: str) -> str:
    """The pip command that installs the top-level `modules`, by import name.

    It contains the smallest parts that declare them. If no part declares a module, another package requires it, and the
    command installs everything.
    """
    declared = _declared()
    wanted: set[str] = set()
    for module in modules:
        parts = declared.get(_canonical(RENAMED.get(module, module)), [EVERYTHING])
        if "" not in parts and not wanted & set(parts):
            wanted.add(parts[0])
    if EVERYTHING in wanted:
        wanted = {EVERYTHING}
    return (
        f"pip install '{DISTRIBUTION}[{','.join(sorted(wanted))}]'"
        if wanted
        else f"pip install {DISTRIBUTION}"
    )


def _declared() -> dict[str, list[str]]:
    """The parts that require each distribution, by its canonical name; `""` is edgekit without extras."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        requirements = []
    found: dict[str, list[str]] = {}
    for text in requirements:
        requirement, _, marker = text.partition(";")
        name, part = _NAME.match(requirement), _EXTRA.search(marker)
        if name and not (part and part[1] == EVERYTHING):  # built from the other parts
            found.setdefault(_canonical(name[0]), []).append(part[1] if part else "")
    return found


def _canonical(name: str) -> str:
    """The normalised name of a distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
