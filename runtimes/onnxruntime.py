"""ONNX folders answered by onnxruntime-genai, with the tokenizer that onnxruntime-genai itself brings.

Source of every call: <https://onnxruntime.ai/docs/genai/api/python.html>.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
from numpy.typing import NDArray

from edgekit.base.errors import ConfigError, CorruptError
from edgekit.models.chat import ChatTemplate
from edgekit.models.likelihood import answer_likelihood
from edgekit.models.onnx_folder import AGAIN, check_onnx_folder
from edgekit.models.sampling import Sampling
from edgekit.registry import LogitsProcessor, Runtime
from edgekit.runtimes import adapters
from edgekit.runtimes.checks import check_fits, check_ids
from edgekit.runtimes.onnxtext import OnnxText

BATCH = 8  # answers computed together
BATCH_CELLS = 8192  # tokens of KV cache for all of them
NO_PAD = (
    -1
)  # onnxruntime-genai takes pad ids at a prompt's end for padding, and a model's own may well stand there


def open_model(path: Path, *, threads: int = 2, context: int = 2048) -> Runtime:
    """Open the folder `path`; an answer and its prompt may take `context` tokens together.

    Raises `CorruptError` when a file is missing, cut off or malformed, or asks for native code to be loaded.
    """
    if not path.is_dir():
        raise ConfigError(f"There is no folder {path}.", "Give an onnxruntime-genai folder.")
    config = check_onnx_folder(path)
    origin = adapters.read_origin(path)
    try:
        text = OnnxText(path)
        og.disable_telemetry_events()
        genai = og.Config(str(path))
        genai.clear_providers()  # the processor, whatever the folder asks for
        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1, "log_severity_level": 4}
        genai.overlay(
            json.dumps({"model": {"pad_token_id": NO_PAD, "decoder": {"session_options": session}}})
        )
        model = og.Model(genai)
        return OnnxRuntime(model, og.Tokenizer(model), text, config, context, origin)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CorruptError(f"onnxruntime-genai could not load {path}: {reason}", AGAIN) from error


class OnnxRuntime:
    """An ONNX folder in onnxruntime-genai on the processor; see `edgekit.registry.Runtime`."""

    name = "onnxruntime"

    def __init__(
        self,
        model: og.Model,
        tokenizer: og.Tokenizer,
        text: OnnxText,
        config: dict[str, Any],
        context: int,
        origin: adapters.Origin,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._text = text
        self._context = min(context, config["context_length"])
        self._vocab_size: int = config["vocab_size"]
        stops: int | list[int] = config["eos_token_id"]
        self._stop_ids = frozenset([stops] if isinstance(stops, int) else stops)
        self._window = _window(config)
        self._origin = origin
        self._adapters = og.Adapters(model)
        self._loaded: set[str] = set()
        self._adapter: str | None = None

    @property
    def vocab_size(self) -> int:
        """V, the number of logits for one position."""
        return self._vocab_size

    @property
    def chat_template(self) -> ChatTemplate:
        """The folder's chat template; raises `ConfigError` when it carries none."""
        if self._text.chat_template is None:
            raise ConfigError("The ONNX folder has no chat template.", "Export it from a model that has one.")
        return self._text.chat_template

    @property
    def stop_ids(self) -> frozenset[int]:
        """The `eos_token_id` of genai_config.json."""
        return self._stop_ids

    @property
    def control_tokens(self) -> frozenset[str]:
        """The texts of the tokens that tokenizer.json marks as special."""
        return self._text.control_tokens

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`: special tokens in it are recognised, none are added."""
        if (whole := self._text.whole(text)) is not None:
            return whole
        ids: list[int] = []
        for part in self._text.parts(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                found = self._tokenizer.encode(self._text.before_encoding(part)).tolist()
                ids += self._text.after_encoding(part, found)
        return ids

    def framed(self, text: str) -> list[int]:
        """Token ids of `text` as onnxruntime-genai gives them with `add_special_tokens`."""
        self._tokenizer.update_options(add_special_tokens="true")
        try:
            return [int(id_) for id_ in self._tokenizer.encode(text)]
        finally:
            self._tokenizer.update_options(add_special_tokens="false")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out; bytes that are not UTF-8 become U+FFFD."""
        check_ids(ids, self.vocab_size)
        if self._text.pieces is not None:
            return self._text.decode(ids)
        plain = [id_ for id_ in ids if id_ not in self._text.special]
        return str(self._tokenizer.decode(np.asarray(plain, np.int32))) if plain else ""

    def logits(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """Next-token logits after each of `ids` from position `first` on, `(T - first, V)`, from an empty context."""
        rows: NDArray[np.float32] = self._generator([ids], 0).get_output("logits")[0][first:]
        return rows

    def score_answers(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """The log-likelihood in nats of each of `answers`, each with a stop id after it, as the answer to `prompt`.

        The prompt is computed once, and the generator goes back to its end after each answer. A cache that is limited to a
        window has then lost its beginning, so such a model computes the prompt with each answer.
        """
        longest, stops, found = max(map(len, answers), default=0), sorted(self._stop_ids), []
        generator = self._generator([prompt], longest)
        first = np.array(generator.get_output("logits")[0][-1:], np.float32)
        for answer in answers:
            check_ids(answer, self.vocab_size)
            if not answer:
                rows = first
            elif self._window:
                rows = self.logits([*prompt, *answer], len(prompt) - 1)
            else:
                generator.rewind_to(len(prompt))
                generator.append_tokens(np.array([answer], np.int32))
                rows = np.concatenate([first, generator.get_output("logits")[0]])
            found.append(answer_likelihood(rows, answer, stops))
        return found

    def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling = Sampling(), *,
        ignore_stop: bool = False, process: LogitsProcessor | None = None,
    ) -> Iterator[int]:  # fmt: skip
        """Token ids after the prompt `ids`, one by one, without the stop id that ends them.

        With `ignore_stop` a stop id is never chosen, so that `max_tokens` come.
        """
        generator = self._generator([ids], max_tokens, sampling, ignore_stop)
        answer: list[int] = []
        while len(answer) < max_tokens:
            if process is not None:
                row = np.array(generator.get_logits(), np.float32)
                process(answer, row.reshape(-1))
                generator.set_logits(row)
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            if token in self._stop_ids:
                return
            answer.append(token)
            yield token

    def generate_batch(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Greedy answers to many prompts, up to eight computed together, prompts of like length side by side.

        Shorter prompts are padded on the right, which onnxruntime-genai leaves out again. A token computed beside
        others is rounded differently in its last bits, so an answer can differ from `generate`'s where two tokens
        are almost equally likely. Caches that are limited to a window take one prompt at a time.
        """
        answers: list[list[int]] = [[] for _ in prompts]
        waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        while waiting:
            longest = len(prompts[waiting[-1]]) + max_tokens
            size = 1 if self._window else min(BATCH, max(1, BATCH_CELLS // longest))
            group, waiting = waiting[-size:], waiting[:-size]
            found = self._answers([prompts[index] for index in group], max_tokens)
            for index, answer in zip(group, found, strict=True):
                answers[index] = answer
        return answers

    def _answers(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        generator = self._generator(prompts, max_tokens)
        answers: list[list[int]] = [[] for _ in prompts]
        running = set(range(len(prompts)))
        for _ in range(max_tokens):
            generator.generate_next_token()
            tokens = generator.get_next_tokens().tolist()
            running = {row for row in running if tokens[row] not in self._stop_ids}
            for row in running:
                answers[row].append(tokens[row])
            if not running:
                break
        return answers

    def _generator(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        sampling: Sampling = Sampling(),
        ignore_stop: bool = False,
    ) -> og.Generator:
        """A generator that has read `prompts`; every search option is set, whatever the folder says."""
        longest = max(map(len, prompts))
        for prompt in prompts:
            check_ids(prompt, self.vocab_size)
            check_fits(len(prompt), max_tokens, self._context)
        greedy = sampling.greedy
        params = og.GeneratorParams(self._model)
        params.set_search_options(
            batch_size=len(prompts),
            max_length=max(longest + max_tokens, self._window),
            do_sample=not greedy,
            temperature=1.0 if greedy else sampling.temperature,
            top_p=sampling.top_p,
            top_k=self._vocab_size,  # 0 would leave top_p out
            random_seed=sampling.seed % 0x7FFFFFFF,
            min_length=longest + max_tokens if ignore_stop else 0,
            num_beams=1,
            num_return_sequences=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
        )
        generator = og.Generator(self._model, params)
        if self._adapter is not None:
            generator.set_active_adapter(self._adapters, self._adapter)
        rows = [[*prompt, *[NO_PAD] * (longest - len(prompt))] for prompt in prompts]
        generator.append_tokens(np.array(rows, np.int32))
        return generator

    def use(self, adapter: Path | None) -> None:
        """Answer with the `.onnx_adapter` file `adapter` from now on, with none for None; as in `LlamaCpp.use`."""
        self._adapter = None if adapter is None else self._load(adapter)

    def _load(self, adapter: Path) -> str:
        key = adapters.file_key(adapter)
        if key not in self._loaded:
            adapters.check_onnx(adapter, self._origin)
            try:
                self._adapters.load(str(adapter), key)
            except RuntimeError as error:
                raise CorruptError(
                    f"onnxruntime-genai could not load {adapter}: {error}", "Export the adapter again."
                ) from error
            self._loaded.add(key)
        return key

    def bare(self) -> BareOnnx:
        """The text path of onnxruntime-genai without edgekit."""
        return BareOnnx(self._tokenizer, lambda: self.chat_template)

    def close(self) -> None:
        """Free the model, once answers still under way are done with it."""
        vars(self).pop("_adapters", None)
        vars(self).pop("_model", None)
        vars(self).pop("_tokenizer", None)


def _window(config: Mapping[str, Any]) -> int:
    """The window to which the folder limits the caches of some layers, in tokens; 0 for whole caches.

    Such a cache must be at least as long as the window, and version 0.18 fills it wrongly with prompts of several lengths.
    """
    table = config["decoder"].get("sliding_window")
    size = table.get("window_size") if isinstance(table, dict) else None
    return min(size, int(config["context_length"])) if isinstance(size, int) and size > 0 else 0


class BareOnnx:
    """The text path of onnxruntime-genai's own `Tokenizer`; see `registry.BareText`."""

    def __init__(self, tokenizer: og.Tokenizer, template: Callable[[], ChatTemplate]) -> None:
        self._tokenizer = tokenizer
        self._template = template

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` as `Tokenizer.encode` gives them: -1 for a byte without a token."""
        return [int(id_) for id_ in self._tokenizer.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` as `Tokenizer.decode` gives it."""
        return str(self._tokenizer.decode(np.asarray(ids, np.int32)))

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that `Tokenizer.apply_chat_template` makes of the folder's own template."""
        self._template().render(
            messages, add_generation_prompt=True
        )  # under limits, which onnxruntime-genai has not
        given = json.dumps([dict(message) for message in messages])
        try:
            return str(self._tokenizer.apply_chat_template(given, add_generation_prompt=True))
        except (RuntimeError, UnicodeDecodeError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"onnxruntime-genai refuses the conversation: {reason}", "Check the roles and their order."
            ) from error
