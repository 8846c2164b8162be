"""Entry of the converter: a Hugging Face checkpoint folder to a GGUF file, streamed (peak memory: a few tensors, not the model)."""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gguf

from . import keys
from .bind import Binder, OutTensor
from .checkpoint import Checkpoint
from .dtypes import FILE_TYPE, TYPE_OF_OUTTYPE, Type, encode, row_bytes
from .errors import mismatch
from .families import family_of
from .families.options import Options
from .gguf_file import GGUFFiles, TensorHeader
from .hub import resolve_source
from .keys import KeyValues
from .tokenizer import set_tokenizer_keys

__all__ = ["OUTTYPES", "Report", "TensorRow", "convert", "parse_size", "resolve_source"]

OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0")
CHUNK_ELEMENTS = 1 << 21  # 8 MiB of float32 at a time
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class TensorRow:
    """One tensor of the file. `shape` is in ggml's order (row length first)."""

    name: str
    shape: tuple[int, ...]
    type: str
    n_bytes: int


@dataclass
class Report:
    """What was written, or would be (`dry_run`). `ignored` names checkpoint tensors that were left out on purpose."""

    arch: str
    outtype: str
    files: list[Path]
    n_params: int
    n_bytes: int
    dry_run: bool
    tensors: list[TensorRow]
    ignored: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def parse_size(size: int | str | None) -> int:
    """Bytes from a number or "500M", "2G" (powers of 1000, as llama.cpp's --split-max-size); 0 for None or 0."""
    if size is None or isinstance(size, int):
        n = size or 0
    else:
        m = re.fullmatch(r"(\d+)\s*([KMG]?)B?", size.strip(), re.IGNORECASE)
        if not m:
            raise mismatch("split_max_size", repr(size), "a size such as 500M or 2G")
        n = int(m[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[m[2].upper()]
    if n < 0:
        raise mismatch("split_max_size", n, "a size of 0 or more")
    return n


def _resolve_outtype(outtype: str, ckpt: Checkpoint, tensors: list[OutTensor]) -> str:
    """`auto`: the 16-bit type nearest the source: bf16 for bf16 and FP8, f16 for f16 and f32, by the matrices' elements."""
    if outtype not in OUTTYPES:
        raise mismatch("outtype", repr(outtype), "one of " + ", ".join(OUTTYPES))
    if outtype != "auto":
        return outtype
    elements = {"bf16": 0, "f16": 0}
    for t in tensors:
        if t.pieces and not t.always_f32:
            dtype = ckpt.tensors[t.pieces[0].source].dtype
            elements["f16" if dtype in ("F16", "F32", "F64") else "bf16"] += math.prod(t.shape)
    return "bf16" if elements["bf16"] > elements["f16"] else "f16"


def _type_of(t: OutTensor, outtype: str) -> gguf.GGMLQuantizationType:
    if t.always_f32:
        return Type.F32
    qtype = TYPE_OF_OUTTYPE[outtype]
    if qtype == Type.Q8_0 and t.n_cols % gguf.GGML_QUANT_SIZES[qtype][0]:
        return Type.F16  # rows that are no multiple of the block
    return qtype


def _licence(folder: Path) -> str | None:
    """The licence in README.md's front matter, if it says one."""
    readme = folder / "README.md"
    if not readme.is_file():
        return None
    with readme.open(encoding="utf-8", errors="replace") as f:
        head = f.read(65536)
    front = re.match(r"---\r?\n(.*?)\r?\n---", head, re.DOTALL)
    found = re.search(r"^license:\s*['\"]?([\w.+-]+)", front[1], re.MULTILINE) if front else None
    return found[1] if found else None


def _set_general_keys(kv: KeyValues, name: str, folder: Path, outtype: str, tensors: list[OutTensor]) -> int:
    """general.* keys; returns the number of parameters."""
    n_params = sum(math.prod(t.shape) for t in tensors if t.pieces)
    kv.set(keys.GENERAL_TYPE, "model")
    kv.set(keys.GENERAL_NAME, name)
    unit, suffix = next((u, s) for u, s in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")) if n_params >= u or s == "K")
    kv.set(keys.SIZE_LABEL, f"{n_params / unit:.2g}{suffix}" if n_params / unit < 10 else f"{round(n_params / unit)}{suffix}")
    licence = _licence(folder)
    if licence:
        kv.set(keys.LICENSE, licence)
    kv.set(keys.FILE_TYPE, FILE_TYPE[outtype])
    kv.set(keys.QUANTIZATION_VERSION, int(gguf.GGML_QUANT_VERSION))
    return n_params


def convert(source: Path, out: Path, outtype: str = "auto", dry_run: bool = False, split_max_size: int | str | None = None,
            progress: Progress | None = None, *, name: str | None = None, qkv_tp_size: int | None = None) -> Report:
    """Convert the checkpoint folder `source` into `out` (a file; an existing one is replaced once the new one is complete).

    outtype: f32, f16, bf16, q8_0 or auto. Vectors (norms, biases, sinks) and routers are f32 in any case; q8_0 leaves matrices whose
    rows are no multiple of 32 in f16. dry_run: check everything and report, write nothing. split_max_size: bytes of tensor data a file,
    or "2G"; files are then OUT-00001-of-0000N.gguf, unless one is enough. progress(done_bytes, total_bytes, tensor): called after every
    few MB. name: general.name, else the folder's. qkv_tp_size: see families.options.

    Raises ConvertError before any weight is read if config, tensors or tokenizer do not fit, and later for values that `outtype` cannot
    hold or failed writes. Nothing is left behind then, nor after KeyboardInterrupt.
    """
    max_size = parse_size(split_max_size)
    ckpt = Checkpoint(Path(source))
    out = Path(out)
    if out.is_dir():
        raise mismatch(f"{out}", "a folder", "a file name such as model.gguf")
    family = family_of(ckpt.config)
    kv, binder = KeyValues(family.arch), Binder(ckpt)
    family.build(ckpt.config, binder, kv, Options(qkv_tp_size))
    binder.finish()
    outtype = _resolve_outtype(outtype, ckpt, binder.tensors)
    n_params = _set_general_keys(kv, name or ckpt.folder.resolve().name, ckpt.folder, outtype, binder.tensors)
    set_tokenizer_keys(ckpt.folder, ckpt.config, kv, binder.warnings)

    headers = []
    for t in binder.tensors:
        qtype = _type_of(t, outtype)
        headers.append(TensorHeader(t.name, t.shape, qtype, math.prod(t.shape[:-1]) * row_bytes(t.shape[-1], qtype)))
    files = GGUFFiles(out, kv, headers, max_size)
    report = Report(family.arch, outtype, files.plan(), n_params, sum(h.n_bytes for h in headers), dry_run,
                    [TensorRow(h.name, h.shape[::-1], h.qtype.name, h.n_bytes) for h in headers], binder.ignored, binder.warnings)
    if not dry_run:
        report.files = files.write(_DataSource(ckpt, binder.tensors, report.n_bytes, progress).pieces)
    return report


class _DataSource:
    """Encodes tensors rows at a time and reports progress."""

    def __init__(self, ckpt: Checkpoint, tensors: list[OutTensor], total: int, progress: Progress | None) -> None:
        self.ckpt, self.total, self.progress = ckpt, total, progress
        self.tensors = {t.name: t for t in tensors}
        self.done = 0

    def pieces(self, header: TensorHeader) -> Iterator[bytes]:
        """The bytes of a tensor, a few MB at a time."""
        for rows in self.tensors[header.name].chunks(self.ckpt, CHUNK_ELEMENTS):
            piece = encode(rows, header.qtype, header.name)
            yield piece
            self.done += len(piece)
            if self.progress is not None:
                self.progress(self.done, self.total, header.name)

