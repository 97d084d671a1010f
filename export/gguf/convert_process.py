"""The process in which llama.cpp's converter runs: never with a model's own code, and with keys of edgekit's in the file.

Started as `python -m edgekit.base.child MIB edgekit.export.gguf.convert_process CONVERTER KEYS ARGS...`: the converter's
folder, a JSON file, and the arguments of its script. The file holds `keys`, to be written beside the converter's own or
in their place, each as name, value, GGUF value type and type of elements, and whether they hold the whole `vocabulary`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any, NoReturn

from edgekit.export.gguf.converter import SCRIPT


def main() -> None:
    """Run the converter."""
    folder, order = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    sys.path[:0] = [str(folder), str(folder / "gguf-py")]  # before the installed gguf
    os.environ["HF_HUB_OFFLINE"] = "1"
    _refuse_code()
    _add_keys(order["keys"])
    if order["vocabulary"]:
        _leave_out_vocabulary()
    sys.argv = [str(folder / SCRIPT), *sys.argv[3:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _refuse_code() -> None:
    """Make transformers use its own classes only, although the converter allows a model's code (trust_remote_code)."""
    from transformers import dynamic_module_utils

    def never(*_: Any, **__: Any) -> NoReturn:
        raise ValueError("the model needs code of its own, which edgekit does not run")

    # The first makes transformers take its own class of the model; nothing imports a model's file without the second.
    dynamic_module_utils.resolve_trust_remote_code = lambda *_, **__: False
    dynamic_module_utils.get_class_in_module = never


def _add_keys(keys: list[tuple[str, Any, int, int | None]]) -> None:
    """Have the writer add `keys` just before it writes the file's header."""
    import gguf

    write_header = gguf.GGUFWriter.write_header_to_file

    def with_keys(self: Any, *arguments: Any, **named: Any) -> None:
        for name, value, kind, part in keys:
            self.kv_data[0].pop(name, None)
            of = None if part is None else gguf.GGUFValueType(part)
            self.add_key_value(name, value, gguf.GGUFValueType(kind), of)
        write_header(self, *arguments, **named)

    gguf.GGUFWriter.write_header_to_file = with_keys


def _leave_out_vocabulary() -> None:
    """Keep the converter from looking for the makers' tokenizer, when all keys of the vocabulary are given."""
    if importlib.util.find_spec("conversion") is None:  # an older checkout, all in one script
        return
    conversion: Any = importlib.import_module("conversion")  # a package of the converter's
    model_class = conversion.get_model_class

    def without_vocabulary(*arguments: Any, **named: Any) -> Any:
        found = model_class(*arguments, **named)
        found.set_vocab = lambda self: None
        return found

    conversion.get_model_class = without_vocabulary


if __name__ == "__main__":
    main()
