"""A GGUF of random weights in the shape you ask for, streamed to disk: to measure memory and speed where there are no public weights.

    python bench/make_random_gguf.py OUT --preset 7b-shrunk [--arch llama] [--type Q8_0] [--n-embd 1024] ...

--arch hysparse: full layers as --full-layers says, the others sparse, each reading the nearest full layer above it. --arch llama: the same
shape with full attention everywhere, which llama.cpp loads too (dense only; it gets a stub tokenizer, as llama.cpp insists on one).
A few rows of random numbers are quantised once a row length and repeated through each tensor, shifted: the blocks are valid and scaled so
that activations stay of order one, but the text is noise. Benchmarks give token ids.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quant_shape_to_byte_shape, quantize
from numpy.typing import NDArray

from pyhysparse.convert import keys as k
from pyhysparse.convert.gguf_file import GGUFFiles, TensorHeader

__all__ = ["PRESETS", "Shape", "write_random_gguf"]

SLAB_BYTES = 1 << 22  # of f32 random numbers a row length


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


# SPEC 1: layer pattern and head shapes of the paper's models, widths shrunk. "16-layer" is what bench/vs_llamacpp.py compares.
PRESETS = {
    "7b-shrunk": Shape(n_layer=36, full_layers=(*range(0, 36, 4), 35), n_head=32, n_head_kv=8, n_embd=512, n_ff=1024),
    "80b-shrunk": Shape(n_layer=49, full_layers=tuple(range(0, 49, 12)), n_head=64, n_head_kv=4, n_embd=256, n_ff=512, n_expert=16),
    "16-layer": Shape(),
}


def key_values(arch: str, shape: Shape, qtype: gguf.GGMLQuantizationType) -> k.KeyValues:
    """The keys of docs/gguf.md."""
    kv, n = k.KeyValues(arch), shape.n_layer
    kv.set(k.GENERAL_NAME, "random weights")
    kv.set(k.FILE_TYPE, int(getattr(gguf.LlamaFileType, "ALL_F32" if qtype.name == "F32" else f"MOSTLY_{qtype.name}")))
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


def tensors(arch: str, shape: Shape, qtype: gguf.GGMLQuantizationType) -> list[TensorHeader]:
    """Every tensor, shapes row-major."""
    out: list[TensorHeader] = []

    def add(name: str, *dims: int, as_type: gguf.GGMLQuantizationType = qtype) -> None:
        n_bytes = int(np.prod(dims[:-1])) * quant_shape_to_byte_shape((dims[-1],), as_type)[0]
        out.append(TensorHeader(name, dims, as_type, n_bytes))

    f32 = gguf.GGMLQuantizationType.F32
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


class Slabs:
    """Random rows in the target type, one slab a (row length, type); `data` repeats them through a tensor from a random row on."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.made: dict[tuple[int, gguf.GGMLQuantizationType, bool], NDArray[np.uint8]] = {}

    def slab(self, n_in: int, qtype: gguf.GGMLQuantizationType, norm: bool) -> NDArray[np.uint8]:
        key = (n_in, qtype, norm)
        if key not in self.made:
            rows = 1 if norm else max(SLAB_BYTES // (4 * n_in), 1)
            # norms near 1; matrices scaled by their fan-in, so that a layer keeps the size of its input
            values = self.random.standard_normal((rows, n_in), dtype=np.float32)
            values = 1 + 0.1 * values if norm else values * np.float32(n_in**-0.5)
            self.made[key] = np.ascontiguousarray(quantize(values, qtype)).view(np.uint8).reshape(rows, -1)
        return self.made[key]

    def data(self, t: TensorHeader) -> Iterator[bytes]:
        slab = self.slab(t.shape[-1], t.qtype, t.name.endswith("norm.weight"))
        left, at = t.n_bytes // slab.shape[1], int(self.random.integers(len(slab)))
        while left:
            part = slab[at : at + left]
            yield part.tobytes()
            left, at = left - len(part), 0


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
    qtype = gguf.GGMLQuantizationType[type_name]
    files = GGUFFiles(path, key_values(arch, shape, qtype), tensors(arch, shape, qtype))
    return files.write(Slabs(seed).data)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="16-layer")
    parser.add_argument("--arch", choices=("hysparse", "llama"), default="hysparse")
    parser.add_argument("--type", dest="type_name", default="Q8_0", help="F32, F16, BF16, Q4_0, Q8_0 ...: what gguf quantises (Q8_0)")
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
