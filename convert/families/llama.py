"""Llama (SmolLM2, Llama 3, ...): `LlamaForCausalLM` to llama.cpp's `llama`."""
from __future__ import annotations

from ..bind import Binder
from ..config import Config
from ..keys import KeyValues
from .common import (
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


def build(config: Config, b: Binder, kv: KeyValues, options: Options) -> None:
    """Keys and tensors. llama.cpp's graph rotates neighbouring pairs, so the rows of q and k are interleaved here, once."""
    del options
    s = read_sizes(config)
    config.forbid("mlp_bias", (False,), "biases in the feed-forward layers are not supported")
    config.forbid("sliding_window", (), "Llama has full attention only")
    set_size_keys(kv, config, s)
    set_uniform_attention_keys(kv, s)
    bind_rope(kv, b, whole_head_rope(config, s))
    bind_embeddings(config, b, s)
    n_q, n_kv = s.n_head * s.head_dim, s.n_head_kv * s.head_dim
    bias = config.flag("attention_bias", default=False)
    for il in range(s.n_layer):
        bind_norms(b, il, s)
        b.add_layer(il, "self_attn.q_proj.weight", (n_q, s.n_embd), interleave=s.n_head)
        b.add_layer(il, "self_attn.k_proj.weight", (n_kv, s.n_embd), interleave=s.n_head_kv)
        b.add_layer(il, "self_attn.v_proj.weight", (n_kv, s.n_embd))
        b.add_layer(il, "self_attn.o_proj.weight", (s.n_embd, n_q))
        bind_biases(config, b, il, {"q_proj": n_q, "k_proj": n_kv, "v_proj": n_kv, "o_proj": s.n_embd}, required=bias,
                    interleave={"q_proj": s.n_head, "k_proj": s.n_head_kv})
        bind_mlp(b, il, s.n_embd, s.n_ff)
