"""From a Hugging Face tokenizer to the vocabulary of a GGUF file.

llama.cpp has three kinds that fit: `gpt2` (byte-level BPE, whose splitting rule has a name), `gemma4` (BPE on text with a
byte fallback, without a leading space) and `llama` (the same with a leading space, merging by scores). The rules are read
from the tokenizer that transformers builds, because the model was tuned with it and it does not always follow
`tokenizer.json`. A rule without an exact counterpart is refused by name, never guessed.

The file holds what llama.cpp's own converter writes (`get_vocab_base` in `conversion/base.py`), except for this:

- The converter makes an added token a control token when its text looks like one (`<|fim_prefix|>`, `<unused0>`),
  although the tokenizer does not. llama.cpp does not show control tokens and transformers shows these, so they stay
  user-defined here. (llama.cpp still makes some of them control tokens when it opens the file.)
- For Gemma's vocabulary the converter writes the kind `gpt2` with the splitting rule `granite-embed-multi-311m` and the
  byte tokens as normal ones, or, from `tokenizer.model`, the kind `llama` with scores. llama.cpp splits text in the same
  way for the rule `gemma4`; its scores give other merges for some texts than the list of merges in `tokenizer.json`.
- The converter names one token that ends an answer. Here all of them are named, as EOS, EOT and EOM, because llama.cpp
  adds only those that it knows by their text.
- In a byte-level vocabulary the converter writes `▁` in user-defined tokens as a space. There it is a character like any
  other, and it stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from edgekit.base.errors import CorruptError, UnsupportedError
from edgekit.models.source import NAMES_ALL_STOPS, UNICODE_FORM
from edgekit.models.tokenizer import load_tokenizer
from edgekit.models.words import GPT2_PATTERN, GPT4O, TEKKEN, pattern_of, steps

DIGIT = r"\p{N}"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK3_LAST = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", DEEPSEEK3_LAST)
# llama.cpp's name for a list of splitting patterns, applied in order, and for whether whole words skip the merges.
PRE_TOKENIZERS = {
    ((GPT2_PATTERN,), False): "gpt-2",
    ((DIGIT, GPT2_PATTERN), False): "smollm",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "smaug-bpe",
    ((QWEN2,), False): "qwen2",
    (DEEPSEEK3, False): "deepseek-v3",
    ((TEKKEN,), True): "tekken",
    ((GPT4O,), False): "gpt-4o",
    # llama.cpp merges whole words too; every word of GPT-OSS's vocabulary is what its merges give.
    ((GPT4O,), True): "gpt-4o",
}
SPACE = "\u2581"
NOT_STRIPPING = {"<unk>", "<s>", "<|endoftext|>"}  # of the special tokens of Phi-3 (llama-vocab.cpp)
UNWRITTEN = "No GGUF file was written."
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "mask")


@dataclass(frozen=True)
class Tokens:
    """A GGUF file's tokens and rules, in the order of token ids; `merges` in the order of their rank."""

    model: str
    pre: str
    texts: list[str]
    types: list[gguf.TokenType]
    merges: list[str]
    scores: list[float]
    unicode_form: str
    """`NFC` when text must be normalised to NFC first, which llama.cpp does not do; else empty."""
    strips: bool
    """Whether special tokens take the spaces after them, which llama.cpp does for models with Phi-3 in their name."""


