"""LLM: a model with its tokenizer, chat template and one conversation. The API most users need."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyhysparse.errors import ArgumentError, CancelledError, ContextFullError, StateError
from pyhysparse.generation import Generation, GenerationState, Timings
from pyhysparse.model import MemoryUse, Model, Oracle
from pyhysparse.placement import GpuLayers
from pyhysparse.sampling import Sampler, SamplingParams
from pyhysparse.session import Session, SessionParams, Tokens
from pyhysparse.stopping import StopMatcher, stop_list
from pyhysparse.tokenizer import Tokenizer
from pyhysparse.turns import Turns

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyhysparse.chat import ChatTemplate, Message
    from pyhysparse.sampling import SamplingKwargs

__all__ = ["LLM", "Generation", "Timings"]


class LLM:
    """Load a model and its tokenizer, with one conversation (sequence 0 of a default session).

    model: path of a GGUF file, or "demo" (also None): SmolLM2-135M-Instruct, fetched once. n_ctx: tokens of context, 0 for the model's.
    n_batch, n_ubatch: llama.cpp's logical and physical batch. n_threads: None for the physical cores; n_threads_batch: for prompts.
    type_k, type_v: cache types "f32", "f16", "q8_0". oracle: see Model. chat_template: Jinja source (or "chatml") instead of the
    model's own. use_ref: scalar reference ops. progress: called with the fraction loaded. n_gpu_layers ("auto", "all" or -1, a number),
    n_cpu_moe, cpu_moe, devices, tensor_split: what runs on which GPU, see Model; "auto" leaves room for the caches of this context.

    Methods may be called from several threads: what uses the conversation waits its turn, everything else runs beside it.
    Raises FileError, FormatError, ModelError, ArgumentError, OutOfMemoryError, DownloadError ("demo"); the tokenizer is read when it is
    first needed, and raises TokenizerError then.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        n_ctx: int = 0,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        type_k: str = "f16",
        type_v: str = "f16",
        n_seq: int = 1,
        n_checkpoints: int = 32,
        oracle: Oracle = False,
        chat_template: str | None = None,
        use_mmap: bool = True,
        repack: bool = True,
        check_tensors: bool = False,
        use_ref: bool = False,
        progress: Callable[[float], Any] | None = None,
        n_gpu_layers: GpuLayers = "auto",
        n_cpu_moe: int = 0,
        cpu_moe: bool = False,
        devices: Sequence[str] | str | None = None,
        tensor_split: Sequence[float] | None = None,
    ) -> None:
        path = resolve_model(model)
        wanted = SessionParams(n_ctx, n_seq, n_batch, n_ubatch, n_threads, n_threads_batch, type_k, type_v, n_checkpoints, use_ref)
        self.model = Model(
            path, use_mmap=use_mmap, repack=repack, check_tensors=check_tensors, oracle=oracle, progress=progress,
            n_gpu_layers=n_gpu_layers, n_cpu_moe=n_cpu_moe, cpu_moe=cpu_moe, devices=devices, tensor_split=tensor_split, fit=wanted,
        )  # fmt: skip
        try:
            self.session = Session(self.model, wanted)
        except BaseException:
            self.model.close()
            raise
        self.timings = Timings()  # of the last generation
        self._chat_template = chat_template
        self._turns = Turns()
        self._logits: NDArray[np.float32] = np.zeros((1, self.n_vocab), dtype=np.float32)
        self._has_logits = False
        self._pending: list[int] = []  # the last token generated, not evaluated yet; generate(None) begins with it
        self._cancelled = False

    @classmethod
    def from_pretrained(cls, repo: str, *, token: str | None = None, offline: bool = False, **options: Any) -> LLM:
        """Load `user/repo[:quant]` from the Hugging Face hub or its cache; options are the constructor's."""
        from pyhysparse.hub import fetch_gguf

        return cls(fetch_gguf(repo, token=token, offline=offline), **options)

    # --- the parts ---------------------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer (TokenizerError when the file has none or a bad one)."""
        return Tokenizer.from_metadata(self.model.gguf.metadata, self.n_vocab)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The template that chat() uses."""
        from pyhysparse.chat import ChatTemplate  # with jinja2, which takes longer to import than all of ours

        source = self._chat_template or self.tokenizer.chat_template
        return ChatTemplate(source, self.tokenizer.bos_text, self.tokenizer.eos_text)

    @cached_property
    def sampling_defaults(self) -> SamplingParams:
        """llama.cpp's defaults, replaced by what the file recommends (`general.sampling.*`)."""
        return SamplingParams.from_metadata(self.model.gguf.metadata)

    @property
    def n_vocab(self) -> int:
        return self.model.info.n_vocab

    @property
    def n_ctx(self) -> int:
        return self.session.params.n_ctx

    @property
    def tokens(self) -> list[int]:
        """The tokens of the conversation."""
        return self.session.tokens(0)

    @property
    def memory(self) -> MemoryUse:
        """Bytes that weights and caches take."""
        return self.session.memory

    # --- text --------------------------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_bos: bool | None = None, special: bool = True) -> list[int]:
        """Token ids. add_bos: None as the model wants it. special: False reads the texts of control tokens as ordinary text."""
        return self.tokenizer.encode(text, add_bos=add_bos, special=special)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids. special: also write control tokens."""
        return self.tokenizer.decode(tokens, special=special)

    def generate(
        self,
        prompt: str | Tokens | None,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        special: bool = False,
        **sampling: Unpack[SamplingKwargs],
    ) -> Generation:
        """Continue a text: an iterator of text pieces, which stops early when the loop over it is left.

        prompt: text, token ids, or None to go on from where the conversation is (after a generation: with the token after its last
        one). What the conversation and the prompt begin with in common is not evaluated again. max_tokens: None (or -1) until the model
        ends or the context is full. stop: texts that end it, themselves left out. ignore_eos: never sample an ending token. special:
        write control tokens. sampling: temperature, top_k, top_p, min_p, seed, repeat_penalty ... (SamplingKwargs, llama.cpp's names
        and defaults).

        Raises ArgumentError, TokenizerError, ContextFullError (the prompt does not fit) at once; the iterator can raise BusyError (the
        conversation was used by another call meanwhile), OutOfMemoryError, ClosedError. KeyboardInterrupt leaves everything usable.
        """
        params = self.sampling_defaults.updated(**sampling)
        if ignore_eos:
            params = params.updated(logit_bias={**params.logit_bias, **dict.fromkeys(self.tokenizer.eog_ids, float("-inf"))})
        ids = self._prompt_ids(prompt)
        sampler = Sampler(self.n_vocab, params, self._breakers(params))
        limit = -1 if max_tokens is None else max_tokens
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < -1:
            raise ArgumentError(f"max_tokens is {max_tokens!r}; expected a number from 0 on, or None or -1 for no limit")
        state = GenerationState()
        return Generation(state, self._pieces(state, ids, sampler, limit, StopMatcher(stop_list(stop)), special))

    def chat(self, messages: Sequence[Message], *, max_tokens: int | None = None, **options: Any) -> str:
        """The reply to a conversation of {"role": ..., "content": ...} messages; options as for chat_stream()."""
        return self.chat_stream(messages, max_tokens=max_tokens, **options).read().strip()

    def chat_stream(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        special: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        **sampling: Unpack[SamplingKwargs],
    ) -> Generation:
        """The reply in pieces. template_kwargs: more variables for the template (enable_thinking, tools ...); the rest as generate().

        Raises ArgumentError (malformed messages) and TemplateError besides what generate() raises.
        """
        text = self.chat_template.render(messages, **(template_kwargs or {}))
        bos = self.tokenizer.bos_text
        add_bos = self.tokenizer.add_bos and not (bos and text.startswith(bos))  # many templates write it themselves
        ids = self.tokenize(text, add_bos=add_bos)
        return self.generate(ids, max_tokens=max_tokens, stop=stop, ignore_eos=ignore_eos, special=special, **sampling)

    def cancel(self) -> None:
        """Stop the generation that another thread runs: it ends within one graph node, with finish_reason "cancelled"."""
        self._cancelled = True
        self.session.cancel()

    # --- tokens and logits -------------------------------------------------------------------------------------------------------

    def logits(self, tokens: Tokens) -> NDArray[np.float32]:
        """Logits at every position, float32 [n_tokens, n_vocab], in a session of their own: the conversation is not touched."""
        if len(tokens) == 0:
            return np.empty((0, self.n_vocab), dtype=np.float32)
        p = self.session.params
        own = SessionParams(len(tokens), 1, p.n_batch, p.n_ubatch, p.n_threads, p.n_threads_batch, p.type_k, p.type_v, 0, p.use_ref)
        with Session(self.model, own) as session:
            return session.eval(tokens, want="all")

    def eval(self, tokens: Tokens) -> None:
        """Append tokens to the conversation (prefill or decode, by their number); then last_logits are those after the last one."""
        if len(tokens) == 0:
            raise ArgumentError("tokens is empty; expected at least one")
        with self._turns.hold():
            self._append(tokens)

    @property
    def last_logits(self) -> NDArray[np.float32]:
        """Logits after the last token, float32 [n_vocab] (a copy). StateError when nothing was evaluated since reset() or load()."""
        if not self._has_logits:
            raise StateError("there are no logits: nothing was evaluated since the start, reset() or load()")
        row: NDArray[np.float32] = self._logits[0].copy()
        return row

    def reset(self) -> None:
        """Empty the conversation."""
        with self._turns.hold():
            self._forget_logits()
            self.session.remove(0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation's caches to a file. Raises FileError."""
        with self._turns.hold():
            self.session.save(path, 0)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Replace the conversation by a saved one. Raises FileError, FormatError, StateError (another model or other parameters)."""
        with self._turns.hold():
            self._forget_logits()
            self.session.load(path, 0)

    # --- inside ------------------------------------------------------------------------------------------------------------------

    def _forget_logits(self) -> None:
        self._has_logits, self._pending = False, []

    def _check_logits(self) -> None:
        if not self._has_logits:
            raise StateError("prompt is None, but the conversation has no logits to go on from; eval() some tokens first")

    def _append(self, tokens: Tokens) -> None:
        self._forget_logits()
        self.session.eval(tokens, out=self._logits)
        self._has_logits = True

    def _prompt_ids(self, prompt: str | Tokens | None) -> list[int] | None:
        if prompt is None:
            self._check_logits()
            return None
        ids = self.tokenize(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        if not ids:
            raise ArgumentError("the prompt has no tokens; expected at least one")
        if len(ids) > self.n_ctx:
            raise ContextFullError(f"the prompt has {len(ids)} tokens; the context holds {self.n_ctx} (n_ctx)")
        return ids

    def _breakers(self, params: SamplingParams) -> list[list[int]]:
        """Token sequences that end a DRY match: every token whose text holds one of the strings, and the strings' own tokens."""
        if params.dry_multiplier <= 0:
            return []
        tokenizer, breakers = self.tokenizer, [text.encode() for text in params.dry_sequence_breakers if text]
        pieces = ((i, tokenizer.token_bytes(i)) for i in range(self.n_vocab))
        found = [[i] for i, piece in pieces if any(breaker in piece for breaker in breakers)]
        whole = [tokenizer.encode(text, add_bos=False) for text in params.dry_sequence_breakers if text]
        return found + [ids for ids in whole if len(ids) > 1]

    def _prefill(self, ids: list[int], timings: Timings) -> None:
        """Bring the conversation to these tokens, evaluating only what it does not hold yet (and the last one, for its logits)."""
        start = time.perf_counter()
        held = self.session.tokens(0)
        keep = 0
        for ours, theirs in zip(held, ids[:-1], strict=False):
            if ours != theirs:
                break
            keep += 1
        if keep < len(held):
            self._forget_logits()
            self.session.rewind(keep, 0)
        timings.prompt_cached = keep
        self._append(ids[keep:])
        timings.prompt_tokens = len(ids) - keep
        timings.prompt_seconds = time.perf_counter() - start

    def _pieces(
        self, state: GenerationState, ids: list[int] | None, sampler: Sampler, limit: int, matcher: StopMatcher, special: bool
    ) -> Iterator[str]:
        """The generator behind generate(). It holds the conversation's turn from its first step until it ends or is closed."""
        turn = self._turns.take()
        try:
            self._cancelled = False
            self.timings = state.timings
            if ids is not None:
                self._prefill(ids, state.timings)
            else:
                self._check_logits()  # again: another call may have come between
            reach = sampler.params.remembers
            for token in [*self.session.tokens(0), *self._pending][-reach if reach > 0 else 0 :] if reach else []:
                sampler.accept(token)
            decoder = self.tokenizer.stream(special=special)
            while state.finish_reason is None:
                piece = self._step(state, sampler, limit, matcher, decoder.push)
                if state.finish_reason is not None and not matcher.stopped:
                    piece += matcher.push(decoder.flush())
                    piece += matcher.flush()
                if piece:
                    state.text += piece
                    yield piece
                    self._turns.resume(turn)
        except CancelledError:
            if not self._cancelled:
                raise
            state.finish_reason = "cancelled"
        finally:
            self._turns.release(turn)
            sampler.close()

    def _step(
        self, state: GenerationState, sampler: Sampler, limit: int, matcher: StopMatcher, decode: Callable[[int], str]
    ) -> str:
        """One token: evaluate the one before, sample, decode. Returns the text that can be shown, and sets finish_reason at the end."""
        if self._cancelled:
            state.finish_reason = "cancelled"
            return ""
        if 0 <= limit <= len(state.tokens):
            state.finish_reason = "length"
            return ""
        start = time.perf_counter()
        if self._pending:
            try:
                self._append(self._pending)
            except ContextFullError:
                state.finish_reason = "length"
                return ""
        token = sampler.sample(self._logits[0])
        sampler.accept(token)
        state.tokens.append(token)
        self._pending = [] if self.tokenizer.is_eog(token) else [token]
        state.timings.generated_tokens += 1
        state.timings.generation_seconds += time.perf_counter() - start
        if self.tokenizer.is_eog(token):
            state.finish_reason = "stop"
            return matcher.push(decode(token))  # nothing, unless control tokens are to be written
        piece = matcher.push(decode(token))
        if matcher.stopped:
            state.finish_reason = "stop"
        return piece

    # --- end ---------------------------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self.model.closed

    def close(self) -> None:
        """Free weights and caches now; a generation that another thread runs is cancelled. Later calls raise ClosedError."""
        if not self.closed:
            self._cancelled = True
            self.model.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        info = self.model.info
        state = "closed" if self.closed else f"n_ctx={self.n_ctx}"
        return f"<LLM {info.name or info.arch} {info.ftype}, {info.n_params / 1e6:.0f}M parameters, {state}>"


def resolve_model(model: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """The path of a model given by path or as "demo"."""
    from pyhysparse.demo import DEMO_NAME, demo_model

    if model is None or model == DEMO_NAME:
        return demo_model()
    if not isinstance(model, (str, os.PathLike)):
        raise ArgumentError(f"model is {model!r}; expected the path of a GGUF file, or 'demo'")
    return model
