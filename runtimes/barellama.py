"""The text path of llama-cpp-python without edgekit, for comparison with edgekit's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_cpp import Llama, llama_chat_format
from llama_cpp import llama_cpp as lib

from edgekit.base.errors import ConfigError
from edgekit.models.chat import REFUSALS, ChatTemplate


class BareLlamaCpp:
    """The text path of llama-cpp-python's own `Llama`, opened without the weights; see `registry.BareText`."""

    def __init__(self, path: Path, vocab: Any, template: Callable[[], ChatTemplate]) -> None:
        self._llama = Llama(str(path), vocab_only=True, verbose=False)
        self._vocab = vocab
        self._template = template

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` as `Llama.tokenize` gives them."""
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=True))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` as `Llama.create_chat_completion` returns it: bytes that are not UTF-8 are left out."""
        text: str = self._llama.detokenize(list(ids)).decode("utf-8", errors="ignore")
        return text

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that `Llama.create_chat_completion` makes with chat_format="chat_template.default"."""
        template = self._template()
        template.render(messages, add_generation_prompt=True)  # under limits, which `Llama` has not
        bos, eos = (
            "" if id_ < 0 else lib.llama_vocab_get_text(self._vocab, id_).decode()
            for id_ in (self._llama.token_bos(), self._llama.token_eos())
        )
        try:
            formatter = llama_chat_format.Jinja2ChatFormatter(template.source, eos_token=eos, bos_token=bos)
            return str(formatter(messages=[dict(message) for message in messages]).prompt)
        except REFUSALS as error:
            raise ConfigError(
                f"llama-cpp-python refuses the conversation: {error}", "Check the roles and their order."
            ) from error
