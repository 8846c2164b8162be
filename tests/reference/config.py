"""Reads a Hugging Face config.json into one description per layer (SPEC 5 and 6), which is all that the reference model looks at.

Model types: hysparse, and those it is compared with in transformers: llama, qwen2, qwen3, mimo_v2_flash.
"""
from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

LAYER_KINDS = {"full_attention": "full", "sparse_attention": "sparse", "sliding_attention": "sliding"}
FULL_ONLY = ("llama", "qwen2", "qwen3")


@dataclass(frozen=True)
class RopeConfig:
    """RoPE of one layer kind; names as in transformers' `rope_parameters`."""

    theta: float = 10000.0
    rope_type: str = "default"  # default | linear | yarn | llama3
    partial_rotary_factor: float = 1.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


@dataclass(frozen=True)
class LayerConfig:
    """One layer, as data: where keys, values and selection come from, its local part, gates, sinks, rope and FFN kind."""

    kind: str  # full | sparse | sliding | forced (oracle mode: own full-length cache, one softmax)
    n_head: int
    n_head_kv: int  # of the layer's own keys and values (sparse: of its window branch)
    head_dim: int
    v_head_dim: int
    rope: RopeConfig
    oracle_layer: int = -1  # the full layer whose selection (and, for sparse, K* and V*) it reads
    emits_scores: bool = False
    gate: str | None = None  # head | channel | None
    sinks: bool = False
    sparse_sinks: bool = False
    moe: bool = False


@dataclass(frozen=True)
class MoeConfig:
    """Routing and widths of the MoE layers."""

    n_expert: int
    n_expert_used: int
    n_ff: int
    n_shared: int = 0
    scoring_func: str = "sigmoid"  # sigmoid | softmax
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    n_group: int = 1
    topk_group: int = 1


