"""GGUF files byte by byte, right or wrong: a writer that checks nothing, and tiny valid models.

hostile_reader.py and hostile_model.py make their cases with it, test_hostile.py runs them. `python seed_corpus.py DIR` writes the fuzz
target's seeds.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
PACK = {U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<B", U64: "<Q", I64: "<q", F64: "<d"}

# ggml type numbers, elements and bytes of a block
GGML_F32, GGML_F16, GGML_Q4_0, GGML_Q8_0, GGML_I32 = 0, 1, 2, 8, 26
BLOCK = {GGML_F32: (1, 4), GGML_F16: (1, 2), GGML_Q4_0: (32, 18), GGML_Q8_0: (32, 34), GGML_I32: (1, 4)}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value: Any) -> bytes:
    return text(value) if kind == STR else struct.pack(PACK[kind], value)


def array(kind: int, values: list[Any], length: int | None = None) -> bytes:
    """An array's element type, length (true unless given) and elements."""
    return struct.pack("<IQ", kind, len(values) if length is None else length) + b"".join(scalar(kind, v) for v in values)


def n_bytes(kind: int, ne: list[int]) -> int:
    block, size = BLOCK[kind]
    total = ne[0] // block * size
    for n in ne[1:]:
        total *= n
    return total


@dataclass
class Tensor:
    name: str | bytes
    ne: list[int]
    kind: int
    data: bytes
    offset: int | None = None  # None: where it belongs
    n_dims: int | None = None

    def info(self, offset: int) -> bytes:
        dims = b"".join(struct.pack("<Q", n & (2**64 - 1)) for n in self.ne)
        n_dims = len(self.ne) if self.n_dims is None else self.n_dims
        where = offset if self.offset is None else self.offset
        return text(self.name) + struct.pack("<I", n_dims) + dims + struct.pack("<IQ", self.kind, where)


@dataclass
class GGUF:
    """A file in the making. Nothing is checked: any field may be wrong."""

    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_kv: int | None = None
    alignment: int = 32
    kv: dict[str, bytes] = field(default_factory=dict)  # key -> type and value, as bytes
    extra_kv: list[bytes] = field(default_factory=list)  # whole pairs, as bytes
    tensors: list[Tensor] = field(default_factory=list)

    def set(self, key: str, kind: int, value: Any) -> GGUF:
        self.kv[key] = struct.pack("<I", kind) + scalar(kind, value)
        return self

    def set_array(self, key: str, kind: int, values: list[Any], length: int | None = None) -> GGUF:
        self.kv[key] = struct.pack("<I", ARR) + array(kind, values, length)
        return self

    def set_raw(self, key: str, raw: bytes) -> GGUF:
        self.kv[key] = raw
        return self

    def drop(self, *keys: str) -> GGUF:
        for key in keys:
            del self.kv[key]
        return self

    def tensor(self, name: str | bytes, ne: list[int], kind: int = GGML_F32, data: bytes | None = None, **wrong: Any) -> GGUF:
        self.tensors.append(Tensor(name, ne, kind, bytes(n_bytes(kind, ne)) if data is None else data, **wrong))
        return self

    def find(self, name: str) -> Tensor:
        return next(t for t in self.tensors if t.name == name)

    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_kv = len(self.kv) + len(self.extra_kv) if self.n_kv is None else self.n_kv
        return self.magic + struct.pack("<IQQ", self.version, n_tensors & (2**64 - 1), n_kv & (2**64 - 1))

    def build(self) -> bytes:
        head = self.header() + b"".join(text(k) + v for k, v in self.kv.items()) + b"".join(self.extra_kv)
        data = b""
        for t in self.tensors:
            data += b"\0" * (-len(data) % self.alignment)
            head += t.info(len(data))
            data += t.data
        return head + b"\0" * (-len(head) % self.alignment) + data if self.tensors else head


# --- tiny valid models ----------------------------------------------------------------------------------------------------------------

N_EMBD, N_HEAD, HEAD_DIM, N_FF = 32, 2, 32, 32


