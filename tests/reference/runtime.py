"""The C API for tests, call for call: no tokenizer, no defaults of the Python API between a test and the runtime."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyhysparse._ffi import Callback, check, ffi, lib, new_error, path_bytes, text

Capture = Callable[[str, "np.ndarray[Any, np.dtype[np.float32]]"], bool | None]


def to_gguf(checkpoint: Path, outtype: str = "f32") -> Path:
    """Convert a checkpoint folder to `<folder>/<outtype>.gguf`, unless that exists."""
    from pyhysparse.convert import convert

    out = checkpoint / f"{outtype}.gguf"
    if not out.exists():
        convert(checkpoint, out, outtype=outtype)
    return out


class Model:
    """hs_model. oracle: None (off), True (the list in the file), or keyword arguments full_layers, block_size, top_k_tokens, window."""

    def __init__(self, path: Path, *, oracle: bool | dict[str, Any] | None = None, repack: bool = True) -> None:
        params = lib.hs_model_default_params()
        params.n_gpu_layers = 0  # limits here are those of the CPU; the GPU has tests of its own (test_placement.py)
        params.repack = repack
        if isinstance(oracle, dict):
            layers = ffi.new("int32_t[]", oracle["full_layers"])
            params.oracle, params.oracle_full_layers, params.n_oracle_full_layers = 2, layers, len(oracle["full_layers"])
            params.oracle_block_size, params.oracle_top_k_tokens = oracle["block_size"], oracle["top_k_tokens"]
            params.oracle_window = oracle["window"]
        elif oracle:
            params.oracle = 1
        out, error = ffi.new("hs_model **"), new_error()
        check(lib.hs_model_load(path_bytes(path), ffi.new("hs_model_params *", params), out, error), error)
        self.pointer = out[0]
        info = ffi.new("hs_model_info *")
        lib.hs_model_info_get(self.pointer, info)
        self.n_vocab, self.n_layer, self.block_size, self.top_k_blocks = info.n_vocab, info.n_layer, info.block_size, info.top_k_blocks
        self.window, self.oracle = info.window, bool(info.oracle)

    def layer_kinds(self) -> list[str]:
        """Kind of each row of the layer plan."""
        row = ffi.new("hs_layer_info *")
        kinds = []
        for il in range(self.n_layer):
            check(lib.hs_model_layer(self.pointer, il, row), new_error())
            kinds.append(text(row.kind))
        return kinds

    def close(self) -> None:
        """Free it."""
        lib.hs_model_free(self.pointer)


class Session:
    """hs_session of a model. Defaults fit the tiny models: f32 caches, one thread, ubatches of 16 tokens."""

    def __init__(self, model: Model, *, n_ctx: int = 1024, n_seq: int = 1, n_batch: int = 512, n_ubatch: int = 16, n_threads: int = 1,
                 cache: str = "f32", n_checkpoints: int = 32, use_ref: bool = False) -> None:
        params = lib.hs_session_default_params()
        name = ffi.new("char[]", cache.encode())
        params.n_ctx, params.n_seq, params.n_batch, params.n_ubatch, params.n_threads = n_ctx, n_seq, n_batch, n_ubatch, n_threads
        params.type_k, params.type_v, params.n_checkpoints, params.use_ref = name, name, n_checkpoints, use_ref
        out, error = ffi.new("hs_session **"), new_error()
        check(lib.hs_session_new(model.pointer, ffi.new("hs_session_params *", params), out, error), error)
        self.pointer, self.n_vocab = out[0], model.n_vocab
        self._capture: Callback | None = None

    def eval(self, tokens: Sequence[int], seq: int | Sequence[int] = 0, want: Sequence[bool] | None = None) -> torch.Tensor:
        """Append tokens (to one sequence, or token i to seq[i]); logits float32 [wanted, n_vocab], of all tokens without `want`."""
        n = len(tokens)
        seqs = [seq] * n if isinstance(seq, int) else list(seq)
        wanted = [True] * n if want is None else list(want)
        logits = np.zeros((sum(wanted), self.n_vocab), dtype=np.float32)
        pointer = ffi.cast("float *", logits.ctypes.data) if any(wanted) else ffi.NULL
        error = new_error()
        code = lib.hs_eval(self.pointer, n, ffi.new("int32_t[]", list(tokens)), ffi.new("int32_t[]", seqs), ffi.new("int8_t[]", wanted),
                           pointer, error)
        if self._capture is not None:
            self._capture.reraise()
        check(code, error)
        return torch.from_numpy(logits)

    def length(self, seq: int = 0) -> int:
        """Tokens that the sequence holds."""
        return int(lib.hs_seq_len(self.pointer, seq))

    def tokens(self, seq: int = 0) -> list[int]:
        """The tokens themselves."""
        n = self.length(seq)
        out = ffi.new("int32_t[]", max(n, 1))
        lib.hs_seq_tokens(self.pointer, seq, out, n)
        return list(out)[:n]

    def rewind(self, n: int, seq: int = 0) -> None:
        """Keep the first n tokens."""
        error = new_error()
        check(lib.hs_seq_rewind(self.pointer, seq, n, error), error)

    def fork(self, source: int, target: int) -> None:
        """Sequence `target` becomes `source`."""
        error = new_error()
        check(lib.hs_seq_fork(self.pointer, source, target, error), error)

    def remove(self, seq: int = 0) -> None:
        """Empty a sequence."""
        error = new_error()
        check(lib.hs_seq_remove(self.pointer, seq, error), error)

    def checkpoint(self, seq: int = 0) -> None:
        """Save the rings at the present length."""
        error = new_error()
        check(lib.hs_seq_checkpoint(self.pointer, seq, error), error)

    def save(self, path: Path, seq: int = 0) -> None:
        """Write a sequence to a file."""
        error = new_error()
        check(lib.hs_seq_save(self.pointer, seq, path_bytes(path), error), error)

    def load(self, path: Path, seq: int = 0) -> None:
        """Read a sequence from a file."""
        error = new_error()
        check(lib.hs_seq_load(self.pointer, seq, path_bytes(path), error), error)

    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        return int(lib.hs_session_free_pages(self.pointer))

    def capture(self, function: Capture | None) -> None:
        """Call `function(name, values)` for every named node of later evaluations; values float32 in numpy order [ne3, ne2, ne1, ne0]."""
        self._capture = None if function is None else Callback(function)
        error = new_error()
        callback = ffi.NULL if self._capture is None else lib.hs_py_capture
        handle = ffi.NULL if self._capture is None else self._capture.handle
        check(lib.hs_session_capture(self.pointer, callback, handle, error), error)

    def close(self) -> None:
        """Free it."""
        lib.hs_session_free(self.pointer)


@contextmanager
def opened(path: Path, *, oracle: bool | dict[str, Any] | None = None, **session: Any) -> Iterator[Session]:
    """A session on a freshly loaded model, both freed at the end."""
    model = Model(path, oracle=oracle)
    try:
        s = Session(model, **session)
        try:
            yield s
        finally:
            s.close()
    finally:
        model.close()