@dataclass(frozen=True)
class ModelConfig:
    """The whole model. `window` counts the current token; `top_k` is in blocks."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    qk_norm: bool
    attention_bias: bool
    value_scale: float
    window: int
    block_size: int
    top_k: int
    layers: tuple[LayerConfig, ...]
    moe: MoeConfig | None = None


def _rope(parameters: dict[str, Any], max_position_embeddings: int) -> RopeConfig:
    def number(key: str, default: float) -> float:
        value = parameters.get(key)
        return default if value is None else float(value)

    return RopeConfig(
        theta=number("rope_theta", 10000.0),
        rope_type=str(parameters.get("rope_type", parameters.get("type", "default"))),
        partial_rotary_factor=number("partial_rotary_factor", 1.0),
        factor=number("factor", 1.0),
        original_max_position_embeddings=int(parameters.get("original_max_position_embeddings") or max_position_embeddings),
        attention_factor=parameters.get("attention_factor"),
        mscale=parameters.get("mscale"),
        mscale_all_dim=parameters.get("mscale_all_dim"),
        beta_fast=number("beta_fast", 32.0),
        beta_slow=number("beta_slow", 1.0),
        truncate=bool(parameters.get("truncate", True)),
        low_freq_factor=number("low_freq_factor", 1.0),
        high_freq_factor=number("high_freq_factor", 4.0),
    )


def rope_of(config: dict[str, Any], layer_type: str) -> RopeConfig:
    """RoPE of a layer type ("full_attention", ...): its own entry of `rope_parameters`, else the full layers', else the flat dict.

    Checkpoints older than transformers 5 have `rope_theta` and `rope_scaling` at the top instead.
    """
    parameters = config.get("rope_parameters")
    if parameters is None:
        parameters = dict(config.get("rope_scaling") or {})
        parameters["rope_theta"] = config.get("rope_theta", 10000.0)
    elif any(kind in parameters for kind in LAYER_KINDS):
        parameters = parameters.get(layer_type) or parameters["full_attention"]
    parameters = dict(parameters)
    parameters.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    if config.get("partial_rotary_factor") is not None:
        parameters.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    return _rope(parameters, int(config.get("max_position_embeddings", 2048)))


def _moe(config: dict[str, Any]) -> MoeConfig | None:
    if not config.get("n_routed_experts"):
        return None
    return MoeConfig(
        n_expert=config["n_routed_experts"],
        n_expert_used=config["num_experts_per_tok"],
        n_ff=config["moe_intermediate_size"],
        n_shared=config.get("n_shared_experts") or 0,
        scoring_func=config.get("scoring_func") or "sigmoid",
        norm_topk_prob=config.get("norm_topk_prob", True),
        routed_scaling_factor=1.0 if config.get("routed_scaling_factor") is None else config["routed_scaling_factor"],
        n_group=config.get("n_group") or 1,
        topk_group=config.get("topk_group") or 1,
    )


def _layers(config: dict[str, Any]) -> tuple[LayerConfig, ...]:
    n_layer = config["num_hidden_layers"]
    full_only = config["model_type"] in FULL_ONLY
    layer_types = ["full_attention"] * n_layer if full_only else config["layer_types"]
    mlp_types = config.get("mlp_layer_types") or ["dense"] * n_layer
    if len(layer_types) != n_layer or len(mlp_types) != n_layer:
        raise ValueError(f"layer_types has {len(layer_types)} and mlp_layer_types {len(mlp_types)} entries, expected {n_layer}")
    n_head = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // n_head
    v_head_dim = (None if full_only else config.get("v_head_dim")) or head_dim
    n_head_kv = config.get("num_key_value_heads") or n_head
    if config["model_type"] == "mimo_v2_flash":  # transformers hard-codes both
        n_head_kv_swa, swa_sinks = 2 * n_head_kv, True
    else:
        n_head_kv_swa = config.get("swa_num_key_value_heads") or n_head_kv
        swa_sinks = bool(config.get("add_swa_attention_sink_bias"))
    layers: list[LayerConfig] = []
    oracle = -1
    for il, layer_type in enumerate(layer_types):
        kind = LAYER_KINDS[layer_type]
        layer = LayerConfig(
            kind=kind, n_head=n_head, n_head_kv=n_head_kv if kind == "full" else n_head_kv_swa, head_dim=head_dim, v_head_dim=v_head_dim,
            rope=rope_of(config, layer_type), moe=mlp_types[il] == "sparse",
            sinks=bool(config.get("add_full_attention_sink_bias")) if kind == "full" else swa_sinks,
        )
        if kind == "full":
            oracle = il
        elif kind == "sliding":
            layer = replace(layer, head_dim=config.get("swa_head_dim") or head_dim, v_head_dim=config.get("swa_v_head_dim") or v_head_dim)
        else:
            if oracle < 0:
                raise ValueError(f"layer {il} is sparse and has no full layer above it")
            layer = replace(layer, oracle_layer=oracle, gate=config.get("attention_gate"),
                            sparse_sinks=bool(config.get("add_sparse_attention_sink_bias")))
            layers[oracle] = replace(layers[oracle], emits_scores=True)
        layers.append(layer)
    return tuple(layers)


def parse_config(config: dict[str, Any]) -> ModelConfig:
    """A parsed config.json as a ModelConfig. Raises KeyError or ValueError on what is missing or contradictory."""
    block_size = config.get("sparse_block_size") or 1
    return ModelConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        rms_norm_eps=config["rms_norm_eps"],
        tie_word_embeddings=bool(config.get("tie_word_embeddings")),
        qk_norm=bool(config.get("qk_norm")) or config["model_type"] == "qwen3",
        attention_bias=bool(config.get("attention_bias")),
        value_scale=1.0 if config.get("attention_value_scale") is None else config["attention_value_scale"],
        window=config.get("sliding_window") or 0,
        block_size=block_size,
        top_k=(config.get("sparse_topk_tokens") or 0) // block_size,
        layers=_layers(config),
        moe=_moe(config),
    )


def load_config(checkpoint: Path) -> ModelConfig:
    """ModelConfig of a checkpoint folder."""
    return parse_config(json.loads((checkpoint / "config.json").read_text()))


def with_oracle(config: ModelConfig, full_layers: list[int], block_size: int, top_k_tokens: int, window: int) -> ModelConfig:
    """Oracle mode for a full-attention model (SPEC 5, training-free): all layers but `full_layers` become "forced"."""
    if not full_layers or full_layers[0] != 0 or sorted(set(full_layers)) != full_layers:
        raise ValueError(f"full_layers is {full_layers}, expected an ascending list that starts with 0")
    layers: list[LayerConfig] = []
    oracle = 0
    for il, layer in enumerate(config.layers):
        if il in full_layers:
            oracle = il
        else:
            layer = replace(layer, kind="forced", oracle_layer=oracle)
            layers[oracle] = replace(layers[oracle], emits_scores=True)
        layers.append(layer)
    return replace(config, layers=tuple(layers), block_size=block_size, top_k=top_k_tokens // block_size, window=window)
