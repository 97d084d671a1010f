"""List what llama.cpp's converter writes as `general.architecture` of each model class, as JSON.

Run after `converter.VERSION` was changed and the converter was kept (`edgekit setup converter`):
`python tools/list_architectures.py > export/gguf/architectures.json`. The converter's code is read, never imported.
Classes whose architecture depends on the model are left out.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path

import gguf

from edgekit.export.gguf.converter import NAMES, PARTS, SETUP, architectures, kept


def gguf_architectures(folder: Path) -> dict[str, str]:
    """The architecture in GGUF of each text model class of the converter in `folder` that it names plainly."""
    found: dict[str, set[str]] = {name: set() for name in architectures(folder)}
    for file in sorted((folder / PARTS[0]).glob("*.py")):
        if file.name != NAMES.name:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            classes = {part.name: part for part in tree.body if isinstance(part, ast.ClassDef)}
            for part in classes.values():
                if (name := _architecture_of(part, classes)) is not None:
                    for model_class in found.keys() & set(_registered(part)):
                        found[model_class].add(name)
    return {model_class: names.pop() for model_class, names in sorted(found.items()) if len(names) == 1}


def _registered(part: ast.ClassDef) -> list[str]:
    """The model classes that a class of the converter is registered for."""
    calls = [call for call in part.decorator_list if isinstance(call, ast.Call)]
    values = [one.value for call in calls for one in call.args if isinstance(one, ast.Constant)]
    return [value for value in values if isinstance(value, str)]


def _architecture_of(part: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> str | None:
    """The `model_arch` of a class, or of the first of its bases in the same file; None where an instance changes it."""
    if "self.model_arch = " in ast.unparse(part):
        return None
    for line in part.body:
        if isinstance(line, ast.Assign) and any(ast.unparse(one) == "model_arch" for one in line.targets):
            known = gguf.MODEL_ARCH.__members__.get(ast.unparse(line.value).rpartition(".")[2])
            return None if known is None else gguf.MODEL_ARCH_NAMES[known]
    bases = [classes[base.id] for base in part.bases if isinstance(base, ast.Name) and base.id in classes]
    return _architecture_of(bases[0], classes) if bases else None


if __name__ == "__main__":
    converter = kept()
    if converter is None:
        raise SystemExit(f"The converter's files are not here; keep them: {SETUP}")
    print(json.dumps(gguf_architectures(converter), indent=1))