def weights(rng: random.Random, kind: int, ne: list[int]) -> bytes:
    """Small finite values: q4_0 blocks have the f16 scale 0.01."""
    count = n_bytes(kind, ne)
    if kind == GGML_Q4_0:
        return b"".join(b"\x1f\x21" + rng.randbytes(16) for _ in range(count // 18))
    return b"".join(struct.pack("<f", rng.uniform(-0.1, 0.1)) for _ in range(count // 4))


def byte_tokens() -> list[str]:
    """GPT-2's printable characters of the 256 bytes, in byte order."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in kept]
    return [chr(b) if b in kept else chr(256 + others.index(b)) for b in range(256)]


def add_tokenizer(g: GGUF) -> int:
    tokens = [*byte_tokens(), "he", "<|endoftext|>"]
    g.set("tokenizer.ggml.model", STR, "gpt2").set("tokenizer.ggml.pre", STR, "gpt-2")
    g.set_array("tokenizer.ggml.tokens", STR, tokens)
    g.set_array("tokenizer.ggml.token_type", I32, [1] * 257 + [3])
    g.set_array("tokenizer.ggml.merges", STR, ["h e"])
    g.set("tokenizer.ggml.bos_token_id", U32, 257).set("tokenizer.ggml.eos_token_id", U32, 257)
    return len(tokens)


def add_layer(g: GGUF, rng: random.Random, il: int, n_expert: int, gates: bool, kind: int, qk_norm: bool) -> None:
    def add(name: str, ne: list[int], k: int = GGML_F32) -> None:
        g.tensor(f"blk.{il}.{name}.weight", ne, k, weights(rng, k, ne))

    add("attn_norm", [N_EMBD])
    add("attn_q", [N_EMBD, N_HEAD * HEAD_DIM], kind)
    add("attn_k", [N_EMBD, HEAD_DIM], kind)
    add("attn_v", [N_EMBD, HEAD_DIM], kind)
    add("attn_output", [N_HEAD * HEAD_DIM, N_EMBD], kind)
    if gates:
        add("attn_gate_sparse", [N_EMBD, N_HEAD])
        add("attn_gate_swa", [N_EMBD, N_HEAD])
        add("attn_sinks", [N_HEAD])
    if qk_norm:
        add("attn_q_norm", [HEAD_DIM])
        add("attn_k_norm", [HEAD_DIM])
    add("ffn_norm", [N_EMBD])
    if n_expert:
        add("ffn_gate_inp", [N_EMBD, n_expert])
        for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
            add(name, [N_EMBD, N_FF, n_expert], kind)
    else:
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            add(name, [N_EMBD, N_FF], kind)


def tiny_model(arch: str = "hysparse", *, moe: bool = False, tokenizer: bool = True, n_vocab: int = 24, kind: int = GGML_Q4_0) -> GGUF:
    """A whole model: `hysparse` has a full, a sparse, a sliding and a full layer; others two full ones. moe: the last layer has experts."""
    g, rng = GGUF(), random.Random(7)
    n_layer = 4 if arch == "hysparse" else 2
    g.set("general.architecture", STR, arch).set("general.name", STR, "tiny")
    numbers = {
        "block_count": n_layer,
        "context_length": 256,
        "embedding_length": N_EMBD,
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "rope.dimension_count": HEAD_DIM,
    }
    for key, value in numbers.items():
        g.set(f"{arch}.{key}", U32, value)
    g.set_array(f"{arch}.attention.head_count_kv", I32, [1] * n_layer)
    g.set(f"{arch}.attention.layer_norm_rms_epsilon", F32, 1e-5).set(f"{arch}.rope.freq_base", F32, 10000.0)
    if arch == "hysparse":
        g.set_array("hysparse.attention.kv_source", I32, [0, 0, -1, 3])
        g.set_array("hysparse.attention.selection_source", I32, [-1, 0, -1, -1])
        g.set_array("hysparse.attention.local", I32, [0, 1, 1, 0]).set("hysparse.attention.gate", U32, 1)
        g.set("hysparse.attention.sliding_window", U32, 8)
        g.set("hysparse.attention.sparse.block_size", U32, 16).set("hysparse.attention.sparse.top_k_blocks", U32, 2)
    if arch == "mimo2":
        g.set_array("mimo2.attention.sliding_window_pattern", I32, [0, 1]).set("mimo2.attention.sliding_window", U32, 8)
    if moe:
        g.set("hysparse.expert_count", U32, 4).set("hysparse.expert_used_count", U32, 2)
        g.set("hysparse.expert_feed_forward_length", U32, N_FF)
        g.set_array("hysparse.expert_layers", I32, [0] * (n_layer - 1) + [1])
    vocab = add_tokenizer(g) if tokenizer else n_vocab
    g.tensor("token_embd.weight", [N_EMBD, vocab], kind, weights(rng, kind, [N_EMBD, vocab]))
    g.tensor("output_norm.weight", [N_EMBD], GGML_F32, weights(rng, GGML_F32, [N_EMBD]))
    for il in range(n_layer):
        add_layer(g, rng, il, 4 if moe and il == n_layer - 1 else 0, arch == "hysparse" and il == 1, kind, arch == "qwen3")
    return g


def small() -> GGUF:
    """Two keys and two tensors: the base of the format cases."""
    g = GGUF().set("general.architecture", STR, "hysparse").set("test.value", U32, 7)
    return g.tensor("a", [32, 2], GGML_Q4_0, bytes(36)).tensor("b", [4], GGML_F32, bytes(16))


@dataclass(frozen=True)
class Case:
    """Files, the one to open, the exception expected and the words its text must have: the place, the value found, the value expected."""

    name: str
    files: dict[str, bytes]
    error: str
    words: tuple[str, ...]
    open: str = "model.gguf"


def case(name: str, data: bytes | GGUF, error: str, *words: str) -> Case:
    return Case(name, {"model.gguf": data if isinstance(data, bytes) else data.build()}, error, words)


def fmt(name: str, data: bytes | GGUF, *words: str) -> Case:
    return case(name, data, "FormatError", *words)


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value
