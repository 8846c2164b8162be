"""GGUF files through the runtime's checked reader: metadata as a mapping, the tensor table as a list."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from pyhysparse._ffi import Handle, check, ffi, lib, new_error, path_bytes, text
from pyhysparse.errors import FormatError

__all__ = ["GGUFFile", "Metadata", "TensorInfo", "Value"]

Value = str | int | float | bool | list[Any]

# hs_gguf_type -> numpy dtype of a scalar or of an array's element, and its name in messages
DTYPES: dict[int, tuple[str, str]] = {
    lib.HS_GGUF_U8: ("<u1", "u8"),
    lib.HS_GGUF_I8: ("<i1", "i8"),
    lib.HS_GGUF_U16: ("<u2", "u16"),
    lib.HS_GGUF_I16: ("<i2", "i16"),
    lib.HS_GGUF_U32: ("<u4", "u32"),
    lib.HS_GGUF_I32: ("<i4", "i32"),
    lib.HS_GGUF_U64: ("<u8", "u64"),
    lib.HS_GGUF_I64: ("<i8", "i64"),
    lib.HS_GGUF_F32: ("<f4", "f32"),
    lib.HS_GGUF_F64: ("<f8", "f64"),
    lib.HS_GGUF_BOOL: ("?", "bool"),
}


@dataclass(frozen=True)
class TensorInfo:
    """One row of the tensor table."""

    name: str
    type: str  # ggml type name: "q4_0", "f32" ...
    shape: tuple[int, ...]  # ggml order: shape[0] is the contiguous dimension
    size: int  # bytes
    offset: int  # bytes from the start of split file number `file`
    file: int


class Metadata(Mapping[str, Value]):
    """Read-only view of a file's key/value pairs. Arrays come as lists; each value is decoded when it is asked for."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        g = file.pointer
        self._index = {text(lib.hs_gguf_key(g, i)): i for i in range(lib.hs_gguf_n_kv(g))}

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __getitem__(self, key: str) -> Value:
        i = self._index[key]
        g = self._file.pointer
        kind = int(lib.hs_gguf_kv_type(g, i))
        raw = self._raw(i)
        if kind == lib.HS_GGUF_STR:
            return decode_text(raw, f"GGUF key {key}")
        if kind != lib.HS_GGUF_ARR:
            scalar: Value = np.frombuffer(raw, dtype=DTYPES[kind][0], count=1)[0].item()
            return scalar
        length = int(lib.hs_gguf_arr_len(g, i))
        element = int(lib.hs_gguf_arr_type(g, i))
        if element == lib.HS_GGUF_STR:
            return split_strings(raw, length, key)
        values: list[Any] = np.frombuffer(raw, dtype=DTYPES[element][0], count=length).tolist()
        return values

    def type_of(self, key: str) -> str:
        """The stored type: "u32", "str", "arr[i32]" ..."""
        i = self._index[key]
        g = self._file.pointer
        kind = int(lib.hs_gguf_kv_type(g, i))
        if kind == lib.HS_GGUF_ARR:
            element = int(lib.hs_gguf_arr_type(g, i))
            return f"arr[{'str' if element == lib.HS_GGUF_STR else DTYPES[element][1]}]"
        return "str" if kind == lib.HS_GGUF_STR else DTYPES[kind][1]

    def array_length(self, key: str) -> int:
        """Number of elements of an array; 1 for a scalar."""
        i = self._index[key]
        g = self._file.pointer
        return int(lib.hs_gguf_arr_len(g, i)) if lib.hs_gguf_kv_type(g, i) == lib.HS_GGUF_ARR else 1

    def _raw(self, i: int) -> bytes:
        size = ffi.new("size_t *")
        pointer = lib.hs_gguf_raw(self._file.pointer, i, size)
        return bytes(ffi.buffer(pointer, size[0])) if size[0] else b""


def decode_text(raw: bytes, what: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{what}: byte {raw[error.start]:#04x} at {error.start} is not UTF-8") from None


def split_strings(raw: bytes, length: int, key: str) -> list[str]:
    """The strings of an array: each is a u64 length and its bytes. The reader has checked the lengths against the file."""
    out: list[str] = []
    at = 0
    unpack = struct.Struct("<Q").unpack_from
    for i in range(length):
        (n,) = unpack(raw, at)
        at += 8
        try:
            out.append(raw[at : at + n].decode("utf-8"))
        except UnicodeDecodeError:
            decode_text(raw[at : at + n], f"GGUF key {key}[{i}]")
        at += n
    return out


class GGUFFile:
    """A checked GGUF file (any shard of a split one opens them all).

    Raises FileError, FormatError, OutOfMemoryError. A file that belongs to a model (`model.gguf`) lives as long as the model does.
    """

    def __init__(self, path: str | os.PathLike[str], *, use_mmap: bool = True) -> None:
        out, error = ffi.new("hs_gguf **"), new_error()
        check(lib.hs_gguf_open(path_bytes(path), use_mmap, out, error), error)
        self._own(Handle(out[0], lib.hs_gguf_free, "GGUF file"), out[0])

    @classmethod
    def of_model(cls, owner: Handle) -> GGUFFile:
        """The file of a loaded model, owned by it."""
        file = cls.__new__(cls)
        file._own(owner, lib.hs_model_gguf(owner.pointer), borrowed=True)
        return file

    def _own(self, handle: Handle, pointer: Any, borrowed: bool = False) -> None:
        self._handle, self._pointer, self._borrowed = handle, pointer, borrowed
        self.metadata = Metadata(self)

    @property
    def pointer(self) -> Any:
        """The `hs_gguf *`; ClosedError after close()."""
        if self._borrowed:
            _ = self._handle.pointer  # raises when the model is closed
            return self._pointer
        return self._handle.pointer

    @property
    def n_bytes(self) -> int:
        """Size of all its files together."""
        return int(lib.hs_gguf_n_bytes(self.pointer))

    @property
    def tensors(self) -> list[TensorInfo]:
        """The tensor table, in file order."""
        g, info, out = self.pointer, ffi.new("hs_tensor_info *"), []
        for i in range(lib.hs_gguf_n_tensors(g)):
            lib.hs_gguf_tensor(g, i, info)
            shape = tuple(int(info.ne[d]) for d in range(info.n_dims))
            out.append(TensorInfo(text(info.name), text(info.type), shape, int(info.size), int(info.offset), int(info.file)))
        return out

    def close(self) -> None:
        """Unmap and close the files now (a model's file is left to the model)."""
        if not self._borrowed:
            self._handle.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
