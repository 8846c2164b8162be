"""Named overrides of the tiny base model (tiny.BASE_CONFIG), one for each thing that a HySparse checkpoint can vary."""
from __future__ import annotations

from typing import Any

FULL, SPARSE, SLIDING = "full_attention", "sparse_attention", "sliding_attention"


def _moe(n_layer: int, **more: Any) -> dict[str, Any]:
    return {"mlp_layer_types": ["dense"] + ["sparse"] * (n_layer - 1), "n_routed_experts": 8, "num_experts_per_tok": 2,
            "moe_intermediate_size": 32, "scoring_func": "sigmoid", "norm_topk_prob": True, **more}


def _yarn(theta: float, factor: float) -> dict[str, Any]:
    return {"rope_type": "yarn", "rope_theta": theta, "factor": factor, "original_max_position_embeddings": 64}


_LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 128}

PRESETS: dict[str, dict[str, Any]] = {
    # full, sparse and sliding layers mixed, a gate per head
    "dense": {},
    "gate_channel": {"attention_gate": "channel", "v_head_dim": 64},
    "gate_none": {"attention_gate": None},
    # the paper's other two architectures
    "all_full": {"layer_types": [FULL] * 3, "num_hidden_layers": 3},
    "hybrid_swa": {"layer_types": [FULL, SLIDING, SLIDING, FULL], "num_hidden_layers": 4, "add_swa_attention_sink_bias": True,
                   "swa_head_dim": 64, "swa_v_head_dim": 32, "swa_num_key_value_heads": 4, "attention_value_scale": 0.707},
    # sinks, one place at a time and all together
    "sinks_full": {"add_full_attention_sink_bias": True},
    "sinks_sparse": {"add_sparse_attention_sink_bias": True},
    "sinks_swa": {"add_swa_attention_sink_bias": True},
    "sinks_all": {"add_full_attention_sink_bias": True, "add_sparse_attention_sink_bias": True, "add_swa_attention_sink_bias": True,
                  "attention_gate": "channel"},
    # RoPE
    "rope_partial": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "rope_linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "rope_yarn": {"rope_parameters": _yarn(10000.0, 8.0)},
    "rope_yarn_options": {"rope_parameters": {**_yarn(50000.0, 4.0), "attention_factor": 1.25, "beta_fast": 24.0, "beta_slow": 2.0}},
    "rope_llama3": {"rope_parameters": _LLAMA3},
    "rope_per_type": {"rope_parameters": {
        FULL: _yarn(640000.0, 4.0),
        SPARSE: {"rope_type": "default", "rope_theta": 640000.0, "partial_rotary_factor": 0.5},
        SLIDING: {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0}}},
    "rope_llama3_per_type": {"rope_parameters": {
        FULL: _LLAMA3, SPARSE: {**_LLAMA3, "rope_theta": 5000.0, "factor": 4.0}, SLIDING: {"rope_type": "default", "rope_theta": 500.0}}},
    # head shapes
    "heads_192_128": {"head_dim": 192, "v_head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1,
                      "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.334}},
    "gqa_1_kv": {"num_attention_heads": 8, "num_key_value_heads": 1, "swa_num_key_value_heads": 1},
    "mha": {"num_key_value_heads": 4, "swa_num_key_value_heads": 4},
    "kv_heads_differ": {"num_attention_heads": 8, "num_key_value_heads": 2, "swa_num_key_value_heads": 8},
    "qk_norm": {"qk_norm": True},
    "bias": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "value_scale": {"attention_value_scale": 0.612},
    # blocks and windows: smaller and larger than a page, not dividing one, window longer than the tests' contexts
    "block_8": {"sparse_block_size": 8, "sparse_topk_tokens": 40},
    "block_24": {"sparse_block_size": 24, "sparse_topk_tokens": 72, "sliding_window": 10},
    "block_10_top_1": {"sparse_block_size": 10, "sparse_topk_tokens": 10, "sliding_window": 1},
    "window_long": {"sliding_window": 500},
    "select_all": {"sparse_topk_tokens": 4096},
    # the paper's two layer patterns at tiny widths
    "pattern_7b": {"num_hidden_layers": 36, "layer_types": [SPARSE if il % 4 and il != 35 else FULL for il in range(36)]},
    "moe_1_11": {"num_hidden_layers": 49, "layer_types": [SPARSE if il % 12 else FULL for il in range(49)], "num_key_value_heads": 1,
                 "swa_num_key_value_heads": 1, **_moe(49)},
    # routing
    "moe_groups": {**_moe(7, n_routed_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2, routed_scaling_factor=2.5)},
    "moe_shared": {**_moe(7, scoring_func="softmax", n_shared_experts=2)},
    "moe_softmax": {**_moe(7, scoring_func="softmax", norm_topk_prob=False, num_experts_per_tok=3, routed_scaling_factor=1.5)},
    "moe_512": {"num_hidden_layers": 3, "layer_types": [FULL, SPARSE, FULL],
                **_moe(3, n_routed_experts=512, num_experts_per_tok=8, n_group=8, topk_group=3, scoring_func="softmax")},
}
