"""A GGUF of random weights in the shape you ask for, streamed to disk: to measure memory and speed where there are no public weights.

    python bench/make_random_gguf.py OUT --preset 7b [--arch llama] [--type Q4_K_M] [--n-embd 1024] ...

--arch hysparse: full layers as --full-layers says, the others sparse, each reading the nearest full layer above it. --arch llama: the same
shape with full attention everywhere, which llama.cpp loads too (dense only; it gets a stub tokenizer, as llama.cpp insists on one).
A few rows of random numbers are quantised once a row length and repeated through each tensor, shifted: the blocks are valid and scaled so
that activations stay of order one, but the text is noise. Benchmarks give token ids. Pieces are written by several threads: the 80B
shape (45 GB) takes as long as the disk does.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quant_shape_to_byte_shape, quantize
from numpy.typing import NDArray

from pyhysparse.convert import keys as k
from pyhysparse.convert.errors import ConvertError
from pyhysparse.convert.gguf_file import GGUFFiles, TensorHeader

__all__ = ["PRESETS", "Shape", "write_random_gguf"]

SLAB_BYTES = 1 << 22  # of f32 random numbers a row length
WRITERS = 8
SUPER = 256  # values of a block of the K types
Type = gguf.GGMLQuantizationType


@dataclass(frozen=True)
class Shape:
    """What to make. full_layers: of a hysparse model; n_expert 0: dense."""

    n_layer: int = 16
    full_layers: tuple[int, ...] = (0, 4, 8, 12, 15)
    n_head: int = 16
    n_head_kv: int = 4
    head_dim: int = 128
    n_embd: int = 1024
    n_ff: int = 2816
    n_vocab: int = 1024
    n_ctx: int = 131072
    window: int = 128
    block_size: int = 64
    top_k_tokens: int = 1024
    rope_base: float = 640000.0
    n_expert: int = 0
    n_expert_used: int = 8
    n_ff_exp: int = 64


# SPEC 1: layer pattern and head shapes of the paper's models; FFN widths and vocabularies are ours, so that the parameters add up to
# 7.2e9 and 8.0e10. "-shrunk": of small width. "16-layer" is what bench/vs_llamacpp.py compares.
PRESETS = {
    "7b": Shape(n_layer=36, full_layers=(*range(0, 36, 4), 35), n_head=32, n_head_kv=8, n_embd=4096, n_ff=12288, n_vocab=32000,
                n_ctx=1 << 20),
    "80b": Shape(n_layer=49, full_layers=tuple(range(0, 49, 12)), n_head=64, n_head_kv=4, n_embd=2048, n_ff=5120, n_vocab=151936,
                 n_ctx=1 << 20, n_expert=512, n_ff_exp=512),
    "7b-shrunk": Shape(n_layer=36, full_layers=(*range(0, 36, 4), 35), n_head=32, n_head_kv=8, n_embd=512, n_ff=1024),
    "80b-shrunk": Shape(n_layer=49, full_layers=tuple(range(0, 49, 12)), n_head=64, n_head_kv=4, n_embd=256, n_ff=512, n_expert=16),
    "16-layer": Shape(),
}


def key_values(arch: str, shape: Shape, type_name: str) -> k.KeyValues:
    """The keys of docs/gguf.md."""
    kv, n = k.KeyValues(arch), shape.n_layer
    kv.set(k.GENERAL_NAME, "random weights")
    kv.set(k.FILE_TYPE, int(getattr(gguf.LlamaFileType, "ALL_F32" if type_name == "F32" else f"MOSTLY_{type_name}")))
    for key, value in (
        (k.BLOCK_COUNT, n), (k.CONTEXT_LENGTH, shape.n_ctx), (k.EMBEDDING_LENGTH, shape.n_embd), (k.FEED_FORWARD_LENGTH, shape.n_ff),
        (k.VOCAB_SIZE, shape.n_vocab), (k.HEAD_COUNT, shape.n_head), (k.KEY_LENGTH, shape.head_dim), (k.VALUE_LENGTH, shape.head_dim),
        (k.RMS_EPS, 1e-5), (k.rope_dimension_count(""), shape.head_dim), (k.rope_freq_base(""), shape.rope_base),
    ):  # fmt: skip
        kv.set(key, value)
    if arch == "llama":
        kv.set(k.HEAD_COUNT_KV, shape.n_head_kv)
        set_stub_tokenizer(kv, shape.n_vocab)
        return kv
    oracle = [max(full for full in shape.full_layers if full <= il) for il in range(n)]
    sparse = [il not in shape.full_layers for il in range(n)]
    kv.set(k.HEAD_COUNT_KV_PER_LAYER, [shape.n_head_kv] * n)
    kv.set(k.KV_SOURCE, oracle)
    kv.set(k.SELECTION_SOURCE, [full if is_sparse else -1 for full, is_sparse in zip(oracle, sparse, strict=True)])
    kv.set(k.LOCAL, [int(is_sparse) for is_sparse in sparse])
    kv.set(k.SLIDING_WINDOW, shape.window)
    kv.set(k.GATE, k.GATE_KIND["head"])
    kv.set(k.SPARSE_BLOCK_SIZE, shape.block_size)
    kv.set(k.SPARSE_TOP_K_BLOCKS, shape.top_k_tokens // shape.block_size)
    if shape.n_expert:
        kv.set(k.EXPERT_LAYERS, [int(il > 0) for il in range(n)])
        kv.set(k.EXPERT_COUNT, shape.n_expert)
        kv.set(k.EXPERT_USED_COUNT, shape.n_expert_used)
        kv.set(k.EXPERT_FEED_FORWARD_LENGTH, shape.n_ff_exp)
        kv.set(k.EXPERT_GATING_FUNC, k.GATING_FUNC["sigmoid"])
        kv.set(k.EXPERT_WEIGHTS_NORM, True)
    return kv


def set_stub_tokenizer(kv: k.KeyValues, n_vocab: int) -> None:
    """A byte-level BPE of n_vocab tokens without merges: one letter a byte, then numbered control tokens."""
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]  # the 256 of byte-level BPE
    kv.set(k.TOKENIZER_MODEL, "gpt2")
    kv.set(k.TOKENIZER_PRE, "gpt-2")
    kv.set(k.TOKENS, (letters + [f"<|{i}|>" for i in range(256, n_vocab)])[:n_vocab])
    kv.set(k.TOKEN_TYPE, ([1] * 256 + [3] * max(n_vocab - 256, 0))[:n_vocab])
    kv.set(k.MERGES, ["a b"])
    kv.set(k.SPECIAL_ID["eos"], 0)
    kv.set(k.ADD_BOS, False)


def mixed_type(type_name: str, name: str, n_layer: int) -> Type:
    """The type of a matrix: the one named, or llama.cpp's mix Q4_K_M (Q6_K: the output, and attn_v and ffn_down in half of the layers)."""
    if type_name != "Q4_K_M":
        named: Type = Type.__members__[type_name]
        return named
    eighth = n_layer // 8
    more = name == "output.weight"
    if name.startswith("blk.") and (".attn_v." in name or ".ffn_down" in name):
        il = int(name.split(".")[1])
        more = il < eighth or il >= 7 * n_layer // 8 or (il - eighth) % 3 == 2
    return Type.Q6_K if more else Type.Q4_K


