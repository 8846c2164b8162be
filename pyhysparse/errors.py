"""Exceptions: one class a kind of failure, all below HysparseError, each also the builtin that Python users would catch.

The text of every exception names the file, key, tensor or argument concerned, the value found and the value expected.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "BusyError",
    "CancelledError",
    "ClosedError",
    "ContextFullError",
    "DownloadError",
    "FileError",
    "FormatError",
    "HysparseError",
    "InternalError",
    "ModelError",
    "OutOfMemoryError",
    "StateError",
    "TemplateError",
    "TokenizerError",
]


class HysparseError(Exception):
    """Base class of everything that pyhysparse raises on purpose."""


class ArgumentError(HysparseError, ValueError):
    """An argument is out of its range or of the wrong kind (HS_E_ARG)."""


class FileError(HysparseError, OSError):
    """A file cannot be opened, read or written (HS_E_IO)."""


class FormatError(HysparseError, ValueError):
    """A file is malformed: a GGUF file or a session file (HS_E_FORMAT)."""


class ModelError(HysparseError, ValueError):
    """A well-formed file describes a model that is inconsistent or not supported (HS_E_MODEL)."""


class OutOfMemoryError(HysparseError, MemoryError):
    """An allocation failed (HS_E_MEMORY)."""


class ContextFullError(HysparseError, RuntimeError):
    """The context (its pages) is used up (HS_E_FULL)."""


class StateError(HysparseError, ValueError):
    """A saved session belongs to another model or to other session parameters (HS_E_STATE)."""


class BusyError(HysparseError, RuntimeError):
    """Another call is using this session (HS_E_BUSY)."""


class CancelledError(HysparseError, RuntimeError):
    """A call was stopped by cancel() or by a callback that returned False (HS_E_CANCELLED)."""


class InternalError(HysparseError, RuntimeError):
    """A bug in pyhysparse or in a backend (HS_E_INTERNAL)."""


class ClosedError(HysparseError, ValueError):
    """The object was closed before this call."""


class TokenizerError(HysparseError, ValueError):
    """The model's tokenizer data is missing, malformed or of a kind that is not supported."""


class TemplateError(HysparseError, ValueError):
    """The chat template is missing, malformed, refused by the sandbox, or raised an error of its own."""


class DownloadError(HysparseError, OSError):
    """A model cannot be fetched: no network, no such repository or file, or a checksum that does not match."""