@dataclass(frozen=True)
class Vocabulary:
    """A GGUF file's tokenizer: its tokens, the special ones among them, and the chat template."""

    tokens: Tokens
    special_ids: dict[str, int]
    add_bos: bool
    add_eos: bool
    chat_template: str | list[dict[str, str]] | None

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Add the tokenizer's keys to the file."""
        tokens = self.tokens
        writer.add_tokenizer_model(tokens.model)
        writer.add_tokenizer_pre(tokens.pre)
        writer.add_token_list(tokens.texts)
        writer.add_token_types(tokens.types)
        if tokens.scores:
            writer.add_token_scores(tokens.scores)
        if tokens.merges:
            writer.add_token_merges(tokens.merges)
        for kind, token in self.special_ids.items():
            getattr(writer, f"add_{kind}_token_id")(token)
        writer.add_bool(NAMES_ALL_STOPS, True)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if tokens.model != "gpt2":
            writer.add_add_space_prefix(tokens.model == "llama")
        if tokens.unicode_form:
            writer.add_string(UNICODE_FORM, tokens.unicode_form)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """The tokenizer of the Hugging Face `folder`, padded with unused tokens to `rows`, the number of rows of the embedding.

    Raises `UnsupportedError` for a tokenizer that llama.cpp cannot reproduce, `CorruptError` for one that does not fit.
    """
    loaded = _load(folder)
    special_ids, bos, eos = _special_ids(loaded, folder, rows), loaded.bos_token, loaded.eos_token
    template = loaded.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    text = loaded.backend_tokenizer.to_str()
    del loaded  # 100 MiB of a large vocabulary
    rules = json.loads(text)
    tokens = read_tokens(rules, rows)
    framing = _framing(rules)
    if tokens.model == "gemma4" and bos not in framing:
        raise _unsupported("it adds no BOS token, and llama.cpp always adds one for this kind")
    return Vocabulary(
        tokens=tokens,
        special_ids=special_ids,
        add_bos=bos in framing,
        add_eos=eos in framing,
        chat_template=template,
    )


def write_endings(writer: gguf.GGUFWriter, folder: Path) -> None:
    """Add what llama.cpp's converter does not write of the tokenizer in the Hugging Face `folder`, whichever kind it is:
    all tokens that end an answer, and the Unicode form. Raises as `read_vocabulary` does."""
    loaded = _load(folder)
    for kind, token in _special_ids(loaded, folder, len(loaded)).items():
        if kind in ("eos", "eot", "eom"):
            getattr(writer, f"add_{kind}_token_id")(token)
    if form := _unicode_form(json.loads(loaded.backend_tokenizer.to_str())):
        writer.add_string(UNICODE_FORM, form)


def read_tokens(rules: Mapping[str, Any], rows: int) -> Tokens:
    """Tokens and rules from what `tokenizer.json` holds. Raises as `read_vocabulary` does."""
    vocab, merges = rules["model"]["vocab"], _merges(rules["model"])
    added = {token["id"]: token for token in rules["added_tokens"]}
    texts = {i: text for text, i in vocab.items()} | {i: str(token["content"]) for i, token in added.items()}
    if max(texts) >= rows:
        raise CorruptError(
            f"The tokenizer has {max(texts) + 1} tokens and the model's embedding has only {rows} rows.",
            "Use the tokenizer that belongs to this model.",
        )
    model, pre = _kind(rules, merges, vocab)
    scores = _scores(vocab, merges, {texts[i] for i in added}, rows) if model == "llama" else []
    types = [_type(texts.get(i), added.get(i), model) for i in range(rows)]
    filled = [_text(i, texts.get(i), types[i], model) for i in range(rows)]
    if len(set(filled)) != rows:  # llama.cpp aborts the process on such a file
        raise _unsupported("two of its tokens have the same text")
    return Tokens(
        model=model,
        pre=pre,
        texts=filled,
        types=types,
        merges=[] if scores else [" ".join(merge) for merge in merges],
        scores=scores,
        unicode_form=_unicode_form(rules),
        strips=_strips(added.values(), texts, types),
    )


def _strips(
    added: Iterable[Mapping[str, Any]], texts: Mapping[int, str], types: Sequence[gguf.TokenType]
) -> bool:
    """Whether the tokens that take the spaces after them are those of which llama.cpp knows it; raises if others do."""
    taking = {str(token["content"]) for token in added if token.get("rstrip")}
    if not taking:
        return False
    special = {
        text for i, text in texts.items() if types[i] in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)
    }
    other = taking ^ ((special | {"</s>"}) - NOT_STRIPPING)
    if other or not {"</s>", *NOT_STRIPPING} <= set(texts.values()):  # llama.cpp refuses a file without these
        raise _unsupported(
            f"the spaces after its added token {min(other or taking)} (rstrip) have no counterpart"
        )
    return True


