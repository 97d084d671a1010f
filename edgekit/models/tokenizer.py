"""The reference tokenizer of a Hugging Face folder: ids, template, added tokens and stop ids, without weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.data.rows import Row
from edgekit.models.chat import ChatTemplate
from edgekit.models.tokenizer_files import DEFAULT, size_of_vocabulary, without_rows
from edgekit.models.words import Approximation, approximations


def load_tokenizer(folder: Path) -> Any:
    """transformers' own tokenizer for `folder`, without the added tokens that the model has no embedding for.

    The characters of such a token are then text, as in a GGUF file, and no text gets an id that torch would fail on.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    rows = size_of_vocabulary(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and rows is not None and max(tokenizer.added_tokens_decoder, default=-1) >= rows:
        from tokenizers import Tokenizer

        # transformers has no way to take a token away
        tokenizer._tokenizer = Tokenizer.from_str(without_rows(backend.to_str(), rows))
    return tokenizer


class ModelTokenizer:
    """The tokenizer of transformers for `folder`; it recognises special tokens in a text and adds none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer: Any = load_tokenizer(folder)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The folder's chat template; of several the one named `default`. None if there is none, as in a base model."""
        source = self.tokenizer.chat_template
        if isinstance(source, dict):
            source = source.get(DEFAULT)
        if not isinstance(source, str):
            return None
        return ChatTemplate(source, self.tokenizer.bos_token or "", self.tokenizer.eos_token or "")

    @property
    def chat_template(self) -> ChatTemplate:
        """The folder's chat template; raises `ConfigError` when it has none."""
        if self.template is None:
            raise ConfigError(
                f"The tokenizer in {self.folder} has no chat template.",
                "Use an instruction-tuned model, or add chat_template.jinja to its folder.",
            )
        return self.template

    def framed(self, text: str) -> list[int]:
        """Token ids of `text` with the special tokens, such as BOS, that the tokenizer adds by itself."""
        ids: list[int] = self.tokenizer(text).input_ids
        return ids

    def framed_as_set(self, text: str) -> list[int]:
        """The same as `tokenizer_config.json` asks for it, which not every tokenizer of transformers follows."""
        settings = json.loads((self.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        plain, begin = self.encode(text), self.begin_ids
        end = self.framed(text)[len(begin) + len(plain) :]
        bos, eos = (settings.get(f"add_{name}_token") for name in ("bos", "eos"))
        if isinstance(bos, bool):
            begin = [self.tokenizer.bos_token_id] if bos else []
        if isinstance(eos, bool):
            end = [self.tokenizer.eos_token_id] if eos else []
        return [*begin, *plain, *end]

    @cached_property
    def approximations(self) -> dict[str, Approximation]:
        """What runtimes make of the tokenizer, by their names, as far as they do not reproduce its rule for words."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return {} if backend is None else approximations(backend)

    @cached_property
    def begin_ids(self) -> list[int]:
        """The ids that the tokenizer adds before a text by itself, such as BOS."""
        whole = self.framed("a")
        plain = self.encode("a")
        starts = range(len(whole) - len(plain) + 1)
        return next((whole[:at] for at in starts if whole[at : at + len(plain)] == plain), [])

    @cached_property
    def added_tokens(self) -> list[str]:
        """Every added token's text, in the order of ids."""
        return [str(token) for _, token in sorted(self.tokenizer.added_tokens_decoder.items())]

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The stop ids of the model's own configuration: of the generation config, else the config, else the tokenizer."""
        for name in ("generation_config.json", "config.json"):
            path = self.folder / name
            stop = json.loads(path.read_text("utf-8")).get("eos_token_id") if path.is_file() else None
            if stop is not None:
                return frozenset([stop] if isinstance(stop, int) else stop)
        return frozenset([self.tokenizer.eos_token_id])

    @property
    def vocab_size(self) -> int:
        """The number of token ids, added tokens included."""
        return len(self.tokenizer)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The id of each token, by the token's text as the tokenizer stores it."""
        found: dict[str, int] = self.tokenizer.get_vocab()
        return found

    def render_ids(self, rows: Iterable[Row]) -> list[list[int]]:
        """Token ids of each row's whole conversation as the template prints it."""
        return [self.encode(self.chat_template.render(row.messages)) for row in rows]
