"""GGUF files answered by llama.cpp, through the C API that llama-cpp-python exposes.

Source of every call: `llama.h` of llama.cpp, <https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h>.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray

from edgekit.base.errors import ConfigError, CorruptError, StageError
from edgekit.containers.gguf_content import check_gguf
from edgekit.models.chat import ChatTemplate
from edgekit.models.likelihood import answer_likelihood
from edgekit.models.sampling import Sampling
from edgekit.models.source import MERGED, NAMES_ALL_STOPS, SOURCE_DIGEST, UNICODE_FORM
from edgekit.registry import LogitsProcessor, Runtime
from edgekit.runtimes import adapters
from edgekit.runtimes.barellama import BareLlamaCpp
from edgekit.runtimes.checks import check_fits, check_ids, nfc

PREFILL_CHUNK = 512  # tokens in one forward pass, llama.cpp's own default
LOGITS_CHUNK = 128  # rows of logits held twice by llama.cpp: 128 x 50,000 x 4 bytes = 25 MB each
SEQUENCES = 16  # answers decoded together
BATCH_CELLS = 8192  # tokens of KV cache for all of them
LOG_LEVEL_ERROR = 4  # ggml.h: GGML_LOG_LEVEL_ERROR

_errors: deque[str] = deque(maxlen=8)


def _keep_error(level: int, text: bytes, _: object) -> None:
    if level == LOG_LEVEL_ERROR:
        _errors.append(text.decode(errors="replace").strip())


_log_callback = lib.llama_log_callback(_keep_error)  # llama.cpp holds the pointer, so it must live on


def open_model(path: Path, *, threads: int = 2, context: int = 2048) -> Runtime:
    """Open the GGUF file `path`; an answer and its prompt may take `context` tokens together.

    Raises `CorruptError` when the file is not a sound GGUF model or llama.cpp cannot load it, and `UnsupportedError`
    for one part of a model that is split into many: llama.cpp would read the others unchecked.
    """
    layout = check_gguf(path)
    lib.llama_log_set(_log_callback, None)
    lib.llama_backend_init()
    _errors.clear()
    shapes = {name: tensor.shape for name, tensor in layout.tensors.items()}
    return LlamaCpp(_Model(path, shapes), threads, context)


class _Model:
    """The weights and the vocabulary; freed with the last object that refers to them."""

    def __init__(self, path: Path, shapes: adapters.Shapes) -> None:
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        # Weights are repacked for the processor; a mapped file would stay resident beside the copy.
        params.load_mode = lib.LLAMA_LOAD_MODE_NONE
        self.pointer = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.pointer:
            reason = _errors[0] if _errors else "no reason given"
            raise CorruptError(
                f"llama.cpp could not load {path}: {reason}",
                "Export or copy the file again.",
            )
        weakref.finalize(self, lib.llama_model_free, self.pointer)
        self.vocab = lib.llama_model_get_vocab(self.pointer)
        self.vocab_size: int = lib.llama_vocab_n_tokens(self.vocab)
        self.path = path
        self._shapes = shapes
        self.adapters: dict[str, Any] = {}  # llama.cpp frees them with the model

    def adapter(self, path: Path) -> Any:
        """llama.cpp's handle of the adapter file `path`, read once; raises as `adapters.check_gguf`."""
        key = adapters.file_key(path)
        if key not in self.adapters:
            base, merged = (self.metadata(name) for name in (SOURCE_DIGEST, f"edgekit.{MERGED}"))
            adapters.check_gguf(path, self._shapes, base, merged)
            _errors.clear()
            handle = lib.llama_adapter_lora_init(self.pointer, str(path).encode())
            if not handle:
                reason = _errors[0] if _errors else "no reason given"
                raise CorruptError(f"llama.cpp could not load {path}: {reason}", "Export the adapter again.")
            self.adapters[key] = handle
        return self.adapters[key]

    def metadata(self, key: str) -> str | None:
        """The scalar under `key` in the file, as text."""
        length = lib.llama_model_meta_val_str(self.pointer, key.encode(), None, 0)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        lib.llama_model_meta_val_str(self.pointer, key.encode(), buffer, length + 1)
        return buffer.value.decode(errors="replace")

    @property
    def eog_ids(self) -> frozenset[int]:
        """Ids at which llama.cpp's own tools end an answer."""
        return frozenset(i for i in range(self.vocab_size) if lib.llama_vocab_is_eog(self.vocab, i))

    def token_id(self, role: str) -> int | None:
        """The id that the file gives to `role`: bos, eos, eot or eom."""
        text = self.metadata(f"tokenizer.ggml.{role}_token_id")
        return None if text is None else int(text)

    def token_text(self, role: str) -> str:
        """The text of that token, empty when the file names none."""
        token = self.token_id(role)
        return "" if token is None else lib.llama_vocab_get_text(self.vocab, token).decode()