def _load(folder: Path) -> Any:
    try:
        loaded = load_tokenizer(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(
            f"transformers cannot read the tokenizer in {folder}: {str(error).splitlines()[0]}",
            "Use the tokenizer files that belong to this model.",
        ) from error
    if not hasattr(loaded, "backend_tokenizer"):
        raise _unsupported(f"{type(loaded).__name__} does not expose its rules")
    return loaded


def _unsupported(why: str) -> UnsupportedError:
    return UnsupportedError(
        f"edgekit cannot write this tokenizer as GGUF: {why}. {UNWRITTEN}",
        "llama.cpp's converter may be able to: edgekit setup converter. Or choose a model with one of the tokenizers of "
        "SmolLM, Llama, Mistral, Qwen, DeepSeek, GPT-2 or Gemma 3.",
    )


def _merges(model: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The merges of a plain BPE model, best first."""
    if model.get("type", "BPE") != "BPE":
        raise _unsupported(f"its model is {model['type']}, not BPE")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _unsupported(f"its BPE model uses {key}")
    merges = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    if any(" " in piece for merge in merges for piece in merge):
        raise _unsupported("its merges contain plain spaces")
    return merges


def _unicode_form(rules: Mapping[str, Any]) -> str:
    return "NFC" if {"type": "NFC"} in steps(rules.get("normalizer"), "normalizers") else ""


def _kind(
    rules: Mapping[str, Any], merges: Sequence[tuple[str, ...]], vocab: Mapping[str, int]
) -> tuple[str, str]:
    """The GGUF tokenizer model, and the name of its pre-tokenizer."""
    if rules["model"].get("byte_fallback"):
        return _sentencepiece_kind(rules, merges, vocab)
    return "gpt2", _pre_tokenizer(rules)


def _pre_tokenizer(rules: Mapping[str, Any]) -> str:
    """llama.cpp's name for a byte-level tokenizer's splitting rule.

    Qwen's NFC normalizer is accepted. llama.cpp has no counterpart, so text that is not in NFC gets other ids there; the
    file records the form (`UNICODE_FORM`), so that a caller can normalise the text first.
    """
    for step in steps(rules.get("normalizer"), "normalizers"):
        if step["type"] != "NFC":
            raise _unsupported(f"its normalizer {step['type']} has no counterpart")
    patterns: list[str] = []
    splitting = steps(rules.get("pre_tokenizer"), "pretokenizers")
    for step in splitting:
        if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            patterns += [GPT2_PATTERN] if step.get("use_regex", True) else []
        elif step["type"] == "Digits" and step["individual_digits"]:
            patterns.append(DIGIT)
        elif pattern := pattern_of(step):
            patterns.append(pattern)
        else:
            raise _unsupported(f"its pre-tokenizer {json.dumps(step)} has no counterpart")
    if not splitting or splitting[-1]["type"] != "ByteLevel":
        raise _unsupported("its pre-tokenizer does not end in ByteLevel")
    whole_words = bool(rules["model"].get("ignore_merges"))
    if (name := PRE_TOKENIZERS.get((tuple(patterns), whole_words))) is None:
        raise _unsupported(
            f"its splitting rule {patterns} (ignore_merges {whole_words}) has no name in llama.cpp"
        )
    return name


def _sentencepiece_kind(
    rules: Mapping[str, Any], merges: Sequence[tuple[str, ...]], vocab: Mapping[str, int]
) -> tuple[str, str]:
    """The same for BPE on text with a byte fallback: `llama` when it adds a leading space, else `gemma4`."""
    if missing := {f"<0x{byte:02X}>" for byte in range(256)} - vocab.keys():
        raise _unsupported(f"its byte fallback lacks {len(missing)} of the 256 bytes")
    if rules["model"].get("ignore_merges"):
        raise _unsupported("it uses ignore_merges together with a byte fallback")
    spaces: list[str] = []
    for step in steps(rules.get("normalizer"), "normalizers"):
        if step["type"] == "Replace" and (step["pattern"].get("String"), step["content"]) == (" ", SPACE):
            spaces.append("replace")
        elif step["type"] == "Prepend" and step["prepend"] == SPACE:
            spaces.append("prepend")
        else:
            raise _unsupported(f"its normalizer {json.dumps(step)} has no counterpart")
    for step in steps(rules.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace" and step["replacement"] == SPACE and not step.get("split", True):
            spaces += {"always": ["prepend"], "never": []}.get(
                step["prepend_scheme"], [step["prepend_scheme"]]
            )
            spaces.append("replace")
        elif not (
            step["type"] == "Split" and step["pattern"].get("String") == " " and spaces[-1:] == ["replace"]
        ):
            raise _unsupported(f"its pre-tokenizer {json.dumps(step)} has no counterpart")
    if spaces == ["prepend", "replace"]:
        return "llama", "default"
    if spaces != ["replace"]:
        raise _unsupported(
            f"its rule for the leading space ({', '.join(spaces) or 'none'}) has no counterpart"
        )
    if any("\n" in piece and piece.strip("\n") for merge in merges for piece in merge):
        raise _unsupported("its merges join newlines with other characters")
    return "gemma4", "gemma4"


def _scores(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, ...]], specials: set[str], rows: int
) -> list[float]:
    """A score for each token such that merging by score is merging by rank.

    SentencePiece joins any two neighbours whose union is a token, best score first, then leftmost. That equals a list of
    merges when every way of merging into a token is in the list and the merges into one token are adjacent. Merges into
    runs of one character (spaces) may be interleaved: they share a score, and leftmost first gives the same runs.
    """
    pairs = set(merges)
    for text in vocab.keys() - specials:
        splits = ((text[:i], text[i:]) for i in range(1, len(text)))
        if any(left in vocab and right in vocab and (left, right) not in pairs for left, right in splits):
            raise _unsupported(
                f"one way of merging into '{text}' is not in its merges, which scores cannot express"
            )
    last = {left + right: rank for rank, (left, right) in enumerate(merges)}
    equals: list[set[str]] = []
    reach = -1
    for rank, (left, right) in enumerate(merges):
        if rank > reach:
            equals.append(set())
        equals[-1].add(left + right)
        reach = max(reach, last[left + right])
    scores = [0.0] * rows
    for place, pieces in enumerate(equals):
        if len(pieces) > 1 and len(set("".join(pieces))) > 1:
            raise _unsupported(
                f"merges into {sorted(pieces)[:2]} are interleaved, which scores cannot express"
            )
        for piece in pieces:
            scores[vocab[piece]] = -1.0 - place
    return scores


def _text(token: int, text: str | None, kind: gguf.TokenType, model: str) -> str:
    """The text of a token in the file. llama.cpp finds user-defined tokens in the text as it was given, and shows them
    as they are, so the spaces in them are spaces and not `▁`."""
    if text is None:
        return f"[PAD{token}]"
    return text.replace(SPACE, " ") if kind == gguf.TokenType.USER_DEFINED and model != "gpt2" else text


def _type(text: str | None, added: Mapping[str, Any] | None, model: str) -> gguf.TokenType:
    if text is None:
        return gguf.TokenType.UNUSED
    if added:
        for option in ("lstrip", "single_word"):
            if added.get(option):
                raise _unsupported(f"its added token {text} uses {option}")
        if model != "gpt2" and SPACE in text and added.get("normalized"):
            raise _unsupported(f"its added token {text} is matched after normalization")
        return gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    is_byte = model != "gpt2" and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    return gguf.TokenType.BYTE if is_byte else gguf.TokenType.NORMAL


def _special_ids(loaded: Any, folder: Path, rows: int) -> dict[str, int]:
    """Ids of the special tokens, from the tokenizer or else from the model's config.

    A file can name three tokens that end an answer (EOS, EOT and EOM); all of the model's must be among them.
    """
    config, generation = (_read(folder / name) for name in ("config.json", "generation_config.json"))
    ids: dict[str, int] = {}
    for kind in SPECIAL:
        own = getattr(loaded, f"{kind}_token_id")
        token = config.get(f"{kind}_token_id") if own is None else own
        if isinstance(token, int) and 0 <= token < rows:
            ids[kind] = token
    named = [part.get("eos_token_id") for part in (generation, config)]
    given: int | list[int] = next((stop for stop in named if stop is not None), [])
    stops = [given] if isinstance(given, int) else list(dict.fromkeys(given))
    if len(stops) > 3:
        raise _unsupported(f"answers end at the tokens {stops}, more than a GGUF file can name")
    if stops and ids.get("eos") not in stops:
        ids["eos"] = stops[0]
    others = [token for token in stops if token != ids["eos"]]
    return ids | dict(zip(("eot", "eom"), others, strict=False))


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return value


def _framing(rules: Mapping[str, Any]) -> set[str]:
    """The special tokens that the tokenizer adds around a text."""
    framing = steps(rules.get("post_processor"), "processors")
    parts = [part for step in framing for part in step.get("single", [])]
    return {part["SpecialToken"]["id"] for part in parts if "SpecialToken" in part}
