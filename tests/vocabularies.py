"""Small tokenizers of every kind that a GGUF file can hold, trained in an instant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from edgekit.export.gguf import vocab as gguf_vocab
from edgekit.models import words

TEXT = [
    "The pump in hall 12 shows 3.5 bar; it's 1999 or 2024, we'll see. They'RE loud, DON'T touch.",
    "Der Wärmetauscher läuft mit 75 °C, la pompe à chaleur s'arrête à 08:30, la válvula número 7.",
    "def read(x):\n    if x  > 10:\n\t\treturn x ** 2\n\n\n    return   None\r\n",
    "Приёмник 42, 温度は 37 度です。 مضخة ١٢ 🚀🚀 👩‍🔧 ½ Ⅻ x² …  “quoted”   spaces     end",
]
# Words that runtimes split otherwise than the rules by case, often enough to be merged by these.
BY_CASE = ["x;\n// ÜBER ÉCOLE ÜBER; ÉCOLE", "مَضَخَّة e\u0301te\u0301;\n// He'll Ankara'daki"] * 3
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def _split(*patterns: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
PRE_TOKENIZERS = {
    "gpt-2": BYTE_LEVEL,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]),
    "llama-bpe": _split(gguf_vocab.LLAMA3),
    "smaug-bpe": _split(gguf_vocab.LLAMA3),
    "qwen2": _split(gguf_vocab.QWEN2),
    "deepseek-v3": _split(*gguf_vocab.DEEPSEEK3),
    "tekken": _split(words.TEKKEN),
    "gpt-4o": _split(words.GPT4O),
}


def byte_level(kind: str = "gpt-2") -> Tokenizer:
    """Byte-level BPE that splits text as llama.cpp's `kind`."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind in ("llama-bpe", "tekken")))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[kind]
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT * 3 + (BY_CASE if kind in ("tekken", "gpt-4o") else []),
        trainers.BpeTrainer(
            vocab_size=520, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return tokenizer


def sentencepiece(space_in_front: bool) -> Tokenizer:
    """BPE on text with a byte fallback, its merges generated from the pieces as transformers does it."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    trained.train_from_iterator(TEXT * 3, trainers.BpeTrainer(vocab_size=420, show_progress=False))
    pieces = sorted(trained.get_vocab(), key=trained.token_to_id)
    fixed = ["<unk>", "<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {piece: i for i, piece in enumerate([*fixed, *pieces])}
    merges = generate_merges(vocab, {piece: -float(i) for i, piece in enumerate(pieces)})
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), replace]) if space_in_front else replace
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        "<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    tokenizer.add_special_tokens(fixed[:3])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, **settings: Any) -> Path:
    """Write the tokenizer, with `settings` such as `bos_token`, to the new `folder`."""
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)
    return folder


def write_gguf(vocabulary: gguf_vocab.Vocabulary, file: Path) -> None:
    """A file with a tokenizer and no tensors."""
    writer = gguf.GGUFWriter(file, "llama")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{key}")(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary.tokens.texts))
    vocabulary.write(writer)
    if vocabulary.tokens.strips:
        writer.add_name("Phi-3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def for_transformers(kind: str = "gpt-2") -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of this kind that a model folder can be saved with."""
    names = {
        "unk_token": SPECIAL[0],
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[2],
    }
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(kind), **names)
