"""The two sides of a comparison, ours and llama.cpp (llama-cpp-python), behind one small interface, each in a process of its own.

Only C calls are timed: token ids in, the last token's logits computed, none copied on llama.cpp's side but what llama_decode itself does.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Engine", "EngineSpec", "LlamaCpp", "Ours", "Worker"]


@dataclass(frozen=True)
class EngineSpec:
    """What to open. name: "full" and "oracle" (or "hysparse") are ours, "llama.cpp" the peer; site: a folder to find the peer's package in
    before any other ("": as installed)."""

    name: str
    path: str
    n_ctx: int
    n_ubatch: int
    n_threads: int
    oracle: bool = False
    site: str = ""

    @property
    def is_peer(self) -> bool:
        return self.name == "llama.cpp"


class Engine(Protocol):
    """One model with one sequence, f16 caches."""

    def eval(self, tokens: NDArray[np.int32]) -> float:
        """Append tokens in one batch; seconds."""

    def decode(self, tokens: NDArray[np.int32]) -> float:
        """Append tokens one by one; seconds."""

    def rewind(self, n: int) -> None:
        """Keep the first n tokens."""

    def logits(self) -> NDArray[np.float32]:
        """Of the last token, float32 [n_vocab]."""

    def cache_bytes(self) -> int:
        """Bytes that the caches of the present length take (ours: pages of these tokens, and the rings)."""


class Ours:
    """pyhysparse."""

    def __init__(self, spec: EngineSpec) -> None:
        from pyhysparse import Model, Session, SessionParams

        self.model = Model(spec.path, oracle=spec.oracle)
        params = SessionParams(n_ctx=spec.n_ctx, n_batch=spec.n_ubatch, n_ubatch=spec.n_ubatch, n_threads=spec.n_threads)
        self.session = Session(self.model, params)
        self.row = np.empty((1, self.model.info.n_vocab), dtype=np.float32)

    def eval(self, tokens: NDArray[np.int32]) -> float:
        start = time.perf_counter()
        self.session.eval(tokens, out=self.row)
        return time.perf_counter() - start

    def decode(self, tokens: NDArray[np.int32]) -> float:
        start = time.perf_counter()
        for i in range(len(tokens)):
            self.session.eval(tokens[i : i + 1], out=self.row)
        return time.perf_counter() - start

    def rewind(self, n: int) -> None:
        if n == 0:
            self.session.remove()
        else:
            self.session.rewind(n)

    def logits(self) -> NDArray[np.float32]:
        row: NDArray[np.float32] = self.row[0].copy()
        return row

    def cache_bytes(self) -> int:
        memory = self.session.memory
        return self.session.length() * memory.page_bytes_per_token + memory.rings


class LlamaCpp:
    """llama.cpp through llama-cpp-python's low-level calls: flash attention on, f16 caches, repacked weights as it chooses."""

    def __init__(self, spec: EngineSpec) -> None:
        import llama_cpp

        self.lib: Any = llama_cpp
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, user: None)  # kept alive: C holds the pointer
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(os.fsencode(spec.path), model_params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {spec.path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = spec.n_ctx, spec.n_ubatch, spec.n_ubatch
        params.n_threads = params.n_threads_batch = spec.n_threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.no_perf = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context of {spec.n_ctx} tokens")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.n_vocab = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model)))

    def _batch(self, tokens: NDArray[np.int32]) -> None:
        lib = self.lib
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        code = lib.llama_decode(self.context, lib.llama_batch_get_one(pointer, len(tokens)))
        if code != 0:
            raise RuntimeError(f"llama_decode ended with {code}")

    def eval(self, tokens: NDArray[np.int32]) -> float:
        start = time.perf_counter()
        self._batch(tokens)
        self.lib.llama_synchronize(self.context)
        return time.perf_counter() - start

    def decode(self, tokens: NDArray[np.int32]) -> float:
        start = time.perf_counter()
        for i in range(len(tokens)):
            self._batch(tokens[i : i + 1])
            self.lib.llama_synchronize(self.context)
        return time.perf_counter() - start

    def rewind(self, n: int) -> None:
        self.lib.llama_memory_seq_rm(self.memory, 0, n, -1)

    def logits(self) -> NDArray[np.float32]:
        row = self.lib.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(row, shape=(self.n_vocab,)).astype(np.float32)

    def cache_bytes(self) -> int:
        """The size of the sequence's saved state: its K and V, and some bytes a token of bookkeeping."""
        return int(self.lib.llama_state_seq_get_size(self.context, 0))


def serve(pipe: Connection, spec: EngineSpec) -> None:
    """A worker's process: open the engine, then answer (method, arguments) until the pipe closes."""
    try:
        if spec.site:
            sys.path.insert(0, spec.site)
        engine: Engine = LlamaCpp(spec) if spec.is_peer else Ours(spec)
        pipe.send(None)
        with contextlib.suppress(EOFError):
            while True:
                method, arguments = pipe.recv()
                pipe.send(getattr(engine, method)(*arguments))
    except Exception as error:
        pipe.send(error)


class Worker:
    """An engine in another process: the sides share no threads, no library state and no crash. The same methods as Engine."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, spec), daemon=True)
        self.process.start()
        theirs.close()
        self._answer()

    def _answer(self) -> Any:
        try:
            answer = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(f"{self.spec.name} on {Path(self.spec.path).name} ended with {self.process.exitcode}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _call(self, method: str, *arguments: Any) -> Any:
        self.pipe.send((method, arguments))
        return self._answer()

    def eval(self, tokens: NDArray[np.int32]) -> float:
        return float(self._call("eval", tokens))

    def decode(self, tokens: NDArray[np.int32]) -> float:
        return float(self._call("decode", tokens))

    def rewind(self, n: int) -> None:
        self._call("rewind", n)

    def logits(self) -> NDArray[np.float32]:
        row: NDArray[np.float32] = self._call("logits")
        return row

    def cache_bytes(self) -> int:
        return int(self._call("cache_bytes"))

    def close(self) -> None:
        """Let the process end and wait for it."""
        self.pipe.close()
        self.process.join()
