"""Streaming export in a child process, in which transformers does not load torch.

transformers imports torch, where it is installed, with the first class of a config. That is most of the memory and of the
start of a process that streams, and streaming needs none of it: the tokenizer, the config and the weights are read
without. Only an adapter is merged with torch, because its products have to be those of `merge`, bit for bit.

torch is hidden in the child and not in the caller, because transformers would not find it there later either. And native
code that aborts ends only the child. Started as `python -m edgekit.base.child 0 edgekit.export.gguf.stream_process
DESCRIPTOR FOLDER`: the child reads its order and the importance matrix in the folder and writes events and its reply, one
line of JSON each, to the descriptor.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.base import errors
from edgekit.base.artifacts import removed_on_failure
from edgekit.base.child import Child
from edgekit.base.events import Emit, from_json, ignore, to_json
from edgekit.base.parts import missing_part
from edgekit.targets.target import GgufExport

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODULE = "edgekit.export.gguf.stream_process"
ORDER, IMATRIX = "order.json", "imatrix.safetensors"
RAISED = {
    kind.__name__: kind
    for kind in (
        errors.ConfigError, errors.UnsupportedError, errors.MissingPartError, errors.StageError, errors.CorruptError,
    )
}  # fmt: skip
FAILURE = "exit status 1: "


def stream(
    source: Path,
    out: Path,
    options: GgufExport,
    *,
    adapter: Path | None = None,
    imatrix: Mapping[str, NDArray[np.float32]] | None = None,
    threads: int = 2,
    emit: Emit = ignore,
) -> None:
    """`stream.stream` in a child process: the same file, the same events and the same errors.

    Raises `StageError` too when the child ends before the file is complete; then there is no `out` either.
    """
    order = {"source": str(source), "out": str(out), "threads": threads}
    with removed_on_failure(out), tempfile.TemporaryDirectory() as work:
        if imatrix:
            from safetensors.numpy import save_file

            save_file(dict(imatrix), Path(work) / IMATRIX)
        _ask("stream", order, options, adapter, Path(work), emit)


def peak_memory(
    config: Mapping[str, Any], options: GgufExport, threads: int = 2, *, adapter: Path | None = None
) -> int:
    """`stream.peak_memory`, which reads `config` as transformers does, in a child process."""
    with tempfile.TemporaryDirectory() as work:
        order = {"config": config, "threads": threads}
        return int(_ask("peak_memory", order, options, adapter, Path(work), ignore))


def assemble(
    source: Path, out: Path, options: GgufExport, rounded: Path, *, threads: int = 2, emit: Emit = ignore
) -> None:
    """`stream.assemble` in a child process, as `stream`."""
    order = {"source": str(source), "out": str(out), "rounded": str(rounded), "threads": threads}
    with removed_on_failure(out), tempfile.TemporaryDirectory() as work:
        _ask("assemble", order, options, None, Path(work), emit)


def layout(source: Path, options: GgufExport) -> tuple[dict[str, str], int]:
    """`stream.layout` in a child process."""
    with tempfile.TemporaryDirectory() as work:
        types, fixed = _ask("layout", {"source": str(source)}, options, None, Path(work), ignore)
    return types, fixed


def hollow(source: Path, out: Path, options: GgufExport) -> None:
    """`stream.hollow` in a child process."""
    with removed_on_failure(out), tempfile.TemporaryDirectory() as work:
        _ask("hollow", {"source": str(source), "out": str(out)}, options, None, Path(work), ignore)


def _ask(
    call: str, order: dict[str, Any], options: GgufExport, adapter: Path | None, work: Path, emit: Emit
) -> Any:
    """What the child's `call` returns; emits its events and raises its error."""
    order |= {
        "call": call,
        "options": options.model_dump(mode="json", warnings=False),
        "adapter": adapter and str(adapter),
    }
    (work / ORDER).write_text(json.dumps(order), encoding="utf-8")
    receiving, sending = os.pipe()
    with open(receiving, encoding="utf-8") as lines:
        try:
            child = Child(MODULE, [str(sending), str(work)], pass_fds=[sending])
        finally:
            os.close(sending)
        with child:
            for line in lines:
                if not line.endswith("\n"):  # the child ended within it
                    break
                reply = json.loads(line)
                if "event" in reply:
                    emit(from_json(line))
                elif "error" in reply:
                    raise _raised(reply)
                else:
                    return reply["value"]
            how = child.how_it_ended().removeprefix(FAILURE)
    raise errors.StageError(
        f"The process that writes the GGUF file ended early ({how}). No file was written.",
        "If memory or disk space is short, free some of it. Fewer threads need less memory.",
    )


def _raised(reply: Mapping[str, Any]) -> errors.EdgekitError:
    kind = RAISED[reply["error"]]
    if kind is errors.ConfigError:
        return errors.ConfigError(reply["message"], reply["hint"], reply["faults"])
    return kind(reply["message"], reply["hint"])


def main() -> None:
    """Do what the order says; the child's side."""
    work = Path(sys.argv[2])
    order = json.loads((work / ORDER).read_text(encoding="utf-8"))
    with open(int(sys.argv[1]), "w", encoding="utf-8", buffering=1) as lines:

        def tell(text: str) -> None:
            lines.write(f"{text}\n")

        try:
            value = _done(order, work, lambda event: tell(to_json(event)))
        except ModuleNotFoundError as error:
            _tell_error(missing_part(error), tell)
        except errors.EdgekitError as error:
            _tell_error(error, tell)
        else:
            tell(json.dumps({"value": value}))


def _tell_error(error: errors.EdgekitError, tell: Callable[[str], None]) -> None:
    faults = getattr(error, "faults", [])
    tell(json.dumps({"error": type(error).__name__, "message": error.message, "hint": error.hint, "faults": faults}))  # fmt: skip


def _done(order: dict[str, Any], work: Path, emit: Emit) -> Any:
    adapter = order["adapter"] and Path(order["adapter"])
    if not adapter:
        sys.modules["torch"] = None  # type: ignore[assignment] # as if it were not installed
    from edgekit.export.gguf import stream

    options = GgufExport.model_construct(**order["options"])
    if order["call"] == "peak_memory":
        return stream.peak_memory(order["config"], options, order["threads"], adapter=adapter)
    if order["call"] == "layout":
        return stream.layout(Path(order["source"]), options, work)
    if order["call"] == "hollow":
        stream.hollow(Path(order["source"]), Path(order["out"]), options)
        return None
    if order["call"] == "assemble":
        source, out, rounded = (Path(order[name]) for name in ("source", "out", "rounded"))
        stream.assemble(source, out, options, rounded, threads=order["threads"], emit=emit)
        return None
    imatrix = None
    if (work / IMATRIX).is_file():
        from safetensors.numpy import load_file

        imatrix = load_file(work / IMATRIX)
    stream.stream(
        Path(order["source"]), Path(order["out"]), options,
        adapter=adapter, imatrix=imatrix, threads=order["threads"], emit=emit,
    )  # fmt: skip
    return None


if __name__ == "__main__":
    main()
