"""Writes the seed corpus of the fuzz target: `python seed_corpus.py DIR`. Deterministic; under 200 KB in all."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from hostile_reader import reader_cases
from make_hostile import BOOL, F32, GGML_F32, GGML_Q4_0, GGML_Q8_0, GGUF, I32, PACK, STR, U32, small, tiny_model

SEEDS = ["alignment-huge", "array-wraps", "product-wraps-to-small", "overlap", "key-repeated", "strings-past-end", "type-removed-4"]


def every_key() -> GGUF:
    """A model whose file has each optional key, a shared expert, biases, fused q, k, v and RoPE factors."""
    g, h = tiny_model(moe=True, tokenizer=False), "hysparse."
    for suffix in ("", "_sparse", "_swa"):
        g.set(f"{h}rope.freq_base{suffix}", F32, 5e5).set(f"{h}rope.dimension_count{suffix}", U32, 16)
        g.set(f"{h}rope.scaling{suffix}.type", STR, "linear" if suffix == "_swa" else "yarn")
        for key, value in (("factor", 4.0), ("yarn_ext_factor", 1.0), ("yarn_beta_fast", 32.0), ("yarn_beta_slow", 1.0)):
            g.set(f"{h}rope.scaling{suffix}.{key}", F32, value)
        g.set(f"{h}rope.scaling{suffix}.original_context_length", U32, 128).set(f"{h}rope.scaling{suffix}.attn_factor", F32, 1.0)
        g.tensor(f"rope_freqs{suffix}.weight", [8], GGML_F32, struct.pack("<8f", *[1.0] * 8))
    g.set(h + "attention.value_scale", F32, 0.5).set(h + "attention.key_length_swa", U32, 32).set(h + "attention.value_length_swa", U32, 32)
    g.set(h + "expert_shared_count", U32, 1).set(h + "expert_shared_feed_forward_length", U32, 32).set(h + "expert_gating_func", U32, 2)
    g.set(h + "expert_weights_norm", BOOL, 1).set(h + "expert_weights_scale", F32, 2.0)
    g.set(h + "expert_group_count", U32, 2).set(h + "expert_group_used_count", U32, 2)
    g.set_array(h + "oracle.full_layers", I32, [0, 3]).set(h + "oracle.block_size", U32, 16).set(h + "oracle.top_k_tokens", U32, 32)
    g.set(h + "oracle.window", U32, 8).set("general.file_type", U32, 2).set("tokenizer.ggml.bos_token_id", U32, 2**32 - 1)
    for name in ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"):
        g.tensor(f"blk.3.{name}.weight", [32, 32], GGML_Q4_0, bytes(576))
    g.tensor("blk.3.exp_probs_b.bias", [4]).tensor("blk.0.attn_q.bias", [64]).tensor("blk.1.attn_sinks_sparse.weight", [2])
    g.tensors = [t for t in g.tensors if t.name not in ("blk.3.attn_q.weight", "blk.3.attn_k.weight", "blk.3.attn_v.weight")]
    g.tensor("blk.3.attn_qkv.weight", [32, 128], GGML_Q4_0, bytes(128 * 18))
    return g.tensor("output.weight", [32, 24], GGML_Q8_0, bytes(24 * 34))


def seeds() -> dict[str, bytes]:
    every_type = small()
    for kind in PACK:
        every_type.set(f"test.type{kind}", kind, 1).set_array(f"test.array{kind}", kind, [0, 1])
    every_type.set_array("test.strings", STR, ["", "a", "é"]).set("general.alignment", U32, 64)
    every_type.alignment = 64
    out = {
        "small.gguf": small().build(),
        "types.gguf": every_type.build(),
        "hysparse.gguf": tiny_model(tokenizer=False).build(),
        "moe.gguf": tiny_model(moe=True, tokenizer=False).build(),
        "llama.gguf": tiny_model("llama", tokenizer=False).build(),
        "qwen3.gguf": tiny_model("qwen3", tokenizer=False).build(),
        "mimo2.gguf": tiny_model("mimo2", tokenizer=False).build(),
        "every_key.gguf": every_key().build(),
    }
    hostile = {c.name: c for c in reader_cases()}
    return out | {f"bad-{name}.gguf": hostile[name].files["model.gguf"] for name in SEEDS}


if __name__ == "__main__":
    for name, data in seeds().items():
        Path(sys.argv[1], name).write_bytes(data)
