"""Finds the branches of a chat template on the text of messages.

A template is a program that comes with the file. Jinja's sandbox protects the machine, but a template can still print
another system message when a user's text contains a certain word, and rendering test conversations rarely finds that.
So the template's syntax tree is analysed: every place where the text of a message affects the output is a *branch*.

Values are followed through assignments, loops and macros. `messages` is a *list*, an element of it a *message*; the role
of a message is harmless, all its other fields are *text*. A branch is an operation on text other than printing, joining,
trimming or testing whether it exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from jinja2 import TemplateSyntaxError, nodes

from edgekit.base.errors import ConfigError
from edgekit.models.chat import parse

Kind = Literal["", "list", "message", "text"]
ORDER: tuple[Kind, ...] = ("", "list", "message", "text")

ROOT = "messages"
HARMLESS_KEYS = frozenset({"role", "type"})
HARMLESS_FILTERS = frozenset(
    {"trim", "string", "safe", "tojson", "e", "escape", "default", "d", "list", "items", "join", "indent"}
)
CHOOSING_FILTERS = frozenset(
    {"select", "reject", "selectattr", "rejectattr", "groupby", "sort", "unique", "min", "max"}
)
HARMLESS_TESTS = frozenset({"defined", "undefined", "none", "string", "mapping", "sequence", "iterable"})
HARMLESS_METHODS = frozenset({"strip", "lstrip", "rstrip", "items", "get"})
MARKUP = re.compile(
    r"[<>\[\]{}|#*`\\/_]|^\W*$"
)  # what templates look for in earlier answers: <think>, [INST]


@dataclass(frozen=True)
class Branch:
    """A branch on the text of a message: the expression, and the words that it compares the text with."""

    line: int
    expression: str
    words: tuple[str, ...]

    @property
    def on_plain_words(self) -> bool:
        """Whether it searches for words that a user may write, not for markup."""
        return any(not MARKUP.search(word) for word in self.words)


def branches(source: str) -> list[Branch]:
    """Every branch of a template on the text of messages; raises `ConfigError` for a malformed template."""
    try:
        tree = parse(source)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"The chat template is malformed: {error}", "Use the model's own template."
        ) from error
    names = _kinds(tree)
    kinds = (nodes.Compare, nodes.Test, nodes.Call, nodes.Filter, nodes.Getitem)
    found = {
        Branch(node.lineno, _text(node), tuple(sorted(set(_words(node)))))
        for node in tree.find_all(kinds)
        if _decides(node, names)
    }
    return sorted(found, key=lambda branch: (branch.line, branch.expression))


def _decides(node: nodes.Node, names: Mapping[str, Kind]) -> bool:
    """Whether `node` uses more of a message's text than its presence."""

    def text(part: nodes.Node) -> bool:
        return _kind(part, names) == "text"

    match node:
        case nodes.Compare(expr=expr, ops=ops):
            sides = [expr, *(operand.expr for operand in ops)]
            return any(map(text, sides)) and not any(_is_nothing(side) for side in sides)
        case nodes.Test(node=inner, name=name):
            return text(inner) and name not in HARMLESS_TESTS
        case nodes.Filter(node=inner, name=name, args=args) if inner is not None:
            if name in CHOOSING_FILTERS:
                return bool(_kind(inner, names)) and not _is_harmless_key(args)
            return text(inner) and name not in HARMLESS_FILTERS
        case nodes.Call(node=nodes.Getattr(node=inner, attr=method), args=args):
            if any(map(text, args)):
                return method != "append"
            return text(inner) and method not in HARMLESS_METHODS
        case nodes.Getitem(node=inner, arg=argument):
            return text(argument) or (text(inner) and not isinstance(argument, nodes.Const))
        case _:
            return False


def _is_harmless_key(args: list[nodes.Expr]) -> bool:
    return bool(args) and isinstance(args[0], nodes.Const) and args[0].value in HARMLESS_KEYS


def _is_nothing(side: nodes.Node) -> bool:
    """Whether it only tests for presence, as in `content == none` and `content != ''`."""
    return isinstance(side, nodes.Const) and side.value in (None, "", True, False)


