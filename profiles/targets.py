"""Target files (TOML): finds them, applies `extends` (one level), and reports all faults together."""

from __future__ import annotations

import difflib
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from edgekit.base.errors import ConfigError, reason
from edgekit.targets.target import GgufExport, OnnxExport, Target

Path_ = tuple[str | int, ...]
DIVERGENCE = "max_kld_nats"
SIZES = {"size_mib", "bits_per_weight", "short_rows_bits_per_weight"}
"""Keys of `[quantize]` that exclude `max_kld_nats`; that of a target replaces those of the target that it extends."""
EXPORTS: dict[str, type[BaseModel]] = {"gguf": GgufExport, "onnx": OnnxExport}


class _Table:
    """One TOML file: its values, its text for line numbers, and its name for messages."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.values: dict[str, Any] = tomllib.loads(text)

    def line(self, path: Path_) -> int:
        """The line that sets `path`, or the nearest table above it; 1 when it is not in the file.

        tomllib keeps no positions, so headers and keys are searched for in the text.
        """
        found, section, counts = 1, (), {}  # type: int, Path_, dict[str, int]
        for number, line in enumerate(self.text.splitlines(), start=1):
            bare = line.split("#")[0].strip()
            if bare.startswith("[[") and bare.endswith("]]"):
                name = bare[2:-2].strip()
                counts[name] = counts.get(name, -1) + 1
                section = (*name.split("."), counts[name])
            elif bare.startswith("[") and bare.endswith("]"):
                section = tuple(bare[1:-1].strip().split("."))
            elif "=" in bare:
                key = (*section, *bare.split("=")[0].strip().strip('"').split("."))
                if key == path[: len(key)]:
                    return number
            if section and section == path[: len(section)]:
                found = number
        return found


def names() -> list[str]:
    """Every shipped target."""
    folder = resources.files("edgekit.profiles") / "targets"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def load(name_or_path: str | Path, changes: Sequence[str] = ()) -> Target:
    """The target of that name or file, after applying `changes` such as `tune.epochs=2`.

    Raises `ConfigError` with all faults: file, line, key, what is wrong, and the most similar known key.
    """
    tables, faults = _tables(str(name_or_path))
    values = _merge(tables)
    given: dict[str, str] = {}
    of_quantize = (change.partition("=")[0].strip().partition(".") for change in changes)
    _replace_limit(values, {key: None for table, _, key in of_quantize if table == "quantize"})
    for change in changes:
        key, equals, text = change.partition("=")
        given[key.strip()] = f"--set {change}"
        try:
            _set(values, key.strip(), _value(text) if equals else None)
        except IndexError:
            faults.append(
                f"--set {change}: the target's list has {len(values.get('export', []))} entries, from 0"
            )
        except (KeyError, ValueError, TypeError):
            faults.append(f"--set {change}: use key=value, such as tune.epochs=2 or export.0.type=Q5_K_M")
    faults += _faults(values, tables, given)
    if faults:
        many = f"{len(faults)} faults" if len(faults) > 1 else "a fault"
        raise ConfigError(
            f"The target '{name_or_path}' has {many}; nothing was started.",
            "edgekit targets schema lists every key; edgekit targets show cpu-int4 is an example.",
            faults,
        )
    return Target.model_validate(values)


def validate(path: str | Path) -> list[str]:
    """Every fault of a target file; empty when it is valid."""
    if Path(path).suffix != ".toml" and str(path) not in names():
        return ["a target file's name ends in .toml"]
    try:
        load(path)
    except ConfigError as error:
        return error.faults or [error.message]
    return []


def resolved(name_or_path: str | Path) -> list[tuple[str, Any, str]]:
    """Every value of a target as (dotted key, value, the file it comes from or `default`)."""
    tables, _ = _tables(str(name_or_path))
    whole = load(name_or_path).model_dump(by_alias=True, mode="json")
    found = []
    for path, value in _leaves(whole):
        origin = next((table.name for table in tables if _has(table.values, path)), "default")
        found.append((".".join(map(str, path)), value, origin))
    return found


def schema() -> dict[str, Any]:
    """The JSON Schema of a target file."""
    return Target.model_json_schema(by_alias=True)


def _tables(name_or_path: str) -> tuple[list[_Table], list[str]]:
    """The file, then the one that it extends, and the faults of `extends`."""
    first = _read(name_or_path)
    base = first.values.get("extends")
    where = f"{first.name}:{first.line(('extends',))}: extends"
    if base is None:
        return [first], []
    if not isinstance(base, str):
        return [first], [f"{where}: input should be a target's name, not {base!r}"]
    try:
        second = _read(base)
    except ConfigError as error:
        return [first], [f"{where}: {fault}" for fault in error.faults or [error.message]]
    if "extends" in second.values:
        return [first], [f"{where}: '{base}' extends '{second.values['extends']}'; one level is allowed"]
    second.values.pop("bits_per_weight", None)  # measured on the other target's files
    if "export" in first.values:
        second.values.pop("export", None)
    _replace_limit(second.values, first.values.get("quantize"))
    return [first, second], []


def _read(name_or_path: str) -> _Table:
    shipped = resources.files("edgekit.profiles") / "targets" / f"{name_or_path}.toml"
    if name_or_path.endswith(".toml"):
        try:
            name, text = name_or_path, Path(name_or_path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"The target file {name_or_path} cannot be read: {reason(error)}.", "Check the path."
            ) from error
    elif name_or_path in names():
        name, text = shipped.name, shipped.read_text(encoding="utf-8")
    else:
        near = difflib.get_close_matches(name_or_path, names(), 1)
        meant = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"There is no target '{name_or_path}'.{meant}", f"Known: {', '.join(names())}; or a .toml file."
        )
    try:
        return _Table(Path(name).name, text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{name} is not a valid TOML file; nothing was started.",
            "Fix this line.",
            [f"{Path(name).name}: {error}"],
        ) from error


def _replace_limit(values: dict[str, Any], given: Any) -> None:
    """Remove from the `quantize` table in `values` the keys that exclude one that the table `given` has."""
    if not isinstance(given, dict) or not isinstance(values.get("quantize"), dict):
        return
    removed = {*(SIZES if DIVERGENCE in given else ()), *((DIVERGENCE,) if given.keys() & SIZES else ())}
    values["quantize"] = {key: value for key, value in values["quantize"].items() if key not in removed}


def _merge(tables: Sequence[_Table]) -> dict[str, Any]:
    """The merged values, key by key; values of an earlier table win, and a list replaces a list."""
    values: dict[str, Any] = {}
    for table in reversed(tables):
        for key, value in table.values.items():
            both = isinstance(value, dict) and isinstance(values.get(key), dict)
            values[key] = {**values[key], **value} if both else value
    values.pop("extends", None)
    return values


def _faults(values: dict[str, Any], tables: Sequence[_Table], given: Mapping[str, str]) -> list[str]:
    try:
        Target.model_validate(values)
    except ValidationError as error:
        return [_fault(dict(found), values, tables, given) for found in error.errors()]
    return []


def _fault(
    found: dict[str, Any], values: dict[str, Any], tables: Sequence[_Table], given: Mapping[str, str]
) -> str:
    # pydantic puts the tag of a union member into the location: export.0.gguf.type is export.0.type in the file
    path: Path_ = tuple(
        part for n, part in enumerate(found["loc"]) if not (n == 2 and found["loc"][0] == "export")
    )
    if found["type"] not in ("extra_forbidden", "missing"):
        while path and not _has(values, path):  # the tag of a plain union: tune.modules.list[str]
            path = path[:-1]
    table = next((table for table in tables if _has(table.values, path)), tables[0])
    key = ".".join(map(str, path))
    if found["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(path[-1]), _known(found["loc"]), 1)
        what = "unknown key" + (f"; did you mean '{near[0]}'?" if near else "")
    elif found["type"] == "missing":
        what = "this key is missing" if key != "export" else "there is no [[export]] table"
    else:
        said = found["msg"].removeprefix("Value error, ")
        what = said[0].lower() + said[1:]
        if found["type"] != "value_error":
            what += f", not {found['input']!r}"
    change = next((given[name] for name in given if f"{key}.".startswith(f"{name}.")), "")
    where = change or f"{table.name}:{table.line(path)}"
    return f"{where}: {key + ': ' if key and not change else ''}{what}"


def _known(location: Path_) -> list[str]:
    """The keys that the table at `location` may have."""
    model: type[BaseModel] = Target
    for part in location[:-1]:
        if part in EXPORTS:
            model = EXPORTS[str(part)]
        elif isinstance(part, str) and part in model.model_fields:
            model = next(_models(model.model_fields[part].annotation), model)
    return [field.alias or name for name, field in model.model_fields.items()] + ["extends"]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for place, inner in enumerate(value):
            yield from _leaves(inner, (*path, place))
    else:
        yield path, value


def _has(values: Any, path: Path_) -> bool:
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _value(text: str) -> Any:
    """A TOML value, or the text itself when it is a bare word."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    if value is None:
        raise ValueError(key)
    *tables, last = key.split(".")
    place: Any = values
    for name in tables:
        place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
    place[last] = value
