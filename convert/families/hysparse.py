"""HySparse: config.json of SPEC section 6, the hub's MiMo-V2 field names and PaddleFleet's, to the keys and tensors of docs/gguf.md."""
from __future__ import annotations

from dataclasses import dataclass

from .. import keys
from ..bind import Binder
from ..config import Config
from ..errors import ConvertError, mismatch
from ..keys import KeyValues
from ..rope import LAYER_TYPES, rope_of
from ..tensor_map import layer_sources
from .common import Sizes, bind_biases, bind_embeddings, bind_ffn, bind_norms, bind_rope, read_moe, read_sizes, set_size_keys
from .options import Options

FULL, SPARSE, SLIDING = LAYER_TYPES
SUFFIX = {FULL: "", SPARSE: "_sparse", SLIDING: "_swa"}


@dataclass(frozen=True)
class Attention:
    """The attention of all layers. Heads and dims are of one layer type; `oracle[il]` is the full layer that layer il reads, or -1."""

    types: tuple[str, ...]
    oracle: tuple[int, ...]
    n_head: dict[str, int]
    n_head_kv: dict[str, int]
    head_dim: dict[str, int]
    v_head_dim: dict[str, int]
    qk_norm: bool
    bias: bool | None
    gate: str
    sinks: dict[str, bool]
    sparse_sinks: bool


def _layer_types(config: Config, n_layer: int) -> tuple[str, ...]:
    """`layer_types`, or from the hub's hybrid_layer_pattern or PaddleFleet's window_attn_skip_freq (0: full, else window + sparse)."""
    if config.has("layer_types"):
        types = config.items("layer_types", length=n_layer)
        for il, kind in enumerate(types):
            if kind not in LAYER_TYPES:
                raise mismatch(config.place(f"layer_types[{il}]"), repr(kind), "one of " + ", ".join(LAYER_TYPES))
        return tuple(types)
    name, value = config.raw("layer_types", "hybrid_layer_pattern", "window_attn_skip_freq")
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise mismatch(config.place(name), value, "at least 1")
        flags = [int(il % value != 0) for il in range(n_layer)]  # layer 0 is full: the sparse layers below it need its selection
    else:
        extra = config.integer("num_nextn_predict_layers", default=0, low=0) if isinstance(value, list) and len(value) > n_layer else 0
        flags = config.items(name, length=n_layer + extra)[:n_layer]
    for il, flag in enumerate(flags):
        if flag not in (0, 1):
            raise mismatch(config.place(f"{name}[{il}]"), repr(flag), "0 (full attention) or 1")
    windowed = SPARSE if config.has("sparse_block_size", "hy_sparse_block_size", "enable_hy_sparse_attention") else SLIDING
    return tuple(windowed if flag else FULL for flag in flags)


def _oracles(config: Config, types: tuple[str, ...]) -> tuple[int, ...]:
    """The nearest full layer above each sparse layer; -1 for the other kinds."""
    full, out = -1, []
    for il, kind in enumerate(types):
        if kind == FULL:
            full = il
        elif kind == SPARSE and full < 0:
            raise mismatch(config.place(f"layer_types[{il}]"), repr(kind),
                           f"'{FULL}': a sparse layer needs a full layer above it, so the first must be full")
        out.append(full if kind == SPARSE else -1)
    return tuple(out)


def _flag_or_presence(config: Config, b: Binder, names: tuple[str, ...], layers: list[int], tensor: str) -> bool:
    """The config's flag; where it is silent, whether the first such layer has the tensor (finish() then wants it in all of them)."""
    flag = config.optional_flag(*names)
    return flag if flag is not None else bool(layers) and b.has_layer(layers[0], tensor)


def _gate(config: Config, b: Binder, s: Sizes, v_head_dim: int, sparse: list[int]) -> str:
    """Gate kind: attention_gate, PaddleFleet's gated_attention (per channel), or the shape of the stored gate."""
    if config.has("attention_gate"):
        return config.choice("attention_gate", options=("head", "channel"))
    if config.has("gated_attention"):
        return "channel" if config.flag("gated_attention") else "none"
    if not sparse or "attention_gate" in config.data:  # null: no gate
        return "none"
    stored = b.find(*layer_sources("self_attn.sparse_gate_proj.weight", sparse[0]))
    if stored is None:
        return "none"
    rows = {s.n_head: "head", s.n_head * v_head_dim: "channel"}
    if stored.n_rows not in rows:
        expected = f"{s.n_head} (a gate per head) or {s.n_head * v_head_dim} (per channel)"
        raise mismatch(f"tensor {stored.name}: rows", stored.n_rows, expected)
    return rows[stored.n_rows]


