"""Binds the tensors that a model needs to the tensors that a checkpoint has, before any weight is read.

A GGUF tensor is a list of row ranges of stored tensors (`Piece`), which covers renaming, stacking of experts, splitting of packed and
fused projections and FP8 blocks alike; its rows are read, changed and written a few at a time.
"""
from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .checkpoint import Checkpoint, StoredTensor
from .dtypes import DECODERS, F32, FP8
from .errors import ConvertError, mismatch
from .tensor_map import ALWAYS_F32, EXPERTS, GLOBAL, IGNORABLE, LAYER, layer_sources

SHOWN = 8  # names in a message


@dataclass(frozen=True)
class Scale:
    """FP8 block scales: source row r has the factors of row `first_row + (r - origin) // block[0]`, one for each block[1] columns."""

    name: str
    block: tuple[int, int]
    first_row: int
    origin: int


@dataclass(frozen=True)
class Piece:
    """Rows lo..hi-1 of a stored tensor (all dimensions but the last flattened)."""

    source: str
    lo: int
    hi: int
    scale: Scale | None = None

    def read(self, ckpt: Checkpoint, lo: int, hi: int) -> F32:
        """Rows lo..hi-1 of the stored tensor as float32, scaled."""
        rows = ckpt.rows(self.source, lo, hi)
        if self.scale is None:
            return rows
        first = self.scale.first_row + (lo - self.scale.origin) // self.scale.block[0]
        last = self.scale.first_row + (hi - 1 - self.scale.origin) // self.scale.block[0]
        factors = ckpt.rows(self.scale.name, first, last + 1)
        which = self.scale.first_row + (np.arange(lo, hi) - self.scale.origin) // self.scale.block[0] - first
        return rows * np.repeat(factors[which], self.scale.block[1], axis=1)[:, : rows.shape[1]]