def tensors(arch: str, shape: Shape, type_name: str) -> list[TensorHeader]:
    """Every tensor, shapes row-major."""
    out: list[TensorHeader] = []

    def add(name: str, *dims: int, as_type: Type | None = None) -> None:
        t = mixed_type(type_name, name, shape.n_layer) if as_type is None else as_type
        n_bytes = int(np.prod(dims[:-1])) * quant_shape_to_byte_shape((dims[-1],), t)[0]
        out.append(TensorHeader(name, dims, t, n_bytes))

    f32 = Type.F32
    e, n_q, n_kv = shape.n_embd, shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    add("token_embd.weight", shape.n_vocab, e)
    add("output_norm.weight", e, as_type=f32)
    add("output.weight", shape.n_vocab, e)
    for il in range(shape.n_layer):
        blk = f"blk.{il}."
        add(blk + "attn_norm.weight", e, as_type=f32)
        add(blk + "ffn_norm.weight", e, as_type=f32)
        for name, n_out, n_in in (("attn_q", n_q, e), ("attn_k", n_kv, e), ("attn_v", n_kv, e), ("attn_output", e, n_q)):
            add(f"{blk}{name}.weight", n_out, n_in)
        if arch == "hysparse" and il not in shape.full_layers:
            add(blk + "attn_gate_sparse.weight", shape.n_head, e)
            add(blk + "attn_gate_swa.weight", shape.n_head, e)
        if shape.n_expert and il > 0:
            add(blk + "ffn_gate_inp.weight", shape.n_expert, e, as_type=f32)
            add(blk + "ffn_gate_exps.weight", shape.n_expert, shape.n_ff_exp, e)
            add(blk + "ffn_up_exps.weight", shape.n_expert, shape.n_ff_exp, e)
            add(blk + "ffn_down_exps.weight", shape.n_expert, e, shape.n_ff_exp)
        else:
            add(blk + "ffn_gate.weight", shape.n_ff, e)
            add(blk + "ffn_up.weight", shape.n_ff, e)
            add(blk + "ffn_down.weight", e, shape.n_ff)
    return out


