"""What all verbs share: common options, progress on stderr, JSON on stdout, and redirection of libraries' output."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from edgekit.base.errors import ConfigError
from edgekit.base.texts import plain
from edgekit.field import state as field_state

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgekit.build.request import Order, Request
    from edgekit.data.dataset import DataOptions
    from edgekit.data.splits import Dataset
    from edgekit.device.confidence import Refusal


@dataclass
class State:
    """The output settings of this command."""

    json: bool = False
    verbose: bool = False
    quiet: bool = False
    offline: bool = False
    interrupted: bool = False
    printed: bool = False
    """Whether the one JSON document of this command is on stdout."""


state = State()


def _set(name: str) -> Any:
    def callback(value: bool) -> bool:
        setattr(state, name, getattr(state, name) or value)
        if name == "offline" and value:
            os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
        return value

    return callback


def _folder(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file, not a state folder. Nothing was changed.", "Check --state.")
    return path


def present(state: Path) -> Path:
    """The state folder of a command that only reads it. Raises `ConfigError` when a given one does not exist.

    The default folder may be missing: nothing has happened on this device yet.
    """
    if state != DEFAULT_STATE and not state.exists():
        raise ConfigError(f"There is no state folder {state}.", "Check --state.")
    return state


ROWS = "A file of rows (CSV, TSV, JSONL, JSON, Parquet, Arrow), a folder of such files, or a hub data set"

Json = Annotated[
    bool, typer.Option("--json", callback=_set("json"), help="Print one JSON document on stdout.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", callback=_set("verbose"), help="Show tracebacks.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=_set("quiet"), help="Print no progress on stderr.")
]
Offline = Annotated[bool, typer.Option("--offline", callback=_set("offline"), help="Fetch nothing.")]
Model = Annotated[
    str, typer.Option("--model", "-m", help="A Hugging Face folder, hub id, .gguf file, or smollm2-135m.")
]
Revision = Annotated[
    str,
    typer.Option("--revision", help="Branch, tag or commit of a hub model; the same as org/name@REVISION."),
]
NewPath = Annotated[Path, typer.Option("--out", "-o", help="Output path; it must not exist without --force.")]
Data = Annotated[
    str,
    typer.Option("--data", "-d", help=f"{ROWS}, or demo."),
]
Columns = Annotated[
    str,
    typer.Option(
        "--columns",
        metavar="PART=COLUMN,...",
        help="The columns of the rows, such as prompt=text,completion=label. Default: guessed by their names.",
    ),
]
DataRevision = Annotated[
    str, typer.Option("--data-revision", metavar="NAME", help="Branch, tag or commit of a hub data set.")
]
DropLeaks = Annotated[
    bool, typer.Option("--drop-leaks", help="Leave out rows whose prompt is also in a later split.")
]
TargetName = Annotated[str, typer.Option("--target", "-t", help="A target's name, or a TOML file.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one value of the target, such as tune.epochs=2. Can be repeated.",
    ),
]
Robust = Annotated[
    bool,
    typer.Option(
        "--robust",
        help="Tune for noisy input, other phrasings and requests out of scope (tune.robustness of the target).",
    ),
]
Formats = Annotated[
    str,
    typer.Option(
        "--formats",
        metavar="NAMES",
        help="Build only these of the target's formats, such as gguf or gguf,onnx. Default: all.",
    ),
]
ChatTemplate = Annotated[
    str,
    typer.Option(
        "--chat-template",
        metavar="FILE",
        help="A Jinja chat template for a model without one, or chatml. It replaces the model's own.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Output folder.")]
CacheDir = Annotated[Path, typer.Option("--cache-dir", help="Folder of the stage cache.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing output.")]
StateDir = Annotated[
    Path,
    typer.Option(
        "--state",
        envvar="EDGEKIT_STATE",
        callback=_folder,
        help="Folder with the releases, telemetry and incidents of the device.",
    ),
]
Who = Annotated[
    str | None,
    typer.Option(
        "--who", envvar="EDGEKIT_WHO", help="Name of the person making the change. Default: user@host."
    ),
]
MOST_THREADS = 256  # llama.cpp ends its process at 512
Threads = Annotated[
    int, typer.Option("--threads", min=0, max=MOST_THREADS, help="CPU threads; 0 uses every core.")
]

MinConfidence = Annotated[
    str | None,
    typer.Option(
        "--min-confidence",
        metavar="SHARE|auto",
        help="Give no answer when the confidence in it is lower, such as 0.8. auto: the bundle's own threshold, which refuses at "
        "most 5 % of its validation rows. For bundles whose answers are labels.",
    ),
]


RefuseOutOfScope = Annotated[
    bool,
    typer.Option(
        "--refuse-out-of-scope",
        help="Give no answer to a request out of scope, by the bundle's own threshold of the score, which refuses at most 5 % of "
        "its validation rows. For bundles whose answers are labels.",
    ),
]


def refusal(min_confidence: str | None, out_of_scope: bool) -> Refusal | None:
    """What --min-confidence and --refuse-out-of-scope ask for; None without either.

    Raises `ConfigError` for a confidence that is neither `auto` nor a number between 0 and 1.
    """
    from edgekit.device.confidence import Refusal

    if min_confidence is None:
        return Refusal(out_of_scope=True) if out_of_scope else None
    if min_confidence == "auto":
        return Refusal("auto", out_of_scope)
    try:
        share = float(min_confidence)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ConfigError(
            f"--min-confidence {min_confidence} is neither a number between 0 and 1 nor auto. Nothing was started.",
            "Give a share, such as --min-confidence 0.8, or --min-confidence auto.",
        )
    return Refusal(share, out_of_scope)


DEFAULT_STATE = field_state.DEFAULT_STATE


T = TypeVar("T")


def takes(options: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Make a verb of a function that takes one dataclass: each field becomes an option of the verb."""
    hints = get_type_hints(options, include_extras=True)
    parameters = [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if one.default is dataclasses.MISSING else one.default,
            annotation=hints[one.name],
        )
        for one in dataclasses.fields(options)  # type: ignore[arg-type]
    ]

    def decorate(function: Callable[[T], None]) -> Callable[..., None]:
        def verb(**given: Any) -> None:
            function(options(**given))

        verb.__name__, verb.__doc__ = function.__name__, function.__doc__
        verb.__annotations__ = hints
        verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return verb

    return decorate


