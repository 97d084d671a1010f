"""Hugging Face folders answered by transformers in torch: the reference that exported files are held against."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from edgekit.base.errors import CorruptError, reason
from edgekit.base.memory import give_back
from edgekit.models import accelerator, mapped
from edgekit.models.chat import ChatTemplate
from edgekit.models.sampling import Sampling
from edgekit.models.shape import ANSWERS_CACHE
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.registry import LogitsProcessor, Runtime
from edgekit.runtimes.checks import check_fits, check_ids

BATCH = 32  # answers computed together
SHARED = 256  # tokens of a common beginning from which on it is computed once


def open_model(path: Path, *, threads: int = 2, context: int = 2048, adapter: Path | None = None) -> Runtime:
    """Open the Hugging Face folder `path` in float32, with a PEFT adapter on top unmerged when one is given.

    Weights of 16 bits stay in their files and are widened as they are used, unless the float32 model fits well into memory:
    `edgekit.models.mapped`.

    An answer and its prompt may take `context` tokens together, and no more than the model was made for. Raises `CorruptError` when the weights cannot be read or do not fit the config.
    """
    torch.set_num_threads(threads)
    try:
        model: Any = mapped.load(path)
        if not torch.cuda.is_available():  # a GPU widens quickly, and has less memory
            mapped.widen_where_it_fits(model)
        # A folder's own sampling defaults, such as a repetition penalty, would bend greedy answers.
        model.generation_config = GenerationConfig()
        if adapter is not None:
            model = mapped.with_adapter(model, adapter)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CorruptError(
            f"{path} cannot be opened: {reason(error).splitlines()[0]}", "Check the folder."
        ) from error
    return TorchModel(accelerator.place(model.eval()), ModelTokenizer(path), context)


class TorchModel:
    """A causal language model in float32, on a GPU with room for it or the CPU; see `edgekit.registry.Runtime`."""

    name = "torch"

    def __init__(self, model: Any, tokenizer: ModelTokenizer, context: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._context = min(context, getattr(model.config, "max_position_embeddings", None) or context)

    @property
    def vocab_size(self) -> int:
        """V, the number of logits for one position."""
        return int(self._model.config.vocab_size)

    @property
    def chat_template(self) -> ChatTemplate:
        """The folder's chat template."""
        return self._tokenizer.chat_template

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids at which the folder's configuration stops an answer."""
        return self._tokenizer.stop_ids

    @property
    def control_tokens(self) -> frozenset[str]:
        """The texts of the tokens that the folder's tokenizer marks as special."""
        added = self._tokenizer.tokenizer.added_tokens_decoder.values()
        return frozenset(str(token) for token in added if token.special)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`: special tokens in it are recognised, none are added."""
        return self._tokenizer.encode(text)

    def framed(self, text: str) -> list[int]:
        """Token ids of `text` with the special tokens that the tokenizer adds to plain text."""
        return self._tokenizer.framed(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        return self._tokenizer.decode(ids)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """Next-token logits after each of `ids` from position `first` on, `(T - first, V)`, from an empty context."""
        self._check(ids)
        kept = len(ids) - first
        found = self._model(input_ids=self._ids([ids]), use_cache=False, logits_to_keep=kept).logits[
            0, -kept:
        ]
        rows: NDArray[np.float32] = found.float().cpu().numpy()
        return rows

    @torch.inference_mode()
    def hidden_state(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The hidden state `(D,)` after the last layer and its norm, at the last of `ids`."""
        self._check(ids)
        found = self._model(
            input_ids=self._ids([ids]), use_cache=False, output_hidden_states=True, logits_to_keep=1
        )
        state: NDArray[np.float32] = found.hidden_states[-1][0, -1].float().cpu().numpy()
        return state

    def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling = Sampling(), *,
        ignore_stop: bool = False, process: LogitsProcessor | None = None,
    ) -> Iterator[int]:  # fmt: skip
        """Token ids after the prompt `ids`, one by one, without the stop id that ends them."""
        self._check(ids, max_tokens)
        generator = torch.Generator().manual_seed(sampling.seed)
        step, cache = self._ids([ids]), None
        answer: list[int] = []
        while len(answer) < max_tokens:
            with torch.inference_mode():
                found = self._model(input_ids=step, past_key_values=cache, use_cache=True)
            cache = found.past_key_values
            logits = found.logits[0, -1].float().cpu()
            if process is not None:
                process(answer, logits.numpy())
            token = _choose(logits, sampling, generator)
            if token in self.stop_ids and not ignore_stop:
                return
            answer.append(token)
            yield token
            step = self._ids([[token]])

    @torch.inference_mode()
    def generate_batch(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Greedy answers to many prompts, padded behind their common beginning and computed together.

        A long common beginning, such as the examples of a few-shot prompt, is computed once.
        """
        for prompt in prompts:
            self._check(prompt, max_tokens)
        stops = sorted(self.stop_ids)
        shared = _common(prompts) if self._sees_all() else 0
        begun = self._begin(prompts[0][:shared]) if shared else None
        answers: list[list[int]] = []
        size = self._together(max(map(len, prompts), default=0) + max_tokens)
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            longest = max(map(len, part))
            gaps = [longest - len(ids) for ids in part]
            padded = [
                [*ids[:shared], *[stops[0]] * gap, *ids[shared:]] for ids, gap in zip(part, gaps, strict=True)
            ]
            mask = [[1] * shared + [0] * gap + [1] * (longest - shared - gap) for gap in gaps]
            cache = copy.deepcopy(begun)
            if cache is not None:
                cache.batch_repeat_interleave(len(part))
            found = self._model.generate(
                input_ids=self._ids(padded), attention_mask=self._ids(mask), max_new_tokens=max_tokens,
                past_key_values=cache, do_sample=False, eos_token_id=stops, pad_token_id=stops[0],
                temperature=None, top_p=None, top_k=None,
            )  # fmt: skip
            answers += [_until_stop(row, self.stop_ids) for row in found[:, longest:].tolist()]
        return answers

    def _together(self, tokens: int) -> int:
        """How many answers of up to `tokens` tokens, the prompt included, are computed together."""
        config = self._model.config.get_text_config()
        heads = config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        one: int = 2 * 4 * config.num_hidden_layers * key_heads * head_size * tokens  # bytes in float32
        return min(BATCH, max(1, ANSWERS_CACHE // one))

    def _sees_all(self) -> bool:
        """Whether every layer attends to all tokens: a sliding window would count the padding between as tokens."""
        layers = DynamicCache(config=self._model.config).layers
        return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)

    def _begin(self, ids: Sequence[int]) -> DynamicCache:
        """The keys and values of a common beginning."""
        with torch.inference_mode():
            cache: DynamicCache = self._model(self._ids([ids]), use_cache=True).past_key_values
        return cache

    def _ids(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        return accelerator.ids_for(self._model, rows)

    def _check(self, prompt: Sequence[int], max_tokens: int = 0) -> None:
        check_fits(len(prompt), max_tokens, self._context)
        check_ids(prompt, self.vocab_size)

    def close(self) -> None:
        """Free the model, whose modules refer to each other in circles, so that its files are no longer mapped."""
        vars(self).pop("_model", None)
        give_back()


def _choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.greedy:
        return int(logits.argmax())
    chances, order = torch.softmax(logits.float() / sampling.temperature, -1).sort(descending=True)
    chances[chances.cumsum(-1) - chances >= sampling.top_p] = 0.0
    return int(order[torch.multinomial(chances, 1, generator=generator)])


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """The length of the beginning that all prompts share; 0 where it is too short to be worth a cache of its own.

    The last token of each prompt is never part of it, because an answer starts from its logits.
    """
    if len(prompts) < 2:
        return 0
    begun = commonprefix([list(ids) for ids in prompts])
    length = min(len(begun), min(map(len, prompts)) - 1)
    return length if length >= SHARED else 0


def _until_stop(ids: list[int], stops: frozenset[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]
