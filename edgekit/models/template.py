"""Jinja for chat templates: the dialect of transformers, in Jinja's immutable sandbox, with every operation charged.

Follows `transformers.utils.chat_template_utils`: `trim_blocks` and `lstrip_blocks`, loop controls, the
`{% generation %}` tag, `raise_exception`, `strftime_now`, a `tojson` that keeps Unicode, `dict` and `namespace`.

Before a template is compiled, charges are added to its syntax tree. Every body that can run more than once (of a loop, a
macro, a block) begins with a charge for its own nodes. Values that are printed, joined, compared, sliced or used as a
key are measured first. Binary operators, calls, filters and tests are charged with an upper bound of their cost; those
without a known bound, which published chat templates do not use, are not available.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache, update_wrapper
from typing import Any

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace, _PassArg

from edgekit.models.meter import DEPTH, LARGEST_NUMBER, LimitReached, meter

LONGEST_SOURCE = 128 << 10  # characters; published templates have up to 40,000
MOST_NODES, DEEPEST = 50_000, 100
CALL = 60  # steps of a call or a filter; a step takes about 0.1 microseconds
LARGEST_ARGUMENT = 1000  # a width, an indentation, a number of digits

FREE = {
    "default",
    "d",
    "first",
    "last",
    "length",
    "count",
    "attr",
}  # test a value without reading all of it
LAZY = {"items", "map", "select", "reject", "selectattr", "rejectattr", "unique", "reverse"}
LINEAR = {
    "abs", "capitalize", "dictsort", "e", "escape", "float", "groupby", "int", "list", "lower", "max", "min", "safe",
    "sort", "string", "title", "trim", "upper",
}  # fmt: skip
SIZED = {"indent", "round", "tojson"}  # the size of their output depends on a numeric argument
CHEAP_TESTS = {
    "boolean", "callable", "defined", "escaped", "false", "filter", "float", "integer", "iterable", "mapping", "none",
    "number", "sameas", "sequence", "string", "test", "true", "undefined",
}  # fmt: skip
METHODS = {
    str: {
        "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "partition", "rpartition", "startswith", "endswith",
        "lower", "upper", "title", "capitalize", "casefold", "swapcase", "find", "rfind", "index", "rindex", "count",
        "removeprefix", "removesuffix", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier",
        "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper",
    },
    dict: {"items", "keys", "values", "get", "copy"},
    list: {"index", "count", "copy"},
    tuple: {"index", "count"},
}  # fmt: skip
SEARCHES = {
    "strip",
    "lstrip",
    "rstrip",
    "rsplit",
    "rpartition",
    "find",
    "rfind",
    "index",
    "rindex",
    "count",
    "split",
}


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks an answer for training; it renders its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """A namespace without attributes that begin with an underscore, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no attribute {name!r}")


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with every operation charged to the rendering's meter."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, loopcontrols],
            optimized=False,  # else constants would be computed while compiling, when there is no meter
        )
        self.filters["tojson"] = _to_json
        kept = FREE | LAZY | LINEAR | SIZED | {"join", "replace", "sum", "format"}
        self.filters = {
            name: _charged_filter(name, call) for name, call in self.filters.items() if name in kept
        }
        self.filters[" charge"], self.filters[" weigh"], self.filters[" sliced"] = _charge, _weigh, _sliced
        tests: dict[str, Any] = dict(self.tests)
        self.tests = tests | {name: _charged(tests[name], _compare) for name in tests.keys() - CHEAP_TESTS}
        self.globals.pop("lipsum")
        self.globals |= {
            "raise_exception": _raise_exception, "strftime_now": _strftime_now, "dict": _dict, "namespace": _Namespace,
        }  # fmt: skip

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        _check_size(source)
        _instrument(source)
        return super()._generate(source, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _charge_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        method = getattr(obj, "__name__", "")
        named = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}
        # the sandbox wraps `str.format`, and keeps the method under `__wrapped__`
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        known = next((names for kind, names in METHODS.items() if isinstance(owner, kind)), None)
        if isinstance(obj, Macro | LoopContext | BlockReference | Undefined):
            pass
        elif isinstance(owner, str) and method in ("replace", "join", "format"):
            _BOUNDS[method](owner, *args, **named)
        elif isinstance(owner, str) and method in SEARCHES:
            _search(owner, *args)
        elif owner is not None and known is not None and method in known:
            meter().make(_weights(args) + (16 * _lengths(owner) if known is not METHODS[str] else len(owner)))
            if method in ("index", "count"):
                meter().weigh(owner)
        elif obj is _strftime_now:
            meter().make(256 * _size(args[0] if args else ""))  # C's strftime pads up to that
        elif (
            obj in (_dict, _Namespace, _raise_exception, range, Cycler, Joiner)
            or obj is self.globals["range"]
        ):
            meter().make(_weights([*args, *named.values()]))
        elif isinstance(owner if owner is not None else obj, Cycler | Joiner | LoopContext):
            _weights(args)
        else:
            raise SecurityError(f"chat templates may not call {method or type(obj).__name__!r} here")
        meter().work(CALL)
        with meter().call():
            return super().call(context, obj, *args, **kwargs)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str) else 16