def _kind(node: nodes.Node, names: Mapping[str, Kind]) -> Kind:
    """The kind of conversation data that an expression's value contains."""
    match node:
        case nodes.Name(name=name):
            return names.get(name, "")
        case nodes.Const() | nodes.TemplateData() | nodes.Compare() | nodes.Test():
            return ""
        case nodes.Getattr(node=inner, attr=key) if _kind(inner, names):
            return _part(_kind(inner, names), key)
        case nodes.Getattr(attr=key):
            return names.get(f".{key}", "")
        case (
            nodes.Getitem(node=inner, arg=argument)
            | nodes.Call(node=nodes.Getattr(node=inner, attr="get"), args=[argument, *_])
        ):
            return _part(
                _kind(inner, names), argument.value if isinstance(argument, nodes.Const) else argument
            )
        case nodes.Filter(node=inner, name=name) if inner is not None and _kind(inner, names) == "list":
            if name in ("length", "count"):
                return ""
            return {"list": "list", "reverse": "list", "first": "message", "last": "message"}.get(
                name, "text"
            )  # type: ignore[return-value]
        case _:
            found = [_kind(child, names) for child in node.iter_child_nodes()]
            return "text" if any(found) else ""


def _part(whole: Kind, key: object) -> Kind:
    """The kind of an element of a list, a message or a text, by a name, an index or a computed key."""
    if whole == "list":
        return "list" if isinstance(key, nodes.Slice) else "message"
    return "text" if whole and key not in HARMLESS_KEYS else ""


def _kinds(tree: nodes.Template) -> dict[str, Kind]:
    """The kinds that each name may hold anywhere in the template, followed until nothing changes."""
    names: dict[str, Kind] = {ROOT: "list"}
    while True:
        before = dict(names)
        for node in tree.find_all((nodes.Assign, nodes.AssignBlock, nodes.For, nodes.Macro)):
            match node:
                case nodes.Assign(target=target, node=value):
                    _bind(target, _kind(value, names), names)
                case nodes.For(target=target, iter=value):
                    kind = _kind(value, names)
                    _bind(target, "message" if kind == "list" else kind, names)
                case nodes.AssignBlock(target=target, body=body):
                    _bind(target, "text" if any(_kind(part, names) for part in body) else "", names)
                case nodes.Macro(name=name, args=arguments, body=body):
                    for call in tree.find_all(nodes.Call):
                        if isinstance(call.node, nodes.Name) and call.node.name == name:
                            for argument, given in zip(arguments, call.args, strict=False):
                                _bind(argument, _kind(given, names), names)
                            for keyword in call.kwargs:
                                _bind(nodes.Name(keyword.key, "store"), _kind(keyword.value, names), names)
                    if any(_kind(part, names) for part in body):
                        names[name] = "text"
        if names == before:
            return names


def _bind(target: nodes.Node, kind: Kind, names: dict[str, Kind]) -> None:
    for part in (target, *target.find_all((nodes.Name, nodes.NSRef))):
        if name := _name(part):
            names[name] = max(kind, names.get(name, ""), key=ORDER.index)


def _words(node: nodes.Node) -> Iterator[str]:
    """The strings in an expression that are not the name of a field."""
    for child in node.iter_child_nodes():
        if isinstance(child, nodes.Const):
            if isinstance(child.value, str) and not isinstance(node, nodes.Getitem):
                yield child.value
        else:
            yield from _words(child)


def _name(target: nodes.Node) -> str:
    """The name under which an assigned value is read: `x`, or `.x` for a field of a namespace."""
    match target:
        case nodes.Name(name=name):
            return name
        case nodes.NSRef(attr=attr):
            return f".{attr}"
        case _:
            return ""


def _text(node: nodes.Node) -> str:
    """An expression as text, about as it was written, without line numbers, so that equal ones compare equal."""
    match node:
        case nodes.Name(name=name):
            return name
        case nodes.Const(value=value):
            return repr(value)
        case nodes.Getattr(node=inner, attr=attr):
            return f"{_text(inner)}.{attr}"
        case nodes.Getitem(node=inner, arg=argument):
            return f"{_text(inner)}[{_text(argument)}]"
        case nodes.Call(node=inner, args=args):
            return f"{_text(inner)}({', '.join(map(_text, args))})"
        case nodes.Filter(node=inner, name=name, args=args):
            rest = f"({', '.join(map(_text, args))})" if args else ""
            return f"{_text(inner) if inner else ''} | {name}{rest}"
        case nodes.Test(node=inner, name=name, args=args):
            return " ".join([_text(inner), "is", name, *map(_text, args)])
        case nodes.Compare(expr=expr, ops=ops):
            signs = {
                "eq": "==",
                "ne": "!=",
                "lt": "<",
                "gt": ">",
                "lteq": "<=",
                "gteq": ">=",
                "notin": "not in",
            }
            return " ".join([_text(expr), *(f"{signs.get(op.op, op.op)} {_text(op.expr)}" for op in ops)])
        case nodes.Slice(start=start, stop=stop, step=step):
            return ":".join(_text(part) if part else "" for part in (start, stop, step))
        case _:
            return f"{type(node).__name__}({', '.join(map(_text, node.iter_child_nodes()))})"
