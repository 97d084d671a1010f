"""A chat template that a person gives to a model: a file, or the built-in ChatML.

A base model has none, and cannot be tuned on conversations without one. The template becomes `chat_template.jinja` of the
model's folder, so tuning, the reference and all exported files have it. The token that ends an answer becomes a stop
token in `generation_config.json` where the model does not have it as one yet.
"""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import TemplateError

from edgekit.base.artifacts import write_json
from edgekit.base.errors import ConfigError, reason
from edgekit.data.rows import Message
from edgekit.models import chat
from edgekit.models.template import LONGEST_SOURCE
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.models.tokenizer_files import read_object

CHATML = "chatml"
START, END = "<|im_start|>", "<|im_end|>"
ANSWER = "At noon."
ASKED: list[Message] = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": ANSWER}]


def read_given(given: str) -> str:
    """The text of the template in the file `given`; the name `chatml` stands for itself, as it depends on the vocabulary.

    Raises `ConfigError` for a file that cannot be read or is no template, and `CorruptError` for one beyond the limits.
    """
    if given.lower() == CHATML:
        return CHATML
    path = Path(given).expanduser()
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST_SOURCE + 1)
    except (OSError, ValueError) as error:
        why = "it is not text in UTF-8" if isinstance(error, ValueError) else reason(error)
        raise ConfigError(
            f"The chat template {given} cannot be read: {why}. Nothing was started.",
            f"Give a file with a Jinja template, or the name {CHATML}.",
        ) from error
    try:
        chat.parse(text)
    except TemplateError as error:
        raise ConfigError(
            f"{given} is not a chat template: {error}. Nothing was started.", "Correct the file."
        ) from error
    if "messages" not in text:
        raise ConfigError(
            f"{given} is not a chat template: it does not use `messages`, so no question would reach the model. "
            "Nothing was started.",
            f"Give a file with a Jinja template, or the name {CHATML}.",
        )
    return text


def give(folder: Path, given: str) -> None:
    """Make `given`, from `read_given`, the only chat template of a model folder, whose files may be links.

    Raises `ConfigError` when the template refuses a conversation or ends an answer with no token that can be a stop
    token, and `CorruptError` when it exceeds the limits.
    """
    tokenizer = ModelTokenizer(folder)
    source = chatml(tokenizer) if given == CHATML else given
    settings = read_object(folder / "tokenizer_config.json")
    if settings.pop("chat_template", None) is not None:
        _replace(folder / "tokenizer_config.json", json.dumps(settings, indent=2, ensure_ascii=False))
    _replace(folder / "chat_template.jinja", source)
    special = tokenizer.tokenizer
    template = chat.ChatTemplate(source, special.bos_token or "", special.eos_token or "")
    stop = end_of_answer(template, tokenizer)
    if stop not in tokenizer.stop_ids:
        generation = read_object(folder / "generation_config.json")
        generation["eos_token_id"] = [*sorted(tokenizer.stop_ids), stop]
        (folder / "generation_config.json").unlink(missing_ok=True)
        write_json(folder / "generation_config.json", generation)


def chatml(tokenizer: ModelTokenizer) -> str:
    """ChatML for a vocabulary.

    Without a token for `<|im_end|>`, the model's own end token ends each message; without one for `<|im_start|>`, that is
    plain text. A text begins with BOS where the tokenizer adds it.
    """
    known = set(tokenizer.added_tokens)
    special = tokenizer.tokenizer
    end = END if END in known else special.eos_token
    if not end:
        raise ConfigError(
            f"The model's vocabulary has neither {END} nor an end token, so {CHATML} cannot end an answer.",
            "Give a template of your own: --chat-template FILE.",
        )
    begin = special.bos_token if tokenizer.begin_ids and special.bos_token else ""
    return (
        (f"{{{{ {json.dumps(begin)} }}}}" if begin else "")
        + "{% for message in messages %}"
        + f"{{{{ '{START}' + message['role'] + '\\n' + message['content'] + {json.dumps(end)} + '\\n' }}}}"
        + "{% endfor %}"
        + f"{{% if add_generation_prompt %}}{{{{ '{START}assistant\\n' }}}}{{% endif %}}"
    )


def told(tokenizer: ModelTokenizer) -> str:
    """A sentence on how ChatML was written for the vocabulary."""
    known = set(tokenizer.added_tokens)
    if {START, END} <= known:
        return f"The model gets the chat template ChatML; {END} ends each message."
    plain = f" {START} is plain text, as the vocabulary has no such token." if START not in known else ""
    end = END if END in known else tokenizer.tokenizer.eos_token
    return f"The model gets the chat template ChatML; {end} ends each message.{plain}"


def end_of_answer(template: chat.ChatTemplate, tokenizer: ModelTokenizer) -> int:
    """The id of the token after an answer: a stop token of the model, else the first special one.

    Raises `ConfigError` when there is neither.
    """
    _, answer = template.prompt_and_answer(ASKED)
    after = tokenizer.encode(answer.rpartition(ANSWER)[2])
    special = set(tokenizer.tokenizer.added_tokens_decoder)
    found = [id_ for id_ in after if id_ in tokenizer.stop_ids] or [id_ for id_ in after if id_ in special]
    if not found:
        raise ConfigError(
            "The chat template prints no special token after an answer; a model tuned with it would never stop.",
            f"Print {tokenizer.tokenizer.eos_token or 'the end token'} after each answer: {{{{ eos_token }}}}.",
        )
    return found[0]


def _replace(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # it may be a link to the model's own file
    path.write_text(text, encoding="utf-8")
