"""Quantising a GGUF file (runtime/quantize.c): types of ggml, and llama.cpp's _S/_M/_L mixes for K-quants."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from pyhysparse._ffi import Callback, check, ffi, lib, new_error, path_bytes

__all__ = ["TYPES", "quantize"]

TYPES = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K",
    "IQ4_NL", "IQ4_XS", "F16", "BF16", "F32", "COPY",
)  # fmt: skip


def quantize(
    path_in: str | os.PathLike[str],
    path_out: str | os.PathLike[str],
    type: str,
    *,
    n_threads: int | None = None,
    allow_requantize: bool = False,
    leave_output_tensor: bool = False,
    pure: bool = False,
    dry_run: bool = False,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    progress: Callable[[int, int, str], Any] | None = None,
) -> int:
    """Write `path_in` as `type` (one of TYPES) to `path_out` and return its size in bytes (dry_run: only that).

    The file is written under a temporary name and renamed when it is complete; path_in and path_out must differ. allow_requantize:
    take weights that are quantised already. leave_output_tensor: keep output.weight as it is. pure: one type for all, no mix.
    progress(done, total, tensor): bytes; returning False stops it (CancelledError). n_threads None: all cores.

    Raises ArgumentError, FileError, FormatError, ModelError, OutOfMemoryError, CancelledError.
    """
    params = ffi.new("hs_quantize_params *", lib.hs_quantize_default_params())
    params.n_threads, params.pure, params.dry_run = n_threads or 0, pure, dry_run
    params.allow_requantize, params.leave_output_tensor = allow_requantize, leave_output_tensor
    keep = []
    for name, value in (("output_tensor_type", output_tensor_type), ("token_embedding_type", token_embedding_type)):
        if value is not None:
            keep.append(ffi.new("char[]", value.encode()))
            setattr(params, name, keep[-1])
    callback = None if progress is None else Callback(progress)
    if callback is not None:
        params.progress, params.progress_user = lib.hs_py_quantize_progress, callback.handle
    size, error = ffi.new("uint64_t *"), new_error()
    code = lib.hs_quantize(path_bytes(path_in), path_bytes(path_out), type.encode(), params, size, error)
    del keep
    if callback is not None:
        callback.reraise()
    check(code, error)
    return int(size[0])
