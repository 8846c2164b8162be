"""What the families share: the usual keys, embeddings and head, attention and FFN tensors, routing."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import keys
from ..bind import Binder, OutTensor
from ..config import Config
from ..errors import ConvertError, mismatch
from ..keys import KeyValues
from ..rope import Rope, rope_of
from ..tensor_map import ROPE_FREQS


@dataclass(frozen=True)
class Sizes:
    """The sizes every family has."""

    n_layer: int
    n_embd: int
    n_ff: int
    n_vocab: int
    n_head: int
    n_head_kv: int
    head_dim: int


def read_sizes(config: Config) -> Sizes:
    """Sizes from config.json, checked against each other; the FFN's activation too."""
    config.forbid("hidden_act", ("silu",), "only SwiGLU feed-forward layers are supported")
    n_layer = config.integer("num_hidden_layers", high=4096)
    n_embd = config.integer("hidden_size")
    n_head = config.integer("num_attention_heads", high=65536)
    n_head_kv = config.integer("num_key_value_heads", default=n_head, high=65536)
    if n_head % n_head_kv:
        raise mismatch(config.place("num_key_value_heads"), n_head_kv, f"a divisor of num_attention_heads ({n_head})")
    if not config.has("head_dim") and n_embd % n_head:
        raise mismatch(config.place("num_attention_heads"), n_head, f"a divisor of hidden_size ({n_embd}) when head_dim is absent")
    return Sizes(n_layer, n_embd, config.integer("intermediate_size"), config.integer("vocab_size"), n_head, n_head_kv,
                 config.integer("head_dim", default=n_embd // n_head, high=65536))


def set_size_keys(kv: KeyValues, config: Config, s: Sizes) -> None:
    """Keys that all architectures share; head counts and dims follow in the family."""
    kv.set(keys.BLOCK_COUNT, s.n_layer)
    kv.set(keys.CONTEXT_LENGTH, config.integer("max_position_embeddings"))
    kv.set(keys.EMBEDDING_LENGTH, s.n_embd)
    kv.set(keys.FEED_FORWARD_LENGTH, s.n_ff)
    kv.set(keys.VOCAB_SIZE, s.n_vocab)
    kv.set(keys.RMS_EPS, config.number("rms_norm_eps", "layernorm_epsilon"))


def set_uniform_attention_keys(kv: KeyValues, s: Sizes) -> None:
    """Head counts and dims of the families whose layers are all alike."""
    kv.set(keys.HEAD_COUNT, s.n_head)
    kv.set(keys.HEAD_COUNT_KV, s.n_head_kv)
    kv.set(keys.KEY_LENGTH, s.head_dim)
    kv.set(keys.VALUE_LENGTH, s.head_dim)


def whole_head_rope(config: Config, s: Sizes) -> Rope:
    """The RoPE of Llama and Qwen, which rotate whole heads whatever partial_rotary_factor says."""
    rope = rope_of(config, "full_attention", s.head_dim)
    if rope.n_rot != s.head_dim:
        raise mismatch(config.place("partial_rotary_factor"), f"{rope.n_rot} of {s.head_dim} dimensions", "whole heads in this family")
    return rope


def bind_rope(kv: KeyValues, b: Binder, rope: Rope, suffix: str = "") -> None:
    """RoPE keys, and for Llama 3's scaling the frequency factors."""
    rope.set_keys(kv, suffix)
    factors = rope.freq_factors()
    if factors is not None:
        b.tensors.append(OutTensor(ROPE_FREQS[suffix], factors.shape, values=factors))


def bind_embeddings(config: Config, b: Binder, s: Sizes) -> None:
    """Embeddings, final norm and head. A tied head is left out; a stored copy of it must equal the embeddings."""
    b.add_global("model.embed_tokens.weight", (s.n_vocab, s.n_embd))
    b.add_global("model.norm.weight", (s.n_embd,))
    head = b.find("lm_head.weight")
    tied = config.optional_flag("tie_word_embeddings")
    if tied is None:
        tied = head is None
    if not tied:
        b.add_global("lm_head.weight", (s.n_vocab, s.n_embd))
    elif head is not None:
        b.take(head, (s.n_vocab, s.n_embd))
        embeddings = b.ckpt.tensors.get("model.embed_tokens.weight")
        step = max(1, (1 << 22) // s.n_embd)
        for lo in range(0, s.n_vocab if embeddings else 0, step):
            hi = min(lo + step, s.n_vocab)
            if not np.array_equal(b.ckpt.rows(head.name, lo, hi), b.ckpt.rows("model.embed_tokens.weight", lo, hi)):
                raise ConvertError("tensor lm_head.weight: found values other than model.embed_tokens.weight's, expected the same "
                                   "(config.json: tie_word_embeddings is true)")
        b.ignored.append("lm_head.weight")
        b.warnings.append("lm_head.weight equals the embeddings (tied) and is not stored again")


def bind_norms(b: Binder, il: int, s: Sizes) -> None:
    """The two pre-norms of a layer."""
    b.add_layer(il, "input_layernorm.weight", (s.n_embd,))
    b.add_layer(il, "post_attention_layernorm.weight", (s.n_embd,))


def bind_biases(config: Config, b: Binder, il: int, rows: dict[str, int], *, required: bool | None,
                interleave: dict[str, int] | None = None) -> None:
    """Attention biases {projection: rows}. required: True all but o_proj's must be there, False none may, None as they are."""
    for name, n in rows.items():
        tensor = f"self_attn.{name}.bias"
        present = b.add_layer(il, tensor, (n,), optional=not required or name == "o_proj", interleave=(interleave or {}).get(name, 0))
        if present and required is False:
            raise mismatch(config.place("attention_bias"), "false", f"true, for the checkpoint has model.layers.{il}.{tensor}")


def bind_mlp(b: Binder, il: int, n_embd: int, n_ff: int, prefix: str = "mlp.") -> None:
    """A SwiGLU feed-forward block."""
    b.add_layer(il, prefix + "gate_proj.weight", (n_ff, n_embd))
    b.add_layer(il, prefix + "up_proj.weight", (n_ff, n_embd))
    b.add_layer(il, prefix + "down_proj.weight", (n_embd, n_ff))


@dataclass(frozen=True)
class Moe:
    """Routing of the MoE layers; `layers[il]` says which are."""

    layers: tuple[bool, ...]
    n_expert: int = 0
    n_ff: int = 0
    n_shared: int = 0
    n_ff_shared: int = 0


def _moe_layers(config: Config, n_layer: int) -> tuple[bool, ...]:
    if config.has("mlp_layer_types"):
        types = config.items("mlp_layer_types", length=n_layer)
        for il, kind in enumerate(types):
            if kind not in ("dense", "sparse"):
                raise mismatch(config.place(f"mlp_layer_types[{il}]"), repr(kind), "'dense' or 'sparse'")
        return tuple(kind == "sparse" for kind in types)
    if config.has("moe_layer_freq"):
        flags = config.items("moe_layer_freq", length=n_layer)
        for il, value in enumerate(flags):
            if value not in (0, 1):
                raise mismatch(config.place(f"moe_layer_freq[{il}]"), repr(value), "0 or 1")
        return tuple(value == 1 for value in flags)
    if config.integer("n_routed_experts", "num_local_experts", default=0, low=0):
        config.raw("mlp_layer_types", "moe_layer_freq")  # says that it is missing
    return (False,) * n_layer


def read_moe(config: Config, kv: KeyValues, n_layer: int) -> Moe:
    """Check the MoE fields and set their keys."""
    layers = _moe_layers(config, n_layer)
    if not any(layers):
        return Moe(layers)
    n_expert = config.integer("n_routed_experts", "num_local_experts", high=65536)
    n_used = config.integer("num_experts_per_tok")
    n_ff = config.integer("moe_intermediate_size")
    n_shared = config.integer("n_shared_experts", default=0, low=0)
    n_ff_shared = config.integer("moe_shared_expert_intermediate_size", default=n_ff * n_shared) if n_shared else 0
    n_group = config.integer("n_group", default=1)
    n_group_used = config.integer("topk_group", default=1)
    if n_expert % n_group:
        raise mismatch(config.place("n_group"), n_group, f"a divisor of n_routed_experts ({n_expert})")
    if n_group_used > n_group:
        raise mismatch(config.place("topk_group"), n_group_used, f"at most n_group ({n_group})")
    n_choice = n_expert // n_group * n_group_used
    if n_used > n_choice:
        raise mismatch(config.place("num_experts_per_tok"), n_used, f"at most the {n_choice} experts of the selected groups")
    config.forbid("topk_method", ("noaux_tc", "greedy") if n_group == 1 else ("noaux_tc",), "other routing is not supported")
    kv.set(keys.EXPERT_COUNT, n_expert)
    kv.set(keys.EXPERT_USED_COUNT, n_used)
    kv.set(keys.EXPERT_FEED_FORWARD_LENGTH, n_ff)
    if n_shared:
        kv.set(keys.EXPERT_SHARED_COUNT, n_shared)
        kv.set(keys.EXPERT_SHARED_FEED_FORWARD_LENGTH, n_ff_shared)
    kv.set(keys.EXPERT_GATING_FUNC, keys.GATING_FUNC[config.choice("scoring_func", options=("sigmoid", "softmax"), default="sigmoid")])
    kv.set(keys.EXPERT_WEIGHTS_NORM, config.flag("norm_topk_prob", default=True))
    kv.set(keys.EXPERT_WEIGHTS_SCALE, config.number("routed_scaling_factor", default=1.0))
    if n_group > 1:
        kv.set(keys.EXPERT_GROUP_COUNT, n_group)
        kv.set(keys.EXPERT_GROUP_USED_COUNT, n_group_used)
    return Moe(layers, n_expert, n_ff, n_shared, n_ff_shared)


def bind_ffn(b: Binder, il: int, s: Sizes, moe: Moe) -> None:
    """The feed-forward part of a layer: dense, or router, experts and shared experts."""
    if not moe.layers[il]:
        bind_mlp(b, il, s.n_embd, s.n_ff)
        return
    b.add_layer(il, "mlp.gate.weight", (moe.n_expert, s.n_embd))
    b.add_layer(il, "mlp.gate.e_score_correction_bias", (moe.n_expert,), optional=True)
    b.add_experts(il, moe.n_expert, moe.n_ff, s.n_embd)
    if moe.n_shared:
        bind_mlp(b, il, s.n_embd, moe.n_ff_shared, "mlp.shared_experts.")
