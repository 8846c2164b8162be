"""Writes GGUF files (one, or split) in a temporary folder beside the target and moves them into place at the end.

The header goes through gguf.GGUFWriter; tensor data is written straight to its files, rows at a time: no tensor has to fit in memory.
"""
from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from .errors import ConvertError, mismatch
from .keys import KeyValues


@dataclass(frozen=True)
class TensorHeader:
    """Name, row-major shape, type and size of a tensor to be written."""

    name: str
    shape: tuple[int, ...]
    qtype: gguf.GGMLQuantizationType
    n_bytes: int


class GGUFFiles:
    """The files of one model. Use `plan` for their names, `write` to make them."""

    def __init__(self, out: Path, kv: KeyValues, tensors: list[TensorHeader], split_max_size: int = 0) -> None:
        self.out = out
        self.tensors = tensors
        self.kv = kv
        # GGUFWriter logs a warning when a limit turns out not to split anything
        self.split_max_size = split_max_size if sum(t.n_bytes for t in tensors) > split_max_size else 0

    def _writer(self, path: Path) -> gguf.GGUFWriter:
        writer = gguf.GGUFWriter(path, self.kv.arch, split_max_size=self.split_max_size)
        self.kv.write_to(writer)
        for t in self.tensors:
            writer.add_tensor_info(t.name, t.shape, np.dtype(np.float32), t.n_bytes, raw_dtype=t.qtype)
        return writer

    def plan(self) -> list[Path]:
        """The files that `write` would make: `out` alone, or its name with -00001-of-0000N."""
        return [Path(path) for path in self._writer(self.out).format_shard_names(self.out)]

    def write(self, data: Callable[[TensorHeader], Iterable[bytes]]) -> list[Path]:
        """Write all files; `data` gives a tensor's bytes in pieces. On any failure or interruption nothing is left behind."""
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            free, needed = shutil.disk_usage(self.out.parent).free, sum(t.n_bytes for t in self.tensors)
            if free < needed:
                raise mismatch(f"{self.out}: free space", f"{free} bytes", f"at least {needed} for the tensors")
            folder = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", suffix=".tmp", dir=self.out.parent))
        except OSError as e:
            raise ConvertError(f"{self.out}: cannot write there: {e.strerror}") from e
        try:
            writer = self._writer(folder / self.out.name)
            try:
                writer.write_header_to_file()
                writer.write_kv_data_to_file()
                writer.write_ti_data_to_file()
                self._write_data(writer, data)
            finally:
                for f in writer.fout or []:
                    f.close()
            return self._move(writer.format_shard_names(folder / self.out.name))
        except OSError as e:
            raise ConvertError(f"{self.out}: writing failed: {e.strerror or e}") from e
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write_data(self, writer: gguf.GGUFWriter, data: Callable[[TensorHeader], Iterable[bytes]]) -> None:
        by_name = {t.name: t for t in self.tensors}
        for f, names in zip(writer.fout or [], writer.tensors, strict=True):
            writer.write_padding(f, f.tell())
            for name in names:
                n_written = 0
                for piece in data(by_name[name]):
                    f.write(piece)
                    n_written += len(piece)
                if n_written != by_name[name].n_bytes:
                    raise ConvertError(f"tensor {name}: wrote {n_written} bytes, expected {by_name[name].n_bytes}")
                writer.write_padding(f, n_written)
            f.flush()
            os.fsync(f.fileno())

    def _move(self, temporary: list[Path]) -> list[Path]:
        """Move finished files into place; if one cannot be, those already moved are removed again."""
        moved: list[Path] = []
        try:
            for path in temporary:
                target = self.out.parent / path.name
                os.replace(path, target)
                moved.append(target)
        except BaseException:
            for path in moved:
                path.unlink(missing_ok=True)
            raise
        return moved