def _weights(values: Any) -> int:
    return sum(map(meter().weigh, values))


def _compare(*values: Any, **named: Any) -> None:
    """The cost of reading values once, and of searching one text in another."""
    weights = [
        meter().weigh(value) for value in (*values, *named.values()) if not isinstance(value, Undefined)
    ]
    if len(weights) > 1:
        meter().work(weights[0] * weights[1] // 256 if all(isinstance(v, str) for v in values[:2]) else 1)


def _search(owner: str, *args: Any) -> None:
    wanted = _size(args[0]) if args else 1
    meter().make(16 * owner.count(args[0]) if args and isinstance(args[0], str) and args[0] else len(owner))
    meter().work(len(owner) * wanted // 256)
    meter().make(len(owner))


def _replace(text: Any, old: Any, new: Any, *rest: Any, **named: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    meter().work(len(text) * (len(old) + 1) // 256)
    meter().make(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def _join(separator: str, values: Any) -> None:
    parts = values if isinstance(values, list | tuple | dict | str) else [values]
    meter().make(_weights(parts) + len(parts) * len(separator))


def _format(form: str, *args: Any, **named: Any) -> None:
    """Widths of five digits, or taken from the arguments, are refused; each field may hold all arguments."""
    if re.search(r"\d{5}|\{[^{}]*\{|%[^%a-zA-Z]*\*", form):
        raise LimitReached("it makes too much text")
    fields = form.count("{") + form.count("%") + 1
    meter().make(
        len(form) + fields * (10_000 * bool(re.search(r"\d{3}", form)) + 100 + _weights([args, named]))
    )


_BOUNDS: dict[str, Callable[..., None]] = {"replace": _replace, "join": _join, "format": _format}


def _charge_operator(operator: str, left: Any, right: Any) -> None:
    numbers = [value for value in (left, right) if isinstance(value, int)]
    if any(abs(number) > LARGEST_NUMBER for number in numbers):
        raise LimitReached("it computes with numbers that are too large")
    if operator == "**" and len(numbers) == 2:
        if abs(left) > 1 and right * left.bit_length() > LARGEST_NUMBER.bit_length():
            raise LimitReached("it computes with numbers that are too large")
    elif operator == "*" and len(numbers) == 1:
        many = left if isinstance(right, int) else right
        if isinstance(many, str | list | tuple):
            meter().make(max(numbers[0], 0) * len(many) * (1 if isinstance(many, str) else 16))
    elif operator == "%" and isinstance(left, str):
        _format(left, right)
    elif operator == "+":
        for value in (left, right):
            if isinstance(value, str | list | tuple):
                meter().make(len(value) * (1 if isinstance(value, str) else 16))
    meter().work(4)


def _charged(call: Callable[..., Any], bound: Callable[..., None]) -> Callable[..., Any]:
    """`call`, after `bound` is charged for its arguments, without the contexts that Jinja passes in."""
    skipped = 1 if _PassArg.from_obj(call) else 0

    def charged(*args: Any, **kwargs: Any) -> Any:
        bound(*args[skipped:], **kwargs)
        return call(*args, **kwargs)

    return update_wrapper(charged, call)


def _charged_filter(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    skipped = 1 if _PassArg.from_obj(call) else 0

    def charged(*args: Any, **kwargs: Any) -> Any:
        before, given = list(args[:skipped]), list(args[skipped:])
        rest = [*given[1:], *kwargs.values()]
        if name in LINEAR | {"join", "sum"} and isinstance(given[0], Iterator):
            given[0] = list(meter().counted(given[0]))
        weight = 16 if name in FREE | LAZY else meter().weigh(given[0])
        meter().work(CALL)
        if name in LAZY:
            meter().work(_lengths(given[0]))
            found = call(*before, *given, **kwargs)
            return meter().counted(found) if isinstance(found, Iterator) and name != "reverse" else found
        if name == "replace":
            _replace(*given, **kwargs)
        elif name == "format":
            _format(str(given[0]), *given[1:], **kwargs)
        elif name == "join":
            separator = given[1] if len(given) > 1 else kwargs.get("d", "")
            meter().make(6 * (weight + weight // 16 * meter().weigh(separator)))
        elif name == "sum":
            meter().make(weight)
            if len(given) > 2 or "start" in kwargs:
                meter().make(weight * weight)
        elif name in SIZED:
            sizes = [value for value in rest if isinstance(value, int) and not isinstance(value, bool)]
            if any(abs(size) > LARGEST_ARGUMENT for size in sizes):
                raise LimitReached("it makes too much text")
            texts = _weights([value for value in rest if value not in sizes])
            lines = str(given[0]).count("\n") + 1 if isinstance(given[0], str) else weight // 16
            meter().make(weight + lines * (sum(map(abs, sizes)) + texts) * (DEPTH if name == "tojson" else 1))
        elif name in LINEAR:
            _weights(rest)
            meter().make(weight * (16 if name == "list" and isinstance(given[0], str) else 1))
        return call(*before, *given, **kwargs)

    return update_wrapper(charged, call)


def _lengths(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 1


@pass_context
def _charge(context: Context, steps: int, characters: int) -> bool:
    """Charge one run of a body; returns true, so that a loop's condition can contain it."""
    meter().work(steps)
    meter().make(characters)
    return True


@pass_context
def _weigh(context: Context, value: Any) -> Any:
    """`value` itself, after its text is charged."""
    if not isinstance(value, Undefined | Macro | LoopContext):
        meter().make(meter().weigh(value))
    return value


@pass_context
def _sliced(context: Context, value: Any) -> Any:
    """A slice, after a charge for the whole value, which is at least as long."""
    meter().make(_lengths(value) * (1 if isinstance(value, str) else 16))
    return value


def _check_size(tree: nodes.Template) -> None:
    """Raise `LimitReached` for a tree that is too large, or so deep that walking it would exhaust Python's stack."""
    waiting: list[tuple[nodes.Node, int]] = [(tree, 0)]
    count = 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if depth > DEEPEST or count > MOST_NODES:
            raise LimitReached("its program is too large or nested too deeply")
        waiting += [(child, depth + 1) for child in node.iter_child_nodes()]


def _filtered(name: str, node: nodes.Expr | None, *args: nodes.Expr) -> nodes.Filter:
    line = node.lineno if node is not None else 1
    return nodes.Filter(node, name, list(args), [], None, None, lineno=line)


def _instrument(tree: nodes.Template) -> None:
    """Add the charges to the tree, in place."""
    for node in list(tree.find_all(nodes.Node)):
        match node:
            case nodes.Output(nodes=parts):
                node.nodes = [
                    part if isinstance(part, nodes.TemplateData) else _weighed(part) for part in parts
                ]
            case nodes.Concat(nodes=parts):
                node.nodes = [_weighed(part) for part in parts]
            case nodes.Compare(expr=first):
                node.expr = _weighed(first)
                for operand in node.ops:
                    operand.expr = _weighed(operand.expr)
            case nodes.Pair(key=key):
                node.key = _weighed(key)
            case nodes.Getitem(node=whole, arg=nodes.Slice()):
                node.node = _filtered(" sliced", whole)
            case nodes.Getitem(arg=key):
                node.arg = _weighed(key)
    for body in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block))):
        assert isinstance(body, nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block)
        charge = _charging(body)
        body.body.insert(0, nodes.Output([nodes.CondExpr(charge, nodes.Const(""), nodes.Const(""))]))
        if isinstance(body, nodes.For) and body.test is not None:
            body.test = nodes.And(_charging(body.test), body.test, lineno=body.lineno)
    tree.set_environment(_environment)


def _weighed(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filtered(" weigh", node)


def _charging(body: nodes.Node) -> nodes.Expr:
    found = list(body.find_all(nodes.Node))
    characters = sum(len(node.data) for node in found if isinstance(node, nodes.TemplateData))
    characters += sum(
        len(node.value) for node in found if isinstance(node, nodes.Const) and isinstance(node.value, str)
    )
    return _filtered(" charge", nodes.Const(len(found)), nodes.Const(characters))


_environment = _Environment()


def parse(source: str) -> nodes.Template:
    """The syntax tree of a template in this dialect; raises `LimitReached` for one that is too large."""
    if len(source) > LONGEST_SOURCE:
        raise LimitReached(f"its program is longer than {LONGEST_SOURCE:,} characters")
    tree = _environment.parse(source)
    _check_size(tree)
    return tree


@lru_cache(maxsize=32)
def compiled(source: str) -> Template:
    """The template, to be rendered within `meter.metered`; raises as `parse`."""
    parse(source)
    return _environment.from_string(source)
