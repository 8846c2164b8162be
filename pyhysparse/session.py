"""A session: the caches of n_seq sequences of one model, and the calls that fill, cut, copy and save them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyhysparse._ffi import Callback, Handle, check, ffi, floats, int32_array, int32_pointer, lib, new_error, path_bytes, text
from pyhysparse.errors import ArgumentError, BusyError, CancelledError
from pyhysparse.model import MemoryUse, Model, from_struct
from pyhysparse.placement import DeviceMemory

__all__ = ["Session", "SessionParams"]

Capture = Callable[[str, "NDArray[np.float32]"], bool | None]
Tokens = Sequence[int] | NDArray[Any]


@dataclass(frozen=True)
class SessionParams:
    """hs_session_params. n_ctx: tokens of all sequences together (0: the model's); n_threads None: the physical cores."""

    n_ctx: int = 0
    n_seq: int = 1
    n_batch: int = 2048
    n_ubatch: int = 512
    n_threads: int | None = None
    n_threads_batch: int | None = None
    type_k: str = "f16"
    type_v: str = "f16"
    n_checkpoints: int = 32
    use_ref: bool = False

    def to_c(self) -> tuple[Any, list[Any]]:
        """`hs_session_params *` and the strings that it points to."""
        c = ffi.new("hs_session_params *", lib.hs_session_default_params())
        for name in ("n_ctx", "n_seq", "n_batch", "n_ubatch", "n_threads", "n_threads_batch", "n_checkpoints"):
            value = getattr(self, name)
            value = 0 if value is None and name.startswith("n_threads") else value
            if isinstance(value, bool) or not isinstance(value, int) or not -(2**31) <= value < 2**31:
                raise ArgumentError(f"{name} is {value!r}; expected an integer")
            setattr(c, name, value)
        for name in ("type_k", "type_v"):
            if not isinstance(getattr(self, name), str):
                raise ArgumentError(f"{name} is {getattr(self, name)!r}; expected 'f32', 'f16' or 'q8_0'")
        keep = [ffi.new("char[]", self.type_k.encode()), ffi.new("char[]", self.type_v.encode())]
        c.type_k, c.type_v = keep
        c.use_ref = bool(self.use_ref)
        return c, keep


class Session:
    """Caches of a model. Calls from several threads are serialised by a lock; C runs without the GIL.

    Raises ArgumentError, OutOfMemoryError. Sequences are numbered 0 to n_seq - 1 and start empty.
    """

    def __init__(self, model: Model, params: SessionParams | None = None) -> None:
        c, keep = (params or SessionParams()).to_c()
        out, error = ffi.new("hs_session **"), new_error()
        self.model = model
        self.n_vocab = model.info.n_vocab
        self._lock = threading.RLock()
        self._inside = False  # C is running: close() from a callback must not free what it runs on
        self._alive = threading.Lock()  # held while cancel() uses the pointer and while close() frees it
        self._capture: Callback | None = None
        self._cancelled = False
        resolved = ffi.new("hs_session_params *")
        with model.opening():
            check(lib.hs_session_new(model.handle.pointer, c, out, error), error)
            self._handle = Handle(out[0], lib.hs_session_free, "session", parent=model.handle)
            lib.hs_session_params_get(self._handle.pointer, resolved)
            model.adopt(self)
        del keep
        self.params = SessionParams(
            resolved.n_ctx, resolved.n_seq, resolved.n_batch, resolved.n_ubatch, resolved.n_threads, resolved.n_threads_batch,
            text(resolved.type_k), text(resolved.type_v), resolved.n_checkpoints, bool(resolved.use_ref),
        )  # fmt: skip

    def eval(
        self,
        tokens: Tokens,
        seq: int | Tokens = 0,
        want: str | Sequence[bool] | NDArray[Any] = "last",
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Append tokens: all to sequence `seq`, or token i to seq[i].

        want: "last", "all", "none", or a flag a token: which positions' logits come back, as float32 [wanted, n_vocab] in token order
        (written to `out` when that is given). The tokens go to C a ubatch at a time, so that Ctrl-C acts between two; what was
        appended by then stays. Raises ArgumentError, ContextFullError, CancelledError, OutOfMemoryError.
        """
        ids = int32_array(tokens, "tokens")
        n = len(ids)
        seqs = np.full(n, seq, dtype=np.int32) if isinstance(seq, (int, np.integer)) else int32_array(seq, "seq")
        if len(seqs) != n:
            raise ArgumentError(f"seq has {len(seqs)} elements; expected {n}, one a token")
        flags = wanted_flags(want, n)
        rows = int(flags.sum())
        if out is None:
            out = np.empty((rows, self.n_vocab), dtype=np.float32)
        elif out.shape != (rows, self.n_vocab) or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ArgumentError(f"out is {out.dtype} {out.shape}; expected contiguous float32 ({rows}, {self.n_vocab})")
        step, row = self.params.n_ubatch, 0
        with self._lock:
            self._cancelled = False
            for at in range(0, n, step):
                if self._cancelled:
                    raise CancelledError("evaluation was cancelled")
                part = slice(at, at + step)
                count = int(flags[part].sum())
                self._eval_part(ids[part], seqs[part], flags[part], out[row : row + count])
                row += count
        return out

    def _eval_part(self, ids: NDArray[np.int32], seqs: NDArray[np.int32], flags: NDArray[np.int8], out: NDArray[np.float32]) -> None:
        pointers = int32_pointer(ids), int32_pointer(seqs), ffi.cast("const int8_t *", flags.ctypes.data)
        self._call(lib.hs_eval, len(ids), *pointers, floats(out) if len(out) else ffi.NULL)

    def length(self, seq: int = 0) -> int:
        """Tokens that the sequence holds."""
        self._checked_seq(seq)
        with self._lock:
            return int(lib.hs_seq_len(self._handle.pointer, seq))

    def tokens(self, seq: int = 0) -> list[int]:
        """The tokens that the sequence holds."""
        with self._lock:
            n = self.length(seq)
            out = np.empty(n, dtype=np.int32)
            lib.hs_seq_tokens(self._handle.pointer, seq, ffi.cast("int32_t *", out.ctypes.data), n)
            return [int(token) for token in out]

    def rewind(self, n: int, seq: int = 0) -> None:
        """Keep the first n tokens. Where window rings have forgotten, they are restored from a checkpoint or recomputed."""
        self._call(lib.hs_seq_rewind, seq, n)

    def fork(self, source: int, target: int) -> None:
        """Sequence `target` becomes a copy of `source`; full pages are shared until one of them writes."""
        self._call(lib.hs_seq_fork, source, target)

    def remove(self, seq: int = 0) -> None:
        """Empty a sequence; its pages are free again."""
        self._call(lib.hs_seq_remove, seq)

    def checkpoint(self, seq: int = 0) -> None:
        """Keep the window rings as they are now, so that rewind() to this length is cheap. Prompts do this by themselves."""
        self._call(lib.hs_seq_checkpoint, seq)

    def save(self, path: str | os.PathLike[str], seq: int = 0) -> None:
        """Write a sequence to a file (a temporary one, then renamed). Raises FileError."""
        self._call(lib.hs_seq_save, seq, path_bytes(path))

    def load(self, path: str | os.PathLike[str], seq: int = 0) -> None:
        """Replace a sequence by a saved one. Raises FileError, FormatError, StateError, ContextFullError; the sequence is then empty."""
        self._call(lib.hs_seq_load, seq, path_bytes(path))

    def _call(self, function: Callable[..., int], *args: Any) -> None:
        with self._lock:
            error, nested = new_error(), self._inside
            try:
                self._inside = True
                code = function(self._handle.pointer, *args, error)
            finally:
                self._inside = nested
            if self._capture is not None:
                self._capture.reraise()
            check(code, error)

    def cancel(self) -> None:
        """Stop the call that another thread has running: it ends with CancelledError within one graph node."""
        with self._alive:
            self._cancelled = True
            lib.hs_session_cancel(self._handle.pointer)

    @contextmanager
    def capture(self, function: Capture) -> Iterator[None]:
        """While inside, call function(name, values) for each named graph node ("attn_out-3"), values float32 in numpy's order of
        dimensions. Returning False stops the evaluation with CancelledError; an exception stops it and goes on to the caller."""
        callback = Callback(function)
        with self._lock:
            self._call(lib.hs_session_capture, lib.hs_py_capture, callback.handle)
            self._capture = callback
            try:
                yield
            finally:
                self._capture = None
                if not self.closed:
                    self._call(lib.hs_session_capture, ffi.NULL, ffi.NULL)

    @property
    def memory(self) -> MemoryUse:
        """Bytes allocated now."""
        out = ffi.new("hs_memory *")
        with self._lock:
            lib.hs_session_memory(self._handle.pointer, out)
        use: MemoryUse = from_struct(MemoryUse, out)
        return use

    def device_memory(self) -> list[DeviceMemory]:
        """The same by device: the GPUs in use, and the CPU at the end."""
        with self._lock:
            n = lib.hs_session_device_memory(self._handle.pointer, ffi.NULL, 0)
            rows = ffi.new("hs_device_memory[]", n)
            lib.hs_session_device_memory(self._handle.pointer, rows, n)
        return [from_struct(DeviceMemory, rows[i]) for i in range(n)]

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        with self._lock:
            return int(lib.hs_session_free_pages(self._handle.pointer))

    @property
    def closed(self) -> bool:
        return self._handle.closed

    def close(self) -> None:
        """Free the caches now; a call that another thread has running is cancelled first. BusyError in a callback of this session."""
        with self._alive:
            if self.closed:
                return
            lib.hs_session_cancel(self._handle.pointer)
        with self._lock, self._alive:
            if self._inside:
                raise BusyError("the session cannot be closed by a callback of its own evaluation")
            self._handle.close()

    def _checked_seq(self, seq: int) -> None:
        if not 0 <= seq < self.params.n_seq:
            raise ArgumentError(f"seq is {seq}; expected 0 to {self.params.n_seq - 1}")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def wanted_flags(want: str | Sequence[bool] | NDArray[Any], n: int) -> NDArray[np.int8]:
    """One flag a token: whether its row of logits is wanted."""
    if isinstance(want, str):
        if want not in ("last", "all", "none"):
            raise ArgumentError(f"want is {want!r}; expected 'last', 'all', 'none' or a flag for each token")
        flags = np.full(n, want == "all", dtype=np.int8)
        if want == "last" and n:
            flags[-1] = 1
        return flags
    flags = np.ascontiguousarray(np.asarray(want, dtype=bool), dtype=np.int8)
    if flags.shape != (n,):
        raise ArgumentError(f"want has shape {flags.shape}; expected ({n},), one flag a token")
    return flags