def _attention(config: Config, b: Binder, s: Sizes) -> Attention:
    types = _layer_types(config, s.n_layer)
    layers = {kind: [il for il, t in enumerate(types) if t == kind] for kind in LAYER_TYPES}
    v_head_dim = config.integer("v_head_dim", default=s.head_dim, high=65536)
    swa_heads = config.integer("swa_num_attention_heads", default=s.n_head, high=65536)
    swa_kv = config.integer("swa_num_key_value_heads", default=s.n_head_kv, high=65536)
    swa_dim = config.integer("swa_head_dim", default=s.head_dim, high=65536)
    swa_v_dim = config.integer("swa_v_head_dim", default=v_head_dim, high=65536)
    if swa_heads % swa_kv:
        raise mismatch(config.place("swa_num_key_value_heads"), swa_kv, f"a divisor of the {swa_heads} query heads")
    n_head = {FULL: s.n_head, SPARSE: s.n_head, SLIDING: swa_heads}
    if layers[SPARSE]:
        if s.n_head % swa_kv:
            raise mismatch(config.place("swa_num_key_value_heads"), swa_kv, f"a divisor of num_attention_heads ({s.n_head})")
        # With sliding layers in the model, swa_* dims are theirs; without, they are the sparse layers', whose query serves both branches.
        if not layers[SLIDING]:
            for name, found, expected in (("swa_head_dim", swa_dim, s.head_dim), ("swa_v_head_dim", swa_v_dim, v_head_dim),
                                          ("swa_num_attention_heads", swa_heads, s.n_head)):
                if found != expected:
                    raise mismatch(config.place(name), found, f"{expected}: a sparse layer's query serves both branches")
    swa_sinks = _flag_or_presence(config, b, ("add_swa_attention_sink_bias",), layers[SPARSE] + layers[SLIDING], "self_attn.sinks")
    return Attention(
        types=types, oracle=_oracles(config, types), n_head=n_head,
        n_head_kv={FULL: s.n_head_kv, SPARSE: swa_kv, SLIDING: swa_kv},
        head_dim={FULL: s.head_dim, SPARSE: s.head_dim, SLIDING: swa_dim},
        v_head_dim={FULL: v_head_dim, SPARSE: v_head_dim, SLIDING: swa_v_dim},
        qk_norm=_flag_or_presence(config, b, ("qk_norm", "use_qk_norm"), [0], "self_attn.q_norm.weight"),
        bias=config.optional_flag("attention_bias"),
        gate=_gate(config, b, s, v_head_dim, layers[SPARSE]),
        sinks={FULL: _flag_or_presence(config, b, ("add_full_attention_sink_bias",), layers[FULL], "self_attn.sinks"),
               SPARSE: swa_sinks, SLIDING: swa_sinks},
        sparse_sinks=_flag_or_presence(config, b, ("add_sparse_attention_sink_bias",), layers[SPARSE], "self_attn.sparse_sinks"),
    )


def _window(config: Config) -> int:
    """Keys that the window holds, the current token included. PaddleFleet writes the pair [left, right]."""
    name, value = config.raw("sliding_window", "sliding_window_size")
    if isinstance(value, list):
        if len(value) != 2 or not all(type(n) is int for n in value):
            raise mismatch(config.place(name), repr(value), "a size, or [left, right]")
        value = value[0]
    return Config({name: value}, config.where).integer(name)