@dataclass(frozen=True)
class OutTensor:
    """A tensor of the GGUF file. `shape` is row-major (GGUF stores it reversed). Either `pieces` or computed `values`.

    interleave: number of heads whose rows go from RoPE's half-split order (transformers) to neighbouring pairs (llama.cpp's `llama`), or 0.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...] = ()
    values: F32 | None = None
    interleave: int = 0

    @property
    def n_cols(self) -> int:
        """Elements of a row, the unit of quantisation."""
        return self.shape[-1]

    @property
    def always_f32(self) -> bool:
        """Vectors (norms, biases, sinks) and the router stay f32."""
        return len(self.shape) == 1 or ALWAYS_F32.match(self.name) is not None

    def chunks(self, ckpt: Checkpoint, max_elements: int) -> Iterator[F32]:
        """The tensor's rows in order, float32, about `max_elements` at a time (at least a row; all of it where rows are reordered)."""
        if self.values is not None:
            yield self.values
        elif self.interleave:
            w = np.concatenate([p.read(ckpt, p.lo, p.hi) for p in self.pieces])
            rows, cols = w.shape
            halves = w.reshape(self.interleave, 2, rows // self.interleave // 2, cols)
            yield np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, cols)
        else:
            step = max(1, max_elements // (self.n_cols if len(self.shape) > 1 else 1))
            for p in self.pieces:
                for lo in range(p.lo, p.hi, step):
                    yield p.read(ckpt, lo, min(lo + step, p.hi))


class Binder:
    """Collects OutTensors for a checkpoint, remembers which stored tensors were used, and names what is missing or left over."""

    def __init__(self, ckpt: Checkpoint) -> None:
        self.ckpt = ckpt
        self.tensors: list[OutTensor] = []
        self.used: set[str] = set()
        self.missing: list[str] = []
        self.ignored: list[str] = []
        self.warnings: list[str] = []
        self.block = self._fp8_block()

    def _fp8_block(self) -> tuple[int, int]:
        quant = self.ckpt.config.data.get("quantization_config")
        if quant is None:
            return (128, 128)
        where = "config.json: quantization_config"
        if not isinstance(quant, dict):
            raise mismatch(where, repr(quant)[:80], "an object")
        if quant.get("store_dtype") == "mxfp4":
            raise mismatch(f"{where}: store_dtype", "'mxfp4'", "FP8 or unquantised weights; MXFP4 checkpoints are not supported")
        method = quant.get("quant_method")
        if method != "fp8":
            raise mismatch(f"{where}: quant_method", repr(method), "'fp8'; other quantised checkpoints are not supported")
        block = quant.get("weight_block_size", [128, 128])
        if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
            raise mismatch(f"{where}: weight_block_size", repr(block), "two block sizes such as [128, 128]")
        return block[0], block[1]

    def find(self, *names: str) -> StoredTensor | None:
        """The first of the names that the checkpoint has; two of them at once would be ambiguous."""
        found = [self.ckpt.tensors[n] for n in names if n in self.ckpt.tensors]
        if len(found) > 1:
            raise ConvertError(f"tensors {found[0].name} and {found[1].name} are two names of the same weight; expected one of them")
        return found[0] if found else None

    def take(self, stored: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
        """Mark a tensor as used after checking its dtype, and its shape against the config's."""
        if stored.dtype not in DECODERS:
            raise mismatch(f"tensor {stored.name}: dtype", stored.dtype, "a floating-point type: " + ", ".join(DECODERS))
        if stored.shape != shape:
            raise mismatch(f"tensor {stored.name}: shape", list(stored.shape), f"{list(shape)} from the config")
        self.used.add(stored.name)
        return stored

    def whole(self, stored: StoredTensor) -> Piece:
        """All rows of a stored tensor, with its FP8 scales if it has any."""
        return self.part(stored, 0, stored.n_rows)

    def part(self, stored: StoredTensor, lo: int, hi: int) -> Piece:
        """Rows lo..hi-1 of a stored tensor. In a stack [E, R, C] the range lies within one of the E matrices."""
        if stored.dtype not in FP8:
            return Piece(stored.name, lo, hi)
        scale = self.scale_of(stored)
        rows = stored.shape[-2] if len(stored.shape) > 1 else 1
        per_matrix = -(-rows // self.block[0])
        expected = (*stored.shape[:-2], per_matrix, -(-stored.n_cols // self.block[1]))
        self.take(scale, expected)
        matrix = lo // rows
        if (hi - 1) // rows != matrix:  # never the case for the callers here; scales would have to change block inside the range
            raise ConvertError(f"tensor {stored.name}: rows {lo} to {hi} cross the matrices of a stack")
        return Piece(stored.name, lo, hi, Scale(scale.name, self.block, matrix * per_matrix, matrix * rows))

    def scale_of(self, stored: StoredTensor) -> StoredTensor:
        """The block scales of an FP8 tensor."""
        scale = self.find(stored.name + "_scale_inv")
        if scale is None:
            raise ConvertError(f"tensor {stored.name} is {stored.dtype}: missing its scales {stored.name}_scale_inv")
        return scale

    def add(self, out_name: str, sources: list[str], shape: tuple[int, ...], *, optional: bool = False, interleave: int = 0) -> bool:
        """Bind one tensor; returns whether the checkpoint has it. A missing one that is not optional is reported by `finish`."""
        stored = self.find(*sources)
        if stored is None:
            if not optional:
                self.missing.append(sources[0])
            return False
        self.take(stored, shape)
        self.tensors.append(OutTensor(out_name, shape, (self.whole(stored),), interleave=interleave))
        return True

    def add_global(self, name: str, shape: tuple[int, ...], *, optional: bool = False) -> bool:
        """Bind a tensor outside the layers, by its Hugging Face name."""
        return self.add(GLOBAL[name], [name], shape, optional=optional)

    def add_layer(self, layer: int, name: str, shape: tuple[int, ...], *, optional: bool = False, interleave: int = 0) -> bool:
        """Bind a tensor of a layer, by its Hugging Face name without the layer's prefix."""
        return self.add(f"blk.{layer}.{LAYER[name]}", layer_sources(name, layer), shape, optional=optional, interleave=interleave)

    def has_layer(self, layer: int, name: str) -> bool:
        """Whether the checkpoint has the tensor, under any of its names."""
        return self.find(*layer_sources(name, layer)) is not None

    def add_experts(self, layer: int, n_expert: int, n_ff: int, n_embd: int) -> None:
        """Bind the experts of a layer, stored one by one, or packed as gate_up_proj [E, 2F, H] and down_proj [E, H, F]."""
        prefix = f"model.layers.{layer}.mlp.experts."
        shapes = {"gate_proj": (n_ff, n_embd), "up_proj": (n_ff, n_embd), "down_proj": (n_embd, n_ff)}
        pieces: dict[str, list[Piece]] = {name: [] for name in shapes}
        packed = self.find(prefix + "gate_up_proj")
        if packed is not None:
            self.take(packed, (n_expert, 2 * n_ff, n_embd))
            down = self.find(prefix + "down_proj")
            if down is None:
                self.missing.append(prefix + "down_proj")
                return
            self.take(down, (n_expert, n_embd, n_ff))
            for e in range(n_expert):
                first = 2 * n_ff * e
                pieces["gate_proj"].append(self.part(packed, first, first + n_ff))
                pieces["up_proj"].append(self.part(packed, first + n_ff, first + 2 * n_ff))
                pieces["down_proj"].append(self.part(down, n_embd * e, n_embd * (e + 1)))
        else:
            for e in range(n_expert):
                for name, shape in shapes.items():
                    stored = self.find(f"{prefix}{e}.{name}.weight")
                    if stored is None:
                        self.missing.append(f"{prefix}{e}.{name}.weight")
                    else:
                        pieces[name].append(self.whole(self.take(stored, shape)))
        for name, shape in shapes.items():
            self.tensors.append(OutTensor(f"blk.{layer}.{EXPERTS[name]}", (n_expert, *shape), tuple(pieces[name])))

    def ignore(self, pattern: re.Pattern[str]) -> None:
        """Leave tensors out on purpose: they are listed in the report."""
        for name in self.ckpt.tensors:
            if name not in self.used and name not in self.ignored and pattern.match(name):
                self.ignored.append(name)

    def finish(self) -> None:
        """Everything needed is there and everything there is used or ignored by name; else ConvertError."""
        self.ignore(IGNORABLE)
        if self.missing:
            raise ConvertError(f"{len(self.missing)} tensors that the config asks for are missing: {_names(self.missing)}")
        left = [name for name in self.ckpt.tensors if name not in self.used and name not in self.ignored]
        if left:
            raise ConvertError(f"{len(left)} tensors of the checkpoint have no place in the model of its config: {_names(left)}")
        for t in self.tensors:
            for p in t.pieces:
                if not math.prod(t.shape):
                    raise mismatch(f"tensor {p.source}: shape", list(t.shape), "no empty dimension")


def _names(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
