"""Qwen2 and Qwen3 (dense) to llama.cpp's `qwen2` and `qwen3`. RoPE rotates halves in both, so q and k keep their row order."""
from __future__ import annotations

from ..bind import Binder
from ..config import Config
from ..errors import mismatch
from ..keys import KeyValues
from .common import (
    Sizes,
    bind_biases,
    bind_embeddings,
    bind_mlp,
    bind_norms,
    bind_rope,
    read_sizes,
    set_size_keys,
    set_uniform_attention_keys,
    whole_head_rope,
)
from .options import Options


def _check_full_attention(config: Config, s: Sizes) -> None:
    """Qwen's configs carry a sliding window that is off by default; models that use it are refused."""
    if config.has("layer_types"):
        for il, kind in enumerate(config.items("layer_types", length=s.n_layer)):
            if kind != "full_attention":
                raise mismatch(config.place(f"layer_types[{il}]"), repr(kind), "'full_attention' in a Qwen model")
    elif config.flag("use_sliding_window", default=False) and config.integer("max_window_layers", default=0, low=0) < s.n_layer:
        raise mismatch(config.place("use_sliding_window"), "true", "false; sliding layers of Qwen models are not supported")


def _build(config: Config, b: Binder, kv: KeyValues, *, qk_norm: bool, bias: bool) -> None:
    s = read_sizes(config)
    _check_full_attention(config, s)
    set_size_keys(kv, config, s)
    set_uniform_attention_keys(kv, s)
    bind_rope(kv, b, whole_head_rope(config, s))
    bind_embeddings(config, b, s)
    n_q, n_kv = s.n_head * s.head_dim, s.n_head_kv * s.head_dim
    for il in range(s.n_layer):
        bind_norms(b, il, s)
        b.add_layer(il, "self_attn.q_proj.weight", (n_q, s.n_embd))
        b.add_layer(il, "self_attn.k_proj.weight", (n_kv, s.n_embd))
        b.add_layer(il, "self_attn.v_proj.weight", (n_kv, s.n_embd))
        b.add_layer(il, "self_attn.o_proj.weight", (s.n_embd, n_q))
        bind_biases(config, b, il, {"q_proj": n_q, "k_proj": n_kv, "v_proj": n_kv, "o_proj": s.n_embd}, required=bias)
        if qk_norm:
            b.add_layer(il, "self_attn.q_norm.weight", (s.head_dim,))
            b.add_layer(il, "self_attn.k_norm.weight", (s.head_dim,))
        bind_mlp(b, il, s.n_embd, s.n_ff)


def build_qwen2(config: Config, b: Binder, kv: KeyValues, options: Options) -> None:
    """Qwen2 and Qwen2.5: biases on q, k and v."""
    del options
    _build(config, b, kv, qk_norm=False, bias=True)


def build_qwen3(config: Config, b: Binder, kv: KeyValues, options: Options) -> None:
    """Qwen3: RMSNorm on each head's q and k, biases only when attention_bias is true."""
    del options
    config.integer("head_dim")  # not hidden_size / num_attention_heads in this family, so it must be given
    _build(config, b, kv, qk_norm=True, bias=config.flag("attention_bias", default=False))
