"""Hugging Face tensor names to GGUF tensor names, as tables, with the other names that checkpoints use for the same tensor.

Per-layer names are given without `model.layers.{i}.` and `blk.{i}.`. Experts and fused projections are put together in bind.py.
"""
from __future__ import annotations

import re

GLOBAL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}

LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.bias": "attn_output.bias",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.sinks": "attn_sinks.weight",
    "self_attn.sparse_sinks": "attn_sinks_sparse.weight",
    "self_attn.sparse_gate_proj.weight": "attn_gate_sparse.weight",
    "self_attn.swa_gate_proj.weight": "attn_gate_swa.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
EXPERTS = {"gate_proj": "ffn_gate_exps.weight", "up_proj": "ffn_up_exps.weight", "down_proj": "ffn_down_exps.weight"}

# Other names, tried in order after the first: MiMo-V2's hub checkpoints, PaddleFleet's HySparse, older exports of the router bias.
LAYER_ALIASES = {
    "self_attn.sinks": ("self_attn.attention_sink_bias", "self_attn.swa_attn_sink"),
    "self_attn.sparse_sinks": ("self_attn.sparse_attn_sink",),
    "self_attn.swa_gate_proj.weight": ("self_attn.gate_proj.weight",),
    "mlp.gate.e_score_correction_bias": ("mlp.e_score_correction_bias",),
}

ROPE_FREQS = {"": "rope_freqs.weight", "_sparse": "rope_freqs_sparse.weight", "_swa": "rope_freqs_swa.weight"}

# Derived buffers that old exports stored; recomputed from the config, so nothing is lost.
IGNORABLE = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)$")

# Written as f32 whatever the outtype (besides every vector): the router decides which experts run.
ALWAYS_F32 = re.compile(r"blk\.\d+\.ffn_gate_inp\.weight$|rope_freqs")


def layer_sources(name: str, layer: int) -> list[str]:
    """All checkpoint names of a per-layer tensor, the usual one first."""
    return [f"model.layers.{layer}.{n}" for n in (name, *LAYER_ALIASES.get(name, ()))]