def _set_attention_keys(config: Config, kv: KeyValues, a: Attention) -> None:
    if a.n_head[SLIDING] == a.n_head[FULL] or SLIDING not in a.types:
        kv.set(keys.HEAD_COUNT, a.n_head[FULL])
    else:
        kv.set(keys.HEAD_COUNT_PER_LAYER, [a.n_head[t] for t in a.types])
    kv.set(keys.HEAD_COUNT_KV_PER_LAYER, [a.n_head_kv[t] for t in a.types])
    kv.set(keys.KEY_LENGTH, a.head_dim[FULL])
    kv.set(keys.VALUE_LENGTH, a.v_head_dim[FULL])
    if SLIDING in a.types and (a.head_dim[SLIDING], a.v_head_dim[SLIDING]) != (a.head_dim[FULL], a.v_head_dim[FULL]):
        kv.set(keys.KEY_LENGTH_SWA, a.head_dim[SLIDING])
        kv.set(keys.VALUE_LENGTH_SWA, a.v_head_dim[SLIDING])
    if config.has("attention_value_scale"):
        kv.set(keys.VALUE_SCALE, config.number("attention_value_scale"))
    kv.set(keys.KV_SOURCE, [il if t == FULL else a.oracle[il] for il, t in enumerate(a.types)])
    kv.set(keys.SELECTION_SOURCE, list(a.oracle))
    kv.set(keys.LOCAL, [keys.LOCAL_NONE if t == FULL else keys.LOCAL_BRANCH for t in a.types])
    kv.set(keys.GATE, keys.GATE_KIND[a.gate])
    if SPARSE in a.types or SLIDING in a.types:
        kv.set(keys.SLIDING_WINDOW, _window(config))
    if SPARSE in a.types:
        block = config.integer("sparse_block_size", "hy_sparse_block_size", high=65536)
        if config.has("sparse_topk_tokens"):
            tokens = config.integer("sparse_topk_tokens")
            if tokens % block:
                raise mismatch(config.place("sparse_topk_tokens"), tokens, f"a multiple of sparse_block_size ({block})")
            top_k = tokens // block
        else:
            top_k = config.integer("sparse_topk_tokens", "hy_sparse_topk")  # PaddleFleet's count is in blocks
        kv.set(keys.SPARSE_BLOCK_SIZE, block)
        kv.set(keys.SPARSE_TOP_K_BLOCKS, top_k)


def _bind_ropes(config: Config, b: Binder, kv: KeyValues, a: Attention) -> None:
    """RoPE of the full layers, and of the other kinds where it differs."""
    full = rope_of(config, FULL, a.head_dim[FULL])
    bind_rope(kv, b, full)
    for kind, field in ((SPARSE, "rope_theta"), (SLIDING, "swa_rope_theta")):
        if kind in a.types:
            rope = rope_of(config, kind, a.head_dim[kind], theta_field=field)
            if rope != full:
                bind_rope(kv, b, rope, SUFFIX[kind])


def _bind_attention(config: Config, b: Binder, il: int, s: Sizes, a: Attention) -> None:
    kind = a.types[il]
    n_head, d_qk, d_v = a.n_head[kind], a.head_dim[kind], a.v_head_dim[kind]
    rows = {"q_proj": n_head * d_qk, "k_proj": a.n_head_kv[kind] * d_qk, "v_proj": a.n_head_kv[kind] * d_v}
    for name, n in rows.items():
        b.add_layer(il, f"self_attn.{name}.weight", (n, s.n_embd))
    b.add_layer(il, "self_attn.o_proj.weight", (s.n_embd, n_head * d_v))
    bind_biases(config, b, il, {**rows, "o_proj": s.n_embd}, required=a.bias)
    if a.qk_norm:
        b.add_layer(il, "self_attn.q_norm.weight", (d_qk,))
        b.add_layer(il, "self_attn.k_norm.weight", (d_qk,))
    if a.sinks[kind]:
        b.add_layer(il, "self_attn.sinks", (n_head,))
    if kind == SPARSE:
        if a.sparse_sinks:
            b.add_layer(il, "self_attn.sparse_sinks", (n_head,))
        if a.gate != "none":
            n_gate = n_head if a.gate == "head" else n_head * d_v
            b.add_layer(il, "self_attn.sparse_gate_proj.weight", (n_gate, s.n_embd))
            b.add_layer(il, "self_attn.swa_gate_proj.weight", (n_gate, s.n_embd))


def build(config: Config, b: Binder, kv: KeyValues, options: Options) -> None:
    """Keys and tensors of a HySparse model."""
    del options
    if config.data.get("multi_latent_attention") or config.has("kv_lora_rank"):
        raise ConvertError(f"{config.place('multi_latent_attention')}: found PaddleFleet's MLA variant, expected the GQA form of the paper")
    s = read_sizes(config)
    a = _attention(config, b, s)
    set_size_keys(kv, config, s)
    _set_attention_keys(config, kv, a)
    moe = read_moe(config, kv, s.n_layer)
    kv.set(keys.EXPERT_LAYERS, [int(is_moe) for is_moe in moe.layers])
    _bind_ropes(config, b, kv, a)
    bind_embeddings(config, b, s)
    for il in range(s.n_layer):
        bind_norms(b, il, s)
        _bind_attention(config, b, il, s, a)
        bind_ffn(b, il, s, moe)
