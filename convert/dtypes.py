"""Number formats: safetensors' dtypes to float32 (numpy has neither bfloat16 nor float8), float32 to GGUF's types."""
from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import numpy.typing as npt

from .errors import mismatch

F32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# safetensors' name -> bytes an element, for every dtype of the format; those that can be a weight are in DECODERS.
ITEM_SIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
             "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
FP8 = ("F8_E4M3", "F8_E5M2")


def _e4m3_table() -> F32:
    """All 256 values of float8 e4m3fn: bias 7, no infinity, NaN at 0x7f and 0xff."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent.astype(np.float64) - 10))
    value = np.where(code & 128, -value, value)
    value[(code & 127) == 127] = np.nan
    return value.astype(np.float32)


_E4M3 = _e4m3_table()


def _bf16_to_f32(raw: Bytes) -> F32:
    bits: npt.NDArray[np.uint32] = raw.view("<u2").astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def _e5m2_to_f32(raw: Bytes) -> F32:  # the upper byte of a float16
    return (raw.astype(np.uint16) << 8).view(np.float16).astype(np.float32)


DECODERS: dict[str, Callable[[Bytes], F32]] = {
    "F64": lambda raw: raw.view("<f8").astype(np.float32),
    "F32": lambda raw: raw.view("<f4").astype(np.float32, copy=False),
    "F16": lambda raw: raw.view("<f2").astype(np.float32),
    "BF16": _bf16_to_f32,
    "F8_E4M3": lambda raw: _E4M3[raw],
    "F8_E5M2": _e5m2_to_f32,
}


def decode(raw: Bytes, dtype: str) -> F32:
    """The bytes of consecutive elements as float32 [n]."""
    return DECODERS[dtype](raw)


def f32_to_bf16(x: F32) -> npt.NDArray[np.uint16]:
    """Round to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded: npt.NDArray[np.uint16] = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    nan = np.isnan(x)
    if nan.any():
        rounded[nan] = 0x7FC0
    return rounded


Type = gguf.GGMLQuantizationType
TYPE_OF_OUTTYPE = {"f32": Type.F32, "f16": Type.F16, "bf16": Type.BF16, "q8_0": Type.Q8_0}
FILE_TYPE = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}  # general.file_type, llama.cpp's numbers


def row_bytes(n_cols: int, qtype: gguf.GGMLQuantizationType) -> int:
    """Bytes of one row of `n_cols` elements."""
    block, size = gguf.GGML_QUANT_SIZES[qtype]
    assert n_cols % block == 0
    return n_cols // block * int(size)


def encode(x: F32, qtype: gguf.GGMLQuantizationType, name: str) -> bytes:
    """Rows float32 [n, n_cols] as the bytes of `qtype`. A value that float16 cannot hold is an error, not an infinity."""
    if qtype == Type.F32:
        return np.ascontiguousarray(x, dtype="<f4").tobytes()
    if qtype == Type.BF16:
        return f32_to_bf16(x).astype("<u2", copy=False).tobytes()
    if qtype == Type.F16:
        largest = float(np.max(np.abs(x), initial=0.0))
        if np.isfinite(largest) and largest >= 65520.0:
            raise mismatch(f"tensor {name}", f"the value {largest:g}", "at most 65504, the largest float16; choose outtype bf16 or f32")
        return x.astype("<f2").tobytes()
    return gguf.quants.quantize(np.ascontiguousarray(x), qtype).tobytes()
