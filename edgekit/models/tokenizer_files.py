"""Reads the tokenizer files of a folder without transformers: token ids, added tokens, roles, chat template.

Some good models have an added token without an embedding row, such as `<image_soft_token>` of Gemma 3 1B (id 262144 of
262144 rows), which only its larger siblings use. It is a fault if a text can produce the id: through the vocabulary, a
role (such as the end of a sequence), the chat template, or a token that is not special. Otherwise edgekit removes the
token, as llama.cpp's converter does, and reads its characters as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError, CorruptError
from edgekit.data.rows import Message
from edgekit.models.chat import ChatTemplate

HINT = "Get the folder again from its source; its files belong to different models or are damaged."
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
DEFAULT = "default"  # the template that is used where a tokenizer has several, as in transformers
UNUSED_LIMIT = 1000  # added tokens without an embedding; good files have a few
DIGITS = 20  # maximum length of a token id that is a key
CONVERSATIONS: tuple[tuple[list[Message], bool], ...] = (
    ([{"role": "user", "content": "Hello"}], True),
    ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}], True),
    ([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}], False),
)


@dataclass(frozen=True)
class AddedToken:
    """A token in addition to the vocabulary. `id` is unchecked and may not be a number."""

    text: str
    id: Any
    special: bool


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when there is no such file. Raises `CorruptError` for anything else."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptError(f"{file} cannot be read: {str(error)[:120]}.", HINT) from error
    if not isinstance(found, dict):
        raise CorruptError(f"{file} is not a JSON object.", HINT)
    return found


def chat_template(folder: Path) -> ChatTemplate | None:
    """The folder's chat template; of several the one named `default`. None if it has none."""
    config, file = read_object(folder / "tokenizer_config.json"), folder / "chat_template.jinja"
    try:
        source = file.read_text(encoding="utf-8") if file.is_file() else _default(config.get("chat_template"))
    except (OSError, ValueError) as error:
        raise CorruptError(f"{file} cannot be read: {str(error)[:120]}.", HINT) from error
    if not isinstance(source, str):
        return None
    return ChatTemplate(source, *(_text(config.get(name)) for name in ("bos_token", "eos_token")))


def _default(given: Any) -> Any:
    """Of a list of named templates, as in tokenizer_config.json, the default one."""
    if not isinstance(given, list):
        return given
    named = (each for each in given if isinstance(each, dict))
    return next((each.get("template") for each in named if each.get("name") == DEFAULT), None)


def template_names(folder: Path) -> list[str]:
    """The names of the folder's chat templates, the default one first; empty if it has none."""
    given = read_object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(given, list):
        names = [str(each.get("name")) for each in given if isinstance(each, dict)]
    else:
        names = [DEFAULT] if given is not None or (folder / "chat_template.jinja").is_file() else []
    more = sorted(file.stem for file in (folder / "additional_chat_templates").glob("*.jinja"))
    return sorted(dict.fromkeys([*names, *more]), key=lambda name: name != DEFAULT)


def printed(template: ChatTemplate | None) -> str:
    """The concatenated output of a chat template for plain conversations.

    Raises `CorruptError` when it exceeds the limits; conversations that it refuses are left out.
    """
    texts: list[str] = []
    if template is None:
        return ""
    for messages, prompt in CONVERSATIONS:
        with suppress(ConfigError):
            texts.append(template.render(messages, add_generation_prompt=prompt))
    return "".join(texts)


def size_of_vocabulary(folder: Path) -> int | None:
    """The number of embedding rows of the folder's model, from its settings; None if they do not say."""
    config = read_object(folder / "config.json")
    for table in (config, config.get("text_config"), read_object(folder / "genai_config.json").get("model")):
        if isinstance(table, dict) and type(size := table.get("vocab_size")) is int:
            return size
    return None


def faults(folder: Path, rows: int, prompts: str) -> Iterator[str]:
    """A description of each token id at or above `rows` that a text can produce; `prompts` is from `printed`."""
    tokenizer = read_object(folder / "tokenizer.json")
    added = list(added_tokens(folder))
    matched_whole = {(token.text, repr(token.id)) for token in added}
    for text, id_ in _vocabulary(tokenizer):
        if not _within(id_, rows) and (text, repr(id_)) not in matched_whole:
            yield _beyond(id_, text, rows)
    beyond = [token for token in added if not _within(token.id, rows)]
    uses = _Uses.of(folder, tokenizer, prompts) if beyond else None
    for number, token in enumerate(beyond):
        fault = _beyond(token.id, token.text, rows)
        if not _within(token.id, rows + len(added)):  # added tokens have consecutive ids
            yield fault
        elif uses and (why := uses.why(token)):
            yield f"{fault}; {why}"
        elif number == UNUSED_LIMIT:
            yield f"{fault}; {number} other tokens have no row either"


def unused_tokens(folder: Path, rows: int) -> list[AddedToken]:
    """The added tokens beyond `rows`, in a folder without `faults`."""
    return [token for token in added_tokens(folder) if not _within(token.id, rows)]


