"""The command line: one subcommand for each verb, and the only place that knows exit codes.

    0 ok · 1 a stage failed · 2 usage or config · 3 finished, but a gate failed · 4 an optional part is missing
    5 an artifact is corrupt or does not match · 130 interrupted (finished stages are kept)

stdout is data, stderr is narration.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import traceback
import warnings
from enum import IntEnum
from typing import Any, NoReturn

import typer

from edgekit import __version__
from edgekit.base import errors
from edgekit.base.texts import plain
from edgekit.commands import (
    build,
    cache,
    data,
    doctor,
    drift,
    evaluate,
    evaluate_ablate,
    evaluate_compare,
    evaluate_counterfactual,
    evaluate_explain,
    evaluate_ood,
    evaluate_prompts,
    evaluate_robust,
    evaluate_task,
    incident,
    measure,
    monitor,
    quantize,
    releases,
    run,
    serve,
    setup,
    stages,
    targets,
    tui,
    verify,
)
from edgekit.commands.shell import json_safe, state


class ExitCode(IntEnum):
    """The exit codes."""

    OK = 0
    STAGE = 1
    USAGE = 2
    GATE = 3
    MISSING = 4
    CORRUPT = 5
    INTERRUPTED = 130


CODES: dict[type[errors.EdgekitError], ExitCode] = {
    errors.ConfigError: ExitCode.USAGE,
    errors.UnsupportedError: ExitCode.USAGE,
    errors.MissingPartError: ExitCode.MISSING,
    errors.StageError: ExitCode.STAGE,
    errors.GateError: ExitCode.GATE,
    errors.CorruptError: ExitCode.CORRUPT,
}

WRONG_PATH = (
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
)
"""What the system says of a path that cannot be used, wherever it is used first."""

app = typer.Typer(
    name="edgekit",
    help="Tune a base model on instructions, export it to a small file, and prove that the file answers as well.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    build,
    stages,
    quantize,
    verify,
    evaluate,
    evaluate_compare,
    measure,
    drift,
    run,
    serve,
    monitor,
    incident,
    releases,
    data,
    targets,
    cache,
    setup,
    tui,
    doctor,
):
    module.register(app)
for module in (
    evaluate_task,
    evaluate_robust,
    evaluate_counterfactual,
    evaluate_ood,
    evaluate_explain,
    evaluate_prompts,
    evaluate_compare,
    evaluate_ablate,
):
    module.register(evaluate.app)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"edgekit {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Handle the options before the verb."""


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command and exit with its code; no traceback is shown without `-v`."""
    for name, value in {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
        "TQDM_DISABLE": "1",
        # OpenMP threads spin a short while before they sleep: beside another busy process the default falls to a
        # fourth of the speed that is left, and two tunings at once to a twentieth.
        "GOMP_SPINCOUNT": "1000",
    }.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")  # warnings of libraries, which users cannot act on
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        code = app(argv, standalone_mode=False)
        sys.stdout.flush()
    except errors.EdgekitError as error:
        code = next(code for kind, code in CODES.items() if isinstance(error, kind))
        _fail(code, error.message, error.hint, getattr(error, "faults", []))
    except (typer.Abort, KeyboardInterrupt):
        # Where the interrupt came while a library ran a text as code, Python remembers it as not handled, and would end by the
        # signal instead of our exit code. Running another text makes it forget.
        exec("")  # noqa: S102
        code = ExitCode.INTERRUPTED
    except typer.TyperException as error:  # what was typed
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "edgekit"
        message = re.sub(r"Value error, |, unable to parse .*", "", error.format_message())
        if not message.strip():  # no verb was typed, and the help has been printed
            sys.exit(ExitCode.USAGE)
        _fail(ExitCode.USAGE, message, f"See `{command} --help`.")
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.OK)
    except ModuleNotFoundError as error:
        from edgekit.base.parts import missing_part

        missing = missing_part(error)
        _fail(ExitCode.MISSING, missing.message, missing.hint)
    except MemoryError:
        _fail(
            ExitCode.STAGE,
            "There was not enough memory.",
            "Close other programs, or choose a smaller batch size.",
        )
    except Exception as error:  # noqa: BLE001 - no traceback reaches a user without -v
        if isinstance(error, OSError) and error.errno in WRONG_PATH and error.filename:
            _fail(
                ExitCode.USAGE,
                f"{error.filename} cannot be used: {errors.reason(error)}.",
                "Check the path and its permissions.",
            )
        _fail(
            ExitCode.STAGE,
            f"{type(error).__name__}: {error}",
            "Run it again with -v to see where it happened.",
        )
    if code == ExitCode.INTERRUPTED:
        _fail(
            ExitCode.INTERRUPTED,
            "Interrupted.",
            "Finished stages are kept; run the same command again to continue.",
        )
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def _interrupt(signum: int, frame: Any) -> NoReturn:
    state.interrupted = True  # an import under way may swallow the exception; the next event raises it again
    raise KeyboardInterrupt


def _fail(code: ExitCode, message: str, hint: str = "", faults: list[str] | None = None) -> NoReturn:
    if state.verbose:
        traceback.print_exc()
    if state.json and not state.printed:  # one document: after a report, the error goes to stderr only
        envelope = {"code": int(code), "message": message, "hint": hint, "faults": faults or []}
        sys.stdout.write(json_safe(json.dumps(envelope, ensure_ascii=False)) + "\n")
    for line in (
        f"edgekit: {message}",
        *(f"  {fault}" for fault in faults or []),
        f"  → {hint}" if hint else "",
    ):
        if line:
            sys.stderr.write(plain(line) + "\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
