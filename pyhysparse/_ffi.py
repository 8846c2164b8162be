"""The only importer of the compiled module: status codes to exceptions, owned handles, callbacks, pointers to numpy arrays."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyhysparse import errors
from pyhysparse._hysparse import ffi, lib

__all__ = ["Callback", "Handle", "check", "ffi", "floats", "int32_array", "int32_pointer", "lib", "new_error", "path_bytes", "text"]

EXCEPTIONS: dict[int, type[errors.HysparseError]] = {
    lib.HS_E_ARG: errors.ArgumentError,
    lib.HS_E_IO: errors.FileError,
    lib.HS_E_FORMAT: errors.FormatError,
    lib.HS_E_MODEL: errors.ModelError,
    lib.HS_E_MEMORY: errors.OutOfMemoryError,
    lib.HS_E_FULL: errors.ContextFullError,
    lib.HS_E_STATE: errors.StateError,
    lib.HS_E_BUSY: errors.BusyError,
    lib.HS_E_CANCELLED: errors.CancelledError,
    lib.HS_E_INTERNAL: errors.InternalError,
}
LOG_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}


def new_error() -> Any:
    """A fresh `hs_error *` for one call."""
    return ffi.new("hs_error *")


def check(code: int, error: Any) -> None:
    """Raise the exception of a status code other than HS_OK, with the message that the C call left in `error`."""
    if code != lib.HS_OK:
        message = text(error.message) or f"hysparse status {code}"
        raise EXCEPTIONS.get(code, errors.InternalError)(message)


def text(pointer: Any) -> str:
    """A C string as str; NULL gives an empty one. Bytes that are not UTF-8 (from a hostile file) are replaced."""
    return "" if pointer == ffi.NULL else bytes(ffi.string(pointer)).decode("utf-8", errors="replace")


def path_bytes(path: str | os.PathLike[str]) -> bytes:
    """A path as the bytes that C opens."""
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise errors.ArgumentError(f"path {os.fspath(path)!r} holds a NUL character")
    return encoded


def int32_array(values: Sequence[int] | NDArray[Any], what: str) -> NDArray[np.int32]:
    """`values` as a contiguous int32 array [n]; ArgumentError names `what` when they are not integers of 32 bits."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise errors.ArgumentError(f"{what} must be a flat list of integers, found {array.ndim} dimensions")
    if array.size == 0:
        return np.zeros(0, dtype=np.int32)
    if array.dtype.kind not in "iu":
        raise errors.ArgumentError(f"{what} must be integers, found dtype {array.dtype}")
    low, high = int(array.min()), int(array.max())
    if low < -(2**31) or high >= 2**31:
        raise errors.ArgumentError(f"{what} holds {low if low < -(2**31) else high}, which is no 32-bit integer")
    return np.ascontiguousarray(array, dtype=np.int32)


def int32_pointer(array: NDArray[np.int32]) -> Any:
    """A `const int32_t *` into the array, which must outlive it."""
    return ffi.cast("const int32_t *", array.ctypes.data)


def floats(array: NDArray[np.float32]) -> Any:
    """A `float *` into a contiguous float32 array, which must outlive it."""
    return ffi.cast("float *", array.ctypes.data)


class Handle:
    """Owns one C object. `parent` (a session's model) is kept until this object is gone, whatever order Python collects them in."""

    def __init__(self, pointer: Any, free: Callable[[Any], None], what: str, parent: Handle | None = None) -> None:
        self._what = what
        self._lock = threading.Lock()
        parent_pointer = None if parent is None else parent.pointer

        def destroy(p: Any, _parent: Any = parent_pointer) -> None:  # the default argument keeps the parent's memory alive
            free(p)

        self._pointer: Any = ffi.gc(pointer, destroy)

    @property
    def pointer(self) -> Any:
        """The C pointer; ClosedError after close()."""
        pointer = self._pointer
        if pointer is None:
            raise errors.ClosedError(f"this {self._what} is closed")
        return pointer

    @property
    def closed(self) -> bool:
        return self._pointer is None

    def close(self) -> None:
        """Free the C object now. Calling it again does nothing."""
        with self._lock:
            pointer, self._pointer = self._pointer, None
        if pointer is not None:
            ffi.release(pointer)


class Callback:
    """A Python callable that C calls through one of the hs_py_* functions. An exception in it stops the C call and is raised afterwards."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.error: BaseException | None = None
        self.handle = ffi.new_handle(self)

    def call(self, *args: Any) -> bool:
        try:
            return self.function(*args) is not False
        except BaseException as error:  # raised again by reraise(), on the Python side of the C call
            self.error = error
            return False

    def reraise(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error


def keep_error(kind: Any, error: BaseException, trace: Any) -> None:
    """What is raised outside Callback.call(): a signal that came while C ran (Ctrl-C) is handled as soon as the function below begins."""
    user = None if trace is None else trace.tb_frame.f_locals.get("user")
    if user is not None:
        ffi.from_handle(user).error = error


@ffi.def_extern(error=False, onerror=keep_error)  # type: ignore[untyped-decorator]
def hs_py_progress(fraction: float, user: Any) -> bool:
    return bool(ffi.from_handle(user).call(fraction))


@ffi.def_extern(error=False, onerror=keep_error)  # type: ignore[untyped-decorator]
def hs_py_quantize_progress(done: int, total: int, tensor: Any, user: Any) -> bool:
    return bool(ffi.from_handle(user).call(done, total, text(tensor)))


@ffi.def_extern(error=False, onerror=keep_error)  # type: ignore[untyped-decorator]
def hs_py_capture(name: Any, ne: Any, data: Any, user: Any) -> bool:
    shape = tuple(int(ne[i]) for i in (3, 2, 1, 0))  # ggml's ne[0] is the contiguous dimension: numpy's last
    count = shape[0] * shape[1] * shape[2] * shape[3]
    values = np.frombuffer(ffi.buffer(data, 4 * count), dtype=np.float32).reshape(shape).copy()
    return bool(ffi.from_handle(user).call(text(name), values))


@ffi.def_extern()  # type: ignore[untyped-decorator]
def hs_py_log(level: int, message: Any, user: Any) -> None:
    logging.getLogger("pyhysparse").log(LOG_LEVELS.get(level, logging.ERROR), "%s", text(message).rstrip("\n"))
