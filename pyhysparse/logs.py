"""Messages of the C runtime and of ggml: by themselves warnings and errors go to stderr; here they go to Python's logging."""

from __future__ import annotations

import atexit

from pyhysparse._ffi import ffi, lib

__all__ = ["logs_to_logging", "logs_to_stderr"]


def logs_to_logging() -> None:
    """From now on, for the whole process, every message goes to logging.getLogger("pyhysparse"), with its level."""
    lib.hs_log_set(lib.hs_py_log, ffi.NULL)
    atexit.register(logs_to_stderr)  # C must not call into Python once that is gone


def logs_to_stderr() -> None:
    """Back to the beginning: warnings and errors to stderr."""
    lib.hs_log_set(ffi.NULL, ffi.NULL)