class _Context:
    """A KV cache of `cells` tokens in all for `sequences` sequences, and the batch that fills it."""

    def __init__(self, model: _Model, threads: int, cells: int, sequences: int = 1) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = PREFILL_CHUNK
        params.n_seq_max = sequences
        # In a shared cache a sequence's tokens would be summed in the order of their cells, and round differently.
        params.kv_unified = False
        params.n_threads = params.n_threads_batch = threads
        self._model = model  # a context must go before its model
        self.pointer = lib.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            raise StageError(
                f"llama.cpp could not set up a context of {cells} tokens: {_errors[-1] if _errors else 'no reason given'}",
                "Open the model with a smaller context.",
            )
        weakref.finalize(self, lib.llama_free, self.pointer)
        self._adapters_known = len(model.adapters)
        self._memory = lib.llama_get_memory(self.pointer)

        self._token = np.zeros(PREFILL_CHUNK, np.int32)
        self._position = np.zeros(PREFILL_CHUNK, np.int32)
        self._sequence = np.zeros(PREFILL_CHUNK, np.int32)
        self._wanted = np.zeros(PREFILL_CHUNK, np.int8)
        self._sequences_per_token = np.ones(PREFILL_CHUNK, np.int32)
        self._sequence_address = (
            self._sequence.ctypes.data + self._sequence.itemsize * np.arange(PREFILL_CHUNK)
        ).astype(np.uintp)
        int32 = ctypes.POINTER(ctypes.c_int32)
        self._batch = lib.llama_batch(
            token=self._token.ctypes.data_as(int32),
            pos=self._position.ctypes.data_as(int32),
            n_seq_id=self._sequences_per_token.ctypes.data_as(int32),
            seq_id=self._sequence_address.ctypes.data_as(ctypes.POINTER(int32)),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    @property
    def outdated(self) -> bool:
        """Whether an adapter was loaded since: llama.cpp sizes a context's graph for those that there are."""
        return self._adapters_known != len(self._model.adapters)

    def use(self, adapter: Any) -> None:
        """Compute with `adapter` on the weights; None takes it off."""
        if adapter is None:
            status = lib.llama_set_adapters_lora(self.pointer, None, 0, None)
        else:
            handles = (lib.llama_adapter_lora_p_ctypes * 1)(adapter)
            status = lib.llama_set_adapters_lora(self.pointer, handles, 1, (ctypes.c_float * 1)(1.0))
        if status != 0:
            raise StageError(
                f"llama.cpp could not set the adapter (status {status}).", "Export the adapter again."
            )

    def clear(self) -> None:
        """Forget every sequence."""
        lib.llama_memory_clear(self._memory, False)

    def forget(self, sequence: int, start: int = -1) -> bool:
        """Forget one sequence, from position `start` on; False where the model can forget a whole sequence only."""
        return bool(lib.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int] | int,
        sequences: Sequence[int] | int = 0,
        wanted: bool | NDArray[np.bool_] = True,
    ) -> None:
        """Compute up to 512 tokens; logits are kept for those `wanted`."""
        n = self._batch.n_tokens = len(tokens)
        self._token[:n] = tokens
        self._position[:n] = np.arange(positions, positions + n) if isinstance(positions, int) else positions
        self._sequence[:n] = sequences
        self._wanted[:n] = wanted
        status = lib.llama_decode(self.pointer, self._batch)
        if status != 0:
            reason = _errors[-1] if _errors else "no reason given"
            raise StageError(
                f"llama.cpp could not compute {n} tokens (status {status}): {reason}",
                "Free some memory, or open the model with a smaller context.",
            )

    def prefill(self, ids: Sequence[int], sequence: int = 0) -> None:
        """Compute a prompt; logits are kept for its last token only."""
        for start in range(0, len(ids), PREFILL_CHUNK):
            chunk = ids[start : start + PREFILL_CHUNK]
            last = np.arange(start, start + len(chunk)) == len(ids) - 1
            self.decode(chunk, start, sequence, last)

    def logits(self, rows: int) -> NDArray[np.float32]:
        """The kept logits of the last `decode`, `(rows, V)`; a view that lasts until the next one."""
        pointer = lib.llama_get_logits(self.pointer)
        return np.ctypeslib.as_array(pointer, (rows, self._model.vocab_size))

    def hidden(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Compute a prompt; the hidden state `(D,)` after the last layer and its norm, at the last of `ids`."""
        lib.llama_set_embeddings(self.pointer, True)
        try:
            self.prefill(ids)
            pointer = lib.llama_get_embeddings_ith(self.pointer, -1)
            width = lib.llama_model_n_embd_out(self._model.pointer)
            return np.ctypeslib.as_array(pointer, (width,)).copy()
        finally:
            lib.llama_set_embeddings(self.pointer, False)


class LlamaCpp:
    """A GGUF file in llama.cpp on the processor; see `edgekit.registry.Runtime`.

    Every answer starts from an empty KV cache. Reusing a shared prefix would be faster, but the rest of the prompt
    is then computed in another batch shape, which rounds differently.
    """

    name = "llama.cpp"

    def __init__(self, model: _Model, threads: int, context: int) -> None:
        self._model = model
        self._threads = threads
        self._context = context
        self._idle: list[_Context] = []
        self._adapter: Any = None
        self._unicode_form = model.metadata(UNICODE_FORM)
        stops = {model.token_id(role) for role in ("eos", "eot", "eom")}
        named = frozenset(stop for stop in stops if stop is not None)
        self.guessed_stop_ids: frozenset[int] = model.eog_ids - named
        """Ids that llama.cpp itself takes for an end of an answer, from their text; the file does not name them."""
        # older files that edgekit wrote have the digest alone
        names_all = any(model.metadata(key) for key in (NAMES_ALL_STOPS, SOURCE_DIGEST))
        self._stop_ids = named if names_all else named | self.guessed_stop_ids

    @property
    def vocab_size(self) -> int:
        """V, the number of logits for one position."""
        return self._model.vocab_size

    @property
    def chat_template(self) -> ChatTemplate:
        """The file's `tokenizer.chat_template`; raises `ConfigError` when it carries none."""
        source = self._model.metadata("tokenizer.chat_template")
        if source is None:
            raise ConfigError("The GGUF file has no chat template.", "Export it from a model that has one.")
        return ChatTemplate(source, self._model.token_text("bos"), self._model.token_text("eos"))

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that the file names as eos, eot and eom.

        Converters other than edgekit's name one, and leave the others to llama.cpp; their files end at its guesses too.
        """
        return self._stop_ids

    @cached_property
    def control_tokens(self) -> frozenset[str]:
        """The texts of the tokens that the file marks as control tokens."""
        vocab = self._model.vocab
        ids = (id_ for id_ in range(self.vocab_size) if lib.llama_vocab_is_control(vocab, id_))
        return frozenset(lib.llama_vocab_get_text(vocab, id_).decode(errors="replace") for id_ in ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`: special tokens in it are recognised, none are added.

        llama.cpp leaves Unicode as it comes; where the model's own tokenizer normalises it first (NFC, as Qwen's),
        the file says so and it is done here.
        """
        return self._tokenize(nfc(text, self._unicode_form == "NFC"))

    def framed(self, text: str) -> list[int]:
        """The same with the BOS and EOS that the file, or llama.cpp's default for its kind, adds to plain text."""
        return self._tokenize(nfc(text, self._unicode_form == "NFC"), framed=True)

    def _tokenize(self, text: str, *, framed: bool = False) -> list[int]:
        data = text.encode()
        ids = np.empty(
            len(data) + 16, np.int32
        )  # at most a token a byte, and what a vocabulary puts in front
        pointer = ids.ctypes.data_as(lib.llama_token_p)
        count = lib.llama_tokenize(self._model.vocab, data, len(data), pointer, len(ids), framed, True)
        if count < 0:
            raise StageError(
                f"llama.cpp could not tokenize a text of {len(data)} bytes.", "Use a shorter text."
            )
        return [int(id_) for id_ in ids[:count]]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out; bytes that are not UTF-8 become U+FFFD."""
        check_ids(ids, self.vocab_size)
        return b"".join(self._piece(token) for token in ids).decode(errors="replace")

    def _piece(self, token: int) -> bytes:
        # llama_detokenize would also drop spaces before punctuation, which neither the reference nor llama-cli does
        buffer = ctypes.create_string_buffer(256)
        length = lib.llama_token_to_piece(self._model.vocab, token, buffer, len(buffer), 0, False)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = lib.llama_token_to_piece(self._model.vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:length]

    def logits(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """Next-token logits after each of `ids` from position `first` on, `(T - first, V)`, from an empty context."""
        check_fits(len(ids), 0, self._context)
        rows = np.empty((len(ids) - first, self.vocab_size), np.float32)
        with self._fresh_context() as context:
            for start in range(0, len(ids), LOGITS_CHUNK):
                chunk = ids[start : start + LOGITS_CHUNK]
                stop, skipped = start + len(chunk), max(first - start, 0)
                context.decode(chunk, start, wanted=np.arange(len(chunk)) >= skipped)
                if stop > first:
                    rows[start + skipped - first : stop - first] = context.logits(stop - start - skipped)
        return rows

    def score_answers(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """The log-likelihood in nats of each of `answers`, each with a stop id after it, as the answer to `prompt`.

        The prompt is computed once, and each answer, of at most 128 tokens, in one batch after it.
        """
        longest = max(map(len, answers), default=0)
        check_fits(len(prompt), longest, self._context)
        if longest > LOGITS_CHUNK:
            raise ConfigError(
                f"An answer of {longest} tokens is too long to be scored.",
                f"Give answers of at most {LOGITS_CHUNK}.",
            )
        stops, found = sorted(self._stop_ids), []
        with self._fresh_context() as context:
            context.prefill(prompt)
            first = context.logits(1).copy()
            for answer in answers:
                if not answer:
                    found.append(answer_likelihood(first, answer, stops))
                    continue
                context.decode(answer, len(prompt))
                rows = np.concatenate([first, context.logits(len(answer))])
                found.append(answer_likelihood(rows, answer, stops))
                if not context.forget(0, len(prompt)):
                    context.clear()
                    context.prefill(prompt)
        return found

    def hidden_state(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The hidden state `(D,)` after the last layer and its norm, at the last of `ids`; llama.cpp calls it an embedding."""
        check_fits(len(ids), 0, self._context)
        with self._fresh_context() as context:
            return context.hidden(ids)

    def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling = Sampling(), *,
        ignore_stop: bool = False, process: LogitsProcessor | None = None,
    ) -> Iterator[int]:  # fmt: skip
        """Token ids after the prompt `ids`, one by one, without the stop id that ends them."""
        check_fits(len(ids), max_tokens, self._context)
        with self._fresh_context() as context, _sampler(sampling) as sampler:
            context.prefill(ids)
            answer: list[int] = []
            while len(answer) < max_tokens:
                if answer:
                    context.decode(answer[-1:], len(ids) + len(answer) - 1)
                if process is not None:
                    process(answer, context.logits(1)[0])  # the samplers read the same memory
                if sampler is None:
                    token = int(context.logits(1)[0].argmax())
                else:
                    token = int(lib.llama_sampler_sample(sampler, context.pointer, -1))
                if token in self._stop_ids and not ignore_stop:
                    return
                answer.append(token)
                yield token

    def generate_batch(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Greedy answers to many prompts, decoded up to sixteen at a time; a finished one makes room for the next.

        Prompts are computed one by one as in `generate`, but the kernels for some weight types (Q5_0, which the
        K types fall back to) round a token decoded beside others differently: an answer can then differ from
        `generate`'s where two tokens are almost equally likely.
        """
        if not prompts or max_tokens == 0:
            return [[] for _ in prompts]
        check_fits(min(map(len, prompts)), 0, self._context)
        check_fits(max(map(len, prompts)), max_tokens, self._context)
        cells = -(-(max(map(len, prompts)) + max_tokens) // 256) * 256  # llama.cpp pads each sequence to 256
        slots = max(1, min(SEQUENCES, len(prompts), BATCH_CELLS // cells))
        context = _Context(self._model, self._threads, slots * cells, slots)
        context.use(self._adapter)
        answers: list[list[int]] = [[] for _ in prompts]
        waiting = deque(range(len(prompts)))
        running: dict[int, int] = {}  # slot -> prompt

        def keep(slot: int, token: int) -> None:
            answer = answers[running[slot]]
            if token not in self._stop_ids:
                answer.append(token)
            if token in self._stop_ids or len(answer) == max_tokens:
                del running[slot]
                context.forget(slot)

        while waiting or running:
            for slot in set(range(slots)) - set(running):
                if waiting:
                    running[slot] = waiting.popleft()
                    context.prefill(prompts[running[slot]], slot)
                    keep(slot, int(context.logits(1)[0].argmax()))
            if running:
                tokens = [answers[index][-1] for index in running.values()]
                positions = [len(prompts[index]) + len(answers[index]) - 1 for index in running.values()]
                context.decode(tokens, positions, list(running))
                best = context.logits(len(running)).argmax(axis=1).tolist()
                for slot, token in zip(list(running), best, strict=True):
                    keep(slot, token)
        return answers

    def use(self, adapter: Path | None) -> None:
        """Answer with the GGUF LoRA file `adapter` on the weights from now on, with none of it for None.

        Answers under way end as they began. Adapters stay loaded, so that going back to one costs nothing. Raises
        `CorruptError` for a damaged adapter and for another base's, with both digests; the one in use stays.
        """
        self._adapter = None if adapter is None else self._model.adapter(adapter)

    def bare(self) -> BareLlamaCpp:
        """The text path of llama-cpp-python without edgekit."""
        return BareLlamaCpp(self._model.path, self._model.vocab, lambda: self.chat_template)

    def close(self) -> None:
        """Free the model, once answers still under way are done with it."""
        self._idle.clear()
        vars(self).pop("_model", None)

    @contextmanager
    def _fresh_context(self) -> Iterator[_Context]:
        """An empty context of its own for each answer under way, so that interleaved answers never mix."""
        self._idle = [context for context in self._idle if not context.outdated]
        context = self._idle.pop() if self._idle else _Context(self._model, self._threads, self._context)
        context.use(self._adapter)
        context.clear()
        try:
            yield context
        finally:
            self._idle.append(context)


@contextmanager
def _sampler(sampling: Sampling) -> Iterator[ctypes.c_void_p | None]:
    """llama.cpp's samplers in the order of transformers, temperature then top-p; none for greedy."""
    if sampling.greedy:
        yield None
        return
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(sampling.temperature))
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(sampling.top_p, 1))
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(sampling.seed % 0x7FFFFFFF))
    try:
        yield chain
    finally:
        lib.llama_sampler_free(chain)
