"""A Hugging Face checkpoint folder, read lazily: config.json and (sharded) safetensors.

The safetensors headers are read and checked here, not through the safetensors package: its numpy side has no bfloat16 or float8.
"""
from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .config import Config
from .dtypes import DECODERS, F32, ITEM_SIZE, Bytes, decode
from .errors import ConvertError, mismatch

INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies. `shape` is row-major, as in PyTorch; `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    n_bytes: int

    @property
    def n_cols(self) -> int:
        """Elements of a row: the last dimension, 1 for a vector (whose elements count as rows)."""
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def n_rows(self) -> int:
        """Rows, all dimensions but the last flattened."""
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else math.prod(self.shape)


def read_text(path: Path) -> str:
    """A UTF-8 text file, or ConvertError naming the file."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise ConvertError(f"{path.name}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConvertError(f"{path.name}: not valid UTF-8: {e}") from e


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or ConvertError naming the file."""
    try:
        value = json.loads(read_text(path))
    except ConvertError:
        raise
    except (ValueError, RecursionError) as e:
        raise ConvertError(f"{path.name}: not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise mismatch(path.name, f"a JSON {type(value).__name__}", "an object")
    return value


def _check_entry(path: Path, name: str, entry: Any, data_start: int, data_bytes: int) -> StoredTensor:
    where = f"{path.name}: tensor {name}"
    if not isinstance(entry, dict):
        raise mismatch(where, f"a JSON {type(entry).__name__}", "an object")
    dtype, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if dtype not in ITEM_SIZE:
        raise mismatch(f"{where}: dtype", repr(dtype), "one of " + ", ".join(DECODERS))
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**62 for n in shape):
        raise mismatch(f"{where}: shape", repr(shape), "a list of sizes")
    if not isinstance(span, list) or len(span) != 2 or not all(type(n) is int for n in span):
        raise mismatch(f"{where}: data_offsets", repr(span), "[begin, end]")
    begin, end = span
    if not 0 <= begin <= end <= data_bytes:
        raise mismatch(f"{where}: data_offsets", repr(span), f"a range within the {data_bytes} bytes of data in the file")
    n_bytes = math.prod(shape) * ITEM_SIZE[dtype]
    if end - begin != n_bytes:
        raise mismatch(f"{where}: data_offsets", f"{end - begin} bytes", f"{n_bytes} for {dtype} {shape}")
    return StoredTensor(name, dtype, tuple(shape), path, data_start + begin, n_bytes)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The checked header of one safetensors file; no weight is read. Offsets must not overlap."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            head = f.read(8)
            if len(head) < 8:
                raise mismatch(path.name, f"{size} bytes", "a safetensors file (at least 8)")
            (n,) = struct.unpack("<Q", head)
            if n > min(MAX_HEADER, size - 8):
                limit = min(MAX_HEADER, size - 8)
                raise mismatch(f"{path.name}: header length", n, f"at most {limit}; the file may be cut off or a Git LFS pointer")
            text = f.read(n)
    except OSError as e:
        raise ConvertError(f"{path.name}: {e.strerror}") from e
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ConvertError(f"{path.name}: header is not valid JSON: {e}") from e
    if not isinstance(header, dict):
        raise mismatch(f"{path.name}: header", f"a JSON {type(header).__name__}", "an object")
    header.pop("__metadata__", None)
    tensors = {name: _check_entry(path, name, entry, 8 + n, size - 8 - n) for name, entry in header.items()}
    last: StoredTensor | None = None
    for t in sorted((t for t in tensors.values() if t.n_bytes), key=lambda t: t.offset):
        if last and t.offset < last.offset + last.n_bytes:
            raise mismatch(f"{path.name}: tensor {t.name}", f"data that overlaps that of {last.name}", "ranges of their own")
        last = t
    return tensors


def _shard_paths(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The safetensors files of the checkpoint and, when sharded, the index's tensor -> file map."""
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise mismatch(f"{INDEX}: weight_map", repr(weight_map)[:80], "an object of tensor names and file names")
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise mismatch(f"{INDEX}: {name}", repr(file), "the name of a file in the same folder")
        paths = [folder / file for file in sorted(set(weight_map.values()))]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise ConvertError(f"{INDEX}: {len(missing)} of {len(paths)} files are missing, the first is {missing[0]}")
        return paths, weight_map
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"], None
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found, None
    if found:
        raise ConvertError(f"{folder.name}: {len(found)} safetensors files without {INDEX} (first: {found[0].name})")
    legacy = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth") and p.is_file())
    if legacy:
        raise ConvertError(f"{folder.name}: found {legacy[0]}, expected safetensors. PyTorch pickles can run code when read, so they are "
                           "refused; save the model again with transformers' save_pretrained")
    raise ConvertError(f"{folder.name}: no safetensors file found")


class Checkpoint:
    """config.json (`config`), the tensors' places (`tensors`, all headers checked), and rows of tensors on demand."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConvertError(f"{folder}: not a folder")
        if not (folder / "config.json").is_file():
            raise ConvertError(f"{folder.name}: config.json is missing")
        self.folder = folder
        self.config = Config(read_json(folder / "config.json"))
        self.tensors: dict[str, StoredTensor] = {}
        paths, weight_map = _shard_paths(folder)
        for path in paths:
            for name, tensor in read_header(path).items():
                if name in self.tensors:
                    raise ConvertError(f"tensor {name}: stored twice, in {self.tensors[name].path.name} and {path.name}")
                self.tensors[name] = tensor
        if weight_map is not None:
            self._check_index(weight_map)

    def _check_index(self, weight_map: dict[str, str]) -> None:
        for name, file in weight_map.items():
            stored = self.tensors.get(name)
            if stored is None or stored.path.name != file:
                where = "no file" if stored is None else stored.path.name
                raise mismatch(f"{INDEX}: tensor {name}", f"it in {where}", f"it in {file}")
        for name, tensor in self.tensors.items():
            if name not in weight_map:
                raise ConvertError(f"{INDEX}: tensor {name} of {tensor.path.name} is not in the index")

    def rows(self, name: str, lo: int, hi: int) -> F32:
        """Rows lo..hi-1 of a tensor as float32 [hi - lo, n_cols] (all dimensions but the last flattened; a vector has one column)."""
        t = self.tensors[name]
        row = t.n_cols * ITEM_SIZE[t.dtype]
        raw: Bytes = np.fromfile(t.path, dtype=np.uint8, count=(hi - lo) * row, offset=t.offset + lo * row)
        if raw.size != (hi - lo) * row:
            raise mismatch(f"{t.path.name}: tensor {name}", f"{raw.size} bytes", f"{(hi - lo) * row}; the file changed while it was read")
        return decode(raw, t.dtype).reshape(hi - lo, t.n_cols)