def random_k_blocks(random: np.random.Generator, qtype: Type, rows: int, n_in: int, deviation: float) -> NDArray[np.uint8]:
    """Valid random Q4_K or Q6_K rows, of mean about 0 and the standard deviation asked for: random quants under equal scales, as the
    package gguf quantises neither."""
    n = rows * (n_in // SUPER)
    if qtype is Type.Q4_K:  # f16 d, f16 dmin, 12 bytes of 6-bit scales and minima, 128 of quants: d * 32 * q - dmin * 32, q of 0 to 15
        d = deviation / (32 * np.std(np.arange(16)))
        head = np.array([d, 7.5 * d], dtype=np.float16).view(np.uint8)
        block = np.concatenate([head, np.array([160] * 8 + [0] * 4, dtype=np.uint8)])
        blocks = np.concatenate([np.tile(block, (n, 1)), random.integers(0, 256, (n, 128), dtype=np.uint8)], axis=1)
    else:  # 128 + 64 bytes of quants, 16 scales, f16 d: d * 32 * (q - 32), q of 0 to 63
        d = deviation / (32 * np.std(np.arange(64)))
        block = np.concatenate([np.full(16, 32, dtype=np.uint8), np.array([d], dtype=np.float16).view(np.uint8)])
        blocks = np.concatenate([random.integers(0, 256, (n, 192), dtype=np.uint8), np.tile(block, (n, 1))], axis=1)
    return np.ascontiguousarray(blocks).reshape(rows, -1)


class Slabs:
    """Random rows in the target type, one slab a (row length, type); `data` repeats them through a tensor from a random row on."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.made: dict[tuple[int, Type, bool], NDArray[np.uint8]] = {}

    def slab(self, n_in: int, qtype: Type, norm: bool) -> NDArray[np.uint8]:
        key = (n_in, qtype, norm)
        if key not in self.made:
            rows = 1 if norm else max(SLAB_BYTES // (4 * n_in), 1)
            # norms near 1; matrices scaled by their fan-in, so that a layer keeps the size of its input
            if qtype in (Type.Q4_K, Type.Q6_K):
                if n_in % SUPER:
                    raise ValueError(f"rows of {n_in} values; {qtype.name} needs a multiple of {SUPER}")
                self.made[key] = random_k_blocks(self.random, qtype, rows, n_in, n_in**-0.5)
                return self.made[key]
            values = self.random.standard_normal((rows, n_in), dtype=np.float32)
            values = 1 + 0.1 * values if norm else values * np.float32(n_in**-0.5)
            self.made[key] = np.ascontiguousarray(quantize(values, qtype)).view(np.uint8).reshape(rows, -1)
        return self.made[key]

    def data(self, t: TensorHeader) -> list[bytes]:
        slab = self.slab(t.shape[-1], t.qtype, t.name.endswith("norm.weight"))
        left, at = t.n_bytes // slab.shape[1], int(self.random.integers(len(slab)))
        out = []
        while left:
            part = slab[at : at + left]
            out.append(part.reshape(-1).data)
            left, at = left - len(part), 0
        return out  # type: ignore[return-value]


class ParallelFiles(GGUFFiles):
    """Writes the pieces of all tensors with several threads; nothing is forced to the disk, as these files can be made again."""

    def _write_data(self, writer: gguf.GGUFWriter, data: Callable[[TensorHeader], Iterable[bytes]]) -> None:
        assert writer.fout is not None
        file = writer.fout[0]
        writer.write_padding(file, file.tell())
        file.flush()
        at, pieces = file.tell(), []
        for t in self.tensors:
            start = at
            for piece in data(t):
                pieces.append((piece, at))
                at += len(piece)
            if at - start != t.n_bytes:
                raise ConvertError(f"tensor {t.name}: made {at - start} bytes, expected {t.n_bytes}")
            at = gguf.GGUFWriter.ggml_pad(at, writer.data_alignment)
        os.ftruncate(file.fileno(), at)
        with ThreadPoolExecutor(WRITERS) as pool:
            for done in pool.map(lambda item: os.pwrite(file.fileno(), *item) == len(item[0]), pieces):
                if not done:
                    raise ConvertError(f"{self.out}: a piece was written in part")


def write_random_gguf(path: Path, shape: Shape, arch: str = "hysparse", type_name: str = "Q8_0", seed: int = 1) -> Path:
    """Write the file (a temporary name, then renamed) and return its path.

    Raises ValueError, KeyError (a shape, arch or type that makes no sense), ConvertError (writing failed).
    """
    if arch not in ("hysparse", "llama"):
        raise ValueError(f"arch is {arch!r}; expected hysparse or llama")
    if arch == "llama" and shape.n_expert:
        raise ValueError("arch llama is made dense only; set n_expert to 0")
    if arch == "hysparse" and (not shape.full_layers or shape.full_layers[0] != 0 or max(shape.full_layers) >= shape.n_layer):
        raise ValueError(f"full_layers is {shape.full_layers}; expected numbers below {shape.n_layer}, the first 0")
    if type_name != "Q4_K_M" and type_name not in Type.__members__:
        raise ValueError(f"type is {type_name!r}; expected Q4_K_M or a tensor type, as Q8_0 or F16")
    files = ParallelFiles(path, key_values(arch, shape, type_name), tensors(arch, shape, type_name))
    return files.write(Slabs(seed).data)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="16-layer")
    parser.add_argument("--arch", choices=("hysparse", "llama"), default="hysparse")
    parser.add_argument("--type", dest="type_name", default="Q8_0", help="F32, F16, BF16, Q4_0, Q8_0 ..., or Q4_K_M (Q8_0)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--full-layers", type=lambda text: tuple(int(item) for item in text.split(",")), help="0,4,8 ...")
    for name in ("n_layer", "n_head", "n_head_kv", "head_dim", "n_embd", "n_ff", "n_vocab", "n_ctx", "window", "block_size", "top_k_tokens",
                 "n_expert", "n_expert_used", "n_ff_exp"):  # fmt: skip
        parser.add_argument("--" + name.replace("_", "-"), type=int)
    args = parser.parse_args()
    given: dict[str, Any] = {name: getattr(args, name) for name in Shape.__dataclass_fields__ if getattr(args, name, None) is not None}
    if args.arch == "llama":
        given.setdefault("n_expert", 0)
    try:
        path = write_random_gguf(args.out, replace(PRESETS[args.preset], **given), args.arch, args.type_name, args.seed)
    except (ValueError, KeyError) as error:
        parser.error(str(error))
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
