"""Model files whose container is sound and whose contents hurt: each function changes a good file in place.

`GGUF` names the cases, `TEMPLATES` chat templates that do not end. A case says what the check that finds it must name, or nothing where only
the runtime itself can find out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from faults import plant

from edgekit.base.errors import CorruptError
from edgekit.device.isolated import open_isolated

Hurt = Callable[[Path], None]
ROLES = ("bos", "eos", "eot", "padding", "unknown", "fim_pre", "eom", "seperator")
MEMORY_BOMB = "{% set ns = namespace(t='x') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
RECURSIVE = "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}"


def use(runtime: str, path: Path) -> None:
    """Open a file in a child process, and ask for everything that a proof asks for."""
    opened = open_isolated(runtime, path, threads=1)
    try:
        ids = opened.encode("Hello <|im_start|> 12 ﬁ 你好")
        opened.decode(range(opened.vocab_size))
        opened.logits(ids)
        list(opened.generate(ids, 4))
    finally:
        opened.close()


def take_out_rules(folder: Path, setenv: Callable[[str, str], None]) -> None:
    """Take the rules for GGUF files and ONNX folders out of every Python process that starts from here on.

    The runtime itself then meets what they would have refused. `folder` is a new place for the code that does it.
    """
    (folder / "sitecustomize.py").write_text(
        "from edgekit.containers import gguf_content\n"
        "from edgekit.models import onnx_folder\n"
        "gguf_content.RULES.clear()\n"
        "gguf_content.first_broken_block = lambda *_: None\n"
        "onnx_folder.RULES.clear()\n"
        "onnx_folder._broken_weight = lambda *_: ''\n"
    )
    setenv("PYTHONPATH", str(folder))


def contained(runtime: str, path: Path, rule: str) -> bool:
    """Whether the runtime refuses a file whose rules were taken out, in a sentence that is not the rule's."""
    try:
        use(runtime, path)
    except CorruptError as error:
        one_sentence(error)
        assert f"({rule})" not in error.message
        return True
    return False


def refused(check: Callable[[Path], object], runtime: str, path: Path, rule: str) -> None:
    """The rule refuses the file; without one, the parser of its container or the runtime does, which may end its process."""
    with pytest.raises(CorruptError, match=rf"\((?:{rule})\)" if rule else None) as refusal:
        if rule:
            check(path)
        else:
            use(runtime, path)
    one_sentence(refusal.value)


def one_sentence(error: CorruptError) -> None:
    """The error is for a person: one line, no traceback, and what to do."""
    assert "\n" not in error.message and "Traceback" not in error.message and error.hint


def fields(**changes: Any) -> Hurt:
    """Write the file anew with other metadata; `__` in a name stands for a dot."""
    return lambda file: plant.rewrite(file, fields={k.replace("__", "."): v for k, v in changes.items()})


def add_id(role: str, value: int) -> Hurt:
    """Give a role a token id, whether the file names one or not."""

    def hurt(file: Path) -> None:
        plant.rewrite(file, added={f"tokenizer.ggml.{role}_token_id": value})

    return hurt


def shortened(name: str, by: int = 7) -> Hurt:
    """Leave entries of a list about tokens out."""

    def hurt(file: Path) -> None:
        values = gguf.GGUFReader(file).fields[f"tokenizer.ggml.{name}"].contents()
        plant.rewrite(file, fields={f"tokenizer.ggml.{name}": values[:-by]})

    return hurt


def one_token_more(file: Path) -> None:
    """A token that the embedding has no row for."""
    known = {
        name: gguf.GGUFReader(file).fields[f"tokenizer.ggml.{name}"].contents()
        for name in ("tokens", "token_type")
    }
    tokens, types = (
        [*known["tokens"], "<image_soft_token>"],
        [*known["token_type"], int(gguf.TokenType.CONTROL)],
    )
    plant.rewrite(file, fields={"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types})


def short_scores(file: Path) -> None:
    """Scores for three tokens."""
    plant.rewrite(file, added={"tokenizer.ggml.scores": [0.5, 0.25, 0.125]})


def changed_merge(text: str) -> Hurt:
    """Another first merge."""

    def hurt(file: Path) -> None:
        merges = gguf.GGUFReader(file).fields["tokenizer.ggml.merges"].contents()
        plant.rewrite(file, fields={"tokenizer.ggml.merges": [text, *merges[1:]]})

    return hurt


def broken_block(tensor: str, value: int = 0xFF) -> Hurt:
    """The scale of the first quantized block, or the first float, of a tensor is not a number."""

    def hurt(file: Path) -> None:
        found = next(t for t in gguf.GGUFReader(file, "r+").tensors if t.name == tensor)
        found.data.reshape(-1).view(np.uint8)[:4] = value
        found.data.flush()

    return hurt


def architecture(name: str) -> Hurt:
    """The same tensors under another family's name, whose keys are there too."""

    def hurt(file: Path) -> None:
        known = gguf.GGUFReader(file).fields
        own = str(known["general.architecture"].contents())
        moved = {
            f"{name}{key.removeprefix(own)}": field.contents()
            for key, field in known.items()
            if key.startswith(f"{own}.")
        }
        plant.rewrite(file, added=moved, architecture=name)

    return hurt


GGUF: dict[str, tuple[Hurt, str]] = {
    **{f"{role} id outside the vocabulary": (add_id(role, 70_000), "special token ids") for role in ROLES},
    "eos id just outside the vocabulary": (add_id("eos", 478), "special token ids"),
    "fewer token types than tokens": (shortened("token_type"), "lists of tokens"),
    "fewer tokens than rows": (shortened("tokens"), "lists of tokens"),
    "one token more than rows": (one_token_more, "shapes"),
    "three scores": (short_scores, "lists of tokens"),
    "a merge of unknown tokens": (changed_merge("qqq zzz"), "merges"),
    "a merge without a space": (changed_merge("ab"), "merges"),
    "no heads": (fields(llama__attention__head_count=0), "sizes"),
    "no key-value heads": (fields(llama__attention__head_count_kv=0), "sizes"),
    "three heads for four": (fields(llama__attention__head_count_kv=3), "heads"),
    "eight heads for four": (fields(llama__attention__head_count=8), "heads|shapes"),
    "too many layers": (fields(llama__block_count=9), "number of layers"),
    "too few layers": (fields(llama__block_count=2), "number of layers"),
    "billions of layers": (fields(llama__block_count=2**32 - 1), "sizes"),
    "a wider embedding": (fields(llama__embedding_length=4096), "shapes"),
    "a wider MLP": (fields(llama__feed_forward_length=320), "shapes"),
    "another vocabulary size": (fields(llama__vocab_size=100_000), "shapes"),
    "rope over an odd number of columns": (fields(llama__rope__dimension_count=15), "heads"),
    "rope over more columns than there are": (fields(llama__rope__dimension_count=512), "heads"),
    "no context": (fields(llama__context_length=0), "sizes"),
    "a norm epsilon that is no number": (fields(llama__attention__layer_norm_rms_epsilon=float("nan")), "sizes"),
    "NaN in the scale of a Q8_0 block": (broken_block("blk.1.ffn_down.weight"), "finite weights"),
    "NaN in a float": (broken_block("output_norm.weight"), "finite weights"),
    "NaN in the embedding": (broken_block("token_embd.weight"), "finite weights"),
    **{f"the tensors of llama called {name}": (architecture(name), "") for name in ("gemma3", "mamba", "bert", "t5", "clip")},
}  # fmt: skip
TEMPLATES = {"doubles a text": MEMORY_BOMB, "never ends": ENDLESS, "recurses": RECURSIVE}