def warning(folder: Path) -> str:
    """A sentence on the added tokens without an embedding row; empty if there are none."""
    rows = size_of_vocabulary(folder)
    unused = unused_tokens(folder, rows) if rows is not None else []
    if rows is None or not unused:
        return ""
    named = ", ".join(f"{_shown(token.text)} ({token.id})" for token in unused[:3])
    more = ", ..." if len(unused) > 3 else ""
    tokens, them = ("1 token", "it") if len(unused) == 1 else (f"{len(unused)} tokens", "them")
    return (
        f"The tokenizer has {tokens} without an embedding: {named}{more}; the model has {rows} rows. "
        f"Nothing else in the folder refers to {them}."
    )


def without_rows(tokenizer: str, rows: int) -> str:
    """The text of a `tokenizer.json` without the added tokens beyond `rows`."""
    rules = json.loads(tokenizer)
    rules["added_tokens"] = [token for token in rules["added_tokens"] if token["id"] < rows]
    vocabulary = rules["model"]["vocab"]
    if isinstance(vocabulary, dict):
        rules["model"]["vocab"] = {text: id_ for text, id_ in vocabulary.items() if id_ < rows}
    return json.dumps(rules, ensure_ascii=False)


def added_tokens(folder: Path) -> Iterator[AddedToken]:
    """Every added token of the tokenizer files, each once; it is special if all files that mention it agree."""
    found: dict[tuple[str, str], list[tuple[Any, Any]]] = {}

    def note(text: Any, id_: Any, special: Any) -> None:
        found.setdefault((str(text), repr(id_)), []).append((id_, special))

    for token in _list(read_object(folder / "tokenizer.json").get("added_tokens")):
        if isinstance(token, dict) and "id" in token:
            note(token.get("content"), token["id"], token.get("special", False))
    decoder = read_object(folder / "tokenizer_config.json").get("added_tokens_decoder")
    for key, token in decoder.items() if isinstance(decoder, dict) else ():
        id_ = int(key) if key.isdecimal() and len(key) <= DIGITS else key
        fields = token if isinstance(token, dict) else {}
        note(fields.get("content", token), id_, fields.get("special", False))
    for text, id_ in read_object(folder / "added_tokens.json").items():
        note(text, id_, None)
    for (text, _), entries in found.items():
        said = [special for _, special in entries if special is not None]
        yield AddedToken(text, entries[0][0], bool(said) and all(special is True for special in said))


def _vocabulary(tokenizer: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The tokens of the vocabulary with their ids; of a list only the last, which has the largest id."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    elif isinstance(vocabulary, list) and vocabulary:
        yield str(vocabulary[-1])[:40], len(vocabulary) - 1


@dataclass(frozen=True)
class _Uses:
    """What can produce a token, apart from the vocabulary."""

    named: Mapping[str, str]
    """The texts of tokens with a role, each with where it is named."""
    merged: frozenset[str]
    """The results of all merges."""
    frame: str
    """The post-processor, which adds tokens to every text, as JSON."""
    frame_numbers: frozenset[str]
    """The numbers in it, token ids among them."""
    prompts: str
    """What the chat template prints."""

    @classmethod
    def of(cls, folder: Path, tokenizer: Mapping[str, Any], prompts: str) -> _Uses:
        model = tokenizer.get("model")
        model = model if isinstance(model, dict) else {}
        named = {_text(model.get("unk_token")): "tokenizer.json names it as unk_token"}
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            settings = read_object(folder / name)
            named |= {_text(settings.get(role)): f"{name} names it as {role}" for role in ROLES}
        merged = frozenset(_joined(merge) for merge in _list(model.get("merges")))
        frame = json.dumps(tokenizer.get("post_processor"))
        return cls(named, merged, frame, frozenset(re.findall(r"\d+", frame)), prompts)

    def why(self, token: AddedToken) -> str:
        """How a text can produce the token; empty if it cannot."""
        if not token.special:
            return "it is not a special token, so any text may contain it"
        if token.text in self.named:
            return self.named[token.text]
        if token.text in self.merged:
            return "merges join other tokens to it"
        if json.dumps(token.text) in self.frame or str(token.id) in self.frame_numbers:
            return "the post-processor adds it to every text"
        return "the chat template prints it" if token.text in self.prompts else ""


def _within(id_: Any, rows: int) -> bool:
    return type(id_) is int and 0 <= id_ < rows


def _beyond(id_: Any, text: str, rows: int) -> str:
    return f"the tokenizer gives the id {_shown(id_)} to {_shown(text)}, but the model has {rows} rows"


def _text(token: Any) -> str:
    """The text of a token that a settings file holds as a text or as an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _joined(merge: Any) -> str:
    """The result of a merge, which is given as a pair or as two parts separated by a space."""
    return "".join(map(str, merge)) if isinstance(merge, list) else str(merge).replace(" ", "", 1)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _shown(value: object) -> str:
    return ascii(value)[:40]