def narrator() -> Any:
    """The printer of progress on this command's stderr."""
    from rich.console import Console

    from edgekit.base.console import Narrator

    return Narrator(Console(stderr=True), quiet=state.quiet)


@contextlib.contextmanager
def working() -> Iterator[Any]:
    """An `emit` that prints progress; meanwhile output of libraries to stdout goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr), narrator() as narrate:

        def emit(event: Any) -> None:
            if state.interrupted:
                raise KeyboardInterrupt
            narrate(event)

        yield emit


def need_folder(folder: Path, file: str) -> None:
    """Raise `ConfigError` unless `folder` holds `file`."""
    if not (folder / file).is_file():
        raise ConfigError(f"{folder} is not a folder with {file}.", "Check the path.")


def dataset(data: str, options: DataOptions) -> Dataset:
    """The rows that `--data` names; what a person should know of them goes to stderr."""
    from edgekit.data.dataset import load_dataset

    with working() as emit:
        return load_dataset(data, options, emit)


def changes(given: list[str] | None, robust: bool) -> list[str]:
    """The values of the target that --set and --robust change."""
    return [*(given or []), *["tune.robust=true"] * robust]


def requested(order: Order) -> Request:
    """The typed request of a build, with the same words of its rows on stderr."""
    with working() as emit:
        return order.request(emit)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    state.printed = True
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write(json_safe(text) + "\n")


def show(
    document: dict[str, Any], table: Callable[[dict[str, Any]], RenderableType], *, as_json: bool
) -> None:
    """Print what was measured as one JSON document, or as the table that `table` makes of it."""
    if as_json:
        print_json(document)
        return
    from rich.console import Console

    Console().print(table(document))


def json_safe(document: str) -> str:
    """JSON that can be encoded: half of a surrogate pair, as in a file's name that is not UTF-8, becomes an escape."""
    return document.encode("utf-8", "backslashreplace").decode()


def say(text: str) -> None:
    """Print one line on stdout, with control characters replaced."""
    sys.stdout.write(plain(text) + "\n")


def cores(threads: int) -> int:
    """The number of threads: the given one, or every core that this process may use."""
    from edgekit.base import hardware

    return threads or hardware.cores()
